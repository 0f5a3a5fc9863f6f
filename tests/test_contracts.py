"""What every neuron, coding, quantizer and criterion of the registries promises in a whole student, also one that
somebody adds: the promises of each alone are in its own test file."""

from __future__ import annotations

import itertools

import pytest
import torch
from students import FFN, H, L, make, prune, real, sentences
from test_dynamic import shape_of

from spikeprune.cost.activity import activity
from spikeprune.cost.operations import count
from spikeprune.cost.shapes import Shape
from spikeprune.models.architecture import RESIDUALS
from spikeprune.models.compaction import compact
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.quantization import QUANTIZERS, acting_weight
from spikeprune.pruning.criteria import CRITERIA, TEMPORAL_CRITERIA
from spikeprune.pruning.statistics import collect, temporal_statistics
from spikeprune.snn.coding import CODINGS
from spikeprune.snn.neurons import LONGEST, NEURONS
from spikeprune.training.losses import hard_loss

every_kind = pytest.mark.parametrize(("spikes", "coding"), list(itertools.product(NEURONS, CODINGS)))
both_residuals = pytest.mark.parametrize("residual", RESIDUALS)


def loss_of(batch, outputs) -> torch.Tensor:
    return hard_loss(outputs.logits, batch["labels"], regression=False)


def student_of(spikes: str, coding: str, t_steps=(3, 5, 4), **options) -> SpikingBert:
    return prune(make(3, t_steps, spikes=spikes, coding=coding, **options))


@every_kind
@both_residuals
@torch.no_grad()
def test_simulated_and_in_closed_form(spikes, coding, residual) -> None:
    """Stationary: the same. Else more steps come nearer, where the coding has that equilibrium."""
    batch = sentences()
    if CODINGS[coding].stationary:
        for leak in (1.0, 0.7):
            student = student_of(spikes, coding, leak=leak, residual=residual)
            closed, simulated = student(**batch), student(**batch, mode="spiking")
            torch.testing.assert_close(simulated.logits, closed.logits)
            for found, wanted in zip(simulated.hidden, closed.hidden, strict=True):
                torch.testing.assert_close(real(found, batch), real(wanted, batch))
    elif CODINGS[coding].converges:
        errors = []
        for t_steps in (4, 32, 256):
            student = student_of(spikes, coding, [t_steps] * 3, residual=residual)
            simulated = student(**batch, mode="spiking").hidden[-1]
            student.set_t_steps(2**30 if NEURONS[spikes].settled else 1024)
            errors.append(real(simulated - student(**batch).hidden[-1], batch).abs().mean())
        assert errors[2] < 0.4 * errors[1] < 0.2 * errors[0], errors


@pytest.mark.parametrize("coding", CODINGS)
def test_a_neuron_without_a_closed_form_keeps_the_same_promise(coding, monkeypatch) -> None:
    monkeypatch.setitem(NEURONS, "stepped", NEURONS["ternary"]._replace(settled=None))
    test_simulated_and_in_closed_form("stepped", coding, "spikes")


@pytest.mark.parametrize("how", [{"leak": 0.7}, {"spikes": "stepped"}, {"mode": "spiking"}], ids=str)
@torch.no_grad()
def test_trains_beyond_all_memory_are_refused_before_they_are_begun(how, monkeypatch) -> None:
    monkeypatch.setitem(NEURONS, "stepped", NEURONS["ternary"]._replace(settled=None))
    student = make(3, (3, 2**30, 4), **{key: value for key, value in how.items() if key != "mode"})
    for counted in (False, True):
        with pytest.raises(ValueError, match=f"1073741824 time steps cannot .* at most {LONGEST}"):
            student(**sentences(), mode=how.get("mode", "equilibrium"), count=counted)


@every_kind
@both_residuals
def test_trains_with_the_spiking_forward(spikes, coding, residual) -> None:
    student, batch = student_of(spikes, coding, residual=residual), sentences()
    outputs = student(**batch, mode="spiking", count=True, rate=True)
    with torch.no_grad():
        plain = student(**batch, mode="spiking", count=True)
    torch.testing.assert_close(outputs.logits, plain.logits)
    for found, wanted in zip(outputs.hidden, plain.hidden, strict=True):
        torch.testing.assert_close(real(found, batch), real(wanted, batch))
    assert all(torch.equal(outputs.counts[name], counts) for name, counts in plain.counts.items())
    assert bool(plain.scores) == CODINGS[coding].stationary
    (outputs.logits.square().sum() + sum(rate.sum() for rate in outputs.rates.values())).backward()
    grads = {name: p.grad for name, p in student.named_parameters()}
    assert all(grad.isfinite().all() for grad in grads.values())
    assert sum(grad.abs().max() > 0 for grad in grads.values()) > 0.8 * len(grads)


