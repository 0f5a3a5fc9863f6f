"""What a student keeps in each layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeprune.models.modeling import SpikingBert
from spikeprune.models.quantization import MATRICES
from spikeprune.models.sparsity import allowed_mask, weights_of

BINS = 64  # cells that a layer's neurons are shown in


def layer_maps(student: SpikingBert) -> dict[str, Any]:
    """`heads [L][H]` of zeros and ones; `neurons [L][≤ BINS]`, the share kept of neighbouring ones; `synapses [L][6]`,
    the share kept of each of MATRICES; `t_steps [L+1]`, the embedding's first; `of`: heads and neurons uncompressed."""
    return {
        "heads": student.heads.int().tolist(),
        "neurons": [binned(mask) for mask in student.ffn],
        "kept": {"heads": student.heads.sum(1).int().tolist(), "neurons": student.ffn.sum(1).int().tolist()},
        "of": {"heads": student.heads.shape[1], "neurons": student.ffn.shape[1]},
        "matrices": list(MATRICES),
        "synapses": synapse_shares(student),
        "t_steps": student.steps,
    }


def binned(mask: Tensor) -> list[float]:
    """`[F]` -> the mean of each of BINS parts."""
    return [round(part.float().mean().item(), 4) for part in mask.tensor_split(min(BINS, len(mask)))]


@torch.no_grad()
def synapse_shares(student: SpikingBert) -> list[list[float]]:
    """Of the synapses of each uncompressed matrix: without those of pruned heads and neurons, and in a sparse network
    without weights of zero."""
    hidden, ffn = student.values["hidden"], student.values["ffn"]
    shares: list[list[float]] = [[] for _ in student.layers]
    for i, name, weight in weights_of(student):
        kept = allowed_mask(student, i, name).expand_as(weight)
        if student.synapses is not None:
            kept = kept * student.synapses.mask(i, name)
        shares[i].append(kept.sum().item() / (hidden * (ffn if name in ("up", "down") else hidden)))
    return shares
