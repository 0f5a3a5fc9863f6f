"""Mask tuning, the third step of Kwon et al. 2022 (arXiv 2204.09656, section 4.3; the first two are in `mask_search`):
the masks of kept units become real numbers that compensate for the removed ones.

Layer by layer these numbers bring the input of the layer norm nearest to the unpruned network's, by linear least
squares: it is linear in the masks. They are folded into the columns of `out` and `down`: a mask stays 0 or 1, and
costs, compaction and checkpoints stay as they are. Unlike in the paper's code the first
layer's attention is tuned too, and there is no intercept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import inputs_of
from spikeprune.pruning.mask_search import loss_of
from spikeprune.pruning.statistics import UNITS, Batches, Mean, SampleLoss, alone, trained_mode

FAR = 10.0  # a fitted mask beyond it is not used


@torch.no_grad()
def tune(
    student: SpikingBert,
    unpruned: SpikingBert,
    batches: Batches,
    sample_loss: SampleLoss,
    *,
    mode: str | None = None,
    mean: Mean = alone,
) -> list[tuple[float, float]]:
    """Fold real masks into `student`'s columns so that each layer norm's input is nearest to `unpruned`'s (eq. 13).

    From the first layer to the last, attention then feed-forward, each with the layers below it tuned. Returns for each
    the mean squared difference at a token before and after, with the ridge that keeps a unit of no effect at 1. A fit
    beyond ±FAR is not used, nor one with which the measured loss rises.
    `mode`: the forward that both are trained with, as in `statistics.collect`.
    Raises ValueError for quantized weights, which cannot represent the product.
    """
    if student.quantized:
        raise ValueError("masks are tuned into float weights; these are quantized")
    mode, errors = mode or trained_mode(student), []
    least = mean(loss_of(student, batches, sample_loss)).item()
    for layer in range(len(student.layers)):
        for kind in UNITS:
            linear = sublayer(student, layer, kind)[0]
            weight = linear.weight.clone()
            before, after = tune_sublayer(student, unpruned, batches, layer, kind, mode, mean)
            now = mean(loss_of(student, batches, sample_loss)).item()
            if now > least:
                linear.weight.copy_(weight)
                after = before
            least = min(least, now)
            errors.append((before, after))
    return errors


def sublayer(student: SpikingBert, layer: int, kind: str) -> tuple[nn.Linear, int]:
    """The matrix that reads the units, and its number of columns for each."""
    here = student.layers[layer]
    return (here.out, here.head_size) if kind == "heads" else (here.down, 1)


def tune_sublayer(
    student: SpikingBert, unpruned: SpikingBert, batches: Batches, layer: int, kind: str, mode: str, mean: Mean
) -> tuple[float, float]:
    """Fold the fitted masks of one layer's `kind` of units into `student`'s columns; the mean squared difference at a
    token before and after, equal where the fit is not used."""
    linear, size = sublayer(student, layer, kind)
    kept = getattr(student, kind)[layer, : linear.in_features // size].nonzero()[:, 0]
    a, b, c = map(mean, normal_equations(student, unpruned, batches, layer, kind, mode))
    a, b = a[kept][:, kept], b[kept]
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


def normal_equations(
    student: SpikingBert, unpruned: SpikingBert, batches: Batches, layer: int, kind: str, mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    """XᵀX `[K, K]`, Xᵀy `[K]` and yᵀy of a layer's units K, means over real tokens, float64.

    Of the least squares of Σ m_i o_i ≈ y, o_i `[tokens · D]` the contribution of unit i to the residual stream, y
    `unpruned`'s value there less `student`'s bias and residual. With inputs x and W's columns, XᵀX = (Σ x xᵀ) ∘ (WᵀW)
    and Xᵀy = Σ x ∘ (Wᵀ y)."""
    name, reader = ("out", "attention_neurons") if kind == "heads" else ("down", "output_neurons")
    own, original = getattr(student.layers[layer], name), getattr(unpruned.layers[layer], name)
    size = student.layers[layer].head_size if kind == "heads" else 1
    w = own.weight.double()  # [D, in]
    gram, rhs, square, tokens = w.new_zeros(w.shape[1], w.shape[1]), w.new_zeros(w.shape[1]), w.new_zeros(()), 0
    for batch in batches:
        real = batch["attention_mask"].bool()
        (x, residual), (x0, residual0) = (
            [values[real].double() for values in reader_inputs(net, getattr(net.layers[layer], reader), batch, mode)]
            for net in (student, unpruned)
        )
        wanted = x0 @ original.weight.double().T + original.bias.double() + residual0  # [M, D]
        y = wanted - own.bias.double() - residual
        gram += x.T @ x
        rhs += (x * (y @ w)).sum(0)
        square += y.square().sum()
        tokens += len(x)
    a = (gram * (w.T @ w)).unflatten(0, (-1, size)).sum(1).unflatten(1, (-1, size)).sum(2)
    return a / tokens, rhs.unflatten(0, (-1, size)).sum(1) / tokens, square / tokens


def reader_inputs(
    net: SpikingBert, spiking_layer: nn.Module, batch: dict[str, Tensor], mode: str
) -> tuple[Tensor, Tensor]:
    """The two inputs `[B, N, ·]` of a spiking layer behind a residual: the masked spikes of the layer below, and the
    residual; with feedback those of the last iteration."""
    inputs: dict[str, Tensor] = {}

    def keep_last(_: nn.Module, args: tuple) -> None:
        inputs.update(spikes=args[1].value, residual=args[2].value)

    hook = spiking_layer.register_forward_pre_hook(keep_last)
    try:
        net(**inputs_of(batch), mode=mode, scores=True)  # kernels of a whole network, which call no layer, have none
    finally:
        hook.remove()
    return inputs["spikes"], inputs["residual"]
