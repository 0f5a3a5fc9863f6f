"""Quantized weights as bytes: exact both ways, and as many as `size.matrix_bytes` counts.

Codes are written row after row, the first in a byte's lowest bits, the last byte filled up with zeros: binary 8 to a
byte (0 is -1, 1 is +1), ternary 4 to a byte (code + 1), int8 one (two's complement).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from spikeprune.models.quant import MATRICES, QUANTIZERS, Quantizer
from spikeprune.models.student import Student
from spikeprune.size import known


@dataclass(frozen=True)
class Packed:
    """One matrix [out, in]: `data` uint8, `scale` [out, 1] float32."""

    weights: str  # a name in QUANTIZERS
    shape: tuple[int, int]
    data: Tensor
    scale: Tensor

    @property
    def nbytes(self) -> int:
        """A matrix that has lost every input has no use for its scales."""
        return self.data.numel() + (4 * self.scale.numel() if self.shape[1] else 0)

    def weight(self) -> Tensor:
        """`codes * scale` [out, in] in float32."""
        return unpack(self.data, self.shape, self.weights).float() * self.scale


def pack(codes: Tensor, weights: str) -> Tensor:
    """Codes [out, in] -> uint8 [ceil(out · in · bits / 8)]. Raises ValueError for codes that the quantizer has not."""
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
    """What `pack` was given, as int8. Raises ValueError for bytes of another number than this shape has."""
    quantizer, size = _quantizer(weights), shape[0] * shape[1]
    wanted = -(-size * quantizer.stored // 8)
    if data.numel() != wanted:
        raise ValueError(f"{data.numel()} bytes for {weights} weights of shape {tuple(shape)}, expected {wanted}")
    if quantizer.stored == 8:
        return data.view(torch.int8).reshape(shape)
    fields = (data.to(torch.int16)[:, None] >> _shifts(quantizer, data.device)) & (2**quantizer.stored - 1)
    return (fields.flatten()[:size] * _step(quantizer) + quantizer.low).to(torch.int8).view(shape)


def _quantizer(weights: str) -> Quantizer:
    known("weights", weights, tuple(QUANTIZERS))
    return QUANTIZERS[weights]


def _step(quantizer: Quantizer) -> int:
    """Between two codes: binary has no 0."""
    return 2 if quantizer.stored == 1 else 1


def _per_byte(quantizer: Quantizer) -> int:
    return 8 // quantizer.stored


def _shifts(quantizer: Quantizer, device: torch.device) -> Tensor:
    return quantizer.stored * torch.arange(_per_byte(quantizer), dtype=torch.int16, device=device)


@torch.no_grad()
def pack_encoder(student: Student) -> dict[str, Packed]:
    """`layers.0.query` … -> its matrix with pruned heads and neurons cut out, scales still over all inputs.

    Raises ValueError for a student whose weights are not quantized, or not all the way.
    """
    if student.quantized < 1:
        raise ValueError(f"only quantized weights can be packed; these are {student.weights}, {student.quantized:.0%}")
    packed = {}
    for i, layer in enumerate(student.layers):
        channels = student.heads[i].repeat_interleave(layer.head_size).bool()
        outputs = {"query": channels, "key": channels, "value": channels, "up": student.ffn[i].bool()}
        inputs = {"out": channels, "down": student.ffn[i].bool()}
        for name in MATRICES:
            codes, scale = QUANTIZERS[student.weights].codes(getattr(layer, name).weight)
            rows, columns = outputs.get(name, slice(None)), inputs.get(name, slice(None))
            codes, scale = codes[rows][:, columns], scale[rows]
            data = pack(codes, student.weights)
            packed[f"layers.{i}.{name}"] = Packed(student.weights, tuple(codes.shape), data, scale.float())
    return packed


def packed_size(student: Student) -> int:
    """Bytes of the encoder's matrices, codes and scales, as `pack_encoder` makes them."""
    return sum(matrix.nbytes for matrix in pack_encoder(student).values())
