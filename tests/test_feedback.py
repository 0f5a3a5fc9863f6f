"""The connection from the last layer to the first: its fixed point, its gradient, its spikes in time, its cost."""

from __future__ import annotations

import json

import pytest
import torch
from micro import BATCHES, GLUE, micro, only, write_sst2
from naive import Synchronous
from students import D, L, make, prune, real, scalar, sentences
from test_dynamic import shape_of

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.cost.operations import count
from spikeprune.cost.shapes import Shape, parameters
from spikeprune.cost.synapses import fan_out
from spikeprune.errors import InputError
from spikeprune.experiment import checkpoints, evaluation, pipeline
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.models.compaction import compact
from spikeprune.models.feedback import anderson
from spikeprune.pruning.statistics import collect
from spikeprune.snn.coding import CODINGS
from spikeprune.snn.neurons import NEURONS
from spikeprune.training.losses import hard_loss

F64 = torch.float64
SYNCHRONOUS = [name for name, coding in CODINGS.items() if not coding.stationary]


def closed(seed: int = 0, t_steps=(5, 5, 5), strength: float = 0.3, **options):
    """A student with feedback; `make` draws its matrix with entries of variance 1.44 / D."""
    student = make(seed, t_steps, **{"coding": "running_mean", **options}, feedback=True)
    student.embedding.feedback.weight.data *= strength
    return student


# --------------------------------------------------------------------------------------------------------- fixed points


