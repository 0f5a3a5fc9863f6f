"""MPNet's attention by torch's fused kernels: transformers writes the scores of every head out, and its bias beside
them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention

from spikeprune.models.families import FAMILIES
from spikeprune.models.relative_bias import bucket


class FusedAttention(MPNetSelfAttention):
    """The same numbers up to rounding; where the probabilities are asked for, transformers' own."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        if output_attentions:
            return super().forward(hidden_states, attention_mask, position_bias, output_attentions, **kwargs)
        heads = (*hidden_states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        q, k, v = (project(hidden_states).view(heads).transpose(1, 2) for project in (self.q, self.k, self.v))
        added = [part for part in (position_bias, attention_mask) if part is not None]
        mask = sum(added).to(q.dtype) if added else None  # [B, H, N, N]
        dropout = self.dropout.p if self.training else 0.0
        context = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return (self.o(context.transpose(1, 2).flatten(2)),)


class GraphedEncoder(MPNetEncoder):
    """Its relative position bias is made on the device of the ids: releases of transformers differ in where they count
    the distances, and a CUDA graph holds no copy from the CPU."""

    def compute_position_bias(self, x: Tensor) -> Tensor:
        """`[B, N, …]` -> `[B, H, N, N]`: row i, column j for the query at i and the key at j."""
        at = torch.arange(x.shape[1], device=x.device)
        values = self.relative_attention_bias(bucket(at[None, :] - at[:, None], FAMILIES["mpnet"].buckets))  # [N, N, H]
        return values.movedim(-1, 0).expand(len(x), -1, -1, -1)


FUSED = {MPNetSelfAttention: FusedAttention, MPNetEncoder: GraphedEncoder}


def fuse(model: PreTrainedModel) -> PreTrainedModel:
    """The model with fused attention; its modules, parameters and their names stay."""
    for module in model.modules():
        module.__class__ = FUSED.get(type(module), type(module))
    return model
