"""Published energy models: what each counts, its constants and their source, and pJ of a network by kind and row.

A model is a function of counts, no measurement. To add one: write `f(network) -> {kind: pJ [L+2]}`, linear in the
counts of `cost/kinds.py`, and add it to ENERGY_MODELS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from spikeprune.cost.arithmetic import ARITHMETIC, HOROWITZ, I_BERT, WIDEST, arithmetic
from spikeprune.cost.memory import memory_energy
from spikeprune.cost.network import Network

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


def convention_energy(network: Network) -> Energies:
    ops, price = network.ops, ARITHMETIC["fp32"]
    return {"ac": price["add"] * ops.ac, "mac": (price["add"] + price["multiply"]) * ops.mac}


def every_operation(network: Network, *, add: float, multiply: float) -> Energies:
    return arithmetic(network.ops, add=add, multiply=multiply)


PER_BYTE = 24.96  # 3.12 pJ a bit


def spikingjelly_energy(network: Network) -> Energies:
    ops, price = network.ops, ARITHMETIC["fp32"]
    return {
        "ac": price["add"] * (ops.ac + 2 * ops.kinds["updates"] + ops.kinds["spikes"]),
        "mac": (price["add"] + price["multiply"]) * ops.mac,
        "weights": PER_BYTE * network.weight_bits / 8 * (ops.kinds["weights"] + ops.kinds["dense_weights"]),
        "membranes": PER_BYTE * 4 * 2 * ops.kinds["updates"],
    }


def _of_width(name: str, words: str) -> EnergyModel:
    return EnergyModel(
        name=name,
        source=f"{HOROWITZ}; {I_BERT}",
        constants=ARITHMETIC[name],
        counted=f"every operation, all numbers on both sides {words}: additions, MACs, membrane updates, resets, layer "
        "norm, softmax, gelu",
        left_out="memory, addresses, routing; a division or root a row",
        energy=partial(every_operation, **ARITHMETIC[name]),
        widest=WIDEST[name],
    )


_HIERARCHY = {"on-chip memory of 8 KiB, 64 bits": 10.0, "of 32 KiB": 20.0, "of 1 MiB and more": 100.0}
_MOVED = (
    "every operation, and memory: weights (with their places, where synapses are listed), membranes read and written "
    "at each addition and each step, spikes written and read as addresses, activations; an addition for each address"
)
_LEMAIRE = "Lemaire et al. 2022, arXiv 2210.13107 (each layer has a memory for each purpose, priced by its size)"

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
