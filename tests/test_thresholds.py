"""Which currents make a spike at all: dead zones put by percentile, and thresholds that follow the token's input."""

from __future__ import annotations

import json
import math

import pytest
import torch
from micro import GLUE, micro, only, write_sst2
from naive import Accumulate
from students import FFN, D, L, make, prune, real, sentences
from test_dynamic import shape_of, work

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.cost.operations import count, gain_work
from spikeprune.cost.shapes import Shape
from spikeprune.experiment import pipeline
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.models.compaction import compact
from spikeprune.models.shape import student_network
from spikeprune.models.variants import calibrate_dead_zones, variant
from spikeprune.snn.coding import CODINGS
from spikeprune.snn.context import ForwardContext
from spikeprune.snn.dead_zone import DeadZone
from spikeprune.snn.neurons import NEURONS, rms_gain
from spikeprune.snn.spiking_layer import SpikingLayer

F64 = torch.float64

# ---------------------------------------------------------------------------------------------------------- dead zones

CURRENTS = torch.tensor([[[1.0, -8.0], [-2.0, 4.0], [3.0, 1.0], [4.0, 0.0], [99.0, 99.0]]])  # the last is padding
REAL = torch.tensor([[True] * 4 + [False]])


@pytest.mark.parametrize(
    ("percentile", "edges", "silent"),
    [
        # sizes 1 2 3 4 | 0 1 4 8
        (50, [2.5, 2.5], [[1, 0], [1, 0], [0, 1], [0, 1]]),
        (74, [2.5, 2.5], [[1, 0], [1, 0], [0, 1], [0, 1]]),
        (75, [3.5, 6], [[1, 0], [1, 1], [1, 1], [0, 1]]),
        (24, [0, 0], [[0, 0], [0, 0], [0, 0], [0, 1]]),
    ],
)
def test_edges_by_hand(percentile, edges, silent) -> None:
    zone = DeadZone(2)
    assert torch.equal(zone(CURRENTS), CURRENTS)  # an edge of zero silences nothing
    zone.calibrate(CURRENTS, REAL, percentile)
    assert zone.edge.tolist() == edges
    assert zone(CURRENTS)[0, :4].eq(0).int().tolist() == silent
    if percentile in (50, 75):
        again = DeadZone(2)
        again.calibrate(CURRENTS.expand(4, 1, 5, 2), REAL, percentile)  # the steps of a synchronous coding
        assert zone(CURRENTS).eq(0).equal(again(CURRENTS).eq(0))


def convention_pj(student, batch) -> float:
    return ENERGY_MODELS["convention"].per_sample(student_network(student, work(student, batch)))


@pytest.mark.parametrize("coding", CODINGS)
@torch.no_grad()
def test_more_silence_costs_less_energy_and_moves_the_output_further(coding) -> None:
    student, batch = make(3, (4, 4, 4), coding=coding), sentences((8, 7, 6, 5))
    plain, costs, shifts = student(**batch, mode="spiking").logits, [], []
    for percentile in (0, 20, 50, 80, 95):
        quiet = variant(student, dead_zone=True)
        calibrate_dead_zones(quiet, batch, percentile)
        costs.append(convention_pj(quiet, batch))
        shifts.append((quiet(**batch, mode="spiking").logits - plain).abs().mean().item())
    assert shifts[0] == 0 and costs[0] == convention_pj(student, batch)
    assert costs[-1] < costs[2] < costs[0] and costs[-1] < 0.75 * costs[0]
    assert shifts[-1] > shifts[1] > 0
    assert all(spiking_layer.dead_zone is None for spiking_layer in student.spiking_layers().values())


@torch.no_grad()
def test_the_given_share_is_silent_in_every_spiking_layer() -> None:
    student, batch = variant(make(3, (9, 9, 9)), dead_zone=True), sentences((8, 8, 8, 8))
    calibrate_dead_zones(student, batch, 60)
    seen = {}
    for name, spiking_layer in student.spiking_layers().items():
        forward = spiking_layer.dead_zone.forward
        spiking_layer.dead_zone.forward = lambda y, name=name, forward=forward: seen.setdefault(name, forward(y))
    student(**batch)
    for name, currents in seen.items():
        assert (currents == 0).double().mean() == pytest.approx(math.floor(0.6 * 32) / 32, abs=0.01), name
    assert seen.keys() == student.spiking_layers().keys()


@pytest.mark.parametrize("leak", [1.0, 0.7])
@torch.no_grad()
def test_a_deadened_student_is_one_network(leak, tmp_path) -> None:
    """Simulated as in closed form, saved and loaded, pruned and compacted."""
    student, batch = variant(prune(make(3, (4, 3, 5), leak=leak)), dead_zone=True), sentences()
    calibrate_dead_zones(student, batch, 40)
    closed, simulated = student(**batch), student(**batch, mode="spiking")
    torch.testing.assert_close(simulated.logits, closed.logits)
    torch.testing.assert_close(compact(student)(**batch, mode="spiking").logits, simulated.logits)
    again = type(student)(**student.values).double().eval()
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(**batch, mode="spiking").logits, simulated.logits)
    assert any(key.endswith("dead_zone.edge") for key in student.state_dict())


