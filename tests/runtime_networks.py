"""Students of every kind that the C runtime runs; not a test."""

from __future__ import annotations

import torch
from students import make

from spikeprune.models.modeling import SpikingBert

PLAIN = {"theta": "channel", "pooling": "mean", "t_steps": (3, 5, 2)}
NETWORKS = {
    "plain": PLAIN,
    "one theta, cls": {"theta": "tensor", "pooling": "cls", "t_steps": (1, 2, 4), "act": "relu"},
    "membrane": {"residual": "membrane", "pooling": "cls", "t_steps": (4, 1, 3), "act": "gelu_new"},
}


def quantized(weights: str, **options) -> SpikingBert:
    student = make(weights=weights, **{**PLAIN, **options})
    student.set_strength(1.0)
    return student


def sparse(share: float = 0.4) -> SpikingBert:
    student = make(sparse=True)
    with torch.no_grad():
        for layer in student.layers:
            for matrix in (layer.query, layer.key, layer.value, layer.out, layer.up, layer.down):
                matrix.weight.mul_(torch.rand_like(matrix.weight) < share)
    student.refresh_synapses()
    return student
