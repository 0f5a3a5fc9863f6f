"""Changes of a trained student that need no training: its coding, dead zones before its neurons, a quantizer at
strength 0, masks of its synapses."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeprune.errors import InputError, known
from spikeprune.models.modeling import SpikingBert, refresh_synapses
from spikeprune.models.outputs import inputs_of
from spikeprune.models.quantization import QUANTIZERS
from spikeprune.models.sparsity import Synapses


def variant(student: SpikingBert, *, coding: str | None = None, dead_zone: bool | None = None) -> SpikingBert:
    """The same weights, masks and steps under another coding, or with dead zones or without; new dead zones are
    empty until `calibrate_dead_zones`. `student` stays as it is; None leaves a property as it is."""
    values = {**student.values, "t_steps": student.steps}
    state = student.state_dict()
    if coding is not None:
        values["coding"] = coding
    if dead_zone is not None:
        values["dead_zone"] = dead_zone
        state = {key: tensor for key, tensor in state.items() if not key.endswith("dead_zone.edge")}
    made = SpikingBert(**values).to(student.classifier.weight)
    edges = {key: x for key, x in made.state_dict().items() if dead_zone is not None and key.endswith("dead_zone.edge")}
    made.load_state_dict({**state, **edges})
    made.attach(student.backend)
    return made.train(student.training)


@torch.no_grad()
def calibrate_dead_zones(student: SpikingBert, batch: dict[str, Tensor], percentile: float) -> None:
    """Set the edge of every dead zone to a percentile of the currents of its layer on `batch`, from the embedding
    upwards, each computed with the zones before it."""
    student(**inputs_of(batch), mode="spiking", dead_zone_percentile=percentile)


def add_quantizer(student: SpikingBert, weights: str) -> None:
    """Give a float student the quantizer `weights`, in place, at strength 0: its outputs stay. Raises ValueError for an
    unknown name, and InputError for a student with another quantizer, or with synapse masks."""
    known("weights", weights, tuple(QUANTIZERS))
    if student.weights == weights:
        return
    if student.weights != "float" or student.synapses is not None:
        what = "sparse weights" if student.synapses is not None else f"{student.weights} weights"
        raise InputError(f"a student of {what} cannot be given {weights} weights; start from a dense float student")
    student.weights = student.values["weights"] = weights
    student.register_buffer("strength", student.heads.new_zeros(()))


def add_synapse_masks(student: SpikingBert) -> None:
    """Give a student synapse masks, in place: all ones but for weights of zero. Raises InputError for a quantized
    one."""
    if student.synapses is not None:
        return
    if student.weights != "float":
        raise InputError(f"a student of {student.weights} weights cannot lose synapses; start from a float student")
    student.values["sparse"] = True
    student.synapses = Synapses(student).to(student.classifier.weight)
    student.synapses.refresh_masks(student)
    student.register_load_state_dict_post_hook(refresh_synapses)
