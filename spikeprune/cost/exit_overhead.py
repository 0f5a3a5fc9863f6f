"""Operations of the exit test, added to the network's own: the classifier's MACs, a softmax, and with [CLS] pooling the
pooler's tanh; the pooler's own product grows spike by spike and is counted already."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeprune.cost.operations import Operations
from spikeprune.cost.shapes import Shape


def extra(shape: Shape, samples: int, **kinds: dict[int, Tensor]) -> Operations:
    """Operations in single rows [L+2]; their additions stand at the first step."""
    rows = {kind: torch.zeros(shape.layers + 2, dtype=torch.float64) for kind in ("ac", "mac", "elementwise")}
    for kind, values in kinds.items():
        for row, value in values.items():
            rows[kind][row] = float(value)
    return Operations(**rows, ac_per_step=rows["ac"][:, None], samples=samples)
