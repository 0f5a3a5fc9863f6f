"""The costs of one network for one sentence: operations, energy under the model that leads, latency and size.

Latency is the time steps until the answer. In `accumulate` a layer's neurons fire once the train below has ended, and
within a layer five populations fire in turn: k with v, c, h, f and a'. In the synchronous codings all layers step
together, and the longest T is the latency.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spikeprune.config.names import CODINGS
from spikeprune.cost.energy_models import EnergyModel
from spikeprune.cost.kinds import Operations
from spikeprune.cost.network import Network
from spikeprune.cost.shapes import Shape, model_bytes, parameters
from spikeprune.errors import known

POPULATIONS = 5  # of a layer that fire in turn


def latency_steps(t_steps: Sequence[int] | Tensor, coding: str) -> int:
    """Σ T_l in `accumulate`, where a layer waits for the one below, otherwise max T_l."""
    known("coding", coding, CODINGS)
    steps = [int(t) for t in t_steps]
    return sum(steps) if coding == "accumulate" else max(steps)


def latency_stages(t_steps: Sequence[int] | Tensor, coding: str) -> int:
    """Steps of all populations one after the other, T_0 + 5 Σ T_l; `latency_steps` counts a layer once, as the
    literature does."""
    inside = (POPULATIONS - 1) * sum(int(t) for t in t_steps[1:]) if coding == "accumulate" else 0
    return latency_steps(t_steps, coding) + inside


def latency_overlapped(t_steps: Sequence[int] | Tensor, coding: str) -> int:
    """A lower bound of `latency_stages` where each population starts as soon as the one below has sent its first step.

    Of P = 1 + 5L populations the i-th begins at step i at the earliest, fires for T_i steps, and P - 1 - i others each
    need one more step after its last: no answer before P - 1 + max T = 5L + max T. It is a bound, not a schedule:
    before the train below has ended the sum is not known, so first spikes would have to be corrected.
    """
    before = POPULATIONS * (len(t_steps) - 1) if coding == "accumulate" else 0
    return before + latency_steps([max(t_steps)], coding)


def norm_ops(ops: Operations, dense_ops: Operations) -> float:
    """SpikingBERT's normalized operations (arXiv 2308.10873): (AC + MAC) over the dense network's MACs, unitless.

    `dense_ops` must be of the uncompressed architecture on the same sentences.
    """
    spiking = ops.per_sample()
    return (spiking["ac"] + spiking["mac"]) / dense_ops.per_sample()["mac"]


def summarize(
    network: Network,
    *,
    dense_ops: Operations,
    model: EnergyModel,
    shape: Shape,
    heads: Tensor | None = None,
    ffn: Tensor | None = None,
    t_steps: Sequence[int] | Tensor | None = None,
    coding: str | None = None,
    bits: int = 32,
    synapses: int | None = None,
) -> dict[str, float]:
    """Every cost of one network for one sentence; `energy_pj` under `model`, `bits` and `synapses` as in
    `shapes.model_bytes`.

    A dense network leaves out masks, steps and coding, and has no latency in steps. `dense_ops` are those of the
    uncompressed dense architecture.
    """
    size = {"shape": shape, "heads": heads, "ffn": ffn}
    costs = {
        **network.ops.per_sample(),
        "energy_pj": model.per_sample(network),
        "norm_ops": norm_ops(network.ops, dense_ops),
        "params": parameters(**size).total,
        "bytes": model_bytes(**size, bits=bits, synapses=synapses),
    }
    if t_steps is not None:
        costs["latency_steps"] = latency_steps(t_steps, coding)
        costs["latency_stages"] = latency_stages(t_steps, coding)
        costs["latency_overlapped"] = latency_overlapped(t_steps, coding)
    return costs
