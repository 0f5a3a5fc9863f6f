"""Early exit: each equals a run that really ends there, the overhead is counted by hand, and what never stops is the
static network."""

from __future__ import annotations

import json

import pytest
import torch
from micro import GLUE, micro, only, write_sst2
from students import C, D, L, make, prune, sentences

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.config.tasks import get_task
from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.cost.operations import count
from spikeprune.cost.shapes import Shape
from spikeprune.errors import InputError
from spikeprune.experiment import pipeline
from spikeprune.experiment.early_exit import BOUNDS, EveryExit, check_early_exit, dynamic
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.snn.coding import CODINGS

F64 = torch.float64
SYNCHRONOUS = [name for name, coding in CODINGS.items() if not coding.stationary]
KINDS = ("ac", "mac", "elementwise")


def shape_of(student) -> Shape:
    names = ("hidden", "heads", "ffn", "layers", "classes", "pooling", "query")
    membrane = student.values["residual"] == "membrane"
    given = {name: student.values[name] for name in names}
    return Shape(vocab_size=23, positions=16, types=2, membrane=membrane, **given)


def one(batch, b: int):
    n = int(batch["attention_mask"][b].sum())
    return {name: x[b : b + 1, :n] for name, x in batch.items()}


def unsure(student):
    """With outputs that are less than certain."""
    student.classifier.weight.data *= 0.3
    student.classifier.bias.data.zero_()
    return student


def work(student, batch):
    """Operations of a plain run."""
    masks = {"heads": student.heads, "ffn": student.ffn, "t_steps": student.steps}
    counts = student(**batch, mode="spiking", count=True).counts
    return count(counts, batch["attention_mask"].sum(1), shape=shape_of(student), coding=student.coding, **masks)


@pytest.mark.parametrize(("bound", "logit", "stop"), [(0.99, 4.595118999481201, 2), (0.7, 0.8472979068756104, 1)])
def test_no_confidence_passes_its_bound_by_rounding(bound, logit, stop) -> None:
    """In float32 these probabilities, 0.98999999 and 0.70000001, are on the other side of their bounds."""
    run = object.__new__(EveryExit)
    run.logits = torch.tensor([[[logit, 0.0]], [[9.0, 0.0]]])  # [T, B, C]
    run.last, run.full = 2, 2
    assert run.stops(bound).tolist() == [stop]


@pytest.mark.parametrize("coding", SYNCHRONOUS)
@pytest.mark.parametrize(("leak", "pooling", "steps"), [(1.0, "mean", (6, 6, 6)), (0.7, "cls", (4, 7, 5))])
@torch.no_grad()
def test_an_early_output_is_that_of_a_run_of_so_many_steps(coding, leak, pooling, steps) -> None:
    student = unsure(prune(make(3, steps, coding=coding, leak=leak, pooling=pooling)))
    batch, taken = sentences((8, 5, 2, 7, 3, 6)), set()
    run = EveryExit(student, batch)
    for bound in run.logits.softmax(-1).amax(-1).quantile(torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=F64)).tolist():
        stops = run.stops(bound)
        ended = run.ended(stops)
        total = 0
        for b, stop in enumerate(stops.tolist()):
            student.set_t_steps([min(t, stop) for t in steps])
            alone = one(batch, b)
            torch.testing.assert_close(ended.logits[b], student(**alone, mode="spiking").logits[0])
            assert ended.steps[b].tolist() == student.steps
            total = work(student, alone) + total if total else work(student, alone)
            taken.add(stop)
        student.set_t_steps(steps)
        assert all(torch.equal(getattr(ended.work, kind), getattr(total, kind)) for kind in KINDS)
        assert ended.early.tolist() == [stop < max(steps) for stop in stops.tolist()]
    assert len(taken) > 1


