"""Masks of what is left become real numbers that make up for what has left: mask tuning, the third step of Kwon et al.
2022 (arXiv 2204.09656, section 4.3; the first two are in `search`).

Layer by layer those numbers bring the input of the layer norm nearest to what it was, by linear least squares: it is
linear in the masks. They are folded into the columns of `out` and `down`: a mask stays 0 or 1, and costs, compaction
and checkpoints stay as they are. Unlike in the paper's code the first layer's attention is tuned too, and there is no
intercept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeprune.models.modeling import SpikingBert
from spikeprune.pruning.mask_search import KINDS, loss_of, same
from spikeprune.pruning.statistics import Batches, Mean, SampleLoss, given, trained_mode

FAR = 10.0  # a mask beyond it is no longer a correction


@torch.no_grad()
def tune(
    student: SpikingBert,
    whole: SpikingBert,
    batches: Batches,
    sample_loss: SampleLoss,
    *,
    mode: str | None = None,
    mean: Mean = same,
) -> list[tuple[float, float]]:
    """Fold real masks into `student`'s columns so that each layer norm's input is nearest to `whole`'s (eq. 13).

    From the first layer to the last, attention then feed-forward, each seeing what is tuned below it. Returns for each
    the mean squared difference at a token before and after, with the ridge that keeps a unit of no effect at 1. A fit
    beyond ±FAR is left out, and so is one that the measured loss rises with: a sum that is nearer is no answer yet.
    `mode`: the forward that both are trained with, as in `statistics.collect`.
    Raises ValueError for quantized weights, which could not hold the product.
    """
    if student.quantized:
        raise ValueError("masks are tuned into float weights; these are quantized")
    was_training, errors = (student.training, whole.training), []
    student.eval(), whole.eval()
    mode = mode or trained_mode(student)
    least = mean(loss_of(student, batches, sample_loss)).item()
    for layer in range(len(student.layers)):
        for kind in KINDS:
            linear, size = sublayer(student, layer, kind)
            weight = linear.weight.clone()
            before, after = tune_sublayer(student, whole, batches, layer, kind, mode, mean)
            now = mean(loss_of(student, batches, sample_loss)).item()
            if now > least:
                linear.weight.copy_(weight)
                after = before
            least = min(least, now)
            errors.append((before, after))
    student.train(was_training[0]), whole.train(was_training[1])
    return errors


def sublayer(student: SpikingBert, layer: int, kind: str) -> tuple[nn.Linear, int]:
    """The matrix behind the units, and its columns for each."""
    here = student.layers[layer]
    return (here.out, here.head_size) if kind == "heads" else (here.down, 1)


def tune_sublayer(
    student: SpikingBert, whole: SpikingBert, batches: Batches, layer: int, kind: str, mode: str, mean: Mean
) -> tuple[float, float]:
    linear, size = sublayer(student, layer, kind)
    kept = getattr(student, kind)[layer, : linear.in_features // size].nonzero()[:, 0]
    fit = normal_equations(student, whole, batches, layer, kind, mode)
    a, b, c = mean(fit.a)[kept][:, kept], mean(fit.b)[kept], mean(fit.c)
    ones = torch.ones_like(b)
    before = squares(a, b, c, ones)
    if not len(kept):
        return before, before
    ridge = 1e-3 * a.diagonal().mean().clamp(min=1e-30) * torch.eye(len(a), dtype=a.dtype, device=a.device)
    factor = ones + torch.linalg.solve(a + ridge, b - a @ ones)
    after = squares(a, b, c, factor)
    if not (factor.abs() <= FAR).all() or not after <= before:
        return before, before
    columns = (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()
    linear.weight[:, columns] *= factor.repeat_interleave(size).to(linear.weight)
    return before, after


def squares(a: Tensor, b: Tensor, c: Tensor, m: Tensor) -> float:
    """‖X m − y‖² of the means over tokens a = XᵀX, b = Xᵀy, c = yᵀy."""
    return (m @ a @ m - 2 * m @ b + c).clamp(min=0).item()


@dataclass
class Fit:
    """Means over real tokens, float64: a `[K, K]`, b `[K]`, c a scalar, of a layer's units K."""

    a: Tensor
    b: Tensor
    c: Tensor


def normal_equations(
    student: SpikingBert, whole: SpikingBert, batches: Batches, layer: int, kind: str, mode: str
) -> Fit:
    """Least squares of Σ m_i o_i ≈ y, o_i `[tokens · D]` what unit i adds to the residual stream, y what `whole` has
    there less `student`'s bias and residual. W's columns, inputs x: XᵀX = (Σ x xᵀ) ∘ (WᵀW), Xᵀy = Σ x ∘ (Wᵀ y)."""
    name, site = ("out", "attention_site") if kind == "heads" else ("down", "output_site")
    mine, theirs = getattr(student.layers[layer], name), getattr(whole.layers[layer], name)
    size = student.layers[layer].head_size if kind == "heads" else 1
    w = mine.weight.double()  # [D, in]
    gram, rhs, square, tokens = w.new_zeros(w.shape[1], w.shape[1]), w.new_zeros(w.shape[1]), w.new_zeros(()), 0
    for batch in batches:
        real = batch["attention_mask"].bool()
        (x, residual), (x0, residual0) = (
            [signal[real].double() for signal in inputs_of(net, getattr(net.layers[layer], site), batch, mode)]
            for net in (student, whole)
        )
        wanted = x0 @ theirs.weight.double().T + theirs.bias.double() + residual0  # [M, D]
        y = wanted - mine.bias.double() - residual
        gram += x.T @ x
        rhs += (x * (y @ w)).sum(0)
        square += y.square().sum()
        tokens += len(x)
    a = (gram * (w.T @ w)).unflatten(0, (-1, size)).sum(1).unflatten(1, (-1, size)).sum(2)
    return Fit(a / tokens, rhs.unflatten(0, (-1, size)).sum(1) / tokens, square / tokens)


def inputs_of(net: SpikingBert, site, batch: dict[str, Tensor], mode: str) -> tuple[Tensor, Tensor]:
    """Values `[B, N, ·]` that a site behind a residual gets: the masked spikes below, and the residual, in the last of
    the passes that feedback needs."""
    seen = []
    hook = site.register_forward_pre_hook(lambda _, args: seen.append((args[1].value, args[2].value)))
    try:
        net(**given(batch), mode=mode)
    finally:
        hook.remove()
    return seen[-1]
