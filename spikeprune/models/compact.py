"""A masked student -> a physically smaller one with the same answers.

A pruned head leaves its rows of Wq, Wk, Wv (and their biases and thresholds) and its columns of Wo; a pruned neuron its
row of W1 (bias, threshold) and its column of W2. Layers may end up with different numbers of either, down to none. The
hidden size D and the head size d stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeprune.models.quant import MATRICES, acting_weight
from spikeprune.models.student import Student

ROWS = {  # of a layer's tensors: what their first dimension counts
    "heads": ("query.weight", "query.bias", "key.weight", "key.bias", "value.weight", "value.bias"),
    "ffn": ("up.weight", "up.bias"),
}
THETAS = {"heads": ("query_site", "key_site", "value_site", "context_site"), "ffn": ("intermediate_site",)}
COLUMNS = {"heads": "out.weight", "ffn": "down.weight"}


@torch.no_grad()
def compact(student: Student) -> Student:
    """A new student without the units that `student` has masked; `student` itself stays as it is.

    Logits are the masked student's in the modes equilibrium and spiking, up to the order of sums: a current within
    rounding of a threshold may fire in one and not in the other. Device, type, training mode and kernels are the same.
    A quantized student's weights become the floats that they act as. It is there to answer and to be measured; what
    goes on training or pruning works on the masked student.
    """
    kept = {name: kept_units(student, name) for name in ("heads", "ffn")}
    counts = {f"layer_{name}": [len(units) for units in layers] for name, layers in kept.items()}
    values = {**student.values, **counts, "t_steps": student.steps, "weights": "float"}
    small = Student(**values).to(student.classifier.weight)
    state = {key: value for key, value in student.state_dict().items() if key != "strength"}
    for i in range(len(student.layers)):
        state |= smaller_layer(student, i, heads=kept["heads"][i], ffn=kept["ffn"][i])
    small.load_state_dict({**state, "heads": small.heads, "ffn": small.ffn})
    small.use_kernels(student.embedding.site.kernels)
    return small.train(student.training)


def kept_units(student: Student, name: str) -> list[Tensor]:
    """Numbers of the heads or neurons that are left in each layer, counted in the layer's own tensors."""
    masks = getattr(student, name)
    return [mask[: getattr(layer, name)].nonzero()[:, 0] for mask, layer in zip(masks, student.layers, strict=True)]


def smaller_layer(student: Student, index: int, *, heads: Tensor, ffn: Tensor) -> dict[str, Tensor]:
    """The tensors of one layer that shrink, by their names in the student's `state_dict`."""
    layer, out = student.layers[index], {}
    state, size = layer.state_dict(), layer.head_size
    for name in MATRICES:  # quantized ones as they act: their scales are over all inputs, so they come before the cut
        weight = getattr(layer, name).weight
        state[f"{name}.weight"] = acting_weight(weight, student.weights, student.quantized)
    channels = (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()  # head-major
    for name, units in (("heads", channels), ("ffn", ffn)):
        out |= {row: state[row][units] for row in ROWS[name]}
        out[COLUMNS[name]] = state[COLUMNS[name]][:, units]
        for theta in (f"{site}.log_theta" for site in THETAS[name] if f"{site}.log_theta" in state):
            per_channel = student.values["theta"] == "channel"
            out[theta] = state[theta][units] if per_channel else state[theta][: len(units)]
    return {f"layers.{index}.{name}": tensor for name, tensor in out.items()}