@pytest.mark.parametrize("coding", SYNCHRONOUS)
@torch.no_grad()
def test_the_rule_by_its_definition(coding) -> None:
    """Against the outputs of runs that are one step longer each."""
    student, batch = unsure(make(5, (6, 6, 6), coding=coding)), sentences()
    run, logits = EveryExit(student, batch), []
    for t in range(1, 7):
        student.set_t_steps(t)
        logits.append(student(**batch, mode="spiking").logits)
    for b in range(3):
        sure = [answer.softmax(-1)[b].max() > 0.5 for answer in logits[:5]]
        assert run.stops(0.5)[b] == (sure.index(True) + 1 if any(sure) else 6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_the_overhead_by_hand(pooling) -> None:
    """A last layer of five steps; stops after 1 and 4, and never: tested 1, 4 and 4 times. The first two have their
    logits from the last test, the third takes one more."""
    run = EveryExit(make(0, (5, 5, 5), coding="running_mean", pooling=pooling), sentences())
    overhead = run.overhead(torch.tensor([1, 4, 5]))
    assert overhead.mac.tolist() == [0] * (L + 1) + [(0 + 3 + 4) * D * C]
    assert overhead.elementwise.tolist() == [0] * (L + 1) + [9 * C + (7 * D if pooling == "cls" else 0)]
    assert overhead.ac.sum() == 0


# ------------------------------------------------------------------------------------------------------------- together


def play(student, **how):
    batches = [{**sentences(lengths, seed), "labels": torch.arange(len(lengths)) % C} for lengths, seed in PARTS]
    return dynamic(student, lambda: batches, task=get_task("mnli"), model=ENERGY_MODELS["convention"], **how)


PARTS = (((8, 5, 6), 1), ((4, 7), 2))


@pytest.mark.parametrize("coding", SYNCHRONOUS)
def test_a_bound_that_none_passes_is_the_static_network(coding) -> None:
    student = prune(make(2, (4, 6, 5), coding=coding))
    found = play(student, bounds=[1.0, 1 - 1e-12])
    static, (first, second) = found["static"], found["bounds"]
    for row in (first, second):
        assert row["metrics"] == static["metrics"] and row["t_steps"] == static["t_steps"] == student.steps
        assert row["early"] == 0 and row["cost"]["latency_steps"] == static["cost"]["latency_steps"] == 6
        for kind in KINDS:
            assert row["cost"][kind] - row["overhead"][kind] == pytest.approx(static["cost"][kind], abs=1e-9)
    assert first["cost"] == static["cost"] and first["energy_saving"] == 1
    assert set(first["overhead"].values()) == {0} and second["overhead"]["energy_pj"] > 0
    last = {key: value for key, value in static.items() if key not in ("early", "overhead")}
    assert found["curve"][-1] == {"steps": max(student.steps), **last}
    with torch.no_grad():
        run = EveryExit(student, sentences())
        assert torch.equal(run.ended(run.stops(1.0)).logits, student(**sentences(), mode="spiking").logits)


@pytest.mark.parametrize("coding", SYNCHRONOUS)
def test_the_curve_is_made_of_shorter_runs(coding) -> None:
    student = make(2, (4, 6, 5), coding=coding)
    curve = play(student)["curve"]
    for t in (1, 3, 5):
        student.set_t_steps([min(t, own) for own in (4, 6, 5)])
        again = play(student)["static"]
        row = curve[t - 1]
        assert row == {"steps": t, **{key: again[key] for key in row if key != "steps"}}
        student.set_t_steps([4, 6, 5])


def test_stopping_earlier_saves_more_and_the_overhead_is_part_of_the_bill() -> None:
    found = play(unsure(make(2, (8, 8, 8), coding="running_mean")), bounds=[0.35, 0.4, 0.45, 0.5])
    rows, static = found["bounds"], found["static"]["cost"]["energy_pj"]
    values = [row["mean_steps"] for row in rows]
    assert values == sorted(values) and values[0] < values[-1]
    for row in rows:
        assert row["energy_saving"] == static / row["cost"]["energy_pj"]
        assert row["overhead"]["mac"] * 4.6 == pytest.approx(row["overhead"]["energy_pj"])


# ------------------------------------------------------------------------------------------------- on the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    """Teacher and one distilled epoch."""
    folder = tmp_path_factory.mktemp("runs")
    stages = [*only("teacher", "internal_kd"), "stages.internal_kd.epochs=1", "stages.temporal.t_steps=null"]
    whole = ["stages.spatial.heads=1.0", "stages.spatial.ffn=1.0"]
    pipeline.run(load(GLUE, [*micro(folder / "sst2", write_sst2(folder / "glue")), *stages, *whole]))
    return RunDirectory(folder / "sst2")


@pytest.mark.filterwarnings("ignore")
def test_the_command_measures_early_exit(run, capsys) -> None:
    command = ["evaluate", str(run.path), "student.coding=running_mean", "--early-exit"]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    static = found["dynamic"]["static"]
    assert static["metrics"] == found["metrics"] and found["cost"]["latency_steps"] == 4
    for kind in ("ac", "mac", "elementwise", "energy_pj", "latency_steps", "bytes"):
        assert static["cost"][kind] == found["cost"][kind], kind
    assert [row["bound"] for row in found["dynamic"]["bounds"]] == list(BOUNDS)
    assert [row["steps"] for row in found["dynamic"]["curve"]] == [1, 2, 3, 4]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "confidence > 0.6" in printed and "at most 4 steps" in printed and "never" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--early-exit"], "--early-exit: the coding accumulate has one output, at the end; add student.coding=run"),
        (["--stage", "teacher", "--early-exit"], "--early-exit: the teacher does not spike; name a stage of the stu"),
        (["seed=3"], "seed: is fixed by the run; here may change "),
    ],
)
def test_what_is_refused(run, words, message, capsys) -> None:
    assert cli.main(["evaluate", str(run.path), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_regression_has_no_confidence() -> None:
    with pytest.raises(InputError, match="stsb is a regression"):
        check_early_exit(make(coding="per_step"), get_task("stsb"))
