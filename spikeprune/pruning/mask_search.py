"""Heads and neurons chosen at once and without retraining (Kwon et al. 2022, arXiv 2204.09656), in three steps.

1. Mask search: with the diagonal of the Fisher information as a unit's importance, the masks of the greatest total
   importance within a budget of operations. Heads have one cost and neurons another, so the best masks are found
   exactly: for every number of heads the best of them and as many of the best neurons as fit (their algorithm 1).
2. Rearrangement: within each layer, with its number of units fixed, the units whose removal together raises the
   loss least by the layer's whole block of the Fisher information: exactly where all choices can be tried, else by
   exchanges.
3. Mask tuning: see `mask_tuning`.

Differences: unit costs are measured additions (and MACs) of this student, not the dense network's; every layer keeps
its floor; step 2 exchanges until nothing improves; and since the estimates are valid near the unpruned network only,
the result of step 2 in a layer is kept only where the loss, measured on the same sentences, does not rise.

Shapes: L layers, H heads, F neurons, D hidden, B batch, N tokens. A layer's Fisher block is `[H, H]` or `[F, F]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from spikeprune.cost.shapes import Shape
from spikeprune.errors import InputError
from spikeprune.models.modeling import SpikingBert
from spikeprune.pruning.budget import measured_operations
from spikeprune.pruning.schedules import keep_highest
from spikeprune.pruning.statistics import UNITS, Batches, Mean, SampleLoss, alone, loss_at, mask_gradients

CHOICES = 20_000  # most sets of units in a layer that are all tried; C(16, 8) is below


# ------------------------------------------------------------------------------------------------------- statistics


def fisher_blocks(
    student: SpikingBert, batches: Batches, sample_loss: SampleLoss, *, mode: str | None = None
) -> dict[str, Tensor]:
    """`heads [L, H, H]`, `ffn [L, F, F]`: mean over samples of g gᵀ, g a sample's gradient with respect to a layer's
    masks (eqs. 7 and 11). The diagonal is the Fisher information of `statistics.collect`; `mode` as there."""
    blocks, samples = {name: mask.new_zeros(*mask.shape, mask.shape[1]) for name, mask in named_masks(student)}, 0
    for batch, _, grads in mask_gradients(student, batches, sample_loss, mode):
        for name, grad in grads.items():
            blocks[name] += torch.einsum("bli,blj->lij", grad, grad)
        samples += len(batch["input_ids"])
    return {name: block / samples for name, block in blocks.items()}


def unit_operations(student: SpikingBert, batches: Batches, shape: Shape) -> dict[str, Tensor]:
    """Operations (additions and MACs) of a sentence that each unit costs now, `heads [L, H]` and `ffn [L, F]` float64.

    `operations.count` is linear in either mask for fixed spikes, so its gradient is the cost of a unit.
    """
    masks = {name: mask.double().clone().requires_grad_() for name, mask in named_masks(student)}
    with torch.enable_grad():
        found = measured_operations(student, batches, shape=shape, **masks)
        grads = torch.autograd.grad(found.ac.sum() + found.mac.sum(), list(masks.values()))
    return {name: grad / found.samples for name, grad in zip(masks, grads, strict=True)}


def named_masks(student: SpikingBert) -> Iterator[tuple[str, Tensor]]:
    return ((name, getattr(student, name)) for name in UNITS)


# -------------------------------------------------------------------------------------------------------- 1: the search


def knapsack(
    importance: dict[str, Tensor],
    alive: dict[str, Tensor],
    *,
    unit_costs: dict[str, float],
    budget: float,
    floors: dict,
) -> dict[str, Tensor]:
    """0/1 masks of the greatest total importance whose units cost at most `budget`, exactly; at least
    `floors` units a layer.

    `importance` `[L, K]` of at least 0, `unit_costs` above 0, one for each kind. Of equal masks the one of most heads.
    Pruned units stay pruned; a layer of fewer units than its floor keeps those that it has. Raises ValueError, with the
    least that can be had, for a budget below the floors.
    """
    least = {name: int(alive[name].sum(1).clamp(max=floors[name]).sum()) for name in UNITS}
    cheapest = sum(unit_costs[name] * least[name] for name in UNITS)
    slack = 1e-9 * max(budget, 1e-30)  # the cost of all units is within a budget for all, however it was rounded
    if cheapest > budget + slack:
        raise ValueError(f"a budget of {budget:.6g} is below the {cheapest:.6g} of the floors")
    gains = {name: importance_of_best(importance[name], alive[name], floors[name]) for name in UNITS}
    best = None
    for heads in range(least["heads"], len(gains["heads"])):
        remaining = budget + slack - heads * unit_costs["heads"]
        ffn = min(int(remaining / unit_costs["ffn"]), len(gains["ffn"]) - 1)
        if remaining < 0 or ffn < least["ffn"]:
            break
        total = gains["heads"][heads] + gains["ffn"][ffn]
        if best is None or total >= best[0]:
            best = total, {"heads": heads, "ffn": ffn}
    keep = best[1]
    return {k: keep_highest(importance[k], alive[k], keep[k], floor=floors[k], scope="global") for k in UNITS}


def importance_of_best(importance: Tensor, alive: Tensor, floor: int) -> list[float]:
    """Entry n: the summed importance of the n units that `keep_highest` keeps (n from the floors' number on)."""
    forced = keep_highest(importance, alive, 0, floor=floor, scope="global")
    free = importance[(alive > 0) & (forced == 0)].double().sort(descending=True).values
    start = int(forced.sum())
    sums = (importance.double() * forced).sum() + torch.cat([free.new_zeros(1), free.cumsum(0)])
    return [0.0] * start + sums.tolist()


# ------------------------------------------------------------------------------------------------- 2: the rearrangement


def removal_loss(block: Tensor, pruned: Tensor) -> float:
    """Loss expected from removing the units with 1 in `pruned [K]` together: ½ zᵀ I z (eq. 6), in float64."""
    z = pruned.double()
    return 0.5 * (z @ block.double() @ z).item()


def rearrange(block: Tensor, mask: Tensor, alive: Tensor) -> Tensor:
    """As many units of one layer `[K]`, chosen by its Fisher block `[K, K]`: never of a larger loss than
    `mask`.

    The best choice where there are at most CHOICES of them; else a mask that no exchange of two units improves.
    """
    units = alive.nonzero()[:, 0]
    removed = int(len(units) - mask.sum())
    if removed in (0, len(units)):
        return mask.clone()
    inner, before = block[units][:, units].double(), (1 - mask[units]).double()
    pruned = try_all(inner, removed) if comb(len(units), removed) <= CHOICES else exchange(inner, before)
    if removal_loss(inner, pruned) >= removal_loss(inner, before):
        return mask.clone()
    out = torch.zeros_like(mask)
    out[units] = (1 - pruned).to(mask)
    return out


def try_all(block: Tensor, removed: int) -> Tensor:
    chosen = torch.tensor(list(combinations(range(len(block)), removed)), device=block.device)
    pruned = block.new_zeros(len(chosen), len(block)).scatter(1, chosen, 1.0)
    return pruned[torch.einsum("ci,ij,cj->c", pruned, block, pruned).argmin()]


def exchange(block: Tensor, pruned: Tensor) -> Tensor:
    """Repeats the exchange of two units that lowers the loss most, until none lowers it."""
    z, diagonal, v = pruned.clone(), block.diagonal(), block @ pruned
    least = 1e-12 * diagonal.sum()
    while True:
        back, away = diagonal - 2 * v, diagonal + 2 * v  # changes of the loss by returning a unit, and by removing one
        removed, kept = z.nonzero()[:, 0], (z == 0).nonzero()[:, 0]
        change = back[removed][:, None] + away[kept] - 2 * block[removed][:, kept]
        i, j = divmod(int(change.argmin()), len(kept))
        if not change[i, j] < -least:
            return z
        z[removed[i]], z[kept[j]] = 0.0, 1.0
        v = v + block[kept[j]] - block[removed[i]]


# ---------------------------------------------------------------------------------------------------------- both steps


@torch.no_grad()
def search(
    student: SpikingBert,
    batches: Batches,
    sample_loss: SampleLoss,
    *,
    shape: Shape,
    operations: float,
    floors: dict[str, int],
    rearranged: bool = True,
    mode: str | None = None,
    mean: Mean = alone,
) -> dict[str, float]:
    """Steps 1 and, if `rearranged`, 2: writes masks within the share `operations` of the operations of all heads
    and neurons to `student`'s buffers. `mode`: the forward that it is trained with, as in `statistics.collect`.

    Returns `operations` (the share kept, at each unit's own cost), `diagonal` and `block` (the loss expected by
    the layers' blocks after step 1, and after 2). Raises InputError for a share below the floors.
    """
    blocks = {name: mean(block) for name, block in fisher_blocks(student, batches, sample_loss, mode=mode).items()}
    own_costs = {name: mean(cost) for name, cost in unit_operations(student, batches, shape).items()}
    alive = {name: mask.clone() for name, mask in named_masks(student)}
    unit_costs = {name: (own_costs[name][alive[name] > 0]).mean().item() for name in UNITS}
    total = sum(unit_costs[name] * alive[name].numel() for name in UNITS)
    importance = {name: block.diagonal(dim1=1, dim2=2) for name, block in blocks.items()}
    try:
        masks = knapsack(importance, alive, unit_costs=unit_costs, budget=operations * total, floors=floors)
    except ValueError:
        least = sum(unit_costs[k] * int(alive[k].sum(1).clamp(max=floors[k]).sum()) for k in UNITS) / total
        raise InputError(
            f"stages.spatial.operations = {operations}: the floors of {floors['heads']} heads and {floors['ffn']} "
            f"neurons in each layer keep a share of {least:.3f}; give at least that"
        ) from None
    for name in UNITS:
        getattr(student, name).copy_(masks[name])
    if rearranged:
        rearrange_measured(student, blocks, alive, lambda: mean(loss_of(student, batches, sample_loss)).item())
    found = dict(named_masks(student))
    kept = sum((own_costs[name] * found[name]).sum().item() for name in UNITS) / total
    return {"operations": kept, **{k: blockwise(blocks, alive, m) for k, m in (("diagonal", masks), ("block", found))}}


def rearrange_measured(
    student: SpikingBert, blocks: dict[str, Tensor], alive: dict[str, Tensor], loss: Callable[[], float]
) -> None:
    """Every layer's heads, then every layer's neurons, each time only if `loss` does not rise."""
    least = loss()
    for name, mask in named_masks(student):
        for layer in range(len(mask)):
            before, after = mask[layer].clone(), rearrange(blocks[name][layer], mask[layer], alive[name][layer])
            if torch.equal(before, after):
                continue
            mask[layer] = after
            now = loss()
            if now <= least:
                least = now
            else:
                mask[layer] = before


def loss_of(student: SpikingBert, batches: Batches, sample_loss: SampleLoss) -> Tensor:
    return loss_at(student, student.steps, batches, sample_loss)


def blockwise(blocks: dict[str, Tensor], alive: dict[str, Tensor], masks: dict[str, Tensor]) -> float:
    return sum(
        removal_loss(block, before - mask)
        for name in UNITS
        for block, before, mask in zip(blocks[name], alive[name], masks[name], strict=True)
    )
