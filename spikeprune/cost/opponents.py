"""A student beside dense networks, under every energy model: the table that says what spikes bring.

Opponents: the dense `teacher`; the `masked_teacher`, the teacher's float network of the student's layers with the
student's heads, neurons and synapses alone; `equal_bits`, the student itself computed without spikes. In `accumulate`
an IF student is exactly that network: activations of ⌈log2(2T+1)⌉ bits (`network.level_bits`), MACs of kept units,
weights at their bits. In the other codings it has as many levels and is no equal function. Dense opponents pay nothing
for residuals and biases; none skips activations of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spikeprune.cost.dense import dense
from spikeprune.cost.energy_models import ENERGY_MODELS, EnergyModel
from spikeprune.cost.kinds import Operations
from spikeprune.cost.network import Network, dense_network, level_bits
from spikeprune.cost.shapes import Shape, SynapseCounts
from spikeprune.cost.synapses import unfired

OPPONENTS = ("teacher", "masked_teacher", "equal_bits")
FIRED = ("spikes", "events", "weights", "operands")  # kinds that grow with firing rates; additions do but for `unfired`


def opponents(
    lengths: Tensor,
    *,
    shape: Shape,
    teacher_shape: Shape,
    heads: Tensor,
    ffn: Tensor,
    t_steps: Sequence[int],
    bits: int = 32,
    links: Sequence[SynapseCounts] | None = None,
) -> dict[str, Network]:
    """The networks of OPPONENTS on sentences of `lengths` [B]. The student's are `shape`, masks `heads` [L,H] and `ffn`
    [L,F], T of the embedding and each layer, `bits` of the encoder's weights, and `links` where synapses are missing.
    """
    kept = {"heads": heads, "ffn": ffn, "links": links}
    masked = replace(teacher_shape, layers=shape.layers)
    return {
        "teacher": dense_network(dense(lengths, shape=teacher_shape), shape=teacher_shape),
        "masked_teacher": dense_network(dense(lengths, shape=masked, **kept), shape=masked, **kept),
        "equal_bits": equal_bits(lengths, shape=shape, t_steps=t_steps, bits=bits, **kept),
    }


def equal_bits(
    lengths: Tensor,
    *,
    shape: Shape,
    heads: Tensor,
    ffn: Tensor,
    t_steps: Sequence[int],
    bits: int = 32,
    links: Sequence[SynapseCounts] | None = None,
) -> Network:
    """The student computed densely: each spiking layer becomes a rounding to as many levels as its T steps have."""
    levels = [level_bits(int(t), signed=shape.signed) for t in t_steps]
    kept = {"heads": heads, "ffn": ffn, "links": links}
    work = dense(lengths, shape=shape, rounded=True, **kept)
    return dense_network(work, shape=shape, bits=bits, activation_bits=[*levels, levels[-1]], **kept)


def silent(student: Network, *, shape: Shape, t_steps: Sequence[int], coding: str) -> Network:
    """The student at firing rates of zero: what it pays whatever fires. A product of two spike trains (a spiking query
    in `per_step`) is taken as linear in the rates."""
    ops = student.ops
    kinds = dict(ops.kinds) | {kind: torch.zeros_like(ops.ac) for kind in FIRED}
    always = torch.zeros_like(ops.ac)
    always[1:-1] = ops.tokens * ops.tokens.new_tensor(unfired(shape=shape, t_steps=[*map(int, t_steps)], coding=coding))
    return replace(student, ops=Operations({**kinds, "ac": always}, ops.ac_per_step, ops.tokens, ops.samples))


def comparison(
    student: Network, others: Mapping[str, Network], without_spikes: Network, *, rate: float
) -> dict[str, dict[str, Any]]:
    """The energy table of one student, plain numbers for JSON: for each of ENERGY_MODELS

        student, teacher, masked_teacher, equal_bits   pJ of a mean sentence; None where the model has no figure, or
                      the student, dense itself, no such opponent
        ratios        {opponent: its energy over the student's}; above 1 the student takes less
        pays_below    the mean firing rate below which the student takes less than `equal_bits`, at most 1, all rates
                      scaled alike; None where it takes more even without a spike, or the model has no figure
        parts         {kind: pJ} of the student

    `rate`: the student's mean firing rate; `without_spikes`: as from `silent`.
    """
    return {name: _under(model, student, others, without_spikes, rate) for name, model in ENERGY_MODELS.items()}


def _under(
    model: EnergyModel, student: Network, others: Mapping[str, Network], without_spikes: Network, rate: float
) -> dict[str, Any]:
    own = model.per_sample(student)
    energies = {name: energy_or_none(model, others[name]) if name in others else None for name in OPPONENTS}
    parts = {kind: values.sum().item() / student.ops.samples for kind, values in model.energy(student).items()}
    return {
        "student": own,
        **energies,
        "ratios": {name: None if pj is None or not own else pj / own for name, pj in energies.items()},
        "pays_below": pays_below(own, model.per_sample(without_spikes), energies["equal_bits"], rate),
        "parts": parts,
    }


def energy_or_none(model: EnergyModel, network: Network) -> float | None:
    """pJ of a mean sentence; None where dense activations are wider than the model has figures for."""
    widest = int(network.activation_bits.max())
    if widest != 32 and widest > model.widest:  # floats are counted as of the model's own width
        return None
    return model.per_sample(network)


def pays_below(energy: float, silent_energy: float, opponent: float | None, rate: float) -> float | None:
    """The firing rate at which a student's energy equals its opponent's, since it grows linearly from `silent_energy`
    at rate 0 to `energy` at `rate`; at most 1, None where there is none."""
    if opponent is None or opponent < silent_energy or energy <= silent_energy:
        return None
    return min(1.0, rate * (opponent - silent_energy) / (energy - silent_energy))
