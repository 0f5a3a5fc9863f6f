"""Early answers: each equals a run that really ends there, the overhead is counted by hand, and what never stops is the
static network."""

from __future__ import annotations

import json

import pytest
import torch
from micro import GLUE, micro, only, write_sst2
from naive import Accumulate
from students import C, D, H, L, make, prune, sentences

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.config.tasks import get_task
from spikeprune.cost.energy import PRICES
from spikeprune.cost.operations import count
from spikeprune.cost.shapes import Shape
from spikeprune.experiment import pipeline
from spikeprune.experiment.early_exit import BOUNDS, EveryExit, dynamic, layer_by_layer, never
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.models.compaction import compact
from spikeprune.snn.coding import CODINGS
from spikeprune.snn.early_exit import until_settled
from spikeprune.snn.neurons import NEURONS

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
    """With answers that are less than certain."""
    student.classifier.weight.data *= 0.3
    student.classifier.bias.data.zero_()
    return student


def work(student, batch):
    """Operations of a plain run."""
    masks = {"heads": student.heads, "ffn": student.ffn, "t_steps": student.steps}
    counts = student(**batch, mode="spiking", count=True).counts
    return count(counts, batch["attention_mask"].sum(1), shape=shape_of(student), coding=student.coding, **masks)


# -------------------------------------------------------------------------------------------------- synchronous codings


@pytest.mark.parametrize(("bound", "logit", "stop"), [(0.99, 4.595118999481201, 2), (0.7, 0.8472979068756104, 1)])
def test_no_confidence_passes_its_bound_by_rounding(bound, logit, stop) -> None:
    """In float32 these probabilities, 0.98999999 and 0.70000001, are on the other side of their bounds."""
    run = object.__new__(EveryExit)
    run.logits = torch.tensor([[[logit, 0.0]], [[9.0, 0.0]]])  # [T, B, C]
    run.change, run.last, run.full = torch.full((2, 1), torch.inf), 2, 2
    assert run.stops("confidence", bound).tolist() == [stop]


