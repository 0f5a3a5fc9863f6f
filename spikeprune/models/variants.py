"""A trained student with something changed that needs no training: its coding, or dead zones before its neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS


def altered(student: SpikingBert, *, coding: str | None = None, dead_zone: bool | None = None) -> SpikingBert:
    """The same weights, masks and steps under another coding, or with dead zones or without, whose edges then
    stand at zero until `deaden`. `student` stays as it is; what is None stays too."""
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
    made.use_kernels(student.embedding.neurons.kernels)
    return made.train(student.training)


@torch.no_grad()
def deaden(student: SpikingBert, batch: dict[str, Tensor], percentile: float) -> None:
    """Put the end of every dead zone at a percentile of the currents that its site sees on `batch`, from the embedding
    upwards, each with those before it in place. Nothing is trained."""
    was_training = student.training
    student.eval()
    student(*(batch[name] for name in INPUTS), mode="spiking", deaden=percentile)
    student.train(was_training)
