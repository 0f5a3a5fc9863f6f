"""A spiking BERT as a directory: `config.json`, `model.safetensors`, and the tokenizer's files beside them.

Tensors have `SpikingBert.state_dict`'s names behind `spiking_bert.`, as in `SpikingBertForSequenceClassification`, with
two exceptions. Masks and time steps of a compacted network are left out: its configuration gives its sizes. And a
compacted sparse network's matrices are written as `places`, one bit for each possible synapse, and `weights` of those
that exist, where these take fewer bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from spikeprune.errors import InputError, check_format
from spikeprune.files import jsonfile
from spikeprune.models.architecture import leading_ones
from spikeprune.models.configuration import FORMAT, SpikingBertConfig
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.packing import PackedLinear, pack_sparse, unpack_sparse
from spikeprune.models.tensors import misfit, not_finite
from spikeprune.models.weights import matrix_names
from spikeprune.models.word_table import PackedWordTable

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREFIX = "spiking_bert."
MASKS = ("heads", "ffn")
SPARSE = ("places", "weights")  # in place of a sparse matrix' "weight"
AGAIN = "give a complete one"


def config_of(student: SpikingBert) -> SpikingBertConfig:
    """The network as it now is, its time steps and number type included."""
    config = SpikingBertConfig.of_values({**student.values, "t_steps": student.steps})
    config.architectures = ["SpikingBertForSequenceClassification"]
    config.dtype = str(student.classifier.weight.dtype).removeprefix("torch.")
    return config


def config_json(config: SpikingBertConfig) -> dict[str, Any]:
    """The content of `config.json`."""
    return jsonfile.loads(config.to_json_string())


def read_config(folder: str | Path, remedy: str = AGAIN) -> SpikingBertConfig:
    """The configuration in a directory. Raises InputError for a file that is missing, damaged, of another model or with
    a key that a spiking BERT does not have; `remedy` ends the message."""
    path = Path(folder) / CONFIG
    raw = jsonfile.read(path, remedy, ("model_type",))
    if raw["model_type"] != SpikingBertConfig.model_type:
        raise InputError(f"{path}: describes a {raw['model_type']!r} model and not a spiking BERT; {remedy}")
    check_format(raw.get("format", 1), FORMAT, str(path), remedy)
    try:
        return SpikingBertConfig.from_dict(raw)
    except Exception as error:  # transformers raises whatever it stumbles over
        raise InputError(f"{path}: describes no spiking BERT ({error}); {remedy}") from None


# ----------------------------------------------------------------------------------------------------------- tensors


def file_tensors(student: SpikingBert) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`."""
    return {f"{PREFIX}{name}": tensor for name, tensor in stored_tensors(student).items()}


def stored_tensors(student: SpikingBert) -> dict[str, Tensor]:
    """`file_tensors` without prefix. Of a compacted network: parameters, codes and scales, as many bytes as
    `cost.shapes.model_bytes` counts."""
    tensors = dict(student.state_dict())
    if student.values["layer_heads"] is None:
        return tensors
    implied = implied_masks(student.values)
    if all(torch.equal(tensors[name].cpu().to(implied[name]), implied[name]) for name in MASKS):
        tensors = {name: tensor for name, tensor in tensors.items() if name not in (*MASKS, "t_steps")}
    return tensors if student.synapse_count() is None else smaller_form(student, tensors)


def smaller_form(student: SpikingBert, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A sparse network's tensors, its matrices as `SPARSE` where that takes fewer bytes."""
    dense = {f"{matrix}.weight": tensors[f"{matrix}.weight"] for matrix in matrix_names(student)}
    packed: dict[str, Tensor] = {}
    for matrix in matrix_names(student):
        places, weights = pack_sparse(dense[f"{matrix}.weight"])
        packed |= {f"{matrix}.places": places, f"{matrix}.weights": weights}
    if nbytes(packed) >= nbytes(dense):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if name not in dense} | packed


def implied_masks(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """The masks `heads [L, H]` and `ffn [L, F]` of a network in which no unit is masked that a layer has."""
    counts = {name: values[f"layer_{name}"] or [values[name]] * values["layers"] for name in MASKS}
    return {name: leading_ones(counts[name], values[name]) for name in MASKS}


def full_state(values: Mapping[str, Any], tensors: Mapping[str, Tensor], place: str, remedy: str) -> dict[str, Tensor]:
    """`SpikingBert(**values).state_dict()` from the tensors of a file, whatever their form and prefix.

    Raises InputError, which names the directory `place`, where the values make no network, where the tensors are
    another network's, and for a number that is not finite: NaN reaches no threshold, so a simulation would hide it.
    """
    try:
        with torch.device("meta"):
            shapes = SpikingBert(**values).state_dict()
        steps = steps_tensor(values)
    except (TypeError, ValueError, KeyError, ZeroDivisionError, RuntimeError) as error:
        raise InputError(f"{place}/{CONFIG}: describes no spiking BERT ({error}); {remedy}") from None
    state = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    if values.get("layer_heads") is not None:
        state = {**implied_masks(values), **state}
    try:
        for name in [name for name in state if name.endswith(".places")]:
            matrix = name.removesuffix(".places")
            packed = [state.pop(f"{matrix}.{part}") for part in SPARSE]
            state[f"{matrix}.weight"] = unpack_sparse(*packed, shapes[f"{matrix}.weight"].shape)
    except (KeyError, ValueError) as error:
        raise InputError(f"{place}/{WEIGHTS}: {matrix} is no sparse matrix here ({error}); {remedy}") from None
    state["t_steps"] = steps
    if wrong := misfit(shapes, state):
        raise InputError(f"{place}/{CONFIG}: does not describe the network in {WEIGHTS} ({wrong}); {remedy}")
    if wrong := not_finite(state):
        raise InputError(f"{place}: {wrong[0]} of the network is not finite; {remedy}")
    return state


def steps_tensor(values: Mapping[str, Any]) -> Tensor:
    """`[L+1]`; the configuration's time steps are the network's."""
    steps = values["t_steps"]
    return torch.tensor([steps] * (values["layers"] + 1) if isinstance(steps, int) else steps)


def network(values: Mapping[str, Any], state: Mapping[str, Tensor]) -> SpikingBert:
    """The network of a `full_state`, in the state's number type: rounded to another one it would be another network."""
    student = SpikingBert(**values).to(state["classifier.weight"])
    student.load_state_dict(state)
    return student


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, copied into memory aligned as torch aligns it: elsewhere a matrix product may be summed in
    another order. Raises InputError for a file that is missing or damaged."""
    try:
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: is missing or damaged ({error}); {AGAIN}") from None


# ------------------------------------------------------------------------------------------------------------- sizes


def parameter_count(student: SpikingBert) -> int:
    """Packed weights count as parameters too."""
    packed = [module.shape for module in student.modules() if isinstance(module, PackedLinear)]
    table = student.embedding.word
    packed += [(table.words, table.width)] if isinstance(table, PackedWordTable) else []
    return sum(p.numel() for p in student.parameters()) + sum(rows * columns for rows, columns in packed)


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