@pytest.mark.parametrize("coding", SYNCHRONOUS)
@pytest.mark.parametrize("rule", ["asr", "confidence"])
@pytest.mark.parametrize(("leak", "pooling", "steps"), [(1.0, "mean", (6, 6, 6)), (0.7, "cls", (4, 7, 5))])
@torch.no_grad()
def test_an_early_answer_is_that_of_a_run_of_so_many_steps(coding, rule, leak, pooling, steps) -> None:
    student = unsure(prune(make(3, steps, coding=coding, leak=leak, pooling=pooling)))
    batch, taken = sentences((8, 5, 2, 7, 3, 6)), set()
    run = EveryExit(student, batch, shape_of(student))
    seen = run.change[1:] if rule == "asr" else run.logits.softmax(-1).amax(-1)
    for bound in seen.quantile(torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=F64)).tolist():
        stops = run.stops(rule, bound)
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
def test_the_rules_by_their_definitions(coding) -> None:
    """Against answers and rates of runs that are one step longer each."""
    student, batch = unsure(make(5, (6, 6, 6), coding=coding)), sentences()
    run, tokens = EveryExit(student, batch, shape_of(student)), batch["attention_mask"][..., None]
    logits, rates = [], []
    for t in range(1, 7):
        student.set_t_steps(t)
        outputs = student(**batch, mode="spiking")
        logits.append(outputs.logits)
        rates.append(outputs.hidden[-1] / student.layers[-1].output_neurons.theta)
    for b in range(3):
        sure = [answer.softmax(-1)[b].max() > 0.5 for answer in logits]
        n = tokens[b].sum() * D
        still = [((rates[t] - rates[t - 1]).abs() * tokens)[b].sum() / n < 0.15 for t in range(1, 6)]
        assert run.stops("confidence", 0.5)[b] == (sure[:5].index(True) + 1 if any(sure[:5]) else 6)
        assert run.stops("asr", 0.15)[b] == (still[:4].index(True) + 2 if any(still[:4]) else 6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_the_overhead_by_hand(pooling) -> None:
    """Lengths 8, 5, 2 and a last layer of five steps; stops after 1 and 4, and never."""
    student, batch = make(0, (5, 5, 5), coding="running_mean", pooling=pooling), sentences()
    run = EveryExit(student, batch, shape_of(student))
    stops = torch.tensor([1, 4, 5])
    confidence = run.overhead("confidence", stops)
    # asked 1, 4 and 4 times; the first two have their answer from the last of these, the third gives one more
    assert confidence.mac.tolist() == [0] * (L + 1) + [(0 + 3 + 4) * D * C]
    assert confidence.elementwise.tolist() == [0] * (L + 1) + [9 * C + (7 * D if pooling == "cls" else 0)]
    assert confidence.ac.sum() == 0
    rates = run.overhead("asr", stops)
    tokens = (0, 5, 2) if pooling == "mean" else (0, 1, 1)
    assert rates.ac.tolist() == [0] * (L + 1) + [3 * D * 3 * (tokens[1] + tokens[2])]  # from step 2 on: 0, 3, 3 times
    assert rates.mac.sum() == rates.elementwise.sum() == 0
    leaky = make(0, (5, 5, 5), coding="running_mean", pooling=pooling, leak=0.5)
    rates = EveryExit(leaky, batch, shape_of(leaky)).overhead("asr", stops)
    assert (rates.ac.sum(), rates.mac.sum()) == (2 * D * 3 * sum(tokens), D * 3 * sum(tokens))


# ---------------------------------------------------------------------------------------------------------- accumulate


def test_a_train_that_settles_by_hand() -> None:
    """Two samples of two tokens, one of them padding in the second; one channel, theta 1, ternary.

    Currents 3/8 and 5/8: spikes 0 1 0 1 0 and 1 0 1 1 0; rates 0 1/2 1/3 1/2 2/5 and 1 1/2 2/3 3/4 3/5; mean changes
    1/2, 1/6, 1/8, 1/8. Current 1/4: spikes 0 1 0 0 0 (u 1/4, 1/2 fires, -1/4, 0, 1/4); rates 0 1/2 1/3 1/4 1/5, changes
    1/2, 1/6, 1/12, 1/20.
    """
    x = torch.tensor([[[0.375], [0.625]], [[0.25], [9.0]]], dtype=F64)
    tokens = torch.tensor([[True, True], [True, False]])
    how = {"neuron": NEURONS["ternary"], "leak": 1.0, "tokens": tokens, "alive": None}
    one = torch.ones(1, dtype=F64)
    found = until_settled(x, one, 5, bound=0.13, **how)
    assert found.stops.tolist() == [4, 4]
    assert found.a[..., 0].tolist() == [[1 / 2, 3 / 4], [1 / 4, 1]]
    found = until_settled(x, one, 5, bound=0.1, **how)
    assert found.stops.tolist() == [5, 4]
    assert found.a[0, :, 0].tolist() == [2 / 5, 3 / 5] and found.a[1, 0, 0] == 1 / 4
    assert found.counts[..., 0].tolist() == [[1, 0], [1, 1], [1, 0], [2, 0], [0, 0]]
    assert found.first[..., 0].tolist() == [[0, 0], [1, 1], [0, 0], [1, 0], [0, 0]]
    assert until_settled(x, one, 5, bound=1.0, **how).stops.tolist() == [2, 2]  # one rate has no change
    alive = torch.zeros(1, dtype=F64)
    assert until_settled(x, one, 5, bound=0.01, **{**how, "alive": alive}).stops.tolist() == [2, 2]


class Settling(Accumulate):
    """One sentence without padding; each site ends where its rates have settled."""

    def __init__(self, *args, bound: float, **options):
        super().__init__(*args, **options)
        self.bound, self.stops = bound, {}

    def site(self, name, x, t_steps, mask=1.0):
        u, theta, total, norm = self.rest(name, x), self.theta(name), torch.zeros_like(x), 0.0
        read = torch.ones_like(x)
        if name.endswith(("query", "key", "value", "context")):
            read = read * self.w["heads"][int(name.split(".")[1])].repeat_interleave(self.head_size)
        elif name.endswith("intermediate"):
            read = read * mask
        for t in range(1, t_steps + 1):
            before = total / norm if t > 1 else None
            s, u = self.fire(u, x, theta)
            total, norm = self.leak * total + s, self.leak * norm + 1
            if 1 < t < t_steps and ((total / norm - before).abs() * read).sum() / read.sum() < self.bound:
                break
        self.stops[name] = t
        return theta * total / norm * mask


@pytest.mark.parametrize("leak", [1.0, 0.7])
@pytest.mark.parametrize("query", ["real", "spiking"])
@torch.no_grad()
def test_accumulate_ends_site_by_site_and_sample_by_sample(leak, query) -> None:
    student, batch = prune(make(4, (6, 8, 5), leak=leak, query=query)), sentences((8, 5, 2, 6))
    ended = layer_by_layer(student, batch, shape_of(student), 0.12)
    outputs, different = student(**batch, mode="spiking", settled=0.12), set()
    for b in range(4):
        net = Settling(student, one(batch, b), spikes="ternary", leak=leak, bound=0.12)
        torch.testing.assert_close(ended.logits[b], net.run()[0][0])
        stops = {name: int(taken[b]) for name, taken in outputs.stops.items()}
        assert stops == net.stops
        turns = [0.0, 0.0]
        for i in range(L):
            side = max(t for name, t in stops.items() if name in {f"layers.{i}.{s}" for s in ("query", "key", "value")})
            others = ("context", "attention", "intermediate", "output")
            turns[i] = side + sum(stops[f"layers.{i}.{name}"] for name in others)
        assert ended.steps[b].tolist() == pytest.approx([stops["embedding"], turns[0] / 5, turns[1] / 5])
        assert ended.latency[b, 1] == stops["embedding"] + sum(turns)
        different.add(tuple(stops.values()))
    assert len(different) > 1 and 0 < ended.early.sum()


@torch.no_grad()
def test_the_overhead_of_accumulate_by_hand() -> None:
    """A bound that all pass at once: asked once at each site of three steps or more, of what is kept."""
    student, batch = prune(make(4, (3, 2, 6))), sentences()
    ended = layer_by_layer(student, batch, shape_of(student), 0.999)
    stops = student(**batch, mode="spiking", settled=0.999).stops
    assert {int(t) for taken in stops.values() for t in taken} == {2}
    tokens, neurons = 8 + 5 + 2, int(student.ffn[1].sum())
    heads = D - D // H  # one of three heads is gone
    wanted = [D, 0, 3 * heads + 2 * D + neurons, 0]  # k, v, c; h, a'; f. The first layer has no step between
    assert ended.overhead.ac.tolist() == [3 * tokens * width for width in wanted]
    assert ended.overhead.mac.sum() == ended.overhead.elementwise.sum() == 0


@pytest.mark.parametrize("bound", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("spikes", NEURONS)
@torch.no_grad()
def test_a_compacted_student_stops_where_the_masked_one_does(bound, spikes) -> None:
    student, batch = prune(make(6, (6, 8, 5), spikes=spikes)), sentences()
    masked, small = (s(**batch, mode="spiking", settled=bound) for s in (student, compact(student)))
    torch.testing.assert_close(small.logits, masked.logits)
    assert all(torch.equal(small.stops[name], taken) for name, taken in masked.stops.items())


# ------------------------------------------------------------------------------------------------------------- together


def play(student, **how):
    batches = [{**sentences(lengths, seed), "labels": torch.arange(len(lengths)) % C} for lengths, seed in PARTS]
    task = get_task("mnli")
    return dynamic(student, lambda: batches, task=task, shape=shape_of(student), prices=PRICES["fp32"], **how)


PARTS = (((8, 5, 6), 1), ((4, 7), 2))


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bound_that_none_passes_is_the_static_network(coding) -> None:
    student = prune(make(2, (4, 6, 5), coding=coding))
    rules = ["asr"] if coding == "accumulate" else ["asr", "confidence"]
    for rule in rules:
        off, nobody = (0.0, 1e-9) if rule == "asr" else (1.0, 1 - 1e-12)
        found = play(student, rule=rule, bounds=[off, nobody])
        static, (first, second) = found["static"], found["bounds"]
        assert never(rule, off) and not never(rule, nobody)
        for row in (first, second):
            assert row["metrics"] == static["metrics"] and row["t_steps"] == static["t_steps"] == student.steps
            assert row["early"] == 0 and row["cost"]["latency_steps"] == static["cost"]["latency_steps"]
            for kind in KINDS:
                assert row["cost"][kind] - row["overhead"][kind] == pytest.approx(static["cost"][kind], abs=1e-9)
        assert first["cost"] == static["cost"] and first["energy_saving"] == 1
        assert set(first["overhead"].values()) == {0} and second["overhead"]["energy_pj"] > 0
        last = {key: value for key, value in static.items() if key not in ("early", "overhead")}
        assert found["curve"][-1] == {"steps": max(student.steps), **last}
    batch = sentences()
    with torch.no_grad():
        plain = student(**batch, mode="spiking").logits
        if coding == "accumulate":
            ended = layer_by_layer(student, batch, shape_of(student), 1e-9)
        else:
            run = EveryExit(student, batch, shape_of(student))
            ended = run.ended(run.stops("asr", 1e-9))
    assert torch.equal(ended.logits, plain)


@pytest.mark.parametrize("coding", CODINGS)
def test_the_curve_is_made_of_shorter_runs(coding) -> None:
    student = make(2, (4, 6, 5), coding=coding)
    curve = play(student, rule="asr", bounds=[0.2])["curve"]
    assert student.steps == [4, 6, 5] and not student.training
    for t in (1, 3, 5):
        student.set_t_steps([min(t, own) for own in (4, 6, 5)])
        again = play(student, rule="asr", bounds=[0.0])["static"]
        row = curve[t - 1]
        assert row == {"steps": t, **{key: again[key] for key in row if key != "steps"}}
        student.set_t_steps([4, 6, 5])


def test_stopping_earlier_saves_more_and_the_overhead_is_part_of_the_bill() -> None:
    student = unsure(make(2, (8, 8, 8), coding="running_mean"))
    found = play(student, rule="confidence", bounds=[0.35, 0.4, 0.45, 0.5])
    rows, static = found["bounds"], found["static"]["cost"]["energy_pj"]
    values = [row["mean_steps"] for row in rows]
    assert values == sorted(values) and values[0] < values[-1]
    for row in rows:
        assert row["energy_saving"] == static / row["cost"]["energy_pj"]
        assert row["overhead"]["mac"] * 4.6 + row["overhead"]["ac"] * 0.9 == pytest.approx(row["overhead"]["energy_pj"])


def test_confidence_where_there_is_none() -> None:
    for student in (make(), make(coding="per_step")):
        with pytest.raises(ValueError, match="use the rule asr"):
            task = get_task("stsb" if student.coding == "per_step" else "mnli")
            dynamic(student, list, task=task, shape=shape_of(student), prices=PRICES["fp32"], rule="confidence")


# ------------------------------------------------------------------------------------------------- on the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    """Teacher and one distilled epoch, after which early answers are measured too."""
    folder = tmp_path_factory.mktemp("runs")
    stages = [*only("teacher", "internal_kd"), "stages.internal_kd.epochs=1", "stages.temporal.t_steps=null"]
    whole = ["stages.spatial.heads=1.0", "stages.spatial.ffn=1.0", "cost.early_exit=asr"]
    pipeline.run(load(GLUE, [*micro(folder / "sst2", write_sst2(folder / "glue")), *stages, *whole]))
    return RunDirectory(folder / "sst2")


@pytest.mark.filterwarnings("ignore")
def test_the_command_measures_early_answers(run, capsys) -> None:
    record = run.record("internal_kd")
    static, stopped = record["dynamic"]["static"], record["dynamic"]["bounds"][0]
    assert static["metrics"] == record["metrics"]
    for kind in ("ac", "mac", "elementwise", "energy_pj", "latency_steps", "bytes"):
        assert static["cost"][kind] == record["cost"][kind], kind
    assert stopped["mean_steps"] < 4 and stopped["overhead"]["ac"] > 0
    options = ["student.coding=running_mean", "cost.early_exit=confidence", "--json"]
    assert cli.main(["evaluate", str(run.path), "--stage", "internal_kd", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["changed"] == options[:2] and found["cost"]["latency_steps"] == 4
    assert [row["bound"] for row in found["dynamic"]["bounds"]] == list(BOUNDS["confidence"])
    assert found["dynamic"]["static"]["cost"]["energy_pj"] == found["cost"]["energy_pj"]
    assert [row["steps"] for row in found["dynamic"]["curve"]] == [1, 2, 3, 4]
    assert cli.main(["evaluate", str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert "asr < 0.2" in printed and "at most 4 steps" in printed and "never" in printed
    assert cli.main(["evaluate", str(run.path), "cost.early_exit=none"]) == 0
    assert "asr <" not in capsys.readouterr().out


def test_the_teacher_has_no_early_answers(run, capsys) -> None:
    assert cli.main(["evaluate", str(run.path), "--stage", "teacher", "cost.early_exit=asr"]) == 2
    said = "error: cost.early_exit=asr: the teacher does not spike; name a stage of the student\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cost.early_exit=confidence", "cost.early_exit = confidence: the coding accumulate has one output, at"),
        ("cost.early_exit=rate", "cost.early_exit = rate: choose from"),
        ("time.early_exti=asr", "time.early_exti: unknown key (did you mean cost.early_exit"),
        ("seed=3", "seed: is fixed by the run; here may change "),
    ],
)
def test_what_is_refused(run, override, message, capsys) -> None:
    assert cli.main(["evaluate", str(run.path), override]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