@pytest.mark.parametrize("seed", range(3))
def test_anderson_solves_a_linear_map_of_each_sample(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(4, 6, 6, generator=generator, dtype=F64)
    a *= torch.tensor([0.1, 0.5, 0.9, 0.99], dtype=F64)[:, None, None] / torch.linalg.matrix_norm(a, 2)[:, None, None]
    b = torch.randn(4, 6, 1, generator=generator, dtype=F64)
    found = anderson(lambda z: (a @ z[..., None] + b)[..., 0], torch.zeros(4, 6, dtype=F64), tolerance=1e-11)
    torch.testing.assert_close(found.z[..., None], torch.linalg.solve(torch.eye(6, dtype=F64) - a, b))
    assert found.residual <= 1e-11 and found.steps < 30  # six dimensions: iterating would take a thousand
    alone = anderson(lambda z: (a[:1] @ z[..., None] + b[:1])[..., 0], torch.zeros(1, 6, dtype=F64), tolerance=1e-11)
    assert torch.equal(alone.z[0], found.z[0])  # what has converged does not move with the rest


def test_anderson_reports_a_missed_tolerance() -> None:
    found = anderson(lambda z: 2 * z + 1 + z.sign(), torch.ones(1, 3), tolerance=1e-6, most=4)
    assert found.steps == 4 and found.residual > 1e-6
    found = anderson(lambda z: z * torch.nan, torch.ones(1, 3), tolerance=1e-6, most=4)
    assert not found.residual <= 1e-6


@pytest.mark.parametrize("spikes", NEURONS)
@torch.no_grad()
def test_the_forward_is_at_the_fixed_point(spikes) -> None:
    """With steps so fine that rounding is gone, what comes out is what was fed back."""
    student, batch = prune(closed(1, [2**42] * 3, spikes=spikes)), sentences()
    outputs = student(**batch)
    z = outputs.hidden[-1] * batch["attention_mask"][..., None]
    spiking_layer, embedding = student.embedding.neurons, student.embedding
    position = embedding.position.weight[: batch["input_ids"].shape[1]]
    words = embedding.word(batch["input_ids"]) + position + embedding.segment(batch["token_type_ids"])
    current = embedding.norm(words) + z @ embedding.feedback.weight.T
    gain = NEURONS[spikes].gain
    theta = spiking_layer.theta if gain is None else spiking_layer.theta * gain(current, 1, None)
    wanted = torch.minimum(torch.maximum(current, NEURONS[spikes].low * theta), theta)
    torch.testing.assert_close(real(outputs.hidden[0], batch), real(wanted, batch))
    assert outputs.solved["residual"] <= 1e-11 and 3 < outputs.solved["steps"] < 60
    torch.testing.assert_close(outputs.logits, student.classify(z, batch["attention_mask"].bool()))


@torch.no_grad()
def test_feedback_of_zero_is_no_feedback() -> None:
    for coding in SYNCHRONOUS:
        student, batch = closed(2, (3, 5, 4), strength=0.0, coding=coding), sentences()
        plain = make(2, (3, 5, 4), coding=coding)
        plain.load_state_dict({k: v for k, v in student.state_dict().items() if k != "embedding.feedback.weight"})
        for mode in ("equilibrium", "spiking"):
            torch.testing.assert_close(student(**batch, mode=mode).logits, plain(**batch, mode=mode).logits)
    fresh = type(student)(**student.values)
    assert not fresh.embedding.feedback.weight.any()


def test_a_strong_feedback_is_refused_in_a_sentence() -> None:
    student, batch = closed(0, strength=3.0), sentences()
    with pytest.raises(InputError, match=r"student.feedback: the equilibrium did not converge \(residual .* lower"):
        student(**batch)
    with torch.no_grad():
        assert student(**batch, mode="spiking").logits.isfinite().all()  # time goes on all the same


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize(("spikes", "pooling", "query"), [("ternary", "mean", "real"), ("binary", "cls", "spiking")])
def test_implicit_gradient_against_finite_differences(spikes, pooling, query) -> None:
    """Float64, steps so fine that the forward is the clip network's own; the loss sees all layers, scores and rates."""
    student, batch = prune(closed(5, [2**42] * 3, spikes=spikes, pooling=pooling, query=query)), sentences((7, 4))
    eps, random, checked, moving = 1e-6, torch.Generator().manual_seed(9), 0, 0
    scalar(student, batch).backward()
    found = {name: p.grad.clone() for name, p in student.named_parameters()}
    for name, parameter in student.named_parameters():
        rows = batch["input_ids"].flatten() if name == "embedding.word.weight" else torch.arange(len(parameter))
        at = [int(rows[torch.randint(len(rows), (1,), generator=random)])]
        at += [int(torch.randint(size, (1,), generator=random)) for size in parameter.shape[1:]]
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[tuple(at)] += sign * eps
                values.append(scalar(student, batch).item())
                parameter[tuple(at)] -= sign * eps
        difference = (values[0] - values[1]) / (2 * eps)
        gradient = found[name][tuple(at)].item()
        assert gradient == pytest.approx(difference, abs=2e-6, rel=1e-4), (name, at)
        checked, moving = checked + 1, moving + (abs(gradient) > 1e-5)
    assert checked > 40 and moving > checked / 3
    outputs = student(**batch)
    outputs.logits.sum().backward()
    assert outputs.solved["adjoint_residual"] <= 1e-11 and outputs.solved["adjoint_steps"] > 3
    assert found["embedding.feedback.weight"].abs().sum() > 0


@pytest.mark.parametrize("coding", SYNCHRONOUS)
def test_the_spiking_forward_trains_too(coding) -> None:
    student, batch = closed(3, (4, 4, 4), coding=coding), sentences()
    outputs = student(**batch, mode="spiking", count=True)
    with torch.no_grad():
        plain = student(**batch, mode="spiking", count=True)
    torch.testing.assert_close(outputs.logits, plain.logits)
    assert all(torch.equal(outputs.counts[name], counts) for name, counts in plain.counts.items())
    outputs.logits.sum().backward()
    grad = student.embedding.feedback.weight.grad
    assert grad.isfinite().all() and grad.abs().sum() > 0 and outputs.solved["adjoint_steps"] > 1


def test_at_many_steps_the_spiking_gradient_is_the_equilibriums() -> None:
    batch, grads = sentences(), []
    for mode in ("equilibrium", "spiking"):
        student = closed(3, (24, 24, 24), strength=0.2)
        student(**batch, mode=mode).logits.square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
    assert torch.cosine_similarity(*grads, dim=0) > 0.9


def test_statistics_see_the_network_at_rest() -> None:
    """Masks' gradients go through the fixed point; the iterations are no activity."""
    student = closed(4, [2**42] * 3)
    batch = {**sentences(), "labels": torch.tensor([0, 1, 2])}
    loss = lambda batch, outputs: hard_loss(outputs.logits, batch["labels"], regression=False)  # noqa: E731
    stats = collect(student, [batch], loss)
    assert max(stats.head_rate.max(), stats.ffn_rate.max()) <= 1 + 1e-12
    eps, found = 1e-6, []
    for b in range(3):
        alone = {name: x[b : b + 1] for name, x in batch.items()}
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                student.heads[1, 2] += sign * eps
                values.append(loss(alone, student(**{k: v for k, v in alone.items() if k != "labels"})).item())
                student.heads[1, 2] -= sign * eps
        found.append((values[0] - values[1]) / (2 * eps))
    assert stats.head_fisher[1, 2].item() == pytest.approx(sum(x * x for x in found) / 3, rel=1e-3)


# -------------------------------------------------------------------------------------------------------------- in time


class Echo(Synchronous):
    """Time as the outer loop; at each tick the first spiking layer hears what the last sent at the tick before."""

    def run(self):
        (embedding, layers), constant = self.clocks(), self.embed()
        heard, norm, total = [], 0.0, 0.0
        matrix, previous, spoken = self.w["embedding.feedback.weight"], 0.0, 0
        for tick in range(1, max(self.steps) + 1):
            last = layers[-1][1]["output"]
            arrives = torch.zeros_like(constant) if tick == 1 else last.pulse
            if tick <= self.steps[-1] + 1:  # then the last layer is silent and its mean, as heard so far, is held
                total, norm = self.leak * total + arrives, self.leak * norm + 1
                spoken = tick
            held = self.coding == "running_mean" or tick > spoken
            answer = constant + (total / norm if held else arrives) @ matrix.T
            if self.coding == "running_mean" and tick <= self.steps[0]:  # f changes here, which in `tick` it does not
                scale = sum(self.leak**j for j in range(tick))
                answer, previous = scale * answer - (scale - 1) * previous, answer
            embedding.tick(tick, answer)
            heard.append(arrives)
            self.upwards(tick, embedding, layers)
        return self.answer(embedding, layers)


@pytest.mark.parametrize("coding", SYNCHRONOUS)
@pytest.mark.parametrize("leak", [1.0, 0.7])
@pytest.mark.parametrize("t_steps", [(5, 5, 5), (3, 6, 5), (7, 4, 3), (1, 2, 2)])
@torch.no_grad()
def test_spikes_come_back_one_step_later(coding, leak, t_steps) -> None:
    student, batch = prune(closed(6, t_steps, coding=coding, leak=leak, strength=1.0)), sentences()
    logits, hidden = Echo(student, batch, spikes="ternary", leak=leak, coding=coding).run()
    outputs = student(**batch, mode="spiking")
    torch.testing.assert_close(outputs.logits, logits)
    for found, wanted in zip(outputs.hidden, hidden, strict=True):
        torch.testing.assert_close(real(found, batch), real(wanted, batch))
    without = make(6, t_steps, coding=coding, leak=leak)
    state = {k: v for k, v in student.state_dict().items() if k != "embedding.feedback.weight"}
    without.load_state_dict(state)
    if t_steps[0] > 1:
        assert not torch.allclose(without(**batch, mode="spiking").logits, logits)  # it matters


@torch.no_grad()
def test_running_mean_converges_to_the_fixed_point() -> None:
    batch, errors = sentences(), []
    for t_steps in (2, 6, 18):
        student = closed(1, [t_steps] * 3)
        simulated = student(**batch, mode="spiking").hidden[-1]
        student.set_t_steps(2**30)
        errors.append(real(simulated - student(**batch).hidden[-1], batch).abs().mean().item())
    assert errors[2] < 0.7 * errors[1] < 0.5 * errors[0], errors


@torch.no_grad()
def test_padding_neighbours_and_compaction_change_nothing() -> None:
    for mode in ("equilibrium", "spiking"):
        student, batch = prune(closed(1, (4, 5, 3))), sentences()
        together = student(**batch, mode=mode).logits
        for b, n in enumerate(batch["attention_mask"].sum(1).tolist()):
            alone = student(**{name: x[b : b + 1, :n] for name, x in batch.items()}, mode=mode).logits
            torch.testing.assert_close(alone[0], together[b])
        torch.testing.assert_close(compact(student)(**batch, mode=mode).logits, together)


@torch.no_grad()
def test_its_cost() -> None:
    """D additions for each spike of the last layer that still arrives, D x D weights."""
    student, batch = closed(2, (4, 5, 6)), sentences()
    counts, lengths = student(**batch, mode="spiking", count=True).counts, batch["attention_mask"].sum(1)
    masks = {"heads": student.heads, "ffn": student.ffn}
    how = {**masks, "t_steps": student.steps, "coding": student.coding}
    plain_shape = shape_of(student)
    shape = Shape(**{**plain_shape.__dict__, "feedback": True})
    plain, closed_loop = (count(counts, lengths, shape=s, **how) for s in (plain_shape, shape))
    arriving = counts[f"layers.{L - 1}.output"].double()[:3].sum((1, 2)) * D
    difference = closed_loop.ac_per_step - plain.ac_per_step
    assert arriving.min() > 0 and difference[0, :3].tolist() == arriving.tolist()
    assert difference.sum() == arriving.sum() == (closed_loop.ac - plain.ac)[0]
    assert torch.equal(closed_loop.mac, plain.mac) and torch.equal(closed_loop.elementwise, plain.elementwise)
    assert parameters(shape=shape).total - parameters(shape=plain_shape).total == D * D
    last = f"layers.{L - 1}.output"
    prices = [fan_out(shape=s, **masks, tokens=7.0)[last] for s in (plain_shape, shape)]
    assert prices[1] - prices[0] == D


# ------------------------------------------------------------------------------------------------------------ in a run


@pytest.mark.filterwarnings("ignore")
def test_a_run_with_feedback(tmp_path, capsys) -> None:
    """Distilled, pruned, measured; steps and residuals of both fixed points in every training record."""
    stages = [*only("teacher", "internal_kd", "spatial"), "stages.internal_kd.epochs=1", "stages.spatial.epochs=1"]
    options = ["student.feedback=true", "student.coding=running_mean", "stages.temporal.t_steps=null"]
    overrides = [*micro(tmp_path / "run", write_sst2(tmp_path / "glue")), *stages, *options]
    pipeline.run(load(GLUE, overrides))
    run = RunDirectory(tmp_path / "run")
    trained = [r for r in run.read_metrics() if r["stage"] == "internal_kd" and "train/loss" in r]
    assert len(trained) == BATCHES
    for name in ("steps", "residual", "adjoint_steps", "adjoint_residual"):
        assert all(f"train/feedback_{name}" in r for r in trained), name
    assert max(r["train/feedback_residual"] for r in trained) <= 1e-4
    assert checkpoints.load_student(run, "spatial").embedding.feedback.weight.abs().sum() > 0
    assert evaluation.evaluate(run.path)["cost"] == run.record("spatial")["cost"]
    capsys.readouterr()
    assert cli.main(["evaluate", str(run.path), "--early-exit", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["dynamic"]["curve"]) == 4
    assert cli.main(["evaluate", str(run.path), "student.coding=accumulate"]) == 2
    assert "in accumulate the first layer is done before the last begins" in capsys.readouterr().err


def test_what_cannot_be_closed() -> None:
    with pytest.raises(ValueError, match="feedback needs a synchronous coding"):
        make(0, feedback=True)
