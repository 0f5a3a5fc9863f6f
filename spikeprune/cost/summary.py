"""The costs of one network for one sentence: operations, energy under the model that leads, latency and size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spikeprune.cost.energy_models import EnergyModel
from spikeprune.cost.kinds import Operations
from spikeprune.cost.latency import latency_overlapped, latency_stages, latency_steps
from spikeprune.cost.network import Network
from spikeprune.cost.shapes import Shape, model_bytes, parameters


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
