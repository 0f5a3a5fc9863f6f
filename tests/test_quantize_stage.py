"""Weights that move to few bits between epochs: the callback, and a run killed while it acts."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from children import attempt, process, speak_into
from micro import BATCHES, logged, micro, only, write_sst2
from pruning import Module, batches, inputs, make

from spikeprune import cli
from spikeprune.experiment import evaluation
from spikeprune.experiment.checkpoints import load, load_compact, load_student
from spikeprune.experiment.compaction import compact_run
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.models.compaction import as_float, compact
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.serialization import nbytes, stored_tensors
from spikeprune.report.command_output import evaluation_lines
from spikeprune.report.tables import summary_table
from spikeprune.training.callbacks.quantization import WeightQuantization, strength_of


def quantized(name: str, strength: float = 1.0, **options) -> SpikingBert:
    student = make(weights=name, **options)
    student.set_strength(strength)
    return student


def play(callback: WeightQuantization, student: SpikingBert, epochs) -> list[float]:
    trainer, module, history = SimpleNamespace(sanity_checking=False, current_epoch=0), Module(student), []
    for trainer.current_epoch in epochs:
        callback.on_train_epoch_start(trainer, module)
        callback.on_train_epoch_end(trainer, module)
        history.append(strength_of(student))
        assert module.logged == {"compress/strength": strength_of(student)}
    return history


def test_strength_rises_in_a_line_and_ends_at_one() -> None:
    assert play(WeightQuantization(begin=1, end=4), make(weights="ternary"), range(6)) == [0, 0.25, 0.5, 0.75, 1, 1]
    assert play(WeightQuantization(begin=0, end=0), make(weights="int8"), range(2)) == [1, 1]
    for end in range(1, 40):
        assert play(WeightQuantization(begin=0, end=end), quantized("binary", 0.1), range(end + 1))[-1] == 1


def test_of_a_word_table_alone_too() -> None:
    student = make(word_table="int8")
    assert play(WeightQuantization(begin=0, end=3), student, range(4)) == [0.25, 0.5, 0.75, 1]
    assert student.embedding.word.final
    assert play(WeightQuantization(begin=0, end=3), student, range(4)) == [1] * 4  # a second stage does not lower it


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
    mine = [*only(*RUN), "stages.quantize.weights=ternary"]
    return [*micro(folder, glue), *short, *mine, "stages.quantize.epochs=3", "stages.quantize.end=1.0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[RunDirectory, RunDirectory]:
    """The same run undisturbed, and killed in the first and in the second quantizing epoch."""
    folder = tmp_path_factory.mktemp("runs")
    glue, log = write_sst2(folder / "glue"), folder / "log"
    whole, resumed = (overrides(folder / name, glue) for name in ("whole", "resumed"))
    assert attempt(whole, log) == 0, log.read_text()
    resumed.append("run.checkpoint_every=3")
    for step in (5, BATCHES + 3):
        assert attempt(resumed, log, ("quantize", step)) == -signal.SIGKILL, log.read_text()
    assert attempt(resumed, log) == 0, log.read_text()
    return RunDirectory(folder / "whole"), RunDirectory(folder / "resumed")


def test_killed_while_quantizing_equals_undisturbed(runs) -> None:
    whole, resumed = runs
    for name in RUN[1:]:
        mine, theirs = resumed.weights(name), whole.weights(name)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine), name
    assert logged(resumed) == logged(whole)
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
    assert re.search(r"^encoder weights +ternary$", evaluation_lines(again), re.MULTILINE)


def test_the_summary_has_the_quantized_weights(runs) -> None:
    run, _ = runs
    summary = json.loads(run.summary.read_text())
    rows = summary["stages"]
    found = rows["finetune"]["encoder_weights"]
    assert (found["kind"], found["strength"], found["stored_bits"]) == ("ternary", 1.0, 2)
    packed = stored_tensors(compact(load_student(run, "finetune")))
    assert found["bytes"] == nbytes({key: x for key, x in packed.items() if key.endswith((".data", ".scale"))})
    assert rows["finetune"]["cost"]["bytes"] == nbytes(packed)
    assert "embeddings" in found["float32"] and "classifier" in found["float32"]
    assert rows["spatial"]["encoder_weights"]["kind"] == "float"
    saved = rows["spatial"]["cost"]["bytes"] - rows["quantize"]["cost"]["bytes"]
    assert saved == rows["spatial"]["encoder_weights"]["bytes"] - found["bytes"] > 0
    assert rows["spatial"]["heads"] == rows["finetune"]["heads"] != [3, 3]
    assert "weights  ternary, packed in 2 bits: " in summary_table(summary)


def measured(run: Path, batch: dict[str, torch.Tensor], log: Path) -> None:
    """What the command says of the packed model, and its answers as JSON; in a process of its own."""
    speak_into(log)
    assert cli.main(["evaluate", str(run), "--compact", "--json"]) == 0
    print(json.dumps(load(run / "compact").spiking_bert(**batch, mode="spiking").logits.tolist()), flush=True)


def test_a_quantized_run_is_packed_on_the_disk_and_measured_the_same(runs, tmp_path) -> None:
    """The command, then another process."""
    run, _ = runs
    made = compact_run(run.path)
    assert made["encoder"] == {"weights": "ternary", "packed": True, "bits": 2}
    assert made["tensor_bytes"] == run.record("finetune")["cost"]["bytes"] < made["bytes"] < made["tensor_bytes"] + 9000
    assert made["params"] == run.record("finetune")["cost"]["params"]
    batch = inputs(batches((3,))[0])
    child = process(measured, (run.path, batch, log := tmp_path / "log"))
    child.start()
    child.join(120)
    assert child.exitcode == 0, log.read_text()
    printed, logits = log.read_text().rstrip().rsplit("\n", 1)
    found, source = json.loads(printed), run.record("finetune")
    for key in ("metrics", "heads", "ffn", "encoder_weights"):
        assert found[key] == source[key], key
    assert found["cost"]["bytes"] == source["cost"]["bytes"] and found["cost"]["params"] == source["cost"]["params"]
    assert found["cost"]["ac"] == pytest.approx(source["cost"]["ac"], rel=1e-3)
    masked, small = load_student(run, "finetune"), load_compact(run)
    one, other = (as_float(net).double().eval() for net in (masked, small))
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(json.loads(logits)), small(**batch, mode="spiking").logits)
        torch.testing.assert_close(other(**batch, mode="spiking").logits, one(**batch, mode="spiking").logits)
