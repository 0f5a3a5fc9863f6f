"""A compacted student against the masked one it was made from: answers, gradients, costs, sizes, and on the disk."""

from __future__ import annotations

import contextlib
import io
import json
import warnings

import pytest
import safetensors.torch
import torch
from micro import GLUE, micro, only, write_sst2
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.cost.activity import activity
from spikeprune.cost.operations import count
from spikeprune.cost.shapes import Shape, parameters
from spikeprune.errors import InputError
from spikeprune.experiment import checkpoints, compaction, evaluation, pipeline
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.files.atomic import write_sealed
from spikeprune.models.compaction import compact
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.quantization import QUANTIZERS
from spikeprune.models.serialization import nbytes
from spikeprune.snn.coding import CODINGS
from spikeprune.snn.neurons import NEURONS

D, H, F, N, L, C, VOCAB = 12, 3, 37, 8, 3, 3, 23


def make(t_steps=(3, 4, 1, 2), dtype=torch.float64, seed: int = 0, **options) -> SpikingBert:
    """A student that fires, with unequal layers: 2, 0 and 3 heads, 30, 8 and 0 neurons left of 3 and 37."""
    torch.manual_seed(seed)
    size = {"vocab": VOCAB, "positions": N, "segments": 2, "hidden": D, "layers": L, "heads": H, "ffn": F, "classes": C}
    student = SpikingBert(**size, t_steps=list(t_steps), **options).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.endswith("log_theta"):
                parameter.copy_(-0.7 + 0.3 * torch.randn_like(parameter))
            elif parameter.dim() == 2 and not name.startswith("embedding"):
                parameter.normal_(std=1.2 * parameter.shape[1] ** -0.5)
            elif "norm.weight" not in name:
                parameter.normal_()
    student.heads[0, 1] = 0
    student.heads[1] = 0
    student.ffn[0, 3:10] = 0
    student.ffn[1, 1:30] = 0
    student.ffn[2] = 0
    return student


