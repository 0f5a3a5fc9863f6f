"""Checks of named tensors, with results in words: wrong names or sizes, and numbers that are not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """The first difference of two states in names or sizes, such as `classifier.weight is [2, 24] and not [3, 24]`;
    empty where there is none."""
    for name, tensor in own.items():
        if name not in given:
            return f"{name} is missing"
        if given[name].shape != tensor.shape:
            return f"{name} is {list(given[name].shape)} and not {list(tensor.shape)}"
    return next((f"{name} is unknown" for name in given if name not in own), "")


def finite_flags(tensors: Mapping[str, Tensor]) -> tuple[list[str], Tensor]:
    """The names of the floating-point tensors, and beside each whether all its numbers are finite, bool `[n]`."""
    named = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    flags = [tensor.isfinite().all() for tensor in named.values()]
    return list(named), torch.stack(flags) if flags else torch.ones(0, dtype=torch.bool)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a number which is not finite; waits for the device."""
    names, flags = finite_flags(tensors)
    return [name for name, finite in zip(names, flags.tolist(), strict=True) if not finite]


def norms(tensors: Sequence[Tensor], order: float) -> Tensor:
    """The norm of each tensor, of this order (2, or infinity for the largest magnitude), `[n]`."""
    return torch.stack(torch._foreach_norm(list(tensors), ord=order))
