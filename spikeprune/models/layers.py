"""The embedding and the encoder layer of a spiking BERT. Legend of shapes and formulas: `modeling.py`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from spikeprune.models.outputs import check_length
from spikeprune.models.quantization import MATRICES
from spikeprune.models.relative_bias import AttentionBias
from spikeprune.models.word_table import WordTable
from spikeprune.snn.call import StepGate
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.spiking_layer import SpikingLayer

Map = Callable[[Tensor], Tensor]


class SpikingEmbedding(nn.Module):
    """Word, position and segment embeddings, their layer norm, and a first spiking layer driven by the constant sum,
    or by its projection where the embeddings have another width than the layers.

    `position_offset`: the row of the first token's position; `segments=0`: token types are not read.
    `spiking(name, channels, groups=1)` makes a spiking layer, here and in `EncoderLayer`."""

    def __init__(
        self,
        *,
        vocab: int,
        positions: int,
        position_offset: int,
        segments: int,
        width: int,
        hidden: int,
        eps: float,
        spiking: Callable[..., SpikingLayer],
        table: Callable[[int, int], nn.Module] = WordTable,
        feedback: bool = False,
        residual: str = "spikes",
    ):
        super().__init__()
        self.position_offset = position_offset
        self.word = table(vocab, width)
        self.position = nn.Embedding(positions, width)
        self.segment = nn.Embedding(segments, width) if segments else None
        self.norm = nn.LayerNorm(width, eps=eps)
        self.projection = nn.Linear(width, hidden) if width != hidden else None
        self.neurons = spiking("embedding", hidden)
        self.neurons.shows_current = residual == "membrane"
        self.feedback = nn.Linear(hidden, hidden, bias=False) if feedback else None
        if feedback:
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
    """One encoder layer of `heads` heads of `head_size` channels and `ffn` neurons. Without any heads, or neurons, only
    the bias of `out`, or `down`, is added to the shortcut. In `forward` the masks `heads [H]` and `ffn [F]` zero the
    context of a head, or a neuron's spikes."""

    def __init__(
        self,
        index: int,
        *,
        hidden: int,
        heads: int,
        head_size: int,
        ffn: int,
        query: str,
        eps: float,
        act: str,
        spiking: Callable[..., SpikingLayer],
        linear: Callable[[int, int], nn.Module] = nn.Linear,
        residual: str = "spikes",
    ):
        super().__init__()
        self.heads, self.head_size, self.ffn = heads, head_size, ffn
        inner = heads * head_size  # channels of the attention: `hidden` until heads are taken out
        self.query = linear(hidden, inner)
        self.key = linear(hidden, inner)
        self.value = linear(hidden, inner)
        self.out = linear(inner, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=eps)
        self.up = linear(hidden, ffn)
        self.down = linear(ffn, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=eps)
        self.act = ACT2FN[act]

        name = f"layers.{index}"
        self.query_neurons = spiking(f"{name}.query", inner, groups=heads) if query == "spiking" else None
        self.key_neurons = spiking(f"{name}.key", inner, groups=heads)
        self.value_neurons = spiking(f"{name}.value", inner, groups=heads)
        self.context_neurons = spiking(f"{name}.context", inner, groups=heads)
        self.attention_neurons = spiking(f"{name}.attention", hidden)
        self.intermediate_neurons = spiking(f"{name}.intermediate", ffn)
        self.output_neurons = spiking(f"{name}.output", hidden)
        self.residual = residual
        self.attention_neurons.shows_current = self.output_neurons.shows_current = residual == "membrane"

    def past(self, signal: SpikeTrain) -> SpikeTrain:
        """The shortcut: the spike train, or with `residual="membrane"` the current that drives its neurons."""
        return signal if self.residual == "spikes" else signal.driven_by

    def split(self, x: Tensor) -> Tensor:
        """`[..., N, D]` -> `[..., H, N, d]`."""
        return x.unflatten(-1, (self.heads, self.head_size)).transpose(-3, -2)

    def scores(self, q: Tensor, k: Tensor, bias: AttentionBias | None = None) -> Tensor:
        """`q k^T / sqrt d + bias`: `[..., N, D]` twice -> `[..., H, N, N]`."""
        scores = self.split(q) @ self.split(k).transpose(-1, -2) / math.sqrt(self.head_size)
        return scores if bias is None else scores + bias.scores

    def attend(self, scores: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
        """`softmax(scores + mask) v`: `[..., B, H, N, N]`, `[..., B, N, D]` -> `[..., B, N, D]`."""
        weights = scores.masked_fill(~tokens[:, None, None, :], -torch.inf).softmax(-1)
        return (weights @ self.split(v)).transpose(-3, -2).flatten(-2)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, tokens: Tensor, bias: AttentionBias | None = None) -> Tensor:
        """`attend(scores(q, k, bias), v)`, `[..., B, N, D]` each, by torch's own, which keeps no scores; on the CPU
        with gradient it would keep them too, and round otherwise."""
        if not self.heads or (torch.is_grad_enabled() and not q.is_cuda):
            return self.attend(self.scores(q, k, bias), v, tokens)
        q, k, v = (self.split(x) for x in (q, k, v))  # [..., B, H, N, d]
        mask = tokens[:, None, None, :] if bias is None else bias.masked.to(q.dtype)
        mask = mask.expand(*q.shape[:-3], *mask.shape[1:])
        flat = [x.flatten(0, -4) for x in (q, k, v, mask)]  # time is one more batch axis
        y = F.scaled_dot_product_attention(*flat)
        return y.view_as(q).transpose(-3, -2).flatten(-2)

    def forward(
        self,
        a: SpikeTrain,
        *,
        heads: Tensor,
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
        as a function, by its name (see `weights.acting`).
        """
        fire = {"t_steps": t_steps, "ctx": ctx, "gate": gate}
        query, key, value, out, up, down = (acting(name) for name in MATRICES)
        kept = heads.repeat_interleave(self.head_size, -1)  # [D] or [B, 1, D]
        q = self.query_neurons(query, a, alive=kept, **fire) if self.query_neurons is not None else None
        k = self.key_neurons(key, a, alive=kept, **fire)  # [B, N, D]
        v = self.value_neurons(value, a, alive=kept, **fire)
        source, to_query = (a, query) if q is None else (q, nn.Identity())

        def context(source: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attention(to_query(source), k, v, ctx.tokens, bias)

        scores = y = None
        if self.context_neurons.wants_value(ctx) and ctx.scores:
            scores = self.scores(to_query(source.value), k.value, bias)  # [B, H, N, N]
            y = self.attend(scores, v.value, ctx.tokens)
        c = self.context_neurons(context, source, k, v, mask=kept, y=y, **fire)
        h = self.attention_neurons(lambda c, a: self.attention_norm(out(c) + a), c, self.past(a), **fire)
        f = self.intermediate_neurons(lambda h: self.act(up(h)), h, mask=ffn, **fire)  # [B, N, F]
        a = self.output_neurons(lambda f, h: self.output_norm(down(f) + h), f, self.past(h), **fire)
        return a, scores