def test_no_gradient_reaches_a_silent_current() -> None:
    spiking_layer = SpikingLayer(
        "x", 3, neuron="ternary", leak=1.0, coding="accumulate", theta="tensor", dead_zone=True
    )
    spiking_layer.dead_zone.edge.copy_(torch.tensor([0.5, 0.1, 0.2]))
    x = torch.tensor([[[0.4, 0.4, -0.2]]], requires_grad=True)
    signal = spiking_layer(lambda: x, t_steps=64, ctx=ForwardContext("equilibrium", torch.ones(1, 1, dtype=torch.bool)))
    signal.value.sum().backward()
    assert x.grad.tolist() == [[[0, 1, 0]]] and signal.value[0, 0, 0] == signal.value[0, 0, 2] == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("runs")
    stages = [*only("teacher", "internal_kd", "spatial"), "stages.internal_kd.epochs=1", "stages.temporal.t_steps=null"]
    short = ["stages.spatial.epochs=1", "stages.teacher.epochs=2"]
    pipeline.run(load(GLUE, [*micro(folder / "sst2", write_sst2(folder / "glue")), *stages, *short]))
    return RunDirectory(folder / "sst2")


@pytest.mark.filterwarnings("ignore")
def test_on_a_finished_run_without_training(run, capsys) -> None:
    record, energies = run.record("spatial"), []
    for percentile in (0, 50, 90):
        assert cli.main(["evaluate", str(run.path), f"student.dead_zone={percentile}", "--json"]) == 0
        energies.append(json.loads(capsys.readouterr().out)["cost"]["energy_pj"])
    assert energies[0] == record["cost"]["energy_pj"] > energies[1] > energies[2]
    assert cli.main(["compact", str(run.path), "student.dead_zone=90"]) == 0
    assert cli.main(["evaluate", str(run.path), "--compact", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert found["cost"]["energy_pj"] == pytest.approx(energies[2], rel=3e-3)  # a spike on the edge may differ
    assert cli.main(["evaluate", str(run.path), "student.dead_zone=100"]) == 2
    assert capsys.readouterr().err.startswith("error: student.dead_zone = 100.0: must be at least 0 and below 100")


# ------------------------------------------------------------------------------------- thresholds that follow the input

SCALED = [name for name, neuron in NEURONS.items() if neuron.gain is not None]


def test_the_gain_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0, 0.0, 5.0]], dtype=F64)
    assert rms_gain(x, 1, None)[0].tolist() == pytest.approx([math.sqrt(50 / 4)] * 4)
    assert rms_gain(x, 2, None)[0].tolist() == pytest.approx([math.sqrt(12.5)] * 4)
    assert rms_gain(x, 4, None)[0].tolist() == pytest.approx([3, 4, 1e-6, 5])
    alive = torch.tensor([1, 1, 0, 0.0], dtype=F64)
    assert rms_gain(x, 1, alive)[0].tolist() == pytest.approx([math.sqrt(12.5)] * 4)
    assert rms_gain(x[:, :0], 1, None).shape == (1, 0)


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("mode", ["equilibrium", "spiking"])
@torch.no_grad()
def test_a_token_twice_as_loud_fires_as_often(kind, mode) -> None:
    spiking_layer = SpikingLayer("x", 5, neuron=kind, leak=1.0, coding="accumulate", theta="channel").double()
    y = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    sizes = torch.tensor([1.0, 2.0, 7.0], dtype=F64)[:, None]
    both = [ForwardContext(mode, torch.ones(1, 3, dtype=torch.bool), count=True) for _ in range(2)]
    soft, loud = (spiking_layer(lambda y=y: y, t_steps=6, ctx=ctx) for y, ctx in zip((y, y * sizes), both, strict=True))
    torch.testing.assert_close(loud.value, soft.value * sizes)
    torch.testing.assert_close(loud.asr(spiking_layer.theta), soft.asr(spiking_layer.theta))
    counts = [ctx.record.counts for ctx in both]
    assert counts[0].keys() == counts[1].keys()
    assert all(torch.equal(*pair) for pair in zip(counts[0].values(), counts[1].values(), strict=True))


