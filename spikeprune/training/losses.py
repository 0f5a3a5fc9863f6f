"""Distillation losses and layer maps: pure functions of the outputs of teacher and student.

Sources: Jiao et al. 2020 (TinyBERT, arXiv 1909.10351, eqs. 7-10) for hidden states, attention scores and soft labels;
Bal & Sengupta 2024 (SpikingBERT) puts the ASR in the student's place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform_layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Teacher layer (from 0) for each student layer, evenly spread and ending at the last: 4 of 12 -> 2, 5, 8, 11."""
    return [round((i + 1) * teacher_layers / student_layers) - 1 for i in range(student_layers)]


def hidden_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], tokens: Tensor, layer_map: Sequence[int]
) -> Tensor:
    """Squared error of the embedding's output and of each mapped layer's over the squared norm of the teacher's, all
    layers of a token together; mean over real tokens.

    Encoders differ in the scale of their hidden states: MPNet's mean square is a quarter of MiniLM's. A ratio for each
    token, and not for the batch, is the same however the batch is divided. `student` L+1 and `teacher` L'+1 tensors
    `[B, N, D]`, `tokens [B, N]` bool; scalar.
    """
    pairs = [(student[0], teacher[0])] + [(student[s + 1], teacher[t + 1]) for s, t in enumerate(layer_map)]
    dtype = torch.promote_types(student[0].dtype, torch.float32)  # of the sums
    error = sum(((s - t) ** 2).sum(-1, dtype=dtype) for s, t in pairs)  # [B, N]
    norm = sum((t**2).sum(-1, dtype=dtype) for _, t in pairs).masked_fill(~tokens, 1.0)  # padding may be all zeros
    return (error / norm * tokens).sum() / tokens.sum()


def scores_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    tokens: Tensor,
    layer_map: Sequence[int],
    heads: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the attention scores `[B, H, N, N]` between real tokens; scalar.

    Softmax is invariant to a constant added to a query's scores, so each row is centred on its real tokens first.
    `heads [L, H]`: 1 for those that count, 0 for pruned ones (None: all); a layer without any does not count either.
    """
    # no sum over the batch in half precision, of scores or of tokens
    dtype = torch.promote_types(student[0].dtype, torch.float32)
    real = (tokens[:, None, :, None] & tokens[:, None, None, :]).to(dtype)  # [B, 1, N, N]
    keys = real.sum(-1, keepdim=True).clamp(min=1)
    heads = real.new_ones(len(layer_map), student[0].shape[1]) if heads is None else heads.to(dtype)
    places = real.sum() * heads.sum(1).clamp(min=1)  # [L], that a layer's mean is over
    total = real.new_zeros(())
    for s, t in enumerate(layer_map):
        gap = (student[s] - teacher[t]) * real
        gap = (gap - gap.sum(-1, keepdim=True) / keys) * real
        of_heads = (gap**2).sum((0, 2, 3)) * heads[s]  # [H]
        total = total + of_heads.sum() / places[s]
    return total / heads.any(1).sum().clamp(min=1)


def soft_loss(student: Tensor, teacher: Tensor, *, temperature: float, regression: bool) -> Tensor:
    """Per sample `[B]`: `tau^2 KL(teacher/tau || student/tau)` (Hinton et al. 2015); regression: squared error."""
    if regression:
        return ((student - teacher) ** 2).mean(-1)
    target = F.log_softmax(teacher / temperature, -1)
    predicted = F.log_softmax(student / temperature, -1)
    return temperature**2 * F.kl_div(predicted, target, reduction="none", log_target=True).sum(-1)


def hard_loss(logits: Tensor, labels: Tensor, *, regression: bool, weights: Tensor | None = None) -> Tensor:
    """The task's own loss per sample `[B]`: cross-entropy, by the `weights [C]` of the classes where there are any, or
    squared error for regression."""
    if regression:
        return (logits[:, 0] - labels) ** 2
    return F.cross_entropy(logits, labels, weights, reduction="none")


def drawn_loss(logits: Tensor, *, regression: bool) -> Tensor:
    """`[B]`: the hard loss of labels drawn from the student's own distribution; for regression half the squared error,
    its variance one.

    Its squared gradient is a sample of the Fisher information, which near the teacher's output is the curvature of the
    soft loss, whose own gradient vanishes there (Martens 2020, arXiv 1412.1193, section 9)."""
    if regression:
        drawn = logits[:, 0].detach() + torch.randn_like(logits[:, 0])
        return hard_loss(logits, drawn, regression=True) / 2
    drawn = torch.multinomial(logits.detach().softmax(-1), 1)[:, 0]
    return hard_loss(logits, drawn, regression=False)


def falling(progress: float, *, begin: float, end: float) -> float:
    """From `begin` at progress 0 to `end` at 1 and after, by equal factors."""
    return begin * (end / begin) ** min(1.0, progress)
