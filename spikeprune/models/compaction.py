"""Compaction: a network with masked heads and neurons becomes a physically smaller one with the same logits.

With a pruned head go its rows of Wq, Wk, Wv (their biases and thresholds too) and its columns of Wo; with a pruned
neuron its row of W1 (bias, threshold) and its column of W2. Layers may keep different numbers of either, down to none.
The hidden size D and the head size d stay.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeprune.models.modeling import SpikingBert
from spikeprune.models.packing import pack
from spikeprune.models.quantization import MATRICES
from spikeprune.models.shape import spiking_bert
from spikeprune.models.weights import acting_weight, codes, matrix_names
from spikeprune.models.word_table import packed_rows

ROWS = {"heads": ("query", "key", "value"), "ffn": ("up",)}  # matrices whose rows are heads' channels, or neurons
THETAS = {  # spiking layers whose channels are those of the heads, or the neurons
    "heads": ("query_neurons", "key_neurons", "value_neurons", "context_neurons"),
    "ffn": ("intermediate_neurons",),
}
COLUMNS = {"heads": "out", "ffn": "down"}
# by the start of the names of a layer's tensors, the dimension that shrinks and the numbers that are kept of it
Kept = dict[str, tuple[int, Tensor]]
PARTS = ("weight", "data", "scale", "strength")  # of a matrix, besides its bias, and of the word table
OWN = ("heads", "ffn", "t_steps", "relative_bias.columns")  # buffers that a compacted network has of its own


@torch.no_grad()
def compact(student: nn.Module) -> SpikingBert:
    """A copy of `student`, or of the one in a module, without its masked heads and neurons, to infer and to measure.

    Logits equal those of `student` in the modes equilibrium and spiking up to the order of sums: a current within
    rounding of a threshold may fire in one network and not in the other. Device, number type, training mode and backend
    are the same. Weights at quantization strength 1 are packed as codes and scales; at lower strengths the effective
    weights become plain floats. A network that is to be trained further comes from `compacted`.

    Example: `compact(spikeprune.load("runs/sst2/stages/spatial"))`
    """
    student = spiking_bert(student)
    packed = student.quantized == 1 or (student.weights == "float" and student.embedding.word.final)
    kept = kept_parts(student)
    state = shrunk({**state_without_matrices(student), **table_tensors(student, packed)}, kept)
    return with_state(student, weight_arguments(student, packed), state | effective_matrices(student, kept))


@torch.no_grad()
def compacted(student: SpikingBert) -> SpikingBert:
    """As `compact`, for further training: the stored weights are copied instead of the effective ones, and remain under
    the quantizer (its scales are means over kept inputs, so they do not change). See `scatter_into`."""
    return with_state(student, {"t_steps": student.steps}, shrunk(student.state_dict(), kept_parts(student)))


def with_state(student: SpikingBert, values: dict[str, Any], state: dict[str, Tensor]) -> SpikingBert:
    """The network of the units that `student` keeps. `values`: arguments in which it differs; `state`: its tensors."""
    kept = {name: kept_units(student, name) for name in ("heads", "ffn")}
    counts = {f"layer_{name}": [len(units) for units in layers] for name, layers in kept.items()}
    small = SpikingBert(**{**student.values, **counts, **values}).to(student.classifier.weight)
    if small.relative_bias is not None:
        state["relative_bias.columns"] = kept_columns(student, kept["heads"])
    small.load_state_dict({**state, "heads": small.heads, "ffn": small.ffn})
    small.attach(student.backend)
    return small.train(student.training)


def kept_columns(student: SpikingBert, kept: list[Tensor]) -> Tensor:
    """`RelativeBias.columns` with those of the `kept` heads first in each layer."""
    columns = student.relative_bias.columns
    return torch.stack(
        [F.pad(own[heads], (0, len(own) - len(heads))) for own, heads in zip(columns, kept, strict=True)]
    )


def kept_units(student: SpikingBert, name: str) -> list[Tensor]:
    """Numbers of the heads or neurons that are left in each layer, counted in the layer's own tensors."""
    masks = getattr(student, name)
    return [mask[: getattr(layer, name)].nonzero()[:, 0] for mask, layer in zip(masks, student.layers, strict=True)]


