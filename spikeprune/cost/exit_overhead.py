"""Operations of the exit test, added to the network's own: the classifier's MACs, a softmax, and with [CLS] pooling the
pooler's tanh; the pooler's own product grows spike by spike and is counted already."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeprune.cost.kinds import Operations, of_rows
from spikeprune.cost.shapes import Shape


def extra(shape: Shape, samples: int, **kinds: dict[int, Tensor]) -> Operations:
    """Work in single rows [L+2]; additions stand at the first step."""
    zero = torch.zeros(shape.layers + 2, dtype=torch.float64)
    rows = {kind: zero.clone() for kind in kinds}
    for kind, values in kinds.items():
        for row, value in values.items():
            rows[kind][row] = float(value)
    return of_rows(len(zero), zero, tokens=zero.new_zeros(()), samples=samples, **rows)
