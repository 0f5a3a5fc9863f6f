"""`model.spk`: a student as the C program reads it. The layout is in docs/runtime.md, and read by `load` in model.c.

A row of the file holds what one input channel sends to all outputs: a column of w [out, in] times the channel's
threshold, so that a spike adds it as it stands.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from spikeprune.errors import InputError
from spikeprune.models import weights
from spikeprune.models.architecture import POOLER_ACTIVATIONS, POOLINGS, RESIDUALS
from spikeprune.models.checkpoint_config import ACTIVATIONS
from spikeprune.models.compaction import compact
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.relative_bias import FARTHEST, RelativeBias, bucket
from spikeprune.runtime.library import SPIKING_LAYERS

VERSION = 1
HEADER, RECORD, ALIGNMENT = 128, 48, 64  # bytes
LANES = 16  # float rows are filled up to so many numbers
LONGEST, WIDEST = 127, 65535  # time steps; channels of a matrix
ROWS, COUNTED_ROWS, LISTS, BLOCKS = range(4)  # forms of a matrix
FORMS = {"rows": COUNTED_ROWS, "lists": LISTS, "blocks": BLOCKS}  # of a sparse one
CODINGS, SPIKES = ("accumulate", "per_step"), ("binary", "ternary")
SPARSER = 1 / 16  # of the outputs: below this share lists are faster than rows on a processor with wide vectors
EMPTIER = 0.3  # of the blocks: below this share blocks are


@torch.no_grad()
def to_bytes(student: SpikingBert, sparse: str = "auto") -> bytes:
    """The file of a student, without its masked units.

    `sparse`: the form of a sparse student's matrices, rows (zeros included), lists of synapses, blocks of 16 outputs,
    or auto, the one that should take the least time. Raises InputError for a student that the C program does not run.
    """
    check(student)
    small = compact(student).to(torch.float32).cpu()
    bits = packed_bits(small)
    tensors: list[np.ndarray] = [*embedding(small)]
    records = [struct.pack("<12I", small.steps[0], *[0] * 11)]
    for i, layer in enumerate(small.layers):
        forms = []
        for name in ("qkv", "out", "up", "down"):
            form, parts = matrix(small, i, name, bits, sparse)
            forms += form
            tensors += parts
        records.append(struct.pack("<12I", small.steps[i + 1], layer.heads, layer.ffn, *forms, 0))
        for norm in (layer.attention_norm, layer.output_norm):
            tensors += [floats(norm.weight), floats(norm.bias)]
        tensors += [floats(theta_of(getattr(layer, f"{spiking_layer}_neurons"))) for spiking_layer in SPIKING_LAYERS]
        if small.relative_bias is not None:
            tensors.append(distance_bias(small.relative_bias, i))
    tensors += head(small)
    body = b"".join(aligned([np.frombuffer(b"".join(records), np.uint8), *tensors], HEADER))
    after = header_fields(small, bits) + body
    start = struct.pack("<4sIQ", b"SPKR", VERSION, HEADER + len(body))
    return start + struct.pack("<I", zlib.crc32(after)) + after


def header_fields(student: SpikingBert, bits: int) -> bytes:
    """Bytes 20 to 128: byte order, sizes and settings."""
    values = student.values
    sizes = [values["vocab"], values["positions"] - values["position_offset"], max(values["segments"], 1)]
    sizes += [values["hidden"], values["layers"]]
    sizes += [values["hidden"] // values["heads"], values["classes"]]
    settings = [
        CODINGS.index(values["coding"]),
        SPIKES.index(values["spikes"]),
        POOLINGS.index(values["pooling"]),
        ACTIVATIONS.index(values["act"]),
        RESIDUALS.index(values["residual"]),
        bits,
        8 if student.embedding.word.final else 32,  # bits of a word embedding
        FARTHEST if values["relative_buckets"] else 0,  # reach of a relative position bias
        0,  # a spiking query
    ]
    fields = struct.pack("<17I2f", 0x01020304, *sizes, *settings, values["leak"], values["eps"])
    fields += struct.pack("<I", POOLER_ACTIVATIONS.index(values["pooler_act"]))
    return fields.ljust(HEADER - 20, b"\0")


def check(student: SpikingBert) -> None:
    """Raises InputError for a student that the C program does not run."""
    values = student.values
    problems = [
        (values["coding"] not in CODINGS, f"the coding {values['coding']}; it has {' and '.join(CODINGS)}"),
        (values["spikes"] not in SPIKES, f"{values['spikes']} spikes; it has {' and '.join(SPIKES)}"),
        (values["query"] != "real", "a spiking query; train with student.query=real"),
        (values["feedback"], "feedback; train with student.feedback=false"),
        (student.embedding.projection is not None, "embeddings of another width than the layers"),
        (values["dead_zone"], "a dead zone; train with student.dead_zone=0"),
        (max(student.steps) > LONGEST, f"{max(student.steps)} time steps; it counts to {LONGEST}"),
        (max(values["hidden"], 1) > WIDEST // 4 or values["ffn"] > WIDEST, "layers of more than 65,535 channels"),
    ]
    for found, words in problems:
        if found:
            raise InputError(f"the C runtime does not have {words}")


def packed_bits(student: SpikingBert) -> int:
    """Bits of a weight in the file: 32 for float weights, and for few-bit ones whose channels' thresholds are not
    folded in: there a spike adds a code times a real number."""
    one_theta = student.values["theta"] == "tensor"
    return student.stored_bits if student.fold or one_theta else 32


def aligned(tensors: list[np.ndarray], at: int) -> Iterator[bytes]:
    """Each tensor's bytes, from a multiple of ALIGNMENT on; `at` bytes are before the first."""
    for tensor in tensors:
        skip = -at % ALIGNMENT
        data = tensor.tobytes()
        yield b"\0" * skip + data
        at += skip + len(data)


