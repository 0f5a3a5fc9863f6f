"""Quantized and sparse weights as bytes: exact both ways, and as many as `shapes.matrix_bytes` counts.

Codes are written row after row, the first in a byte's lowest bits, the last byte filled up with zeros: binary 8 to a
byte (0 is -1, 1 is +1), ternary 4 to a byte (code + 1), int4 2 (code + 7), int8 one (two's complement). A sparse matrix
is packed as a bit for each place in binary's order, 1 for a synapse, and the float weights of the synapses in the same
order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from spikeprune.models.quantization import Codes, Quantizer
from spikeprune.models.quantization import quantizer_of as _quantizer
from spikeprune.models.tensors import Reading


class PackedLinear(nn.Module):
    """A linear map of `outputs` channels whose weights are final: `data` uint8 as `pack` makes it, `scale` [out, 1],
    and a bias. The student computes with it (see `weights.acting`)."""

    def __init__(self, inputs: int, outputs: int, *, weights: str):
        super().__init__()
        self.weights, self.in_features, self.out_features = weights, inputs, outputs
        self.register_buffer("data", torch.zeros(_bytes(_quantizer(weights), outputs * inputs), dtype=torch.uint8))
        # a matrix without inputs has no scales
        self.register_buffer("scale", torch.zeros(outputs if inputs else 0, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self._unpacked = Reading()

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def codes(self) -> Tensor:
        """`[out, in]` int8, unpacked again only after `data` has changed."""
        return self._unpacked(self.data, lambda data: unpack(data, self.shape, self.weights))

    def codes_of(self) -> Codes:
        """As `quantization.codes_of` gave them, in the scale's dtype."""
        scale = self.scale if self.shape[1] else self.scale.new_zeros(self.shape[0], 1)
        return self.codes.to(scale.dtype), scale


def pack(codes: Tensor, weights: str) -> Tensor:
    """Codes [out, in] -> uint8 [ceil(out · in · bits / 8)]. Raises ValueError for codes outside the quantizer's."""
    quantizer = _quantizer(weights)
    numbers, step = codes.flatten().to(torch.int16), _step(quantizer)
    allowed = torch.arange(quantizer.low, quantizer.high + 1, step, device=codes.device)
    if not torch.isin(codes, allowed.to(codes.dtype)).all():
        text = f"{quantizer.low} and {quantizer.high}" if step == 2 else f"{quantizer.low} to {quantizer.high}"
        raise ValueError(f"codes of {weights} weights must be {text}")
    if quantizer.stored == 8:
        return numbers.to(torch.int8).view(torch.uint8)
    fields = (numbers - quantizer.low) // step
    fields = pad(fields, (0, -len(fields) % _per_byte(quantizer))).view(-1, _per_byte(quantizer))
    return (fields << _shifts(quantizer, codes.device)).sum(1).to(torch.uint8)


def unpack(data: Tensor, shape: tuple[int, int], weights: str) -> Tensor:
    """The codes [out, in] int8 of `pack`. Raises ValueError where the number of bytes does not fit the shape."""
    quantizer, size = _quantizer(weights), shape[0] * shape[1]
    wanted = _bytes(quantizer, size)
    if data.numel() != wanted:
        raise ValueError(f"{data.numel()} bytes for {weights} weights of shape {tuple(shape)}, expected {wanted}")
    if quantizer.stored == 8:
        return data.view(torch.int8).reshape(shape)
    fields = (data.to(torch.int16)[:, None] >> _shifts(quantizer, data.device)) & (2**quantizer.stored - 1)
    return (fields.flatten()[:size] * _step(quantizer) + quantizer.low).to(torch.int8).view(shape)


def pack_sparse(weight: Tensor) -> tuple[Tensor, Tensor]:
    """w [out, in] -> places uint8 [ceil(out · in / 8)], its weights that are not zero."""
    there = weight != 0
    return pack(there.to(torch.int8) * 2 - 1, "binary"), weight[there]


def unpack_sparse(places: Tensor, weights: Tensor, shape: tuple[int, int]) -> Tensor:
    """The matrix [out, in] of `pack_sparse`. Raises ValueError where the two do not fit the shape or each other."""
    there = unpack(places, shape, "binary") > 0
    if int(there.sum()) != len(weights):
        raise ValueError(f"{len(weights)} weights for {int(there.sum())} synapses")
    return weights.new_zeros(shape).masked_scatter(there, weights)


def _bytes(quantizer: Quantizer, size: int) -> int:
    return -(-size * quantizer.stored // 8)


def _step(quantizer: Quantizer) -> int:
    """Between two codes: binary has no 0."""
    return 2 if quantizer.stored == 1 else 1


def _per_byte(quantizer: Quantizer) -> int:
    return 8 // quantizer.stored


def _shifts(quantizer: Quantizer, device: torch.device) -> Tensor:
    return quantizer.stored * torch.arange(_per_byte(quantizer), dtype=torch.int16, device=device)
