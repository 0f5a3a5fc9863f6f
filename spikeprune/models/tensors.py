"""Checks of named tensors, with results in words, and numbers that are read off a tensor once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


class Reading:
    """What is read off a tensor, again only where the tensor has changed in place or is another one. It holds the
    tensor: the place in memory of one that is gone may be that of its successor. A copy has read nothing."""

    def __init__(self):
        self.tensor, self.version, self.value = None, -1, None

    def __reduce__(self):
        return Reading, ()

    def __call__(self, tensor: Tensor, read: Callable[[Tensor], Any]) -> Any:
        if self.tensor is not tensor or self.version != tensor._version:
            self.tensor, self.version, self.value = tensor, tensor._version, read(tensor)
        return self.value