def floats(x: Tensor) -> np.ndarray:
    return x.detach().numpy().astype("<f4")


def theta_of(neurons) -> Tensor:
    """`[channels]`, also of one threshold for all."""
    return neurons.theta.expand(neurons.channels)


def embedding(student: SpikingBert) -> Iterator[np.ndarray]:
    own = student.embedding
    no_segment = own.position.weight.new_zeros(1, own.position.embedding_dim)
    if own.word.final:  # codes of fewer bits too are bytes in the file
        codes, scale = own.word.codes()
        yield from (floats(scale), codes.numpy().astype(np.int8))
    else:
        yield floats(own.word.whole())
    yield floats(own.position.weight[own.position_offset :])
    yield floats(no_segment if own.segment is None else own.segment.weight)
    yield from (floats(own.norm.weight), floats(own.norm.bias), floats(theta_of(own.neurons)))


def distance_bias(bias: RelativeBias, layer: int) -> np.ndarray:
    """`[heads, 2 FARTHEST + 1]` of a layer, by the distance of a key from the query: farther ones share a bucket."""
    distances = torch.arange(-FARTHEST, FARTHEST + 1)
    columns = bias.columns[layer, : bias.layer_heads[layer]].long()
    return floats(bias.table(bucket(distances, bias.table.num_embeddings)).T[columns])


def head(student: SpikingBert) -> list[np.ndarray]:
    found = []
    if student.pooler is not None:
        rows = student.pooler.weight * theta_of(student.layers[-1].output_neurons)
        found += [floats(student.pooler.bias), dense_rows(rows)]
    return [*found, floats(student.classifier.weight), floats(student.classifier.bias)]


# ---------------------------------------------------------------------------------------------------------- matrices


def matrix(
    student: SpikingBert, layer: int, name: str, bits: int, sparse: str
) -> tuple[tuple[int, int], list[np.ndarray]]:
    """Form and number of entries, and the tensors, of `qkv` (query, key and value together), out, up or down."""
    names = ("query", "key", "value") if name == "qkv" else (name,)
    bias = floats(torch.cat([weights.matrix(student, layer, one).bias for one in names]))
    theta = theta_of(weights.source(student, layer, names[0]))
    if bits != 32:
        found = [weights.codes(student, layer, one) for one in names]
        codes, scale = (torch.cat(part) for part in zip(*found, strict=True))
        scale = scale[:, 0] if student.fold else scale[:, 0] * theta[:1].sum()
        return (ROWS, 0), [bias, floats(scale), packed_rows(codes, bits)]
    w = torch.cat([weights.acting_weight(student, layer, one) for one in names]) * theta  # [out, in]
    if student.synapses is None:
        return (ROWS, 0), [bias, dense_rows(w)]
    there = torch.cat([student.synapses.mask(layer, one) for one in names]) > 0
    form = FORMS[sparse] if sparse != "auto" else fastest(there)
    if form == COUNTED_ROWS:
        return (form, 0), [bias, dense_rows(w), fan_out(there)]
    if form == LISTS:
        start, index = entries(there)
        return (form, len(index)), [bias, start, index, floats(w.T[there.T])]
    rows, held = in_panels(w), in_panels(there)
    used = held.any(2)  # [in, panels]
    start, index = entries(used.T)
    return (form, len(index)), [bias, start, index, floats(rows[used]), fan_out(there)]


def fastest(there: Tensor) -> int:
    """The form of a matrix with these synapses [out, in]: blocks where most are empty, else rows, or lists."""
    if not there.numel() or there.double().mean() < SPARSER:
        return LISTS
    return BLOCKS if in_panels(there).any(2).double().mean() < EMPTIER else COUNTED_ROWS


def in_panels(w: Tensor) -> Tensor:
    """w [out, in] -> [in, panels, LANES] of the outputs, filled up to whole panels."""
    panels = -(-w.shape[0] // LANES)
    return pad(w.T, (0, panels * LANES - w.shape[0])).unflatten(1, (panels, LANES))


def dense_rows(w: Tensor) -> np.ndarray:
    """w [out, in] -> [panels, in, LANES]: all that a panel of outputs needs lies together."""
    return floats(in_panels(w).transpose(0, 1).contiguous())


def packed_rows(codes: Tensor, bits: int) -> np.ndarray:
    """codes [out, in] -> uint8 [in, bytes]: fields of `packing.pack`, each row filled up to a multiple of 4 bytes."""
    rows = codes.T.numpy().astype(np.int16)
    if bits == 8:
        data = rows.astype(np.int8).view(np.uint8)
    else:
        fields = (rows + 1) // (2 if bits == 1 else 1)
        per_byte = 8 // bits
        fields = np.pad(fields, ((0, 0), (0, -fields.shape[1] % per_byte)))
        fields = fields.reshape(len(rows), fields.shape[1] // per_byte, per_byte)
        data = (fields << (bits * np.arange(per_byte, dtype=np.int16))).sum(2).astype(np.uint8)
    return np.pad(data, ((0, 0), (0, -data.shape[1] % 4)))


def fan_out(there: Tensor) -> np.ndarray:
    """Synapses of each input channel."""
    return there.sum(0).numpy().astype("<u4")


def entries(there: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of `there [out, in]` the start of each input channel's entries [in + 1], and their outputs."""
    start = np.zeros(there.shape[1] + 1, "<u4")
    start[1:] = there.sum(0).cumsum(0).numpy()
    return start, there.T.nonzero()[:, 1].numpy().astype("<u2")