@every_kind
@both_residuals
@torch.no_grad()
def test_padding_and_neighbours_change_nothing(spikes, coding, residual) -> None:
    student, batch = student_of(spikes, coding, residual=residual), sentences()
    together = student(**batch, mode="spiking", count=True)
    for b, n in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = student(**{name: x[b : b + 1, :n] for name, x in batch.items()}, mode="spiking", count=True)
        torch.testing.assert_close(alone.logits[0], together.logits[b])
        assert all(torch.equal(alone.counts[name][:, 0], c[:, b]) for name, c in together.counts.items())


@every_kind
@both_residuals
@torch.no_grad()
def test_compacted_outputs_and_costs_are_equal(spikes, coding, residual) -> None:
    student, batch = student_of(spikes, coding, residual=residual), sentences()
    small, lengths = compact(student), batch["attention_mask"].sum(1)
    shape = Shape(**{**shape_of(student).__dict__, "gain": NEURONS[spikes].gain is not None})
    found = []
    for one in (student, small):
        outputs = one(**batch, mode="spiking", count=True)
        masks = {"heads": one.heads, "ffn": one.ffn, "t_steps": one.steps}
        ops = count(outputs.counts, lengths, shape=shape, coding=coding, **masks)
        found.append((outputs.logits, ops, activity(outputs.counts, lengths, **masks).rate()))
    torch.testing.assert_close(found[1][0], found[0][0])
    for kind in ("ac", "mac", "elementwise"):
        assert torch.equal(getattr(found[1][1], kind), getattr(found[0][1], kind)), kind
    assert found[0][1].ac.sum() > 0 and 0 < found[0][2] < 1


@every_kind
@torch.no_grad()
def test_the_state_is_the_whole_network_and_one_step_is_enough(spikes, coding) -> None:
    batch, student = sentences(), student_of(spikes, coding, (1, 1, 1))
    again = SpikingBert(**student.values).double().eval()
    again.load_state_dict(student.state_dict())
    answers = [one(**batch, mode="spiking").logits for one in (student, again)]
    assert torch.equal(*answers) and answers[0].isfinite().all()


@pytest.mark.parametrize("weights", QUANTIZERS)
@every_kind
@torch.no_grad()
def test_quantized_it_is_a_student_of_such_weights(weights, spikes, coding) -> None:
    student, batch = student_of(spikes, coding, weights=weights), sentences()
    student.set_strength(1.0)
    simulated = student(**batch, mode="spiking").logits
    torch.testing.assert_close(compact(student)(**batch, mode="spiking").logits, simulated)
    weight = student.layers[0].up.weight
    assert not torch.equal(acting_weight(weight, weights, 1.0), weight)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("spikes", NEURONS)
def test_every_criterion_judges_every_neuron(criterion, spikes) -> None:
    student = student_of(spikes, "accumulate")
    batch = {**sentences(), "labels": torch.tensor([0, 1, 2])}
    heads, ffn = CRITERIA[criterion](collect(student, [batch], loss_of))
    assert heads.shape == (L, H) and ffn.shape == (L, FFN)
    for scores in (heads, ffn):
        assert scores.isfinite().all() and (scores >= 0).all() and scores.unique().numel() > 1


@pytest.mark.parametrize("criterion", TEMPORAL_CRITERIA)
@every_kind
def test_every_rule_for_time_steps_works_in_every_coding(criterion, spikes, coding) -> None:
    student = student_of(spikes, coding)
    batch = {**sentences(), "labels": torch.tensor([0, 1, 2])}
    found = TEMPORAL_CRITERIA[criterion](temporal_statistics(student, [batch], loss_of), 8)
    assert sum(found) <= 8 and all(1 <= new <= old for new, old in zip(found, (3, 5, 4), strict=True))
    assert student.steps == [3, 5, 4]
