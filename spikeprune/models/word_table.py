"""The word embeddings in few bits: a scale for each word, the gradient straight through, and rows of bytes.

A row is quantized when it is looked up, so training costs what the tokens of a batch cost, whatever the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from spikeprune.models.packing import pack, unpack
from spikeprune.models.quantization import TABLES, Codes, Quantize, codes_of
from spikeprune.models.tensors import Reading


class WordTable(nn.Embedding):
    """`nn.Embedding` whose rows move to their quantized values as `strength` goes from 0 to 1.

    `weights`: float, or a name in `quantization.TABLES`.
    """

    def __init__(self, words: int, width: int, *, weights: str = "float"):
        super().__init__(words, width)
        self.weights = weights
        self._read = Reading()
        if weights != "float":
            self.register_buffer("strength", torch.zeros(()))

    @property
    def quantized(self) -> float:
        """`strength` as a number; 0 for a float table."""
        return 0.0 if self.weights == "float" else self._read(self.strength, Tensor.item)

    @property
    def final(self) -> bool:
        """Whether the rows are fully quantized."""
        return self.quantized == 1

    @property
    def stored_bits(self) -> int:
        """Bits of a number in a packed table."""
        return TABLES[self.weights].stored if self.final else 32

    def forward(self, ids: Tensor) -> Tensor:
        """`[...]` -> `[..., width]`."""
        rows = super().forward(ids)
        if self.weights == "float":
            return rows
        return Quantize.apply(rows.flatten(0, -2), self.weights, self.strength, None).view_as(rows)

    def codes(self) -> Codes:
        """Codes `[words, width]` and scale `[words, 1]` at full strength."""
        return codes_of(self.weight.detach(), self.weights)

    def whole(self) -> Tensor:
        """The effective table `[words, width]`."""
        if self.weights == "float":
            return self.weight.detach()
        codes, scale = self.codes()
        return torch.lerp(self.weight.detach(), codes * scale, self.strength)


class PackedWordTable(nn.Module):
    """A final table: `data` uint8 `[words, bytes of a row]`, each row padded with zeros to whole bytes, and `scale`
    `[words, 1]`."""

    final = True

    def __init__(self, words: int, width: int, *, weights: str):
        super().__init__()
        self.weights, self.words, self.width = weights, words, width
        self.register_buffer("data", torch.zeros(words, row_bytes(width, weights), dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(words, 1))

    @property
    def stored_bits(self) -> int:
        return TABLES[self.weights].stored

    def forward(self, ids: Tensor) -> Tensor:
        """`[...]` -> `[..., width]`."""
        rows = self.unpacked(self.data[ids.flatten()]).to(self.scale.dtype) * self.scale[ids.flatten()]
        return rows.view(*ids.shape, self.width)

    def unpacked(self, data: Tensor) -> Tensor:
        """int8 `[rows, width]`."""
        padded = data.shape[1] * 8 // self.stored_bits
        return unpack(data.flatten(), (len(data), padded), self.weights)[:, : self.width]

    def codes(self) -> Codes:
        return self.unpacked(self.data).to(self.scale.dtype), self.scale

    def whole(self) -> Tensor:
        codes, scale = self.codes()
        return codes * scale


def row_bytes(width: int, weights: str) -> int:
    return -(-width * TABLES[weights].stored // 8)


def packed_rows(codes: Tensor, weights: str) -> Tensor:
    """Codes `[words, width]` -> uint8 `[words, bytes of a row]`."""
    columns = row_bytes(codes.shape[1], weights) * 8 // TABLES[weights].stored
    return pack(pad(codes, (0, columns - codes.shape[1])), weights).view(len(codes), -1)
