"""Weights behind what is kept make up for what left: least squares, and where they must not."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from pruning import D, F, H, L, batches, inputs, loss_of, make

from spikeprune.cost.shapes import Shape
from spikeprune.models.architecture import RESIDUALS
from spikeprune.pruning import mask_search as kwon
from spikeprune.pruning import mask_tuning

SHAPE = Shape(hidden=D, heads=H, ffn=F, layers=L, classes=3, vocab_size=23, positions=8, theta="channel")
FLOORS = {"heads": 1, "ffn": 4}


def pruned_pair(coding: str = "accumulate", residual: str = "spikes"):
    whole = make(coding=coding, residual=residual).eval()
    student = copy.deepcopy(whole)
    student.heads[0, 0] = student.heads[1, 2] = 0
    student.ffn[:, ::2] = 0
    return student, whole


@pytest.mark.parametrize(("layer", "kind"), list(itertools.product(range(L), kwon.UNITS)))
@pytest.mark.parametrize("residual", RESIDUALS)
def test_the_fit_is_the_least_squares_solution(layer, kind, residual) -> None:
    """Against torch's solver on the tall system itself, real tokens only."""
    (student, whole), data = pruned_pair(residual=residual), batches((3, 2))
    a, b, c = mask_tuning.normal_equations(student, whole, data, layer, kind, "equilibrium")
    name, spiking_layer, size = (
        ("out", "attention_neurons", D // H) if kind == "heads" else ("down", "output_neurons", 1)
    )
    rows, targets = [], []
    for batch in data:
        real = batch["attention_mask"].bool()
        seen = []
        with torch.no_grad():
            for net in (student, whole):
                found = mask_tuning.reader_inputs(net, getattr(net.layers[layer], spiking_layer), batch, "equilibrium")
                seen.append([x[real] for x in found])
        linear = getattr(whole.layers[layer], name)
        (x, residual), (x0, residual0) = seen
        targets.append(x0 @ linear.weight.T + residual0 - residual)  # biases cancel out
        per_unit = torch.stack(
            [part @ w.T for part, w in zip(x.split(size, 1), linear.weight.split(size, 1), strict=True)]
        )
        rows.append(per_unit)  # [K, M, D]
    x, y = torch.cat(rows, 1).detach(), torch.cat(targets).detach()
    tokens = len(y)
    torch.testing.assert_close(a, torch.einsum("imd,jmd->ij", x, x) / tokens)
    torch.testing.assert_close(b, torch.einsum("imd,md->i", x, y) / tokens)
    torch.testing.assert_close(c, y.square().sum() / tokens)
    kept = getattr(student, kind)[layer].bool()
    best = torch.linalg.lstsq(x[kept].flatten(1).T, y.flatten()[:, None]).solution[:, 0]
    a, b = a[kept][:, kept], b[kept]
    assert mask_tuning.squares(a, b, c, best) <= mask_tuning.squares(a, b, c, torch.ones_like(best))
    torch.testing.assert_close(a @ best, b, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("coding", ["accumulate", "running_mean", "per_step"])
def test_real_masks_folded_into_weights_equal_real_masks(coding) -> None:
    student, _ = pruned_pair(coding)
    factor = {name: torch.rand_like(mask) * 2 * mask for name, mask in kwon.named_masks(student)}
    batch = inputs(batches((3,))[0])
    lent = {name: x.expand(3, -1, -1) for name, x in factor.items()}
    folded = copy.deepcopy(student)
    with torch.no_grad():
        for i, layer in enumerate(folded.layers):
            layer.out.weight *= factor["heads"][i].repeat_interleave(D // H)
            layer.down.weight *= factor["ffn"][i]
        for mode in ("equilibrium", "spiking"):
            wanted = student(**batch, mode=mode, **lent).logits
            torch.testing.assert_close(folded(**batch, mode=mode).logits, wanted)


def indifferent(batch, outputs) -> torch.Tensor:
    return torch.zeros(len(outputs.logits))


def test_what_the_measured_loss_rises_with_is_left_out() -> None:
    """A loss that wants the answers to stay as they are lets nothing pass."""
    (student, whole), data = pruned_pair(), batches((3,))
    with torch.no_grad():
        answers = student(**inputs(data[0])).logits

    def stay(batch, outputs) -> torch.Tensor:
        return (outputs.logits - answers).square().sum(1)

    before = {name: x.clone() for name, x in student.state_dict().items()}
    errors = mask_tuning.tune(student, whole, data, stay)
    assert all(was == after for was, after in errors)
    blocks, alive = kwon.fisher_blocks(student, data, loss_of), dict(kwon.named_masks(whole))
    kwon.rearrange_measured(student, blocks, alive, lambda: kwon.loss_of(student, data, stay).item())
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())
    kwon.rearrange_measured(student, blocks, alive, lambda: 0.0)  # it would have changed something
    assert not torch.equal(student.ffn, before["ffn"]) and torch.equal(student.ffn.sum(1), before["ffn"].sum(1))


def test_tuning_brings_the_sums_nearer_and_leaves_the_rest_alone() -> None:
    (student, whole), data = pruned_pair(), batches((3, 2))
    before = {name: x.clone() for name, x in student.state_dict().items()}
    errors = mask_tuning.tune(student, whole, data, indifferent)
    assert len(errors) == 2 * L and all(after <= was for was, after in errors)
    assert sum(after for _, after in errors) < 0.9 * sum(was for was, _ in errors)
    for name, x in student.state_dict().items():
        assert torch.equal(x, before[name]) is not name.endswith((".out.weight", ".down.weight")), name
    dead = student.layers[0].out.weight[:, : D // H], before["layers.0.out.weight"][:, : D // H]
    assert torch.equal(*dead)
    ratio = student.layers[0].down.weight[:, 1::2] / before["layers.0.down.weight"][:, 1::2]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))  # one factor for a neuron


def test_nothing_pruned_needs_no_tuning() -> None:
    whole = make().eval()
    student = copy.deepcopy(whole)
    errors = mask_tuning.tune(student, whole, batches((3,)), indifferent)
    assert max(max(pair) for pair in errors) < 1e-12
    for (name, x), y in zip(student.state_dict().items(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, msg=name)


def test_a_layer_that_lost_everything_and_quantized_weights() -> None:
    student, whole = pruned_pair()
    student.heads[1] = student.ffn[0] = 0
    mask_tuning.tune(student, whole, batches((3,)), indifferent)
    assert all(x.isfinite().all() for x in student.state_dict().values())
    few = make(weights="ternary")
    few.set_strength(0.5)
    with pytest.raises(ValueError, match="masks are tuned into float weights; these are quantized"):
        mask_tuning.tune(few, whole, batches((3,)), indifferent)
