"""What operations cost: energy, latency and size of a network for one sentence, under the prices of a technology.

`cost/operations.py` counts; what its kinds of operation are, and what is left out, stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from spikeprune.cost.operations import CODINGS, Operations
from spikeprune.cost.shapes import Shape, model_bytes, parameters
from spikeprune.errors import known


@dataclass(frozen=True)
class Prices:
    """Energy of one operation in pJ; a MAC is one multiplication and one addition."""

    ac: float
    mac: float
    note: str


_HOROWITZ = "45 nm, 0.9 V; Horowitz, Computing's Energy Problem, ISSCC 2014, figure 1.1.9"
PRICES: dict[str, Prices] = {
    "fp32": Prices(ac=0.9, mac=4.6, note=f"32-bit float, {_HOROWITZ}"),
    "fp16": Prices(ac=0.4, mac=1.5, note=f"16-bit float, {_HOROWITZ}"),
    "int32": Prices(ac=0.1, mac=3.2, note=f"32-bit integer, {_HOROWITZ}"),
    "int8": Prices(ac=0.03, mac=0.23, note=f"8-bit integer, {_HOROWITZ}"),
}


def energy_pj(ops: Operations, prices: Prices) -> float:
    """Energy of one sentence in pJ, AC and MAC only: the literature's convention. Memory traffic is left out."""
    mean = ops.per_sample()
    return prices.ac * mean["ac"] + prices.mac * mean["mac"]


def energy_full_pj(ops: Operations, prices: Prices) -> float:
    """`energy_pj` and each element-wise operation at the price of a MAC."""
    return energy_pj(ops, prices) + prices.mac * ops.per_sample()["elementwise"]


def norm_ops(ops: Operations, dense_ops: Operations) -> float:
    """SpikingBERT's normalized operations (arXiv 2308.10873): (AC + MAC) over the dense network's MACs, unitless.

    `dense_ops` must be of the uncompressed architecture on the same sentences.
    """
    spiking = ops.per_sample()
    return (spiking["ac"] + spiking["mac"]) / dense_ops.per_sample()["mac"]


def latency_steps(t_steps: Sequence[int] | Tensor, coding: str) -> int:
    """Time steps until the answer: Σ T_l in `accumulate`, where a layer waits for the one below, otherwise max T_l."""
    known("coding", coding, CODINGS)
    steps = [int(t) for t in t_steps]
    return sum(steps) if coding == "accumulate" else max(steps)


def latency_stages(t_steps: Sequence[int] | Tensor, coding: str) -> int:
    """Steps one after the other, counting that in `accumulate` five populations of a layer fire in turn.

    They are k with v, c, h, f and a', so T_0 + 5 Σ T_l; `latency_steps` counts a layer once, as the literature does.
    In the synchronous codings all tick together: the longest T.
    """
    known("coding", coding, CODINGS)
    steps = [int(t) for t in t_steps]
    return steps[0] + 5 * sum(steps[1:]) if coding == "accumulate" else latency_steps(steps, coding)


def summarize(
    ops: Operations,
    *,
    dense_ops: Operations,
    prices: Prices,
    shape: Shape,
    heads: Tensor | None = None,
    ffn: Tensor | None = None,
    t_steps: Sequence[int] | Tensor | None = None,
    coding: str | None = None,
    bits: int = 32,
    synapses: int | None = None,
) -> dict[str, float]:
    """Every cost of one network for one sentence; energies in pJ, `bits` and `synapses` as in `shapes.model_bytes`.

    A dense network leaves out masks, steps and coding, and has no `latency_steps` and `latency_stages`. `dense_ops` are
    those of the uncompressed dense architecture.
    """
    size = {"shape": shape, "heads": heads, "ffn": ffn}
    costs = {
        **ops.per_sample(),
        "energy_pj": energy_pj(ops, prices),
        "energy_full_pj": energy_full_pj(ops, prices),
        "norm_ops": norm_ops(ops, dense_ops),
        "params": parameters(**size).total,
        "bytes": model_bytes(**size, bits=bits, synapses=synapses),
    }
    if t_steps is not None:
        costs["latency_steps"] = latency_steps(t_steps, coding)
        costs["latency_stages"] = latency_stages(t_steps, coding)
    return costs
