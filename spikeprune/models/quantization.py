"""Few-bit weights of the encoder's linear maps: quantizers, their straight-through gradient, and partial strength.

Shapes: w [out, in]; codes [out, in], small whole numbers in w's dtype; scale [out, 1], one for each output channel. The
quantized weight is `codes * scale`. Scales are computed over kept inputs only: weights of pruned heads and neurons
get no gradient and only decay: a masked matrix and the same matrix without its pruned columns have equal codes and
scales.

With `fold` the quantizer sees W diag(theta), theta being the thresholds of the spiking layer before the matrix. Its
inputs are then plain spikes, and products of codes and spike counts are products of small integers.

To add a quantizer: write one function `(w, inputs) -> (codes, scale)`, where `inputs` is the number of columns that
count (null: all; the others hold zeros), and add one entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeprune.errors import known

MATRICES = ("query", "key", "value", "out", "up", "down")  # of each layer; every other parameter stays float32
Codes = tuple[Tensor, Tensor]
Inputs = Tensor | int | None


def binary(w: Tensor, inputs: Inputs = None) -> Codes:
    """-1 and 1, scale mean |w|: of all such matrices the nearest to w (Rastegari et al. 2016, XNOR-Net, arXiv
    1603.05279, eq. 6; Bai et al. 2021, BinaryBERT, arXiv 2012.15701). Zero counts as positive."""
    return (w >= 0).to(w.dtype) * 2 - 1, _mean(w, inputs)


def ternary(w: Tensor, inputs: Inputs = None) -> Codes:
    """-1, 0 and 1, scale mean |w| (Ma et al. 2024, BitNet b1.58, arXiv 2402.17764, eqs. 1-3, with one scale for the
    whole matrix). The scale is no least-squares fit, so quantizing the result again keeps its codes and shrinks its
    scale: store codes and scale, never a product to be quantized once more."""
    scale = _mean(w, inputs)
    return (w / _divisor(scale)).round().clamp(-1, 1), scale


def int8(w: Tensor, inputs: Inputs = None) -> Codes:
    """-127 to 127, symmetric, scale max |w| / 127 (Jacob et al. 2018, arXiv 1712.05877, section 3, for weights)."""
    scale = w.abs().amax(1, keepdim=True) / 127
    return (w / _divisor(scale)).round().clamp(-127, 127), scale


def int4(w: Tensor, inputs: Inputs = None) -> Codes:
    """-7 to 7, symmetric, scale max |w| / 7; of word tables."""
    scale = w.abs().amax(1, keepdim=True) / 7
    return (w / _divisor(scale)).round().clamp(-7, 7), scale


def _mean(w: Tensor, inputs: Inputs) -> Tensor:
    return w.abs().sum(1, keepdim=True) / (w.shape[1] if inputs is None else inputs)


def _divisor(scale: Tensor) -> Tensor:
    """A channel of zeros has scale zero, and codes of zero."""
    return torch.where(scale > 0, scale, 1)


@dataclass(frozen=True)
class Quantizer:
    codes: Callable[..., Codes]  # (w, inputs = all of them)
    low: int  # codes are from `low` …
    high: int  # … to `high`; binary has no 0
    bits: float  # of information in a weight
    stored: int  # bits that a packed weight takes, one of `cost.shapes.BITS`


QUANTIZERS: dict[str, Quantizer] = {
    "binary": Quantizer(binary, -1, 1, bits=1.0, stored=1),
    "ternary": Quantizer(ternary, -1, 1, bits=1.58, stored=2),
    "int8": Quantizer(int8, -127, 127, bits=8.0, stored=8),
}
WEIGHTS = ("float", *QUANTIZERS)
# Of the word table, a scale for each word.
TABLES: dict[str, Quantizer] = {
    "int8": QUANTIZERS["int8"],
    "int4": Quantizer(int4, -7, 7, bits=4.0, stored=4),
    "ternary": QUANTIZERS["ternary"],
}


def quantizer_of(weights: str) -> Quantizer:
    """Of the encoder's matrices or of the word table. Raises ValueError for an unknown name."""
    every = {**QUANTIZERS, **TABLES}
    known("weights", weights, tuple(every))
    return every[weights]


def codes_of(w: Tensor, weights: str, sizes: Tensor | None = None) -> Codes:
    """Codes and scale of `w`. `sizes [in]`: 0 for an input that is pruned, else its spike's theta to fold, or 1."""
    quantizer = quantizer_of(weights)
    return quantizer.codes(w) if sizes is None else quantizer.codes(w * sizes, sizes.count_nonzero().clamp(min=1))


def weight_of(codes: Tensor, scale: Tensor, sizes: Tensor | None = None) -> Tensor:
    """The weight `[out, in]` that acts: `codes * scale`, a folded theta taken out again."""
    return codes * scale if sizes is None else codes * scale / torch.where(sizes == 0, 1, sizes)


class Quantize(torch.autograd.Function):
    """`w + strength (quantized - w)`, exact at both ends. The gradient passes straight through to the full-precision w
    (Bengio et al. 2013, arXiv 1308.3432), at every strength alike, and none to a folded theta: Q(W diag(theta)) /
    theta stands for W, which does not depend on it."""

    @staticmethod
    def forward(ctx, w: Tensor, weights: str, strength: float | Tensor, sizes: Tensor | None) -> Tensor:
        return torch.lerp(w, weight_of(*codes_of(w, weights, sizes), sizes), strength)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None, None, None


def acting_weight(w: Tensor, weights: str, strength: float, sizes: Tensor | None = None) -> Tensor:
    """What the network computes with where `w` is stored: w itself for `float` or strength 0. `sizes` as in `codes_of`.

    Raises ValueError for a name not in WEIGHTS and a strength outside 0 to 1.
    """
    known("weights", weights, WEIGHTS)
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be from 0 to 1, got {strength}")
    if weights == "float" or strength == 0:
        return w
    return Quantize.apply(w, weights, strength, sizes)
