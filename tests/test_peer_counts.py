"""The same spikes counted by NeuroBench's own code and by SpikingJelly's counters: linear layers agree exactly."""

from __future__ import annotations

import pytest
import torch
from test_cost import as_counts, spike_trains
from torch import nn

from spikeprune.cost import operations
from spikeprune.cost.energy_models import PER_BYTE
from spikeprune.cost.shapes import Shape, SynapseCounts

SHAPE = Shape(hidden=6, heads=3, ffn=5, layers=2, classes=2)
STEPS, LENGTHS = (2, 1, 3), [3, 1, 4]
NAMES = ("query", "key", "value", "out", "up", "down")


@pytest.fixture
def neurobench_macs():
    reason = "NeuroBench is not installed; `make bench` brings it"
    return pytest.importorskip("neurobench.metrics.utils.layers", reason=reason, exc_type=ImportError).single_layer_MACs


@pytest.fixture
def op_counter():
    reason = "SpikingJelly is not installed; `make bench` brings it"
    return pytest.importorskip("spikingjelly.activation_based.op_counter", reason=reason, exc_type=ImportError)


def masks(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return (torch.rand(2, 3, generator=rng) < 0.7).float(), (torch.rand(2, 5, generator=rng) < 0.7).float()


def matrices(layer: int, heads: torch.Tensor, ffn: torch.Tensor, synapses: float, rng) -> dict[str, nn.Linear]:
    """The six matrices of a layer, zero where a unit is masked or a synapse is missing."""
    channels = heads[layer].repeat_interleave(SHAPE.head_size)
    rows = {"out": torch.ones(6), "up": ffn[layer], "down": torch.ones(6)}
    columns = {"out": channels, "down": ffn[layer]}
    made = {}
    for name in NAMES:
        row, column = rows.get(name, channels), columns.get(name, torch.ones(6))
        made[name] = nn.Linear(len(column), len(row), bias=False)
        there = (torch.rand(len(row), len(column), generator=rng) < synapses) * row[:, None] * column
        made[name].weight.data.copy_(there)
    return made


def links_of(layer: dict[str, nn.Linear]) -> SynapseCounts:
    weights = {name: linear.weight.detach() for name, linear in layer.items()}
    qkv = sum(weights[name].view(3, SHAPE.head_size, 6).sum(1) for name in ("query", "key", "value")).T
    return SynapseCounts(qkv, weights["out"].sum(0), weights["up"].T, weights["down"].sum(0))


def inputs(trains: dict, layer: int) -> dict[str, torch.Tensor]:
    """What each matrix receives, [T, B, N, channels]."""
    below = trains["embedding"] if layer == 0 else trains[f"layers.{layer - 1}.output"]
    own = {name: trains[f"layers.{layer}.{name}"] for name in ("context", "attention", "intermediate")}
    sources = {"out": own["context"], "up": own["attention"], "down": own["intermediate"]}
    return {name: sources.get(name, below) for name in NAMES}


def counted(trains: dict, heads, ffn, links=None) -> operations.Operations:
    how = {"shape": SHAPE, "heads": heads, "ffn": ffn, "t_steps": STEPS, "coding": "accumulate", "links": links}
    return operations.count(as_counts(trains, LENGTHS), torch.tensor(LENGTHS), **how)


@pytest.mark.parametrize("synapses", [1.0, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_linear_layers_agree_with_neurobench(seed, synapses, neurobench_macs) -> None:
    heads, ffn = masks(seed)
    trains, rng = spike_trains(SHAPE, STEPS, LENGTHS, seed), torch.Generator().manual_seed(seed)
    layers = [matrices(layer, heads, ffn, synapses, rng) for layer in range(2)]
    found = counted(trains, heads, ffn, [links_of(layer) for layer in layers]).kinds["weights"]
    for i, layer in enumerate(layers):
        theirs = 0
        for name, spikes in inputs(trains, i).items():
            for b, n in enumerate(LENGTHS):
                ops, spiking = neurobench_macs(spikes[:, b, :n].flatten(0, 1), layer[name])
                theirs += ops
                assert spiking or not ops
        assert found[i + 1] == theirs > 0


def test_linear_layers_agree_with_spikingjelly(op_counter) -> None:
    """Binary spikes, nothing pruned: its counters know neither signs nor zero weights."""
    ones = torch.ones(2, 3), torch.ones(2, 5)
    trains, rng = spike_trains(SHAPE, STEPS, LENGTHS, 0, ternary=False), torch.Generator().manual_seed(0)
    found = counted(trains, *ones)
    for i in range(2):
        synops, energy = op_counter.SynOpCounter(), 0.0
        for name, linear in matrices(i, *ones, 1.0, rng).items():
            for b, n in enumerate(LENGTHS):
                spikes = inputs(trains, i)[name][:, b, :n].flatten(0, 1)
                with op_counter.DispatchCounterMode([synops], strict=False):
                    linear(spikes)
                energy += op_counter.estimate_simple_energy(nn.Sequential(linear), spikes).energy_total_pj
        weights = found.kinds["weights"][i + 1]
        assert weights == synops.get_total() > 0
        assert energy == pytest.approx(weights.item() * (0.9 + 4 * PER_BYTE))


def test_membranes_and_lemaire_agree_with_spikingjelly(op_counter) -> None:
    """One matrix before IF neurons: accesses of weights and membranes, and additions for addresses."""
    from spikingjelly.activation_based import neuron

    spikes = (torch.rand(3, 2, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()  # [T, tokens, channels]
    linear = nn.Linear(6, 5, bias=False)
    net = nn.Sequential(linear, neuron.IFNode(step_mode="m")).eval()
    additions, updates = int(spikes.sum()) * 5, 3 * 2 * 5
    simple = op_counter.estimate_simple_energy(net, spikes).counts
    assert simple["weight_read_bytes"] == 4 * additions and simple["neuron_state_read_bytes"] == 4 * updates
    paper = op_counter.estimate_lemaire_energy(net, spikes).counts
    assert paper["read_params_bytes"] == 4 * additions and paper["acc_addr"] == additions
    assert paper["read_potential_bytes"] == paper["write_potential_bytes"] == 4 * (additions + updates)