class Scaled(Accumulate):
    """Thresholds `theta * g` in the units of the current, where the student's neurons fire on currents over g."""

    def spiking_layer(self, name, x, t_steps, mask=1.0):
        kind, parts = name.rpartition(".")[2], 1
        read = torch.ones_like(x) * mask
        if kind in ("query", "key", "value", "context"):
            parts, read = self.heads, torch.ones_like(x)
        sizes = (x.square() * read).unflatten(-1, (parts, -1)).sum(-1) / read.unflatten(-1, (parts, -1)).sum(-1)
        gain = sizes.sqrt().repeat_interleave(x.shape[-1] // parts, -1)
        theta, u, total, norm = self.theta(name) * gain, torch.zeros_like(x), torch.zeros_like(x), 0.0
        for _ in range(t_steps):
            s, u = self.fire(u, x, theta)
            total, norm = self.leak * total + s, self.leak * norm + 1
        return theta * total / norm * mask


@pytest.mark.parametrize("leak", [1.0, 0.7])
@pytest.mark.parametrize("query", ["real", "spiking"])
@torch.no_grad()
def test_theta_is_what_is_scaled(leak, query) -> None:
    for seed in range(3):
        student = prune(make(seed, (3, 5, 2), spikes="ternary_scaled", leak=leak, query=query))
        batch = sentences()
        logits, hidden = Scaled(student, batch, spikes="ternary", leak=leak).run()
        for mode in ("equilibrium", "spiking"):
            found = student(**batch, mode=mode)
            torch.testing.assert_close(found.logits, logits)
            torch.testing.assert_close(real(found.hidden[-1], batch), real(hidden[-1], batch))


@pytest.mark.parametrize("kind", SCALED)
@torch.no_grad()
def test_the_rate_in_statistics_and_losses_is_the_spikes(kind) -> None:
    for coding in CODINGS:
        student, batch = make(2, (4, 5, 3), spikes=kind, coding=coding), sentences()
        outputs = student(**batch, mode="spiking", rate=True, count=True)
        for name, counts in outputs.counts.items():
            if coding == "accumulate":  # one sign for a neuron, so spikes are the size of the rate
                wanted = counts.sum((0, 1)) / (len(counts) * batch["attention_mask"].sum())
                torch.testing.assert_close(outputs.rates[name], wanted)


def test_the_work_of_gains_by_hand() -> None:
    """One layer, D 2, two heads of one channel, three neurons; a sentence of four tokens, one head and two neurons."""
    shape = Shape(hidden=2, heads=2, ffn=3, layers=1, classes=2, gain=True)
    n, heads, ffn = torch.tensor([4.0], dtype=F64), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    kept = {"shape": shape, "heads": heads, "ffn": ffn}
    mac, elementwise = gain_work(n, **kept, steps=(3, 2), coding="accumulate")
    squares = 3 + 2 + 2 + 2  # k, v, c; h; f; a'
    sums = (3 + 2) + 2 + (2 + 2) + 2  # embedding to q, k, v and residual; c to h; h to f and residual; f to a'
    assert mac.tolist() == [4 * 2, 4 * (squares + sums) + 16 * 2, 4 * 2]  # each k scales a score, each v a weight
    assert elementwise.tolist() == [4, 4 * (3 + 3), 0]
    mac, elementwise = gain_work(n, **kept, steps=(3, 2), coding="per_step")
    assert mac.tolist() == [3 * 8, 2 * (4 * (squares + sums) + 32), 2 * 8]
    mac, _ = gain_work(n, **kept, steps=(3, 2), coding="running_mean")
    assert mac[1] == 2 * 4 * (squares + sums)
    past = Shape(hidden=2, heads=2, ffn=3, layers=1, classes=2, gain=True, membrane=True)
    mac, _ = gain_work(n, **{**kept, "shape": past}, steps=(3, 2), coding="accumulate")
    assert mac.tolist() == [4 * 2, 4 * (squares + sums - 2 - 2) + 16 * 2, 4 * 2]  # currents are in no spike's units
    cls = Shape(hidden=2, heads=2, ffn=3, layers=1, classes=2, gain=True, pooling="cls", query="spiking")
    mac, elementwise = gain_work(n, **{**kept, "shape": cls}, steps=(3, 2), coding="accumulate")
    assert mac.tolist() == [8, 4 * (squares + 1 + sums) + 16 * 3, 2] and elementwise[1] == 4 * 7


@torch.no_grad()
def test_the_bill_of_a_student_holds_the_gains() -> None:
    student, batch = prune(make(2, (3, 5, 2), spikes="ternary_scaled")), sentences()
    counts, lengths = student(**batch, mode="spiking", count=True).counts, batch["attention_mask"].sum(1)
    masks, shape = {"heads": student.heads, "ffn": student.ffn}, shape_of(student)
    common = {**masks, "coding": student.coding}
    plain = count(counts, lengths, shape=shape, t_steps=student.steps, **common)
    scaled_shape = Shape(**{**shape.__dict__, "gain": True})
    scaled = count(counts, lengths, shape=scaled_shape, t_steps=student.steps, **common)
    more = gain_work(lengths.double(), shape=shape, steps=student.steps, **common)
    assert torch.equal(scaled.ac, plain.ac)
    assert torch.equal(scaled.mac - plain.mac, more[0]) and more[0].min() > 0
    assert torch.equal(scaled.elementwise - plain.elementwise, more[1])
    dense = L * D * (4 * D + 2 * FFN) * lengths.sum()
    assert more[0].sum() < 0.6 * dense
