"""Quantizers by hand and under one contract, bytes both ways, a quantized student, a run killed while quantizing."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from micro import BATCHES, ROOT, micro, write_sst2
from test_compress import D, F, H, L, Module, batches, inputs, loss_of, make
from test_resume import start

from spikeprune import cost, evaluation
from spikeprune.callbacks.quantize import WeightQuantization
from spikeprune.callbacks.synops import SynOpsLogger
from spikeprune.compaction import compact_run
from spikeprune.compress.stats import collect
from spikeprune.models.compact import as_float, compact, nbytes, stored
from spikeprune.models.compact import load as load_compact
from spikeprune.models.matrices import codes as codes_in
from spikeprune.models.packing import pack, unpack
from spikeprune.models.quant import MATRICES, QUANTIZERS, acting, acting_weight, codes_of, weight_of
from spikeprune.models.student import Student
from spikeprune.report.table import evaluation_lines, summary_table
from spikeprune.rundir import RunDir
from spikeprune.saved import load_student
from spikeprune.size import BITS, Shape, matrix_bytes, model_bytes

every = pytest.mark.parametrize("name", QUANTIZERS)


def matrix(rows=5, columns=37, seed=0, dtype=torch.float32) -> torch.Tensor:
    """Rows of very different sizes, the last one zero."""
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    w *= torch.logspace(-3, 2, rows, dtype=dtype)[:, None]
    w[-1] = 0
    return w


def linear(w: torch.Tensor) -> torch.nn.Linear:
    made = torch.nn.Linear(w.shape[1], w.shape[0]).to(w.dtype)
    with torch.no_grad():
        made.weight.copy_(w)
    return made


# ------------------------------------------------------------------------------------------------- quantizers, by hand

W = [[0.5, -1.5, 0.0, 2.0], [0.75, -0.25, 0.25, -0.75]]


@pytest.mark.parametrize(
    ("name", "codes", "scale"),
    [
        ("binary", [[1, -1, 1, 1], [1, -1, 1, -1]], [1.0, 0.5]),
        ("ternary", [[0, -1, 0, 1], [1, 0, 0, -1]], [1.0, 0.5]),  # halves round to even, to 0 here
        ("int8", [[32, -95, 0, 127], [127, -42, 42, -127]], [2 / 127, 0.75 / 127]),
    ],
)
def test_by_hand(name, codes, scale) -> None:
    found = QUANTIZERS[name].codes(torch.tensor(W))
    assert found[0].tolist() == codes
    torch.testing.assert_close(found[1], torch.tensor(scale)[:, None])


# ------------------------------------------------------------------------------------------------------- their contract


@every
def test_levels_and_a_scale_per_output_channel(name) -> None:
    quantizer = QUANTIZERS[name]
    for dtype in (torch.float32, torch.float64):
        w = matrix(dtype=dtype)
        before = w.clone()
        codes, scale = quantizer.codes(w)
        assert torch.equal(w, before) and codes.dtype == scale.dtype == dtype
        assert codes.shape == w.shape and scale.shape == (len(w), 1) and (scale >= 0).all()
        levels = set(codes[:-1].unique().tolist())
        assert {quantizer.low, quantizer.high} <= levels <= set(range(quantizer.low, quantizer.high + 1))
        assert (0 in levels) is (name != "binary")
        assert scale[-1] == 0 and (codes * scale)[-1].eq(0).all() and codes.isfinite().all()
        for row in range(len(w)):  # no channel looks at another
            alone = quantizer.codes(w[row : row + 1])
            assert torch.equal(alone[0], codes[row : row + 1])
            torch.testing.assert_close(alone[1], scale[row : row + 1], rtol=1e-6, atol=0)
    assert quantizer.stored in BITS and quantizer.bits <= quantizer.stored


@every
def test_what_is_quantized_keeps_its_codes(name) -> None:
    """And its scale, but for ternary, whose scale is the mean over zeros too."""
    codes, scale = QUANTIZERS[name].codes(matrix()[:-1])
    again, smaller = QUANTIZERS[name].codes(codes * scale)
    assert torch.equal(codes.abs(), again.abs()) and torch.equal(codes.sign(), again.sign())
    nonzero = (codes != 0).float().mean(1, keepdim=True) if name == "ternary" else 1.0
    torch.testing.assert_close(smaller, scale * nonzero)


@every
def test_scaling_a_channel_scales_its_scale(name) -> None:
    w, factor = matrix(dtype=torch.float64)[:-1], torch.tensor([[4.0], [0.5], [1.0], [64.0]]).double()
    codes, scale = QUANTIZERS[name].codes(w)
    more = QUANTIZERS[name].codes(w * factor)
    assert torch.equal(codes, more[0]) and torch.equal(scale * factor, more[1])


def test_more_bits_are_nearer() -> None:
    w, errors = matrix(8, 300)[:-1], {}
    for name, quantizer in QUANTIZERS.items():
        codes, scale = quantizer.codes(w)
        errors[name] = ((codes * scale - w).square().sum(1) / w.square().sum(1)).mean().item()
    assert errors["int8"] < 1e-4 < errors["ternary"] < errors["binary"] < 0.5, errors


@every
def test_strength(name) -> None:
    w = matrix()
    codes, scale = QUANTIZERS[name].codes(w)
    assert acting_weight(w, name, 0.0) is w
    assert torch.equal(acting_weight(w, name, 1.0), codes * scale)
    for strength in (1e-3, 0.3, 0.5, 0.9):
        torch.testing.assert_close(acting_weight(w, name, strength), w + strength * (codes * scale - w))
    assert acting_weight(w, "float", 1.0) is w


@every
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_the_gradient_passes_straight_through(name, strength) -> None:
    w = matrix().requires_grad_()
    slope = torch.randn_like(w)
    (acting_weight(w, name, strength) * slope).sum().backward()
    assert torch.equal(w.grad, slope)


@every
def test_a_linear_map(name) -> None:
    layer, x = linear(matrix()), torch.randn(3, 2, 37)
    assert acting(layer, name, 0.0) is layer and acting(layer, "float", 0.0) is layer
    codes, scale = QUANTIZERS[name].codes(layer.weight)
    y = acting(layer, name, 1.0)(x)
    torch.testing.assert_close(y, (x @ codes.T) * scale[:, 0] + layer.bias)
    y.square().sum().backward()
    assert layer.weight.grad.abs().max() > 0 and layer.bias.grad.abs().max() > 0


# --------------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    ("name", "codes", "data"),
    [
        ("binary", [[1, -1, 1], [1, 1, 1], [-1, -1, -1]], [0b00111101, 0]),  # first code in the lowest bit
        ("ternary", [[1, -1, 0], [0, 1, -1]], [0b01010010, 0b0010]),  # code + 1, and nothing behind the last
        ("int8", [[1, -127, 0]], [1, 129, 0]),
    ],
)
def test_bytes_by_hand(name, codes, data) -> None:
    codes = torch.tensor(codes)
    assert pack(codes, name).tolist() == data
    assert torch.equal(unpack(torch.tensor(data, dtype=torch.uint8), tuple(codes.shape), name).long(), codes)


@every
@given(rows=st.integers(0, 9), columns=st.integers(0, 13), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_bytes_and_back(name, rows, columns, seed) -> None:
    quantizer = QUANTIZERS[name]
    step = 2 if name == "binary" else 1
    levels = torch.arange(quantizer.low, quantizer.high + 1, step)
    generator = torch.Generator().manual_seed(seed)
    codes = levels[torch.randint(len(levels), (rows, columns), generator=generator)].float()
    data = pack(codes, name)
    assert data.dtype == torch.uint8 and len(data) == -(-rows * columns * quantizer.stored // 8)
    assert torch.equal(unpack(data, (rows, columns), name), codes.to(torch.int8))


def test_bytes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="codes of binary weights must be -1 and 1"):
        pack(torch.tensor([[1.0, 0.0]]), "binary")
    with pytest.raises(ValueError, match="codes of ternary weights must be -1 to 1"):
        pack(torch.tensor([[2.0, 0.0]]), "ternary")
    with pytest.raises(ValueError, match="codes of ternary weights must be"):
        pack(torch.tensor([[0.5]]), "ternary")
    with pytest.raises(ValueError, match=r"3 bytes for ternary weights of shape \(5, 3\), expected 4"):
        unpack(torch.zeros(3, dtype=torch.uint8), (5, 3), "ternary")
    with pytest.raises(ValueError, match=r"unknown weights 'float'; known: binary, ternary, int8"):
        pack(torch.ones(1, 1), "float")


# ------------------------------------------------------------------------------------------------- a quantized student


def quantized(name: str, strength: float = 1.0, **options) -> Student:
    student = make(weights=name, **options)
    student.set_strength(strength)
    return student


def prune(student: Student) -> Student:
    student.heads[0, 1] = 0
    student.heads[1] = 0  # a layer without attention
    student.ffn[:, ::5] = 0
    return student


def by_hand(student: Student) -> Student:
    """A float student that stores what `student` acts with."""
    values = {name: x for name, x in student.state_dict().items() if name != "strength"}
    for i in range(len(student.layers)):
        kept = {"out": student.heads[i].repeat_interleave(D // H), "down": student.ffn[i]}
        for name in MATRICES:
            w, quantizer = values[f"layers.{i}.{name}.weight"], QUANTIZERS[student.weights]
            n = max(int(kept[name].sum()), 1) if name in kept else None
            codes, scale = quantizer.codes(w * kept[name] if name in kept else w, n)
            values[f"layers.{i}.{name}.weight"] = codes * scale
    plain = make(query="spiking" if student.query == "spiking" else "real")
    plain.load_state_dict(values)
    return plain


def answers(student: Student, mode: str = "equilibrium") -> torch.Tensor:
    with torch.no_grad():
        return student.eval()(**inputs(batches((3,))[0]), mode=mode).logits


@every
def test_strength_zero_is_the_float_student(name) -> None:
    plain, student = make(), make(weights=name)
    assert student.quantized == 0 and student.stored_bits == 32
    assert list(student.state_dict()) == [*list(plain.state_dict())[:3], "strength", *list(plain.state_dict())[3:]]
    for mode in ("equilibrium", "spiking"):
        assert torch.equal(answers(student, mode), answers(plain, mode))


@every
@pytest.mark.parametrize("query", ["real", "spiking"])
def test_strength_one_is_a_student_of_quantized_weights(name, query) -> None:
    student = prune(quantized(name, query=query))
    assert student.stored_bits == QUANTIZERS[name].stored
    for mode in ("equilibrium", "spiking"):
        assert torch.equal(answers(student, mode), answers(by_hand(student), mode))
    assert not torch.equal(answers(student), answers(prune(make(query=query))))


@every
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_simulated_is_still_the_equilibrium(name, strength) -> None:
    student = prune(quantized(name, strength))
    torch.testing.assert_close(answers(student, "spiking"), answers(student))


@every
def test_what_is_trained_is_the_full_precision_weight(name) -> None:
    student = prune(quantized(name)).train()
    plain = by_hand(student).train()
    batch = batches((3,))[0]
    for net in (student, plain):
        loss_of(batch, net(**inputs(batch))).sum().backward()
    for (key, mine), (_, theirs) in zip(student.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad), key  # straight through
    masked = student.layers[0].value.weight.grad.unflatten(0, (H, -1))[1]
    assert masked.eq(0).all() and student.layers[0].up.weight.grad[0].eq(0).all()
    assert student.layers[0].query.weight.grad.abs().max() > 0


@every
def test_state_dict_carries_it(name) -> None:
    student = prune(quantized(name, 0.25))
    other = make(5, weights=name)
    other.load_state_dict(student.state_dict())
    assert other.quantized == 0.25 and torch.equal(answers(other), answers(student))
    again = copy.deepcopy(student)
    again.set_strength(1.0)  # in place: the number is read again
    assert again.quantized == 1 and student.quantized == 0.25
    assert not torch.equal(answers(again), answers(student))


def test_a_float_student_refuses_a_quantized_checkpoint() -> None:
    with pytest.raises(RuntimeError, match='Unexpected key.*"strength"'):
        make().load_state_dict(quantized("ternary").state_dict())
    with pytest.raises(RuntimeError, match='Missing key.*"strength"'):
        make(weights="ternary").load_state_dict(make().state_dict())


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown weights 'ternery'; known:.*did you mean ternary"):
        make(weights="ternery")
    with pytest.raises(ValueError, match="a student of float weights has no strength; weights may be binary"):
        make().set_strength(1.0)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength must be from 0 to 1"):
            make(weights="int8").set_strength(strength)
        with pytest.raises(ValueError, match="strength must be from 0 to 1"):
            acting_weight(matrix(), "int8", strength)


def test_magnitude_judges_the_weights_that_act() -> None:
    stats, plain = (
        collect(net, batches((2,)), loss_of) for net in (quantized("ternary"), by_hand(quantized("ternary")))
    )
    assert torch.equal(stats.ffn_weight, plain.ffn_weight) and torch.equal(stats.head_weight, plain.head_weight)


# ------------------------------------------------------------------------------------------------------ bytes and cost

SHAPE = Shape(hidden=D, heads=H, ffn=F, layers=L, classes=3, vocab_size=23, positions=8, theta="channel")


def cut(student: Student, layer: int, name: str, w: torch.Tensor) -> torch.Tensor:
    """What masks leave of a matrix."""
    channels, neurons = student.heads[layer].repeat_interleave(D // H).bool(), student.ffn[layer].bool()
    if name in ("query", "key", "value", "up"):
        return w[neurons if name == "up" else channels]
    return w[:, neurons if name == "down" else channels]


@every
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("fold", [False, True])
def test_the_packed_encoder_is_the_one_that_acts_and_as_large_as_counted(name, pruned, fold) -> None:
    student = quantized(name, fold=fold).float()
    if pruned:
        prune(student)
    small, masks = compact(student), {"heads": student.heads, "ffn": student.ffn}
    for i in range(L):
        for key in MATRICES:
            assert torch.equal(small.acting_weight(i, key), cut(student, i, key, student.acting_weight(i, key))), key
    bits, tensors = QUANTIZERS[name].stored, stored(small)
    packed = {key: x for key, x in tensors.items() if key.endswith((".data", ".scale"))}
    assert nbytes(packed) == matrix_bytes(shape=SHAPE, **masks, bits=bits)
    assert nbytes(tensors) == model_bytes(shape=SHAPE, **masks, bits=bits)
    with pytest.raises(ValueError, match="a packed student's weights are final"):
        small.set_strength(1.0)


def test_what_is_not_compacted_is_not_stored_without_its_masks() -> None:
    small = compact(quantized("ternary"))
    small.ffn[0, 0] = 0
    for student in (small, make()):
        with pytest.raises(ValueError, match="only a compacted student is stored without"):
            stored(student)


@every
def test_scales_are_over_the_inputs_that_are_kept(name) -> None:
    """What is dead moves nothing: the scales are those of the matrix without its pruned columns."""
    student = prune(quantized(name))
    for i, key in ((0, "out"), (0, "down"), (1, "down")):
        left = cut(student, i, key, getattr(student.layers[i], key).weight)
        wanted = QUANTIZERS[name].codes(left)
        found = codes_in(student, i, key)
        assert torch.equal(cut(student, i, key, found[0]), wanted[0])
        torch.testing.assert_close(found[1], wanted[1])
    before = answers(student)
    with torch.no_grad():
        student.layers[0].down.weight[:, ::5] = 100.0
        student.layers[0].out.weight[:, D // H : 2 * D // H] = -100.0
    assert torch.equal(answers(student), before)


@every
def test_a_folded_theta_by_hand(name) -> None:
    w, sizes = matrix(4, 3, dtype=torch.float64)[:-1], torch.tensor([0.5, 0.0, 2.0]).double()
    codes, scale = codes_of(w, name, sizes)
    wanted = QUANTIZERS[name].codes(torch.stack([w[:, 0] * 0.5, w[:, 2] * 2], 1))
    assert torch.equal(codes[:, ::2], wanted[0])
    torch.testing.assert_close(scale, wanted[1])
    acts = weight_of(codes, scale, sizes)
    torch.testing.assert_close(acts[:, 0], codes[:, 0] * scale[:, 0] * 2)
    torch.testing.assert_close(acts[:, 2], codes[:, 2] * scale[:, 0] / 2)
    layer = linear(w)
    (acting(layer, name, 1.0, sizes)(torch.ones(1, 3).double())).sum().backward()
    assert layer.weight.grad.eq(1).all()  # straight through, past theta


def test_bytes_are_counted_as_stored_and_operations_as_before() -> None:
    rows = {}
    for student in (make(), quantized("ternary", 0.9), quantized("ternary")):
        counter, batch = SynOpsLogger(shape=SHAPE, prices=cost.PRICES["fp32"]), batches((3,))[0]
        with torch.no_grad():
            outputs = student.eval()(**inputs(batch), mode="spiking", count=True)
        module = SimpleNamespace(student=student, log_dict=lambda *_, **__: None)
        counter.on_validation_batch_end(None, module, outputs, batch, 0)
        counter.on_validation_epoch_end(SimpleNamespace(world_size=1), module)
        rows[student.weights, student.quantized] = counter.cost
    plain, nearly, packed = rows.values()
    assert plain["bytes"] == nearly["bytes"] == model_bytes(shape=SHAPE) > 2 * packed["bytes"]
    assert packed["bytes"] == model_bytes(shape=SHAPE, bits=2)
    assert plain["params"] == packed["params"] and packed["ac"] > 0


# ------------------------------------------------------------------------------------------------------ callback, stage


def play(callback: WeightQuantization, student: Student, epochs) -> list[float]:
    trainer, module, history = SimpleNamespace(sanity_checking=False, current_epoch=0), Module(student), []
    for trainer.current_epoch in epochs:
        callback.on_train_epoch_start(trainer, module)
        callback.on_train_epoch_end(trainer, module)
        history.append(student.quantized)
        assert module.logged == {"compress/strength": student.quantized}
    return history


def test_strength_rises_in_a_line_and_ends_at_one() -> None:
    assert play(WeightQuantization(begin=1, end=4), make(weights="ternary"), range(6)) == [0, 0.25, 0.5, 0.75, 1, 1]
    assert play(WeightQuantization(begin=0, end=0), make(weights="int8"), range(2)) == [1, 1]
    for end in range(1, 40):
        assert play(WeightQuantization(begin=0, end=end), quantized("binary", 0.1), range(end + 1))[-1] == 1


def test_a_second_stage_does_not_lower_it() -> None:
    assert play(WeightQuantization(begin=0, end=2), quantized("ternary"), range(3)) == [1, 1, 1]
    assert play(WeightQuantization(begin=0, end=1), quantized("ternary", 0.5), range(2)) == [0.75, 1]


def test_resumed_it_keeps_its_line() -> None:
    student, first, second = quantized("ternary", 0.5), *(WeightQuantization(begin=0, end=3) for _ in range(2))
    play(first, student, [0, 1])
    second.load_state_dict(first.state_dict())
    assert play(second, student, [1, 2, 3]) == [0.75, 0.875, 1]


RUN = ("teacher", "internal_kd", "spatial", "quantize", "finetune")


def overrides(folder, glue) -> list[str]:
    """Distilled, pruned, quantized over the first two of three epochs, tuned."""
    short = ["stages.teacher.epochs=2", "stages.internal_kd.epochs=1", "stages.spatial.epochs=1"]
    mine = [f"run.stages=[{','.join(RUN)}]", "compress.t_steps=null", "compress.weights=ternary"]
    return [*micro(folder, glue), *short, *mine, "stages.quantize.epochs=3", "compress.quantize.end=1.0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[RunDir, RunDir]:
    """The same run undisturbed, and killed in the first and in the second quantizing epoch."""
    folder = tmp_path_factory.mktemp("runs")
    glue, log = write_sst2(folder / "glue"), folder / "log"
    whole, legs = (overrides(folder / name, glue) for name in ("whole", "legs"))
    assert start(whole, log) == 0, log.read_text()
    legs.append("run.checkpoint_every=3")
    for step in (5, BATCHES + 3):
        assert start(legs, log, ("quantize", step)) == -signal.SIGKILL, log.read_text()
    assert start(legs, log) == 0, log.read_text()
    return RunDir(folder / "whole"), RunDir(folder / "legs")


def test_killed_while_quantizing_equals_undisturbed(runs) -> None:
    whole, legs = runs
    for name in RUN[1:]:
        mine, theirs = legs.weights(name), whole.weights(name)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine), name
    assert legs.read_metrics() == whole.read_metrics()
    strengths = [r["compress/strength"] for r in whole.read_metrics() if "compress/strength" in r]
    assert strengths == [0.5, 1, 1]


def test_a_quantized_stage_loads_in_the_next_one_and_alone(runs) -> None:
    run, _ = runs
    before, after, last = (load_student(run, name) for name in ("spatial", "quantize", "finetune"))
    assert [net.weights for net in (before, after, last)] == ["ternary"] * 3
    assert [net.quantized for net in (before, after, last)] == [0, 1, 1]
    weight = after.layers[0].up.weight
    assert not torch.equal(weight, last.layers[0].up.weight) and len(weight[0].unique()) > 3  # still full precision
    again, record = evaluation.evaluate(run.path), run.record("finetune")
    for key in ("metrics", "cost", "encoder_weights"):
        assert again[key] == record[key], key
    assert " ternary" in evaluation_lines(again).splitlines()[-2]


def test_the_summary_says_what_is_quantized(runs) -> None:
    run, _ = runs
    summary = json.loads(run.summary.read_text())
    rows = summary["stages"]
    found = rows["finetune"]["encoder_weights"]
    assert (found["kind"], found["strength"], found["stored_bits"]) == ("ternary", 1.0, 2)
    packed = stored(compact(load_student(run, "finetune")))
    assert found["bytes"] == nbytes({key: x for key, x in packed.items() if key.endswith((".data", ".scale"))})
    assert rows["finetune"]["cost"]["bytes"] == nbytes(packed)
    assert "embeddings" in found["float32"] and "classifier" in found["float32"]
    assert rows["spatial"]["encoder_weights"]["kind"] == "float"
    saved = rows["spatial"]["cost"]["bytes"] - rows["quantize"]["cost"]["bytes"]
    assert saved == rows["spatial"]["encoder_weights"]["bytes"] - found["bytes"] > 0
    assert rows["spatial"]["heads"] == rows["finetune"]["heads"] != [3, 3]
    assert "weights  ternary, packed in 2 bits: " in summary_table(summary)


def test_a_quantized_run_is_packed_on_the_disk_and_measured_the_same(runs) -> None:
    """The command, then a fresh process."""
    run, _ = runs
    made = compact_run(run.path)
    assert made["encoder"] == {"weights": "ternary", "packed": True, "bits": 2}
    assert made["tensor_bytes"] == run.record("finetune")["cost"]["bytes"] < made["bytes"] < made["tensor_bytes"] + 9000
    assert made["params"] == run.record("finetune")["cost"]["params"]
    batch = inputs(batches((3,))[0])
    ids = json.dumps({name: x.tolist() for name, x in batch.items()})
    alone = "import json, sys, torch; from spikeprune import cli; from spikeprune.models.compact import load; "
    alone += "cli.main(['evaluate', sys.argv[1], '--compact', '--json']); batch = json.loads(sys.argv[2]); "
    alone += "net, batch = load(sys.argv[1] + '/compact'), {k: torch.tensor(v) for k, v in batch.items()}; "
    alone += "print(json.dumps(net(**batch, mode='spiking').logits.tolist()))"
    command = [sys.executable, "-c", alone, str(run.path), ids]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    printed, logits = done.stdout.rstrip().rsplit("\n", 1)
    found, source = json.loads(printed), run.record("finetune")
    for key in ("metrics", "heads", "ffn", "encoder_weights"):
        assert found[key] == source[key], key
    assert found["cost"]["bytes"] == source["cost"]["bytes"] and found["cost"]["params"] == source["cost"]["params"]
    assert found["cost"]["ac"] == pytest.approx(source["cost"]["ac"], rel=1e-3)
    masked, small = load_student(run, "finetune"), load_compact(run.compact)
    one, other = (as_float(net).double().eval() for net in (masked, small))
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(json.loads(logits)), small(**batch, mode="spiking").logits)
        torch.testing.assert_close(other(**batch, mode="spiking").logits, one(**batch, mode="spiking").logits)
