"""The student against the networks of `naive.py`, which are written from the formulas; its gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from naive import Accumulate, Synchronous
from students import (
    F64,
    SYNCHRONOUS,
    WAYS,
    make,
    prune,
    real,
    scalar,
    sentences,
)

from spikeprune.models.architecture import RESIDUALS
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.spiking_layer import SpikingLayer

# --------------------------------------------------------------------------------------------------------- comparisons

KINDS = list(itertools.product(("binary", "ternary"), (1.0, 0.7)))


def same(outputs, logits, hidden, batch) -> None:
    torch.testing.assert_close(outputs.logits, logits)
    for found, wanted in zip(outputs.hidden, hidden, strict=True):
        torch.testing.assert_close(real(found, batch), real(wanted, batch))


@pytest.mark.parametrize(("spikes", "leak"), KINDS)
@pytest.mark.parametrize(("theta", "query", "pooling", "t_steps", "pruned"), WAYS)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_accumulate_is_the_quantized_network(spikes, leak, theta, query, pooling, t_steps, pruned, residual) -> None:
    """Simulated step by step, in closed form, and written out here: three times the same."""
    options = {"spikes": spikes, "leak": leak, "theta": theta, "query": query, "pooling": pooling, "residual": residual}
    batch = sentences()
    for seed in range(3):
        student = make(seed, t_steps, coding="accumulate", **options)
        if pruned:
            prune(student)
        with torch.no_grad():
            closed, simulated = student(**batch), student(**batch, mode="spiking")
        same(simulated, closed.logits, closed.hidden, batch)
        same(closed, *Accumulate(student, batch, spikes=spikes, leak=leak, residual=residual).run(), batch)
        assert 0.05 < (closed.hidden[-1] != 0).double().mean()  # the nets do fire


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
def test_accumulate_is_the_quantized_network_in_single_precision(spikes) -> None:
    student, batch = make(3, (4, 3, 5), torch.float32, spikes=spikes), sentences()
    with torch.no_grad():
        closed, simulated = student(**batch), student(**batch, mode="spiking")
    same(simulated, closed.logits, closed.hidden, batch)


@pytest.mark.parametrize("coding", SYNCHRONOUS)
@pytest.mark.parametrize(("spikes", "leak"), KINDS)
@pytest.mark.parametrize(("theta", "query", "pooling", "t_steps", "pruned"), WAYS)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_synchronous_codings_are_a_loop_over_time(
    coding, spikes, leak, theta, query, pooling, t_steps, pruned, residual
) -> None:
    options = {"theta": theta, "query": query, "pooling": pooling, "residual": residual}
    student, batch = make(7, t_steps, coding=coding, spikes=spikes, leak=leak, **options), sentences()
    if pruned:
        prune(student)
    with torch.no_grad():
        simulated = student(**batch, mode="spiking")
    naive = Synchronous(student, batch, spikes=spikes, leak=leak, coding=coding, residual=residual)
    same(simulated, *naive.run(), batch)


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_running_mean_converges_to_the_equilibrium(spikes, residual) -> None:
    batch, curve = sentences(), []
    for t_steps in (4, 16, 64):
        errors = []
        for seed in range(4):
            student = make(seed, [t_steps] * 3, coding="running_mean", spikes=spikes, residual=residual)
            with torch.no_grad():
                simulated = student(**batch, mode="spiking").hidden[-1]
                student.set_t_steps(2**30)
                errors.append((real(simulated - student(**batch).hidden[-1], batch)).abs().mean())
        curve.append(torch.stack(errors).mean().item())
    assert curve[2] < 0.4 * curve[1] < 0.2 * curve[0], curve  # four times the steps, a quarter of the error


def test_per_step_settles_somewhere_else() -> None:
    """Why it needs training with the spiking forward: f of single spikes is not f of their mean."""
    batch = sentences()
    student = make(0, [256] * 3, coding="per_step")
    with torch.no_grad():
        simulated = student(**batch, mode="spiking").hidden[-1]
        student.set_t_steps(2**30)
        error = real(simulated - student(**batch).hidden[-1], batch).abs().mean()
    assert error > 0.02  # running_mean is thirty times nearer by then


# ----------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
@pytest.mark.parametrize(("theta", "query", "pooling"), [("channel", "real", "cls"), ("tensor", "spiking", "mean")])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_implicit_gradient_against_finite_differences(spikes, theta, query, pooling, residual) -> None:
    """With so many steps that the quantizer is finer than the differences, the forward is the clip itself."""
    options = {"theta": theta, "query": query, "pooling": pooling, "residual": residual}
    student = prune(make(5, [2**42] * 3, spikes=spikes, **options))
    batch, eps = sentences((7, 4)), 1e-6
    scalar(student, batch).backward()
    random, checked, moving = torch.Generator().manual_seed(9), 0, 0
    for name, parameter in student.named_parameters():
        rows = batch["input_ids"].flatten() if name == "embedding.word.weight" else torch.arange(len(parameter))
        at = [int(rows[torch.randint(len(rows), (1,), generator=random)])]
        at += [int(torch.randint(size, (1,), generator=random)) for size in parameter.shape[1:]]
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter[tuple(at)] += sign * eps
                values.append(scalar(student, batch).item())
                parameter[tuple(at)] -= sign * eps
        difference = (values[0] - values[1]) / (2 * eps)
        gradient = parameter.grad[tuple(at)].item()
        assert gradient == pytest.approx(difference, abs=2e-6, rel=1e-4), (name, at)
        checked, moving = checked + 1, moving + (abs(gradient) > 1e-5)
    assert checked > 40 and moving > checked / 3  # some are out of range, as they should


@pytest.mark.parametrize(("spikes", "leak"), KINDS)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_both_forward_modes_train_accumulate_alike(spikes, leak, residual) -> None:
    """The measured ASRs are the closed form's, so the gradients are too."""
    batch, grads = sentences(), []
    for mode in ("equilibrium", "spiking"):
        student = prune(make(6, (3, 4, 2), spikes=spikes, leak=leak, residual=residual))
        scalar(student, batch, mode).backward()
        grads.append({name: p.grad for name, p in student.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)
    assert sum(grad.abs().max() > 0 for grad in grads[0].values()) > 0.9 * len(grads[0])


def test_the_synchronous_gradient_is_judged_at_the_measured_input() -> None:
    """per_step: f of the mean is 0.2 and inside, the mean of f over the steps is above theta: no gradient passes."""
    spiking_layer = SpikingLayer("x", 1, neuron="binary", leak=1.0, coding="per_step", theta="tensor").to(F64)
    below = torch.tensor([1.0, 0.0], dtype=F64)[:, None, None, None]  # [T, B, N, D]
    x = torch.tensor([[[0.5]]], dtype=F64, requires_grad=True)
    ctx = ForwardContext("spiking", torch.ones(1, 1, dtype=torch.bool))

    def peaked(a):
        return 12.0 * (a - 0.5).abs() + 0.4 * a  # 0.2 at the mean 0.5; 6.4 and 6.0 at the single spikes

    signal = spiking_layer(peaked, SpikeTrain(x, below), t_steps=2, ctx=ctx)
    assert signal.value.item() == 1.0
    signal.value.backward()
    assert x.grad.item() == 0.0
