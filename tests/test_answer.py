"""How a student is evaluated: the closed form against the simulation it stands for, chunks against the whole batch, and
the CPUs it is done with."""

from __future__ import annotations

import math

import pytest
import torch
from students import CODINGS, F64, FFN, WAYS, N, Operations, make, prune, sentences

from spikeprune.config.schema import Run
from spikeprune.cost import operations
from spikeprune.cost.activity import activity
from spikeprune.cost.shapes import Shape
from spikeprune.experiment import processes
from spikeprune.models import inference as answers
from spikeprune.models.inference import infer, sentence_numbers
from spikeprune.snn import equilibrium
from spikeprune.snn.equilibrium import settled_value
from spikeprune.snn.neurons import NEURONS, settle, steps

SHAPE = Shape(pooling="cls", query="real", theta="channel", layers=2, hidden=12, heads=3, ffn=FFN, classes=3)


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
@pytest.mark.parametrize("leak", [1.0, 0.7])
@pytest.mark.parametrize(("theta", "query", "pooling", "t_steps", "pruned"), WAYS)
def test_the_closed_form_is_the_simulation(spikes, leak, theta, query, pooling, t_steps, pruned) -> None:
    """Logits, hidden states and the spikes of every train."""
    options = {"spikes": spikes, "leak": leak, "theta": theta, "query": query, "pooling": pooling}
    student, batch = make(1, t_steps, **options), sentences()
    if pruned:
        prune(student)
    one, other = infer(student, **batch), infer(student, **batch, stepwise=True)
    torch.testing.assert_close(one.logits, other.logits)
    assert one.counts.keys() == other.counts.keys() and ("pooled" in one.counts) == (pooling == "cls")
    for spiking_layer, counts in one.counts.items():
        assert counts.shape[0] == 1 and torch.equal(counts[0], other.counts[spiking_layer].sum(0)), spiking_layer
    assert sum(counts.sum() for counts in one.counts.values()) > 0


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
@pytest.mark.parametrize("t_steps", [1, 2, 3, 4, 16, 64, 125])
def test_a_train_on_a_dyadic_grid_is_exact_in_single_precision(spikes, t_steps) -> None:
    """Currents and thresholds in eighths: nothing is rounded, so every tie between two spikes is met, and met alike."""
    x = (torch.arange(-64, 65).view(1, -1, 1) / 32).expand(1, -1, 3).contiguous()  # r from -4 to 4
    theta, tokens = torch.tensor([0.5, 1.0, 2.0]), torch.ones(1, 129, dtype=torch.bool)
    tokens[0, 5] = False
    value, counts = settled_value(x, theta, t_steps, NEURONS[spikes], 1.0, None, tokens)
    train = torch.stack(list(steps([x] * t_steps, theta, NEURONS[spikes], 1.0)))
    assert torch.equal(counts[0], (train.abs().sum(0) * tokens[..., None]).sum(1))
    assert torch.equal(value, theta * (train.sum(0) / t_steps))


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
@pytest.mark.parametrize("leak", [1.0, 0.7])
def test_blocks_and_masks_round_nothing(spikes, leak, monkeypatch) -> None:
    x = torch.randn(7, 5, 3, generator=torch.Generator().manual_seed(0))
    theta, tokens = torch.tensor([0.3, 0.7, 1.1]), torch.rand(7, 5) < 0.7
    how = {"t_steps": 5, "neuron": NEURONS[spikes], "leak": leak}
    masks = torch.tensor([1.0, 0.0, 1.0]), (torch.rand(7, 1, 3) < 0.5).float()
    plain = theta * settle(x, theta, **how)
    whole = settled_value(x, theta, mask=None, tokens=tokens, **how)
    assert torch.equal(whole[0], plain)
    for block in (1, 40, 10**6):  # one sample, two of seven, all
        monkeypatch.setattr(equilibrium, "BLOCK", block)
        value, counts = settled_value(x, theta, mask=None, tokens=tokens, **how)
        assert torch.equal(value, plain) and torch.equal(counts, whole[1])
        for mask in masks:
            assert torch.equal(settled_value(x, theta, mask=mask, tokens=None, **how)[0], plain * mask)


