"""What must not change a student: masks of ones, padding, neighbours, a file; where calibration puts its thresholds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from students import (
    CODINGS,
    FFN,
    VOCAB,
    D,
    H,
    L,
    make,
    prune,
    sentences,
)

from spikeprune.snn.context import ForwardContext
from spikeprune.snn.spiking_layer import SpikingLayer

# -------------------------------------------------------------------------------------------------------- invariances

MODES = [("accumulate", "equilibrium"), *((coding, "spiking") for coding in CODINGS)]


@pytest.mark.parametrize(("coding", "mode"), MODES)
@pytest.mark.parametrize("spikes", ["binary", "ternary"])
def test_masks_of_ones_change_nothing_bit_for_bit(coding, mode, spikes, monkeypatch) -> None:
    student, batch = make(2, (3, 4, 2), torch.float32, coding=coding, spikes=spikes), sentences()
    masks = {"heads": torch.ones(3, L, H), "ffn": torch.ones(3, L, FFN)}
    with torch.no_grad():
        buffers = student(**batch, mode=mode, count=True)
        lent = student(**batch, mode=mode, count=True, **masks)
        forward = SpikingLayer.forward
        monkeypatch.setattr(
            SpikingLayer, "forward", lambda self, f, *a, mask=None, **options: forward(self, f, *a, **options)
        )
        without = student(**batch, mode=mode, count=True)
    for outputs in (buffers, lent):
        assert torch.equal(outputs.logits, without.logits)
        assert all(map(torch.equal, outputs.hidden, without.hidden))
        assert outputs.counts.keys() == without.counts.keys()
        assert all(
            torch.equal(outputs.counts[spiking_layer], counts) for spiking_layer, counts in without.counts.items()
        )


@pytest.mark.parametrize(("coding", "mode"), MODES)
@pytest.mark.parametrize("query", ["real", "spiking"])
def test_what_is_pruned_may_hold_any_weights(coding, mode, query) -> None:
    student, batch = make(3, (3, 4, 2), coding=coding, query=query), sentences()
    head, neuron, d = 1, 11, D // H
    with torch.no_grad():
        whole = student(**batch, mode=mode).logits
        student.heads[0, head] = 0
        student.ffn[1, neuron] = 0
        before = student(**batch, mode=mode)
        channels = slice(head * d, (head + 1) * d)
        layer = student.layers[0]
        for linear in (layer.query, layer.key, layer.value):
            linear.weight[channels].normal_()
            linear.bias[channels].normal_()
        layer.out.weight[:, channels].normal_()
        for spiking_layer in (layer.key_neurons, layer.value_neurons, layer.context_neurons, layer.query_neurons):
            if spiking_layer is not None:
                spiking_layer.log_theta[channels].normal_()
        layer = student.layers[1]
        layer.up.weight[neuron].normal_()
        layer.up.bias[neuron].normal_()
        layer.down.weight[:, neuron].normal_()
        layer.intermediate_neurons.log_theta[neuron].normal_()
        after = student(**batch, mode=mode)
    assert torch.equal(before.logits, after.logits)
    assert not torch.allclose(before.logits, whole)  # the pruned parts mattered


@pytest.mark.parametrize(("coding", "mode"), MODES)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(coding, mode, pooling) -> None:
    student, batch = prune(make(4, (3, 4, 2), coding=coding, pooling=pooling)), sentences()
    longer = {name: F.pad(x, (0, 3), value=0 if name == "attention_mask" else 1) for name, x in batch.items()}
    longer["input_ids"][:, -2:] = 5
    padded = batch["attention_mask"] == 0
    other = {**batch, "input_ids": batch["input_ids"].where(~padded, (batch["input_ids"] + 7) % VOCAB)}
    with torch.no_grad():
        plain, *changed = (student(**x, mode=mode, count=True, rate=True, trace=True) for x in (batch, longer, other))
    for outputs in changed:
        torch.testing.assert_close(outputs.logits, plain.logits)
        assert all(torch.equal(outputs.counts[spiking_layer], counts) for spiking_layer, counts in plain.counts.items())
        torch.testing.assert_close(outputs.rates, plain.rates)
        torch.testing.assert_close(outputs.traces, plain.traces)
    assert plain.counts and bool(plain.traces) == (mode == "spiking")


@pytest.mark.parametrize("coding", CODINGS)
def test_state_dict_is_the_whole_network(coding, tmp_path) -> None:
    options = {"coding": coding, "pooling": "cls", "query": "spiking"}
    student, batch = prune(make(0, (3, 4, 2), **options)), sentences()
    other = make(1, (1, 1, 1), **options)
    assert other.steps == [1, 1, 1]
    torch.save(student.state_dict(), tmp_path / "x.pt")
    other.load_state_dict(torch.load(tmp_path / "x.pt", weights_only=True))
    assert other.steps == [3, 4, 2]
    assert torch.equal(other.heads, student.heads) and torch.equal(other.ffn, student.ffn)
    with torch.no_grad():
        assert torch.equal(other(**batch, mode="spiking").logits, student(**batch, mode="spiking").logits)


def test_t_steps_are_numbers_of_at_least_one_for_every_layer() -> None:
    student = make()
    student.set_t_steps(5)
    assert student.steps == [5, 5, 5]
    student.set_t_steps([1, 2, 3])
    assert student.steps == student.t_steps.tolist() == [1, 2, 3]
    for wrong in ([1, 2], [1, 2, 0], 0, [1, 2, 3, 4]):
        with pytest.raises(ValueError, match="3 whole numbers of at least 1"):
            student.set_t_steps(wrong)
    assert student.steps == [1, 2, 3]
    student.t_steps[2] = 9  # in place: the numbers are read again
    assert student.steps == [1, 2, 9]


# --------------------------------------------------------------------------------------------------------- calibration

ACTIVATION = torch.tensor([[1.0, -8.0, 0.0], [2.0, 4.0, -0.5], [3.0, 1.0, 0.0], [4.0, -2.0, 0.0], [99.0, 99.0, 99.0]])


@pytest.mark.parametrize(
    ("spikes", "percentile", "theta"),
    [
        # sorted: 1 2 3 4 | binary 0 0 1 4, ternary 1 2 4 8 | 0 0 0 0 and 0 0 0 .5; the floor is 1 % of the largest
        ("binary", 75.0, [3.0, 1.0, 0.03]),
        ("ternary", 75.0, [3.0, 4.0, 0.04]),
        ("ternary", 60.0, [3.0, 4.0, 0.04]),  # 2.4 of the four: no less than 60 % stay below
        ("binary", 100.0, [4.0, 4.0, 0.04]),
        ("ternary", 100.0, [4.0, 8.0, 0.5]),
        ("ternary", 1.0, [1.0, 1.0, 0.01]),
    ],
)
def test_calibration_by_hand(spikes, percentile, theta) -> None:
    spiking_layer = SpikingLayer("x", 3, neuron=spikes, leak=1.0, coding="accumulate", theta="channel")
    ctx = ForwardContext(
        "calibrate", torch.tensor([[True] * 4 + [False]]), percentile=percentile
    )  # the last token is padding
    value = spiking_layer(lambda: ACTIVATION[None], t_steps=2, ctx=ctx).value
    assert spiking_layer.theta.tolist() == pytest.approx(theta)
    low = torch.tensor(theta) * (0 if spikes == "binary" else -1)
    torch.testing.assert_close(value[0], ACTIVATION.clamp(low, torch.tensor(theta)))


def test_calibration_of_one_theta_for_all_channels() -> None:
    spiking_layer = SpikingLayer("x", 3, neuron="ternary", leak=1.0, coding="accumulate", theta="tensor")
    ctx = ForwardContext("calibrate", torch.tensor([[True] * 4 + [False]]), percentile=75.0)
    spiking_layer(lambda: ACTIVATION[None], t_steps=2, ctx=ctx)
    assert spiking_layer.theta.tolist() == pytest.approx([3.0])  # 0 0 0 .5 1 1 2 2 (3) 4 4 8


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
@pytest.mark.parametrize("theta", ["channel", "tensor"])
def test_a_calibrated_network_is_the_one_that_calibration_saw(spikes, theta) -> None:
    """Each theta is found with the ones before it in place, so with fine steps nothing moves afterwards."""
    student, batch = make(8, [2**30] * 3, spikes=spikes, theta=theta, query="spiking"), sentences()
    student.layers[0].up.bias.data[4] = -50.0  # gelu is silent there
    with torch.no_grad():
        seen = student(**batch, mode="calibrate", percentile=90.0)
        settled = student(**batch)
    assert all(
        (spiking_layer.theta > 0).all() and spiking_layer.theta.isfinite().all()
        for spiking_layer in student.spiking_layers().values()
    )
    torch.testing.assert_close(settled.logits, seen.logits, atol=1e-6, rtol=1e-6)