def kept_parts(student: SpikingBert) -> Kept:
    """What is left of each tensor that belongs to heads or neurons."""
    kept: Kept = {}
    for i, (heads, ffn) in enumerate(zip(kept_units(student, "heads"), kept_units(student, "ffn"), strict=True)):
        units = {"heads": channels(heads, student.layers[i].head_size), "ffn": ffn}
        for name, own in units.items():
            kept |= {f"layers.{i}.{row}": (0, own) for row in (*ROWS[name], *THETAS[name])}
            kept[f"layers.{i}.{COLUMNS[name]}.weight"] = (1, own)
    return kept


def part_of(name: str, kept: Kept) -> tuple[int, Tensor] | None:
    return next((kept[start] for start in kept if name.startswith(start)), None)


def shrunk(state: dict[str, Tensor], kept: Kept) -> dict[str, Tensor]:
    """The tensors without the channels of masked units."""
    small = dict(state)
    for name, tensor in state.items():
        if part := part_of(name, kept):
            dim, own = part
            one_theta = tensor.numel() == 1 and name.endswith("log_theta")  # for all channels, as long as there are any
            small[name] = tensor[: len(own)] if one_theta else tensor.index_select(dim, own)
    return small


def effective_matrices(student: SpikingBert, kept: Kept) -> dict[str, Tensor]:
    """The effective weights, shrunk; codes and scales are those of the masked matrix, not computed anew."""
    state = {}
    for index, name in product(range(len(student.layers)), MATRICES):
        full = f"layers.{index}.{name}"
        dim, own = part_of(f"{full}.weight", kept)
        if student.quantized < 1:
            state[f"{full}.weight"] = acting_weight(student, index, name).index_select(dim, own)
            continue
        numbers, scale = codes(student, index, name)
        numbers, scale = numbers.index_select(dim, own), scale[own] if dim == 0 else scale
        scale = scale if numbers.shape[1] else scale[:0]
        state |= {f"{full}.data": pack(numbers, student.weights), f"{full}.scale": scale}
    return state


def weight_arguments(student: SpikingBert, packed: bool) -> dict[str, Any]:
    """Arguments of a network with `student`'s time steps whose matrices are packed, or plain floats."""
    if packed:
        return {"t_steps": student.steps, "weights": student.weights, "fold": student.fold, "packed": True}
    return {"t_steps": student.steps, "weights": "float", "fold": False, "packed": False, "word_table": "float"}


def table_tensors(student: SpikingBert, packed: bool) -> dict[str, Tensor]:
    """The word table of a network whose quantized weights are packed, or plain floats."""
    table, name = student.embedding.word, "embedding.word"
    if not packed or student.values["word_table"] == "float":
        return {f"{name}.weight": table.whole()}
    codes, scale = table.codes()
    return {f"{name}.data": packed_rows(codes, table.weights), f"{name}.scale": scale}


def state_without_matrices(student: SpikingBert) -> dict[str, Tensor]:
    """The state without the matrices' weights, the word table and the quantization strengths."""
    mine = {f"{name}.{part}" for name in (*matrix_names(student), "embedding.word") for part in PARTS}
    return {key: value for key, value in student.state_dict().items() if key not in mine | {"strength"}}


@torch.no_grad()
def scatter_into(small: SpikingBert, student: SpikingBert) -> None:
    """Copy the parameters, time steps and quantization strength of a `compacted` network into the `student` that it
    was made from; masks and the parameters of masked units stay. Raises ValueError for packed weights."""
    if small.packed:
        raise ValueError("packed weights are final: only a network made by `compacted` can be scattered back")
    target, kept = student.state_dict(), kept_parts(student)
    for name, tensor in small.state_dict().items():
        if name in OWN:
            continue
        if target[name].shape == tensor.shape:
            target[name].copy_(tensor)
        else:
            target[name].index_copy_(*part_of(name, kept), tensor)
    student.set_t_steps(small.steps)


def channels(heads: Tensor, size: int) -> Tensor:
    """Numbers of the channels of these heads, each of `size`."""
    return (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()


@torch.no_grad()
def as_float(student: SpikingBert) -> SpikingBert:
    """The same network with its effective weights stored as plain floats, to compare a compacted network with."""
    same = SpikingBert(**{**student.values, **weight_arguments(student, False)}).to(student.classifier.weight)
    places = product(range(len(student.layers)), MATRICES)
    weights = {f"layers.{i}.{name}.weight": acting_weight(student, i, name) for i, name in places}
    same.load_state_dict({**state_without_matrices(student), **table_tensors(student, False), **weights})
    return same.train(student.training)