def test_what_is_reported_is_the_same() -> None:
    """Operations and firing rates from sums over trains and from trains."""
    student, batch = prune(make(2, (3, 4, 2), pooling="cls")), sentences()
    lengths = batch["attention_mask"].sum(1)
    masks = {"heads": student.heads, "ffn": student.ffn, "t_steps": student.steps}
    found = []
    for stepwise in (False, True):
        counts = infer(student, **batch, stepwise=stepwise).counts
        ops = operations.count(counts, lengths, shape=SHAPE, coding="accumulate", **masks)
        found.append((ops.per_sample(), ops.work(), activity(counts, lengths, **masks).rates()))
    assert found[0] == found[1] and found[0][0]["ac"] > 0


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
def test_the_evaluation_costs_no_time_steps(spikes) -> None:
    """The same operations for one step as for a thousand, spike counts included."""
    batch, logs = sentences(), []
    for t_steps in (1, 1000):
        student = make(0, [t_steps] * 3, spikes=spikes)
        infer(student, **batch)  # reads t_steps once
        with Operations() as log:
            infer(student, **batch)
        logs.append(log.names)
    assert logs[0] == logs[1] and len(logs[0]) > 100


@pytest.mark.parametrize("coding", CODINGS)
def test_chunks_are_the_whole_batch(coding, monkeypatch) -> None:
    student, batch = prune(make(4, (3, 4, 2), coding=coding, pooling="cls")), sentences((8, 8, 8, 5, 2))
    one = sentence_numbers(student, N)
    assert one == 4 * N * FFN  # the longest train, all tokens, the widest spiking layer
    whole = infer(student, **batch, stepwise=True)
    sizes = []
    forward = type(student).forward
    monkeypatch.setattr(
        type(student), "forward", lambda self, ids, *a, **k: sizes.append(len(ids)) or forward(self, ids, *a, **k)
    )
    for chunk, expected in ((1, [1] * 5), (2 * one, [2, 2, 1]), (5 * one - 1, [4, 1]), (5 * one, [5])):
        sizes.clear()
        parts = infer(student, **batch, stepwise=True, chunk=chunk)
        assert sizes == expected
        torch.testing.assert_close(parts.logits, whole.logits)
        assert all(map(torch.allclose, parts.hidden, whole.hidden))
        assert parts.counts.keys() == whole.counts.keys()
        assert all(torch.equal(parts.counts[spiking_layer], counts) for spiking_layer, counts in whole.counts.items())


def test_attention_without_its_scores_in_memory() -> None:
    """Fused and written out: the same context; what asks for scores, or for a gradient, gets them."""
    student, batch = prune(make(4, (3, 4, 2))), sentences()
    with torch.no_grad():
        plain, fused = student(**batch), student(**batch, scores=False)
    torch.testing.assert_close(fused.logits, plain.logits)
    assert len(plain.scores) == 2 and fused.scores == ()
    assert len(student(**batch, scores=True).scores) == 2


def test_the_closed_form_counts_accumulate_only() -> None:
    with pytest.raises(ValueError, match="does not count the spikes of coding per_step"):
        make(coding="per_step")(**sentences(), count=True)


def test_single_precision_differs_from_the_simulation_by_single_spikes() -> None:
    """A membrane summed up over 64 steps is rounded 64 times; few trains gain or lose a spike by it."""
    student = make(3, (64, 64, 64), torch.float32)
    x, theta = torch.randn(4, 500, 12), student.layers[0].attention_neurons.theta.detach()
    tokens = torch.ones(4, 500, dtype=torch.bool)
    neuron = NEURONS["ternary"]
    value, _ = settled_value(x, theta, 64, neuron, 1.0, None, tokens)
    train = torch.stack(list(steps([x] * 64, theta, neuron, 1.0)))
    difference = (value / theta * 64 - train.sum(0)).abs().round()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize(
    ("beside", "cores", "threads"),
    [(1, 4, 4), (3, 4, 1), (2, 64, 8), (2, 1, 1), (2, 40, 8)],
)
def test_the_processes_of_a_machine_share_its_cores(beside, cores, threads, monkeypatch) -> None:
    """Of eight threads that torch has; a run that is read again is measured by one process."""
    found = []
    monkeypatch.setattr(processes, "cpu_count", lambda: cores)
    monkeypatch.setattr(processes.distributed, "running", lambda: beside > 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    processes.use_threads(Run(devices=max(2, beside)))
    assert found == [threads]


def test_stepwise_simulates(monkeypatch) -> None:
    student, batch = make(), sentences()
    modes = []
    forward = type(student).forward
    monkeypatch.setattr(
        type(student), "forward", lambda self, *a, mode, **k: modes.append(mode) or forward(self, *a, mode=mode, **k)
    )
    for stepwise in (False, True):
        answers.infer(student, **batch, stepwise=stepwise)
    assert modes == ["equilibrium", "spiking"]
    assert math.isfinite(answers.infer(student, **batch).logits.sum()) and student.classifier.weight.dtype == F64
