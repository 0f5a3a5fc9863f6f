"""A whole student evaluated on the tensor cores: whole numbers between its layers, four kinds of kernels.

`encode` stands in for `SpikingBert.encode` and all layers and sites where `covers` says so: on a GPU, without
gradient, for the closed form and for the simulation of the codings that tick together. Per layer: one product for
query, key and value with the neurons of the latter two behind it, attention and context, a product and a layer norm, a
product, gelu and its neurons, a product and a layer norm. Between them spikes or counts travel as bytes (see
`spiking.limbs`). `weight_cache.py` has weights, thresholds and masks as it reads them. The embedding's current and the
answer are the student's own.

The arithmetic is float32's or better, but not bit for bit that of the torch path: sums of spikes are exact here. A
current within rounding of its threshold may fire on one side only.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import gelu
from transformers.activations import GELUActivation

from spikeprune.kernels import split_integer
from spikeprune.kernels.equilibrium import KINDS
from spikeprune.kernels.firing import CLOSED, GELU, PER_STEP, RUNNING, Firing
from spikeprune.kernels.norm_attention import attended, constant, counted, normed
from spikeprune.kernels.split_integer import MOST, padded
from spikeprune.kernels.weight_cache import held
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.neurons import leak_weights

if TYPE_CHECKING:
    from spikeprune.models.modeling import SpikingBert

MODES = {"per_step": PER_STEP, "running_mean": RUNNING}
HEAD_SIZES = (16, 32, 64, 128)  # of which attention makes a tile
WIDEST = 4096  # channels of a row that layer norm holds


def covers(student: SpikingBert, run: ForwardContext) -> bool:
    """Whether the engine computes this pass; else the sites do, each by itself.

    It does without gradient and autocast, in float32 on CUDA with `kernels=triton`, where no more is asked for than
    values and counts, of a network that is `shaped`: the closed form of IF neurons, and the simulation in `per_step` or
    (IF) `running_mean` where no layer fires longer than the one below it; trains that hold counts up to MOST steps.
    """
    site, steps = student.embedding.neurons, student.steps
    asked = run.rate or run.trace or run.scores or run.pulses or run.deaden is not None or run.settled is not None
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cuda") or asked:
        return False
    if site.kernels != "triton" or not suits(student.classifier.weight):
        return False
    if run.mode == "equilibrium":
        timed = site.leak == 1.0 and max(steps) <= MOST
    elif run.mode == "spiking" and student.coding in MODES:
        longest = MOST if student.coding == "running_mean" else float("inf")
        timed = all(a >= b for a, b in zip(steps, steps[1:], strict=False)) and max(steps) <= longest
        timed = timed and (site.leak == 1.0 or student.coding == "per_step")
    else:
        return False
    return timed and site.kind in KINDS and shaped(student)


def suits(like: Tensor) -> bool:
    return like.is_cuda and like.dtype == torch.float32


def shaped(student: SpikingBert) -> bool:
    """Whether the network itself is one that the engine's kernels know."""
    layers, values = student.layers, student.values
    plain = student.query == "real" and student.embedding.feedback is None and not values["dead_zone"]
    plain = plain and values["residual"] == "spikes"
    plain = plain and all(layer.act is gelu or isinstance(layer.act, GELUActivation) for layer in layers)
    sized = values["hidden"] <= WIDEST and values["hidden"] // values["heads"] in HEAD_SIZES
    return plain and sized and all(layer.heads and layer.ffn for layer in layers)


@cache
def units(mode: int, steps: int, total: int, device: torch.device) -> Tensor:
    """Theta's share that one unit of a train stands for at each step `[S]`; its source fires for `total` steps."""
    by_mode = {PER_STEP: [1.0] * steps, RUNNING: [1.0 / t for t in range(1, steps + 1)], CLOSED: [1.0 / total]}
    return torch.tensor(by_mode[mode], device=device)


@cache
def asr_norm(steps: int, leak: float) -> float:
    return float(leak_weights(steps, leak).sum())


