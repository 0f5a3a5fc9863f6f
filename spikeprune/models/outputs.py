"""The outputs of a forward pass, of teacher and student alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from spikeprune.errors import InputError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # of a batch, in the order that teacher and student take


def inputs_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arguments of a teacher's or student's forward that the batch has; a user's own may lack token types. Raises
    InputError for a batch that is no mapping with the others."""
    if not isinstance(batch, Mapping) or not {"input_ids", "attention_mask"} <= set(batch):
        found = f"a {type(batch).__name__}" + (f" with {', '.join(batch)}" if isinstance(batch, Mapping) else "")
        raise InputError(
            f"a batch must be a mapping with input_ids and attention_mask (and token_type_ids), not {found}: let the "
            "collate function return such a dictionary"
        )
    return {name: batch[name] for name in INPUTS if name in batch}


def check_length(input_ids: Tensor, positions: int) -> None:
    """Raises InputError for texts `[B, N]` that a model with so many position embeddings cannot read."""
    if not 1 <= input_ids.shape[1] <= positions:
        raise InputError(
            f"texts of {input_ids.shape[1]} tokens do not fit this model, which reads from 1 to {positions}; tokenize "
            f"them with truncation=True, max_length={positions}"
        )


@dataclass
class Outputs:
    logits: Tensor  # [B, C]; regression [B, 1]
    hidden: tuple[Tensor, ...] = ()  # L+1 times [B, N, D], the embedding's output first
    scores: tuple[Tensor, ...] = ()  # L times [B, H, N, N], before softmax and before the padding mask
    # By the name of a spiking layer: differentiable mean |ASR| over real tokens [D]
    rates: dict[str, Tensor] = field(default_factory=dict)
    # spikes on real tokens [T, B, D]; in closed form the sum over time [1, B, D]
    counts: dict[str, Tensor] = field(default_factory=dict)
    # (sum |a[t] - a[T]| for t = 1..T, sum |a[T]|) over real tokens and channels: how fast the ASR settles
    traces: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    # with feedback: steps and residual of the fixed point; the backward pass adds the adjoint's
    solved: dict[str, float] = field(default_factory=dict)
    pulses: Tensor | None = None  # theta * spikes of the last layer [T, B, N, D], on request
