"""What criteria and searches decide about the golden values' networks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeprune.pruning.criteria import CRITERIA, TEMPORAL_CRITERIA
from spikeprune.pruning.mask_search import search
from spikeprune.pruning.schedules import keep_highest
from spikeprune.pruning.statistics import collect, temporal_statistics
from spikeprune.training.losses import hard_loss
from tests.golden.counts import shape_of
from tests.golden.networks import Batch, Network, labelled, network

SPATIAL, TEMPORAL = tuple(CRITERIA), tuple(TEMPORAL_CRITERIA)


def sample_loss(batch: Batch, outputs: Any) -> Tensor:
    return hard_loss(outputs.logits, batch["labels"], regression=False)


def as_text(mask: Tensor) -> list[str]:
    """A row of 0 and 1 for each layer."""
    return ["".join(str(int(x)) for x in row) for row in mask.tolist()]


def masks_of(student: Network) -> dict[str, list[str]]:
    return {"heads": as_text(student.heads), "feed-forward": as_text(student.ffn)}


def spatial_masks(criterion: str, scope: str, **options: Any) -> dict[str, list[str]]:
    """Half of the heads and 40 % of the neurons, by that criterion."""
    student = network(masked=False, **options)
    scores = CRITERIA[criterion](collect(student, labelled(), sample_loss))
    heads = keep_highest(scores[0], student.heads, 3, floor=1, scope=scope)
    ffn = keep_highest(scores[1], student.ffn, 30, floor=4, scope=scope)
    return {"heads": as_text(heads), "feed-forward": as_text(ffn)}


def searched_masks(operations: float, rearranged: bool, **options: Any) -> dict[str, Any]:
    """Kwon's search for a share of the operations."""
    student = network(masked=False, **options)
    floors = {"heads": 1, "ffn": 4}
    found = search(
        student,
        labelled(),
        sample_loss,
        shape=shape_of(student),
        operations=operations,
        floors=floors,
        rearranged=rearranged,
    )
    return {**masks_of(student), "share of operations": found["operations"]}


def temporal_steps(criterion: str, total: int, **options: Any) -> list[int]:
    student = network(t_steps=(4, 6, 5), **options)
    return list(TEMPORAL_CRITERIA[criterion](temporal_statistics(student, labelled(), sample_loss), total))
