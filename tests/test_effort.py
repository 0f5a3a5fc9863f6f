"""Spikes, rates and traces of a student counted by hand, and the operations of its equilibrium."""

from __future__ import annotations

import pytest
import torch
from naive import Accumulate
from students import (
    CODINGS,
    F64,
    D,
    H,
    L,
    Operations,
    make,
    prune,
    sentences,
)

from spikeprune.snn.context import ForwardContext
from spikeprune.snn.spiking_layer import SpikingLayer


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_spikes_are_counted_where_they_are(spikes, pooling) -> None:
    """A constant current draws spikes of one sign, so T |ASR| of them: what the naive network has sent."""
    steps = (3, 5, 2)
    student, batch = prune(make(2, steps, spikes=spikes, pooling=pooling)), sentences()
    with torch.no_grad():
        counts = student(**batch, mode="spiking", count=True).counts
    naive = Accumulate(student, batch, spikes=spikes, leak=1.0)
    sent = {}
    plain_site = naive.spiking_layer

    def spiking_layer(name, x, t_steps, mask=1.0):
        value = plain_site(name, x, t_steps, mask)
        tokens = batch["attention_mask"][..., None]
        sent[name] = (t_steps * value.abs() / naive.theta(name) * tokens).sum(1)  # [B, channels]
        if name == f"layers.{L - 1}.output" and pooling == "cls":
            sent["pooled"] = t_steps * value[:, 0].abs() / naive.theta(name)
        return value

    naive.spiking_layer = spiking_layer
    naive.run()
    assert counts.keys() == sent.keys()
    for name, wanted in sent.items():
        torch.testing.assert_close(counts[name].sum(0), wanted)
        layer = 0 if name == "embedding" else L if name == "pooled" else int(name.split(".")[1]) + 1
        assert len(counts[name]) == steps[layer]
    d = D // H
    assert not counts["layers.0.context"][..., d : 2 * d].any() and counts["layers.0.context"].any()
    assert not counts["layers.0.intermediate"][..., ::5].any() and counts["layers.0.intermediate"].any()


@pytest.mark.parametrize("coding", CODINGS)
def test_rates_are_the_mean_size_of_the_asr(coding) -> None:
    student, batch = make(2, (3, 5, 2), coding=coding, spikes="binary"), sentences()
    with torch.no_grad():
        outputs = student(**batch, mode="spiking", count=True, rate=True)
    tokens = batch["attention_mask"].sum()
    assert outputs.rates.keys() == outputs.counts.keys() == student.spiking_layers().keys()
    for name, counts in outputs.counts.items():
        wanted = counts.sum((0, 1)) / (len(counts) * tokens)  # [D]
        torch.testing.assert_close(outputs.rates[name], wanted)


def test_traces_by_hand() -> None:
    """Spikes 1 1 0 1 of one neuron: ASR so far 1, 1, 2/3, 3/4; the padding beside it does not count."""
    spiking_layer = SpikingLayer("x", 1, neuron="binary", leak=1.0, coding="accumulate", theta="tensor").to(F64)
    ctx = ForwardContext("spiking", torch.tensor([[True, False]]), trace=True)
    with torch.no_grad():
        spiking_layer(lambda: torch.tensor([[[0.75], [5.0]]], dtype=F64), t_steps=4, ctx=ctx)  # u: 1.25, 1, .75, 1.5
    errors, size = ctx.record.traces["x"]
    assert errors.tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 12, 0])
    assert size.item() == pytest.approx(3 / 4)


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
def test_the_equilibrium_costs_no_time_steps(spikes) -> None:
    """Forward and backward run the same operations for one step as for a thousand."""
    batch, logs = sentences(), []
    for t_steps in (1, 1000):
        student = make(0, [t_steps] * 3, spikes=spikes)
        student(**batch)  # reads t_steps once
        with Operations() as log:
            student(**batch).logits.sum().backward()
        logs.append(log.names)
    assert logs[0] == logs[1] and len(logs[0]) > 100