def sentences(lengths=(8, 5, 2)) -> dict[str, torch.Tensor]:
    generator, shape = torch.Generator().manual_seed(1), (len(lengths), max(lengths))
    return {
        "input_ids": torch.randint(VOCAB, shape, generator=generator),
        "attention_mask": (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long(),
        "token_type_ids": torch.randint(2, shape, generator=generator),
    }


def shape_of(student: SpikingBert) -> Shape:
    names = ("hidden", "heads", "ffn", "layers", "classes", "positions", "pooling", "query", "theta")
    return Shape(vocab_size=VOCAB, types=2, **{name: student.values[name] for name in names})


def masks(student: SpikingBert) -> dict:
    return {"heads": student.heads, "ffn": student.ffn, "t_steps": student.steps}


KINDS = [  # theta, query, pooling: every two of their values together
    ("channel", "real", "mean"),
    ("channel", "spiking", "cls"),
    ("tensor", "real", "cls"),
    ("tensor", "spiking", "mean"),
]


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("weights", QUANTIZERS)
def test_a_quantized_student_keeps_its_outputs(weights, strength) -> None:
    """Half-way as floats, all the way packed."""
    masked, batch = make(weights=weights), sentences()
    masked.set_strength(strength)
    small = compact(masked)
    assert (small.weights, small.packed) == ((weights, True) if strength == 1 else ("float", False))
    assert "strength" not in small.state_dict()
    with torch.no_grad():
        for mode in ("equilibrium", "spiking"):
            torch.testing.assert_close(small(**batch, mode=mode).logits, masked(**batch, mode=mode).logits)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("spikes", NEURONS)
@pytest.mark.parametrize(("theta", "query", "pooling"), KINDS)
def test_outputs_costs_and_sizes_are_the_masked_students(coding, spikes, theta, query, pooling) -> None:
    options = {"coding": coding, "spikes": spikes, "theta": theta, "query": query, "pooling": pooling}
    masked, batch = make(**options), sentences()
    small, shape, lengths = compact(masked), shape_of(masked), batch["attention_mask"].sum(1)
    with torch.no_grad():
        for mode in ("equilibrium", "spiking"):
            one, other = (s(**batch, mode=mode, count=mode == "spiking") for s in (masked, small))
            torch.testing.assert_close(other.logits, one.logits)
            torch.testing.assert_close(other.hidden[-1], one.hidden[-1])
    assert (one.hidden[-1] != 0).double().mean() > 0.05  # the nets do fire
    found, wanted = (
        count(out.counts, lengths, shape=shape, coding=coding, **masks(s)) for s, out in ((small, other), (masked, one))
    )
    for kind in ("ac", "mac", "elementwise", "ac_per_step"):
        torch.testing.assert_close(getattr(found, kind), getattr(wanted, kind))
    rates, expected = (activity(out.counts, lengths, **masks(s)).rates() for s, out in ((small, other), (masked, one)))
    assert rates == pytest.approx(expected) and "layers.1.key" not in rates and "layers.2.intermediate" not in rates
    left = sum(p.numel() for p in small.parameters())
    assert left == parameters(shape=shape, heads=masked.heads, ffn=masked.ffn).total
    assert left == parameters(shape=shape, heads=small.heads, ffn=small.ffn).total
    assert left < sum(p.numel() for p in masked.parameters())


@pytest.mark.parametrize("leak", [0.7, 1.0])
def test_leaky_neurons_and_layers_of_one_step(leak) -> None:
    for coding in CODINGS:
        for t_steps in ((1, 1, 1, 1), (2, 5, 1, 3)):
            masked = make(t_steps, coding=coding, leak=leak)
            small = compact(masked)
            assert small.steps == masked.steps == list(t_steps)
            with torch.no_grad():
                for mode in ("equilibrium", "spiking"):
                    answers = [s(**sentences(), mode=mode).logits for s in (small, masked)]
                    torch.testing.assert_close(*answers)


def test_shapes_and_masks_say_what_is_left() -> None:
    masked = make(query="spiking")
    before = {name: tensor.clone() for name, tensor in masked.state_dict().items()}
    small = compact(masked)
    assert [(layer.heads, layer.ffn) for layer in small.layers] == [(2, 30), (0, 8), (3, 0)]
    assert small.heads.tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert small.heads.shape == masked.heads.shape and small.ffn.shape == masked.ffn.shape
    assert torch.equal(small.ffn.sum(1), masked.ffn.sum(1)) and small.ffn[1].tolist() == [1] * 8 + [0] * 29
    first, second, third = small.layers
    assert first.query.weight.shape == first.value.weight.shape == (8, D) and first.out.weight.shape == (D, 8)
    assert second.key.weight.shape == (0, D) and second.query_neurons.log_theta.shape == (0,)
    assert third.up.weight.shape == (0, D) and third.down.weight.shape == (D, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in masked.state_dict().items())
    assert not small.training and compact(masked.train()).training


def test_what_is_left_are_the_units_that_were_kept() -> None:
    masked = make()
    small, d = compact(masked), D // H
    one, other = masked.layers[0], small.layers[0]
    rows = [*range(d), *range(2 * d, 3 * d)]  # heads 0 and 2
    assert torch.equal(other.key.weight, one.key.weight[rows]) and torch.equal(other.value.bias, one.value.bias[rows])
    assert torch.equal(other.out.weight, one.out.weight[:, rows]) and torch.equal(other.out.bias, one.out.bias)
    assert torch.equal(other.context_neurons.log_theta, one.context_neurons.log_theta[rows])
    assert torch.equal(other.up.weight, torch.cat([one.up.weight[:3], one.up.weight[10:]]))


def test_a_whole_student_stays_what_it_is_and_a_small_one_can_shrink_again() -> None:
    whole = make()
    whole.heads.fill_(1)
    whole.ffn.fill_(1)
    same = compact(whole)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in same.state_dict().items())
    masked, small = make(), compact(make())
    masked.heads[2, 0] = masked.ffn[0, 20] = 0
    small.heads[2, 0] = small.ffn[0, 13] = 0  # seven before it have left
    again = compact(small)
    assert again.values["layer_heads"] == [2, 0, 2] and again.values["layer_ffn"] == [29, 8, 0]
    with torch.no_grad():
        torch.testing.assert_close(again(**sentences()).logits, masked(**sentences()).logits)


