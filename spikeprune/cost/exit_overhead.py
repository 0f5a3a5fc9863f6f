"""What it costs to ask whether an answer is settled, as operations added to the network's own.

`asr`, whether rates still change: three additions a channel and token (the sum of spikes, the difference to what it
was, the sum of their sizes; the division by t is one for the sample), with a leak one of them a MAC. `confidence`:
the classifier's MACs, a softmax, and with [CLS] pooling the pooler's tanh; the pooler's own product grows spike by
spike and is counted already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeprune.cost.operations import Operations
from spikeprune.cost.shapes import Shape


def rate_checks(shape: Shape, looked_at: dict[int, Tensor], leak: float, samples: int) -> Operations:
    """Price of the rule `asr` where `looked_at` rates were compared, for each row [L+2]."""
    if leak == 1.0:
        return extra(shape, samples, ac={row: 3 * n for row, n in looked_at.items()})
    return extra(shape, samples, ac={row: 2 * n for row, n in looked_at.items()}, mac=looked_at)


def extra(shape: Shape, samples: int, **kinds: dict[int, Tensor]) -> Operations:
    """Operations in single rows [L+2]; their additions stand at the first step."""
    rows = {kind: torch.zeros(shape.layers + 2, dtype=torch.float64) for kind in ("ac", "mac", "elementwise")}
    for kind, values in kinds.items():
        for row, value in values.items():
            rows[kind][row] = float(value)
    return Operations(**rows, ac_per_step=rows["ac"][:, None], samples=samples)
