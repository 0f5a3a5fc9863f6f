"""The same spiking BERT in other libraries: the same weights, binary IF neurons of threshold 1, per_step coding.

`tick` is the network; peers differ in the code that keeps the membranes and in whether time is the outermost loop.

| peer | time | membranes |
|---|---|---|
| `spikingjelly` | inside each layer, all steps in one product | SpikingJelly's multi-step IFNode |
| `snntorch` | outermost loop | snnTorch's Leaky, one call a step |
| `loop` | outermost loop | plain tensors, and running rates of every spiking layer, as in SpikingBERT |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from spikeprune.models.modeling import SpikingBert
from spikeprune.snn.context import ForwardContext

Fire = Callable[[str, Tensor], Tensor]  # a spiking layer's name and its current -> its spikes, of the same shape


def current(student: SpikingBert, ids: Tensor) -> Tensor:
    """The current of the embedding's neurons, `[B, N, D]`."""
    e = student.embedding
    return e.norm(e.word(ids) + e.position.weight[: ids.shape[1]] + e.segment.weight[0])


def fused_attention(layer, q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
    return layer.attention(q, k, v, ForwardContext("spiking", tokens).padding)


def plain_attention(layer, q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
    """As the published code writes it."""
    q, k, v = (layer.split(x) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(layer.head_size)
    scores = scores + (1.0 - tokens[:, None, None, :].to(scores.dtype)) * -10000.0
    return (scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2)


def tick(student: SpikingBert, x: Tensor, tokens: Tensor, fire: Fire, attention=fused_attention) -> Tensor:
    """Currents of the embedding `[..., B, N, D]` -> spikes of the last layer: one step, or with a leading T all."""
    a = fire("embedding", x)
    for i, layer in enumerate(student.layers):
        k, v = fire(f"{i}.key", layer.key(a)), fire(f"{i}.value", layer.value(a))
        c = fire(f"{i}.context", attention(layer, layer.query(a), k, v, tokens))
        h = fire(f"{i}.attention", layer.attention_norm(layer.out(c) + a))
        f = fire(f"{i}.intermediate", layer.act(layer.up(h)))
        a = fire(f"{i}.output", layer.output_norm(layer.down(f) + h))
    return a


def head(student: SpikingBert, rates: Tensor) -> Tensor:
    """Mean over tokens (there is no padding) and classifier: `[B, N, D]` -> logits `[B, C]`."""
    return student.classifier(rates.mean(1))


def spikingjelly(student: SpikingBert, t_steps: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Raises ImportError where SpikingJelly is not installed."""
    from spikingjelly.activation_based import functional, neuron

    nodes: dict[str, neuron.IFNode] = {}

    def fire(name: str, x: Tensor) -> Tensor:
        if name not in nodes:
            nodes[name] = neuron.IFNode(v_threshold=1.0, v_reset=None, step_mode="m").to(x.device).eval()
        functional.reset_net(nodes[name])
        nodes[name].v = 0.5
        return nodes[name](x)

    @torch.no_grad()
    def run(ids: Tensor, mask: Tensor) -> Tensor:
        x = current(student, ids).expand(t_steps, -1, -1, -1).contiguous()
        return head(student, tick(student, x, mask.bool(), fire).mean(0))

    return run


def snntorch(student: SpikingBert, t_steps: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Raises ImportError where snnTorch is not installed."""
    import snntorch as snn

    cells: dict[str, snn.Leaky] = {}

    @torch.no_grad()
    def run(ids: Tensor, mask: Tensor) -> Tensor:
        membranes: dict[str, Tensor] = {}

        def fire(name: str, x: Tensor) -> Tensor:
            if name not in cells:
                cells[name] = snn.Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract").to(x)
            if name not in membranes:
                membranes[name] = torch.full_like(x, 0.5)
            spikes, membranes[name] = cells[name](x, membranes[name])
            return spikes.to(x.dtype)  # float32 whatever x is

        x, tokens, total = current(student, ids), mask.bool(), 0.0
        for _ in range(t_steps):
            total = total + tick(student, x, tokens, fire)
        return head(student, total / t_steps)

    return run


def loop(student: SpikingBert, t_steps: int) -> Callable[[Tensor, Tensor], Tensor]:
    """SpikingBERT's structure (Bal & Sengupta 2024, arXiv 2308.10873): every spiking layer at every step, and the
    weighted sum of its spikes, from which its rate is read."""

    @torch.no_grad()
    def run(ids: Tensor, mask: Tensor) -> Tensor:
        membranes: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}

        def fire(name: str, x: Tensor) -> Tensor:
            u = membranes.get(name)
            u = x + (torch.full_like(x, 0.5) if u is None else u)
            s = (u >= 1.0).to(x.dtype)
            membranes[name] = u - s
            sums[name] = sums[name] + s if name in sums else s
            return s

        x, tokens, last = current(student, ids), mask.bool(), f"{len(student.layers) - 1}.output"
        for _ in range(t_steps):
            tick(student, x, tokens, fire, plain_attention)
        return head(student, sums[last] / t_steps)

    return run


PEERS = {"spikingjelly": spikingjelly, "snntorch": snntorch, "loop": loop}


MODULES = {"spikingjelly": "spikingjelly.activation_based.neuron", "snntorch": "snntorch", "loop": "torch"}


def lacking(name: str) -> str:
    """Why a peer cannot take part; empty where it can."""
    try:
        import_module(MODULES[name])
    except ImportError as error:
        return f"skipped: {error}; `make bench` installs it"
    return ""