def encode(
    student: SpikingBert, input_ids: Tensor, token_type_ids: Tensor, *, run: ForwardContext
) -> tuple[SpikeTrain, list, list]:
    """As `SpikingBert.encode`, of a pass that is covered."""
    closed, device = run.mode == "equilibrium", input_ids.device
    mode = CLOSED if closed else MODES[student.coding]
    ready, (total, *totals) = held(student, mode != PER_STEP), student.steps
    tokens, shape = run.tokens, (*input_ids.shape, student.values["hidden"])
    site = student.embedding.neurons
    leak, counting = site.leak, Counting(run, mode == RUNNING)

    def firing(arrays: tuple[Tensor, Tensor], t: int) -> Firing:
        return Firing(*arrays, mode, site.kind == "ternary", leak, site.neuron.start, float(t))

    # the names of the formulas in `modeling.py`: a, k, v, c, h, f are trains, q and y currents in float32
    current = student.embedding.current(input_ids, token_type_ids).flatten(0, 1)  # [B N, D]
    steps = 1 if closed else total
    how = {"steps": steps, "width": padded(shape[-1]), "asr_norm": asr_norm(total, leak)}
    a, value = constant(current, firing(ready.embedding, total), **how)  # [S, B N, D padded], [B N, D]
    counting({"embedding": (a, shape[-1])})
    hidden, below = [value.view(shape)], (ready.embedding[0], total)
    for layer, own, t in zip(student.layers, ready.layers, totals, strict=True):
        steps, fires = 1 if closed else t, lambda arrays, t=t: firing(arrays, t)
        inner, unit = layer.heads * layer.head_size, units(mode, steps, t, device)
        theta, before = below[0], units(mode, steps, below[1], device)  # of the train a
        width = padded(inner)
        # q = Wq a, k = spike(Wk a), v = spike(Wv a)
        q, kv = split_integer.product(a, own.qkv, before, steps=steps, reals=width, site=fires(own.kv))
        thetas = own.kv[0][width : 2 * width], own.kv[0][2 * width :]
        how = {"steps": steps, "heads": layer.heads, "size": layer.head_size}
        # c = spike(softmax(q k^T / sqrt d + mask) v)
        c = attended(q, kv, *thetas, unit, tokens, fires(own.context), **how)
        # h = spike(LN(Wo c + a))
        y, _ = split_integer.product(c, own.out, unit, steps=steps, reals=own.out.codes.shape[1])
        how = {"steps": steps, "asr_norm": asr_norm(t, leak)}
        h, _ = normed(y, a, theta, before, layer.attention_norm, fires(own.attention), **how)
        # f = spike(gelu(W1 h))
        up = {"reals": 0, "site": fires(own.intermediate), "activation": GELU}
        _, f = split_integer.product(h, own.up, unit, steps=steps, **up)
        # a' = spike(LN(W2 f + h))
        y, _ = split_integer.product(f, own.down, unit, steps=steps, reals=own.down.codes.shape[1])
        last = {"value": True, **how}
        a, value = normed(y, h, own.attention[0], unit, layer.output_norm, fires(own.output), **last)
        name = layer.output_neurons.name.removesuffix("output")
        sites = {"key": (kv, inner), "value": (kv, inner), "context": (c, inner), "attention": (h, shape[-1])}
        sites |= {"intermediate": (f, layer.ffn), "output": (a, shape[-1])}
        counting({name + key: found for key, found in sites.items()})
        if run.count and layer.output_neurons.count_first:
            counting.first(a.view(steps, *shape[:2], -1)[:, :, 0, : shape[-1]])
        hidden.append(value.view(shape))
        below = own.output[0], t
    return SpikeTrain(hidden[-1]), hidden, [None] * len(totals)


class Counting:
    """Leaves spike counts in a pass that asks for them."""

    def __init__(self, run: ForwardContext, running: bool):
        self.run, self.running = run, running

    def __call__(self, trains: dict[str, tuple[Tensor, int]]) -> None:
        if not self.run.count:
            return
        pairs: dict[int, Tensor] = {}
        for name, (train, channels) in trains.items():
            start = train.shape[-1] // 2 if name.endswith(".value") else 0
            if id(train) not in pairs:
                pairs[id(train)] = counted(train, self.run.tokens, train.shape[-1], running=self.running)
            self.run.counts[name] = pairs[id(train)][..., start : start + channels]

    def first(self, train: Tensor) -> None:
        """The first token's alone `[S, B, D]`."""
        spikes = train.float()
        if self.running:
            spikes = spikes.diff(dim=0, prepend=torch.zeros_like(spikes[:1]))
        self.run.counts["pooled"] = spikes.abs()