def test_gradients_are_those_of_what_is_left() -> None:
    masked = make()
    small, batch = compact(masked), sentences()
    for student in (masked, small):
        student(**batch).logits.square().sum().backward()
    for name, parameter in small.named_parameters():
        whole = masked.get_parameter(name).grad
        if parameter.shape == whole.shape:
            torch.testing.assert_close(parameter.grad, whole)
    torch.testing.assert_close(small.layers[0].down.weight.grad[:, 3:], masked.layers[0].down.weight.grad[:, 10:])


def test_empty_layers_give_no_warning_and_their_thresholds_stay() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = compact(make(theta="tensor"))
        with torch.no_grad():
            small(**sentences(), mode="calibrate")
    assert small.layers[1].key_neurons.log_theta.shape == (0,)


@pytest.mark.parametrize("counts", [[3, 3], [3, 3, 4], [3, -1, 3]])
def test_layers_that_cannot_be(counts) -> None:
    with pytest.raises(ValueError, match="units must be 3 numbers from 0 to 3"):
        SpikingBert(**{**make().values, "layer_heads": counts})


# ----------------------------------------------------------------------------------------------------- on the disk


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    """Teacher, two distilled epochs and one with pruning."""
    folder = tmp_path_factory.mktemp("runs")
    stages = [*only("teacher", "internal_kd", "spatial"), "stages.internal_kd.epochs=1", "stages.temporal.t_steps=null"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.run(load(GLUE, [*micro(folder / "sst2", write_sst2(folder / "glue")), *stages]))
    return RunDirectory(folder / "sst2")


@pytest.fixture(scope="module")
def compacted(run) -> tuple[RunDirectory, str]:
    """And what the command printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["compact", str(run.path)]) == 0
    return run, printed.getvalue()


def test_the_command_writes_a_model_and_its_record(compacted) -> None:
    run, printed = compacted
    record, source = json.loads((run.compact / "record.json").read_text()), run.record("spatial")
    assert record["parent"] == {"stage": "spatial", "weights": source["weights"]}
    assert (record["heads"], record["ffn"]) == (
        {"kept": source["heads"], "of": 3},
        {"kept": source["ffn"], "of": 37},
    )
    assert record["params"] == source["cost"]["params"] < record["masked_params"]
    assert record["bytes"] == (run.compact / "model.safetensors").stat().st_size < record["masked_bytes"]
    held = nbytes(safetensors.torch.load_file(run.compact / "model.safetensors"))
    assert record["tensor_bytes"] == held == source["cost"]["bytes"]  # counted as stored, to the byte
    assert record["check"]["sentences"] == 8 and record["check"]["max_difference"] < 1e-9
    assert "stage spatial" in printed and f"heads    {' '.join(map(str, source['heads']))}  of 3" in printed
    assert not [path for path in run.compact.iterdir() if path.name.startswith(".")]


def test_it_is_measured_as_the_stage_that_it_was_made_from(compacted, capsys) -> None:
    run, _ = compacted
    assert cli.main(["evaluate", str(run.path), "--compact", "--json"]) == 0
    found, source = json.loads(capsys.readouterr().out), run.record("spatial")
    assert found["stage"] == "spatial" and found["compacted"] is True
    for key in ("metrics", "main", "t_steps", "heads", "ffn"):
        assert found[key] == source[key], key
    # in float32 a current within rounding of its threshold may fire in one of the two only
    rates = found["cost"].pop("rates"), source["cost"].pop("rates")
    work = [{kind: sum(rows) for kind, rows in row["cost"].pop("work").items()} for row in (found, source)]
    assert work[0] == pytest.approx(work[1], rel=1e-3)
    assert found["cost"] == pytest.approx(source["cost"], rel=1e-3) and rates[0] == pytest.approx(rates[1], rel=1e-2)


@pytest.mark.parametrize("key", ["teacher.checkpoint", "run.start_from"])
def test_nothing_is_trained_or_quantized_from_it(key, compacted, glue, tmp_path, capsys) -> None:
    run, _ = compacted
    words = [*micro(tmp_path / "run", glue), f"{key}={run.compact}"]
    assert cli.main(["train", str(GLUE), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and str(run.compact) in said and len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_folder_alone_is_enough(compacted) -> None:
    """Configuration, weights and tokenizer lie in it."""
    run, _ = compacted
    student = AutoModelForSequenceClassification.from_pretrained(run.compact).spiking_bert
    batch = AutoTokenizer.from_pretrained(run.compact)(["the film was good"], return_tensors="pt")
    masked = checkpoints.load_student(run, "spatial").eval()
    with torch.no_grad():
        torch.testing.assert_close(student(**batch, mode="spiking").logits, masked(**batch, mode="spiking").logits)


def test_another_stage_takes_its_place(compacted, capsys) -> None:
    run, _ = compacted
    try:
        assert cli.main(["compact", str(run.path), "--stage", "internal_kd"]) == 0
        assert run.compact_record()["heads"]["kept"] == [3, 3]
        assert "params   11.2k → 11.2k" in capsys.readouterr().out
    finally:
        compaction.compact_run(run.path)


def refused(capsys, *args: str) -> str:
    assert cli.main(list(args)) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == printed.count("error: ") == 1
    return printed


def test_what_is_refused(compacted, capsys, tmp_path) -> None:
    run, _ = compacted
    path = str(run.path)
    assert "'temporal' is not finished; finished are: internal_kd" in refused(
        capsys, "compact", path, "--stage", "temporal"
    )
    assert "the teacher has nothing to compact" in refused(capsys, "compact", path, "--stage", "teacher")
    assert "holds no run" in refused(capsys, "compact", str(tmp_path))


def test_a_model_that_is_not_its_records_is_refused(compacted, tmp_path) -> None:
    run, _ = compacted
    weights, record = run.compact / "model.safetensors", run.compact / "record.json"
    before = {file: file.read_bytes() for file in (weights, record)}
    try:
        weights.write_bytes(b"other")
        with pytest.raises(InputError, match="is missing or not the file that record.json describes"):
            evaluation.evaluate(run.path, compacted=True)
        changed = json.loads(before[record])
        changed["parent"]["weights"] = "0" * 64
        write_sealed(record, changed)
        with pytest.raises(InputError, match="its stage 'spatial' has changed since"):
            evaluation.evaluate(run.path, compacted=True)
        record.unlink()
        with pytest.raises(InputError, match="holds no compacted model"):
            evaluation.evaluate(run.path, compacted=True)
    finally:
        for file, data in before.items():
            file.write_bytes(data)


def test_a_wrong_compaction_writes_nothing(compacted, monkeypatch) -> None:
    run, _ = compacted
    before = (run.compact / "record.json").read_bytes()

    def wrong(student: SpikingBert) -> SpikingBert:
        small = compact(student)
        torch.nn.init.constant_(small.classifier.bias, 1e-3)
        return small

    monkeypatch.setattr(compaction, "compact", wrong)
    with pytest.raises(RuntimeError, match="compaction changed a logit by"):
        compaction.compact_run(run.path)
    assert (run.compact / "record.json").read_bytes() == before
