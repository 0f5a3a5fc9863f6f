"""A masked unit is gone: whatever its weights and thresholds are, no loss, gradient or statistic has anything of it."""

from __future__ import annotations

import copy

import pytest
import torch
from students import FFN, VOCAB, C, D, H, L, N, make, prune, sentences

from spikeprune.cost.activity import activity, kept_channels
from spikeprune.cost.shapes import Shape
from spikeprune.models.compaction import COLUMNS, ROWS, THETAS, compacted
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.teacher import Teacher, scratch_config
from spikeprune.models.variants import calibrate_dead_zones, variant
from spikeprune.pruning.statistics import collect, convergence_profile
from spikeprune.training.losses import scores_loss
from spikeprune.training.objective import TERMS, LossWeights, Objective

KINDS = [{}, {"spikes": "ternary_scaled"}, {"theta": "tensor", "query": "spiking"}, {"weights": "ternary"}]
KINDS += [{"coding": "running_mean"}, {"coding": "per_step", "query": "spiking", "residual": "membrane"}]


def masked(**options) -> SpikingBert:
    student = prune(make(**options))
    if student.weights != "float":
        student.set_strength(1.0)
    return student


@torch.no_grad()
def scrambled(student: SpikingBert) -> SpikingBert:
    """The same student but for what its masked units are."""
    other = copy.deepcopy(student)
    for i, layer in enumerate(other.layers):
        gone = {"heads": student.heads[i].repeat_interleave(D // H) == 0, "ffn": student.ffn[i] == 0}
        for kind, units in gone.items():
            for name in ROWS[kind]:
                getattr(layer, name).weight[units] *= -3
                getattr(layer, name).bias[units] += 1
            getattr(layer, COLUMNS[kind]).weight[:, units] *= 5
            for spiking_layer in (getattr(layer, name) for name in THETAS[kind]):
                if spiking_layer is not None and len(spiking_layer.log_theta) > 1:
                    spiking_layer.log_theta[units] -= 1
    return other


def batch() -> dict[str, torch.Tensor]:
    return {**sentences(), "labels": torch.tensor([0, 2, 1])}


def objective(term: str, student: SpikingBert) -> Objective:
    sizes = {"hidden": D, "heads": H, "ffn": FFN, "layers": L, "classes": C}
    values = {name: student.values[name] for name in ("query", "theta", "pooling")}
    shape = Shape(
        **sizes, vocab_size=VOCAB, positions=2 * N, membrane=student.values["residual"] == "membrane", **values
    )
    return Objective(LossWeights(**{term: 1.0}), layer_map=[0, 1], shape=shape, regression=False)


def learnt(student: SpikingBert, term: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config = scratch_config(vocab=VOCAB, positions=2 * N, hidden=D, layers=L, heads=H, ffn=FFN, classes=C, dropout=0.0)
    here, teacher, mine = batch(), Teacher.scratch(config).double().freeze(), objective(term, student)
    mode = "equilibrium" if student.coding == "accumulate" else "spiking"
    outputs = student(*(here[name] for name in sentences()), mode=mode, rate=True)
    loss = mine(here, outputs, student, mine.teacher_outputs(here, teacher))[term]
    parameters = dict(student.named_parameters())
    grads = torch.autograd.grad(loss, parameters.values(), allow_unused=True)
    return loss.detach(), {
        k: torch.zeros_like(p) if g is None else g for (k, p), g in zip(parameters.items(), grads, strict=True)
    }


def silent(student: SpikingBert, gradients: dict[str, torch.Tensor]) -> None:
    for i in range(L):
        gone = {"heads": student.heads[i].repeat_interleave(D // H) == 0, "ffn": student.ffn[i] == 0}
        for kind, units in gone.items():
            found = [
                gradients[f"layers.{i}.{name}.{part}"][units] for name in ROWS[kind] for part in ("weight", "bias")
            ]
            assert not any(x.any() for x in found), (i, kind)


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("term", TERMS)
def test_no_loss_has_anything_of_them(term, options) -> None:
    student = masked(**options)
    loss, gradients = learnt(student, term)
    silent(student, gradients)
    other, moved = learnt(scrambled(student), term)
    torch.testing.assert_close(other, loss)
    assert loss > 0 and any(x.abs().max() > 1e-9 for x in gradients.values())
    if term != "scores":  # which the smaller one's heads have no numbers for
        small, left = learnt(compacted(student), term)
        torch.testing.assert_close(small, loss)
        torch.testing.assert_close(left["layers.0.attention_norm.weight"], gradients["layers.0.attention_norm.weight"])
    torch.testing.assert_close(moved["layers.0.attention_norm.weight"], gradients["layers.0.attention_norm.weight"])


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_no_statistic_has_anything_of_them(options) -> None:
    student = masked(**options)
    other, here = scrambled(student), batch()
    for a, b in zip(convergence_profile(student, [here]), convergence_profile(other, [here]), strict=True):
        torch.testing.assert_close(a, b)
    stats = [collect(net, [here], lambda _, outputs: outputs.logits.square().sum(1)) for net in (student, other)]
    for name in ("head_fisher", "ffn_fisher", "head_rate", "ffn_rate"):
        mine, theirs = (
            getattr(found, name) * getattr(student, "heads" if "head" in name else "ffn") for found in stats
        )
        torch.testing.assert_close(mine, theirs)
    counted = []
    for net in (student, other):
        outputs = net(**sentences(), mode="spiking", count=True, rate=True)
        counted.append(
            activity(outputs.counts, here["attention_mask"].sum(1), heads=net.heads, ffn=net.ffn, t_steps=net.steps)
        )
        for i in range(L):
            gone = student.heads[i].repeat_interleave(D // H) == 0
            spiking_layers = [name for name in outputs.rates if name.startswith(f"layers.{i}.")]
            assert not any(
                outputs.rates[s][gone].any() for s in spiking_layers if s.endswith(("key", "value", "query", "context"))
            )
            assert not outputs.rates[f"layers.{i}.intermediate"][student.ffn[i] == 0].any()
    assert counted[0].rates() == pytest.approx(counted[1].rates())


def test_no_calibration_has_anything_of_them() -> None:
    """One threshold for a whole layer is that of the channels that are left, whose dead zones nothing has moved."""
    student = variant(masked(theta="tensor", query="spiking"), dead_zone=True)
    other, here = scrambled(student), sentences()
    for net in (student, other):
        net(**here, mode="calibrate", percentile=60.0)
        calibrate_dead_zones(net, here, 30.0)
    widths = {name: len(spiking_layer.dead_zone.edge) for name, spiking_layer in student.spiking_layers().items()}
    kept = kept_channels(widths, heads=student.heads, ffn=student.ffn)
    for name, spiking_layer in student.spiking_layers().items():
        torch.testing.assert_close(spiking_layer.theta, other.spiking_layers()[name].theta, msg=name)
        edges = (net.spiking_layers()[name].dead_zone.edge[kept[name] > 0] for net in (student, other))
        torch.testing.assert_close(*edges, msg=name)
    assert any(spiking_layer.dead_zone.edge.any() for spiking_layer in student.spiking_layers().values())


def test_scores_by_hand() -> None:
    """Two tokens, of which each sees both: a gap of ±g in each row."""
    tokens, zero = torch.tensor([[True, True]]), torch.zeros(1, 2, 2, 2)
    gap = torch.tensor([[1.0, -1.0], [1.0, -1.0]]) * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    both = [gap, 2 * gap]
    assert scores_loss(both, [zero, zero], tokens, [0, 1]).item() == (5 + 20) / 2
    assert (
        scores_loss(both, [zero, zero], tokens, [0, 1], torch.tensor([[1.0, 0.0], [1.0, 1.0]])).item() == (1 + 20) / 2
    )
    assert scores_loss(both, [zero, zero], tokens, [0, 1], torch.tensor([[0.0, 1.0], [0.0, 0.0]])).item() == 9
    assert scores_loss(both, [zero, zero], tokens, [0, 1], torch.zeros(2, 2)).item() == 0
