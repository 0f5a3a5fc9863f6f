"""Published energy models: what each counts, its constants and their source, and pJ of a network by kind and row.

A model is a function of counts, no measurement. To add one: write `f(network) -> {kind: pJ [L+2]}`, linear in the
counts of `cost/kinds.py`, and add it to ENERGY_MODELS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from spikeprune.cost.kinds import Operations
from spikeprune.cost.network import FLOAT, Network

Energies = dict[str, Tensor]  # pJ of each kind, [L+2], over all sentences


@dataclass(frozen=True)
class EnergyModel:
    """`constants` in pJ; `widest`: bits of the widest whole number that its figures hold exactly."""

    name: str
    source: str
    constants: Mapping[str, float]
    counted: str
    left_out: str
    energy: Callable[[Network], Energies]
    widest: int

    def total(self, network: Network) -> Tensor:
        """pJ of all sentences, a scalar through which gradients flow to the masks."""
        return sum(values.sum() for values in self.energy(network).values())

    def per_sample(self, network: Network) -> float:
        """pJ of a mean sentence."""
        return self.total(network).item() / network.ops.samples


# -------------------------------------------------------------------------------------------------------- arithmetic

HOROWITZ = "Horowitz, Computing's Energy Problem, ISSCC 2014, figure 1.1.9 (45 nm, 0.9 V)"
I_BERT = "operations of each element: the integer functions of I-BERT (Kim et al. 2021, arXiv 2101.01321)"
ARITHMETIC = {
    "fp32": {"add": 0.9, "multiply": 3.7},
    "fp16": {"add": 0.4, "multiply": 1.1},
    "int32": {"add": 0.1, "multiply": 3.1},
    "int8": {"add": 0.03, "multiply": 0.2},
}
# bits of a whole number and its sign; of floats, their significand
WIDEST = {"fp32": 25, "fp16": 12, "int32": 32, "int8": 8}
# (additions, multiplications) of one of a kind. Divisions and roots, one a row, are left out.
STEPS_OF: dict[str, tuple[int, int]] = {
    "ac": (1, 0),
    "mac": (1, 1),
    "norm": (4, 3),  # mean; difference, its square, their mean; times 1/deviation, weight, bias
    "softmax": (7, 4),  # maximum, difference, bound; x = q ln 2 + r; a polynomial of r; sum; times 1/sum
    "activation": (4, 2),  # bound, a polynomial of degree 2; times x
    "updates": (2, 0),  # plus the current; comparison with the threshold
    "spikes": (1, 0),  # reset
    "leaks": (0, 1),
}


def arithmetic(ops: Operations, *, add: float | Tensor, multiply: float | Tensor) -> dict[str, Tensor]:
    """Energy of every operation: additions and multiplications of one element of each kind times their energies."""
    return {
        kind: (adds * add + multiplications * multiply) * ops.kinds[kind]
        for kind, (adds, multiplications) in STEPS_OF.items()
    }


def convention_energy(network: Network) -> Energies:
    ops, pj = network.ops, ARITHMETIC["fp32"]
    return {"ac": pj["add"] * ops.ac, "mac": (pj["add"] + pj["multiply"]) * ops.mac}


# ------------------------------------------------------------------------------------------------------------ memory
# Weights, spikes, membranes and activations read and written through memories of stated sizes, after Lemaire et al.
# 2022, An Analytical Estimation of Spiking Neural Networks Energy Efficiency (arXiv 2210.13107): each layer has a
# memory of its own for weights, for membranes, for activations and a queue for spikes, and an access costs more the
# larger its memory is. Theirs are accesses of 32 bits; here a number costs its bits' share of an access.

ACCESS = 64  # bits
# (bytes, pJ of an access): Horowitz 2014, figure 1.1.9, caches; in between linear, above the last constant
SIZES = ((0, 0.0), (8 * 2**10, 10.0), (32 * 2**10, 20.0), (2**20, 100.0))
QUEUE = 1000  # spikes that a layer's queue holds (Lemaire et al., section 4)


def per_bit(size: Tensor) -> Tensor:
    """pJ to read or write one bit of a memory of `size` bits, elementwise."""
    held, pj = size / 8, torch.zeros_like(size)
    for (small, low), (large, high) in zip(SIZES, SIZES[1:], strict=False):
        pj = pj + (held.clamp(small, large) - small) * (high - low) / (large - small)
    return pj / ACCESS


def memory_energy(network: Network, *, stationary: bool) -> dict[str, Tensor]:
    """pJ by kind and row. `stationary`: a dense array keeps weights, keys and values for all tokens of a sentence.

    In layers of few-bit weights integers are added in 32 bits, and multiplied in 8 where weights and activations fit,
    else in 32, as with folded thresholds; all else in floats of 32.
    """
    work, w, a = network.ops.kinds, network.weight_bits, network.activation_bits
    whole = "int8" if max(int(w.min()), int(a.max())) <= 8 else "int32"
    few = w < FLOAT
    add = torch.where(few, w.new_tensor(ARITHMETIC["int32"]["add"]), ARITHMETIC["fp32"]["add"])
    multiply = torch.where(few, w.new_tensor(ARITHMETIC[whole]["multiply"]), ARITHMETIC["fp32"]["multiply"])
    once = network.weights * network.ops.samples
    dense_weights = torch.minimum(work["dense_weights"], once) if stationary else work["dense_weights"]
    dense_operands = work["kept_operands"] if stationary else work["dense_operands"]
    read = work["weights"] + dense_weights
    place = per_bit(network.weights * (w + network.index_bits))
    queue = per_bit(torch.full_like(read, QUEUE * network.event_bits))
    keys, real = per_bit(network.operands * a), per_bit(network.operands * FLOAT)
    elements = 2 * (work["norm"] + work["softmax"] + work["activation"])
    return {
        "arithmetic": sum(arithmetic(network.ops, add=add, multiply=multiply).values()),
        "weights": read * w * place,
        "synapse places": read * network.index_bits * place,
        "spikes": (work["spikes"] + work["events"]) * network.event_bits * queue,
        "membranes": 2 * (work["ac"] + work["updates"]) * FLOAT * per_bit(network.membranes * FLOAT),
        "activations": (dense_operands + work["inputs"] + work["outputs"]) * a * keys
        + (work["operands"] + elements) * FLOAT * real,
        "addresses": ARITHMETIC["int32"]["add"] * (work["ac"] + work["inputs"] + work["outputs"]),
    }


PER_BYTE = 24.96  # 3.12 pJ a bit


def spikingjelly_energy(network: Network) -> Energies:
    ops, pj = network.ops, ARITHMETIC["fp32"]
    return {
        "ac": pj["add"] * (ops.ac + 2 * ops.kinds["updates"] + ops.kinds["spikes"]),
        "mac": (pj["add"] + pj["multiply"]) * ops.mac,
        "weights": PER_BYTE * network.weight_bits / 8 * (ops.kinds["weights"] + ops.kinds["dense_weights"]),
        "membranes": PER_BYTE * 4 * 2 * ops.kinds["updates"],
    }


# -------------------------------------------------------------------------------------------------------- the models


def _of_width(name: str, words: str) -> EnergyModel:
    return EnergyModel(
        name=name,
        source=f"{HOROWITZ}; {I_BERT}",
        constants=ARITHMETIC[name],
        counted=f"every operation, all numbers on both sides {words}: additions, MACs, membrane updates, resets, layer "
        "norm, softmax, gelu",
        left_out="memory, addresses, routing; a division or root a row",
        energy=lambda network: arithmetic(network.ops, **ARITHMETIC[name]),
        widest=WIDEST[name],
    )


_HIERARCHY = {"on-chip memory of 8 KiB, 64 bits": 10.0, "of 32 KiB": 20.0, "of 1 MiB and more": 100.0}
_MOVED = (
    "every operation, and memory: weights (with their places, where synapses are listed), membranes read and written "
    "at each addition and each step, spikes written and read as addresses, activations; an addition for each address"
)
_LEMAIRE = "Lemaire et al. 2022, arXiv 2210.13107 (each layer has a memory for each purpose, dearer the larger it is)"

ENERGY_MODELS: dict[str, EnergyModel] = {
    model.name: model
    for model in (
        EnergyModel(
            name="convention",
            source=f"SpikingBERT (arXiv 2308.10873), Sorbet and most of the field; {HOROWITZ}, 32-bit float",
            constants={"addition": 0.9, "MAC": 4.6},
            counted="additions and MACs, as 32-bit floats whatever their bits",
            left_out="membranes, layer norm, softmax, gelu; memory, addresses, routing",
            energy=convention_energy,
            widest=WIDEST["fp32"],
        ),
        _of_width("fp32", "32-bit floats"),
        _of_width("fp16", "16-bit floats"),
        _of_width("int32", "32-bit integers"),
        _of_width("int8", "8-bit integers"),
        EnergyModel(
            name="memory",
            source=f"{_LEMAIRE}; {HOROWITZ}; {I_BERT}",
            constants=_HIERARCHY,
            counted=f"{_MOVED}; at the network's own bits",
            left_out="off-chip memory, routing, leakage; weights kept from one token to the next, on either side",
            energy=partial(memory_energy, stationary=False),
            widest=WIDEST["int32"],
        ),
        EnergyModel(
            name="stationary",
            source="`memory`, with the weight-stationary dataflow of Sze et al. 2017, arXiv 1703.09039",
            constants=_HIERARCHY,
            counted="as `memory`, but a dense product reads a weight, key or value once for all tokens of a sentence",
            left_out="off-chip memory, routing, leakage; any reuse of a weight by several spikes",
            energy=partial(memory_energy, stationary=True),
            widest=WIDEST["int32"],
        ),
        EnergyModel(
            name="spikingjelly",
            source="SpikingJelly 2.0, estimate_simple_energy: Horowitz 2014, and 3.12 pJ a bit (STEP, table 9)",
            constants={"addition": 0.9, "MAC": 4.6, "byte of memory": PER_BYTE},
            counted="additions, those of membranes too, MACs; weights read at each use, membranes at each step",
            left_out="layer norm, softmax, gelu; activations, spikes, addresses, routing; reads of attention",
            energy=spikingjelly_energy,
            widest=WIDEST["fp32"],
        ),
    )
}
