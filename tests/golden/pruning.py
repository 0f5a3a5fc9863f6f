"""What criteria, searches and the budget decide about the golden values' networks."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spikeprune.cost import energy_models
from spikeprune.pruning.budget import Budget
from spikeprune.pruning.cost_meter import CostMeter
from spikeprune.pruning.criteria import CRITERIA, TEMPORAL_CRITERIA
from spikeprune.pruning.mask_search import search
from spikeprune.pruning.schedules import keep_highest
from spikeprune.pruning.statistics import collect, temporal_statistics
from spikeprune.training.losses import drawn_loss, hard_loss, soft_loss
from tests.golden.counts import dense_shape, shape_of
from tests.golden.networks import Batch, Network, labelled, network, plain

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


def joint_plan(target: str, share: float, **options: Any) -> dict[str, Any]:
    """Down to a share of what the whole network costs, then up again to it; taught by the whole network."""
    student, batches = network(masked=False, **options), labelled()
    teacher = copy.deepcopy(student)
    mode = "equilibrium" if student.coding == "accumulate" else "spiking"
    with torch.no_grad():
        answers = {id(batch): teacher(**plain(batch), mode=mode).logits for batch in batches}

    def taught(batch: Batch, outputs: Any) -> Tensor:
        return soft_loss(outputs.logits, answers[id(batch)], temperature=1.0, regression=False)

    def of_drawn_answers(_: Batch, outputs: Any) -> Tensor:
        return drawn_loss(outputs.logits, regression=False)

    torch.manual_seed(0)
    distance = partial(soft_loss, temperature=1.0, regression=False)
    shapes = {"shape": shape_of(student), "dense_shape": dense_shape()}
    meter = CostMeter(batches, target=target, model=energy_models.ENERGY_MODELS["convention"], **shapes)
    floors = {"min_heads": 1, "min_ffn": 4, "most_steps": student.steps, "block": 4}
    budget = Budget(student, batches, taught, of_drawn_answers, distance, meter, **floors)
    whole = budget.value
    goal = share * whole
    budget.lower_to(goal)
    return {"goal": goal, "cost": budget.raise_to(goal), **masks_of(student), "t_steps": student.steps}
