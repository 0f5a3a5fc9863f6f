"""MPNet's attention by torch's fused kernels: transformers writes the scores of every head out, and its bias beside
them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention


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


def fuse(model: PreTrainedModel) -> PreTrainedModel:
    """The model with fused attention; its modules, parameters and their names stay."""
    for module in model.modules():
        if type(module) is MPNetSelfAttention:
            module.__class__ = FusedAttention
    return model
