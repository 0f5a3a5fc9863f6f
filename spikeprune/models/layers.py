"""The embedding and the encoder layer of a spiking BERT. Legend of shapes and formulas: `modeling.py`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from spikeprune.models.architecture import Architecture
from spikeprune.models.outputs import check_length
from spikeprune.models.packing import PackedLinear
from spikeprune.models.quantization import MATRICES
from spikeprune.models.relative_bias import AttentionBias
from spikeprune.models.word_table import PackedWordTable, WordTable
from spikeprune.snn.call import StepGate
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.spiking_layer import SpikingLayer

Map = Callable[[Tensor], Tensor]


def spiking(a: Architecture, name: str, channels: int, groups: int = 1) -> SpikingLayer:
    how = {"neuron": a.spikes, "leak": a.leak, "coding": a.coding, "theta": a.theta, "dead_zone": a.dead_zone}
    return SpikingLayer(name, channels, groups=groups, **how)


def linear(a: Architecture, inputs: int, outputs: int) -> nn.Linear | PackedLinear:
    """A matrix of an encoder layer, perhaps without elements."""
    if a.packed and a.weights != "float":
        return PackedLinear(inputs, outputs, weights=a.weights)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element")
        return nn.Linear(inputs, outputs)


class SpikingEmbedding(nn.Module):
    """Word, position and segment embeddings, their layer norm, and a first spiking layer driven by the constant sum,
    or by its projection where the embeddings have another width than the layers."""

    def __init__(self, a: Architecture):
        super().__init__()
        width = a.embedding or a.hidden
        self.position_offset = a.position_offset
        table = PackedWordTable if a.packed and a.word_table != "float" else WordTable
        self.word = table(a.vocab, width, weights=a.word_table)
        self.position = nn.Embedding(a.positions, width)
        self.segment = nn.Embedding(a.segments, width) if a.segments else None
        self.norm = nn.LayerNorm(width, eps=a.eps)
        self.projection = nn.Linear(width, a.hidden) if width != a.hidden else None
        self.neurons = spiking(a, "embedding", a.hidden)
        self.neurons.shows_current = a.residual == "membrane"
        self.feedback = nn.Linear(a.hidden, a.hidden, bias=False) if a.feedback else None
        if a.feedback:
            nn.init.zeros_(self.feedback.weight)  # at first the network is the one without

    def current(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """The normed sum of the embeddings, projected `[B, N, D]`: a current that is constant in time."""
        first, n = self.position_offset, input_ids.shape[1]
        check_length(input_ids, self.position.num_embeddings - first)
        total = self.word(input_ids) + self.position.weight[first : first + n]  # [B, N, width]
        if self.segment is not None:
            total = total + self.segment(token_type_ids)
        normed = self.norm(total)
        return normed if self.projection is None else self.projection(normed)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        *,
        t_steps: int,
        ctx: ForwardContext,
        back: SpikeTrain | None = None,
        gate: StepGate | None = None,
    ) -> SpikeTrain:
        """`back`: what the last layer sends to the embedding, where there is feedback."""
        current = self.current(input_ids, token_type_ids)
        if back is None:
            return self.neurons(lambda: current, t_steps=t_steps, ctx=ctx, gate=gate)
        return self.neurons(lambda a: current + self.feedback(a), back, t_steps=t_steps, ctx=ctx, gate=gate)


class EncoderLayer(nn.Module):
    """The encoder layer of this index, of `heads` heads and `ffn` neurons. Without any heads, or neurons, only the bias
    of `out`, or `down`, is added to the shortcut."""

    def __init__(self, a: Architecture, index: int, *, heads: int, ffn: int):
        super().__init__()
        self.heads, self.head_size, self.ffn = heads, a.hidden // a.heads, ffn
        inner = heads * self.head_size  # channels of the attention: `hidden` until heads are taken out
        self.query = linear(a, a.hidden, inner)
        self.key = linear(a, a.hidden, inner)
        self.value = linear(a, a.hidden, inner)
        self.out = linear(a, inner, a.hidden)
        self.attention_norm = nn.LayerNorm(a.hidden, eps=a.eps)
        self.up = linear(a, a.hidden, ffn)
        self.down = linear(a, ffn, a.hidden)
        self.output_norm = nn.LayerNorm(a.hidden, eps=a.eps)
        self.act = ACT2FN[a.act]

        name = f"layers.{index}"
        self.query_neurons = spiking(a, f"{name}.query", inner, groups=heads) if a.query == "spiking" else None
        self.key_neurons = spiking(a, f"{name}.key", inner, groups=heads)
        self.value_neurons = spiking(a, f"{name}.value", inner, groups=heads)
        self.context_neurons = spiking(a, f"{name}.context", inner, groups=heads)
        self.attention_neurons = spiking(a, f"{name}.attention", a.hidden)
        self.intermediate_neurons = spiking(a, f"{name}.intermediate", ffn)
        self.output_neurons = spiking(a, f"{name}.output", a.hidden)
        self.residual = a.residual
        self.attention_neurons.shows_current = self.output_neurons.shows_current = a.residual == "membrane"

    def shortcut(self, train: SpikeTrain) -> SpikeTrain:
        """What a shortcut carries: the train, or with `residual="membrane"` the current that drives its neurons."""
        return train if self.residual == "spikes" else train.driven_by

    def split(self, x: Tensor) -> Tensor:
        """`[..., N, D]` -> `[..., H, N, d]`."""
        return x.unflatten(-1, (self.heads, self.head_size)).transpose(-3, -2)

    def scores(self, q: Tensor, k: Tensor, bias: AttentionBias | None = None) -> Tensor:
        """`q k^T / sqrt d + bias`: `[..., N, D]` twice -> `[..., H, N, N]`."""
        scores = self.split(q) @ self.split(k).transpose(-1, -2) / math.sqrt(self.head_size)
        return scores if bias is None else scores + bias.scores

    def attend(self, scores: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        """`softmax(scores + padding) v`: `[..., B, H, N, N]`, `[..., B, N, D]` -> `[..., B, N, D]`."""
        weights = (scores + padding.to(scores.dtype)).softmax(-1)
        return (weights @ self.split(v)).transpose(-3, -2).flatten(-2)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor, bias: AttentionBias | None = None) -> Tensor:
        """`attend(scores(q, k, bias), v)`, `[..., B, N, D]` each, by torch's own, which keeps no scores; on the CPU
        with gradient it would keep them too, and round otherwise."""
        if not self.heads or (torch.is_grad_enabled() and not q.is_cuda):
            return self.attend(self.scores(q, k, bias), v, padding)
        q, k, v = (self.split(x) for x in (q, k, v))  # [..., B, H, N, d]
        mask = (padding if bias is None else bias.padded).to(q.dtype)
        mask = mask.expand(*q.shape[:-3], *mask.shape[1:])
        flat = [x.flatten(0, -4) for x in (q, k, v, mask)]  # time is one more batch axis
        y = F.scaled_dot_product_attention(*flat)
        return y.view_as(q).transpose(-3, -2).flatten(-2)

    def forward(
        self,
        a: SpikeTrain,
        *,
        channels: Tensor,
        ffn: Tensor,
        t_steps: int,
        gate: StepGate | None = None,
        ctx: ForwardContext,
        acting: Callable[[str], Map],
        bias: AttentionBias | None = None,
    ) -> tuple[SpikeTrain, Tensor | None]:
        """-> the layer's output train, and its attention scores `[B, H, N, N]` where this forward has values.

        A line for each `spike(f(…))` of `modeling.py`: a spiking layer takes f, which maps tensors, and the trains that
        f reads. f is given their values, or with time first what is read of them at every step. `acting` gives a matrix
        as a function, by its name (see `weights.acting`). The masks `channels [h d]` and `ffn [F]`, or `[B, 1, ·]`,
        zero the context of a head, or a neuron's spikes.
        """
        fire = {"t_steps": t_steps, "ctx": ctx, "gate": gate}
        query, key, value, out, up, down = (acting(name) for name in MATRICES)
        q = self.query_neurons(query, a, alive=channels, **fire) if self.query_neurons is not None else None
        k = self.key_neurons(key, a, alive=channels, **fire)  # [B, N, D]
        v = self.value_neurons(value, a, alive=channels, **fire)
        source, to_query = (a, query) if q is None else (q, nn.Identity())

        def context(source: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attention(to_query(source), k, v, ctx.padding, bias)

        scores = y = None
        if self.context_neurons.wants_value(ctx) and ctx.scores:
            scores = self.scores(to_query(source.value), k.value, bias)  # [B, H, N, N]
            y = self.attend(scores, v.value, ctx.padding)
        c = self.context_neurons(context, source, k, v, mask=channels, y=y, **fire)
        h = self.attention_neurons(lambda c, a: self.attention_norm(out(c) + a), c, self.shortcut(a), **fire)
        f = self.intermediate_neurons(lambda h: self.act(up(h)), h, mask=ffn, **fire)  # [B, N, F]
        a = self.output_neurons(lambda f, h: self.output_norm(down(f) + h), f, self.shortcut(h), **fire)
        return a, scores
