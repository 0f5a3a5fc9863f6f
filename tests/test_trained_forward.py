"""What is pruned is judged by the network that is trained: its forward, simulated where training simulates."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from pruning import F, H, L, batches, distillation, inputs, loss_of, make

from spikeprune.pruning.criteria import CRITERIA
from spikeprune.pruning.mask_search import fisher_blocks
from spikeprune.pruning.mask_tuning import reader_inputs
from spikeprune.pruning.statistics import collect
from spikeprune.training.callbacks.budget import BudgetPruning
from spikeprune.training.callbacks.mask_search import MaskSearch
from spikeprune.training.callbacks.spatial import SpatialPruning
from spikeprune.training.callbacks.temporal import TemporalPruning
from spikeprune.training.modules.student import DistillationModule

KINDS = [{"coding": "per_step"}, {"coding": "running_mean", "residual": "membrane"}]
KINDS += [{"coding": "per_step", "feedback": True}]


def student(**options):
    made = make(3, **options)
    made.heads[0, 1], made.ffn[1, 3:9] = 0, 0
    if options.get("feedback"):
        torch.nn.init.normal_(made.embedding.feedback.weight, std=0.05)
    return made.eval()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_statistics_are_those_of_the_simulation(options) -> None:
    net, data = student(**options), batches((3, 2))
    found = collect(net, data, loss_of, mode="spiking")
    fisher, rates, tokens = [torch.zeros(L, H).double(), torch.zeros(L, F).double()], torch.zeros(L, F).double(), 0
    for batch in data:
        for i in range(len(batch["labels"])):
            n = int(batch["attention_mask"][i].sum())
            one = {name: x[i : i + 1] if name == "labels" else x[i : i + 1, :n] for name, x in batch.items()}
            masks = [net.heads[None].clone().requires_grad_(), net.ffn[None].clone().requires_grad_()]
            outputs = net(**inputs(one), mode="spiking", heads=masks[0], ffn=masks[1], rate=True)
            for sums, grad in zip(fisher, torch.autograd.grad(loss_of(one, outputs).sum(), masks), strict=True):
                sums += grad[0].square()
            for layer in range(L):
                rates[layer] += outputs.rates[f"layers.{layer}.intermediate"].detach() * net.ffn[layer] * n
            tokens += n
    torch.testing.assert_close(found.head_fisher, fisher[0] / 5)
    torch.testing.assert_close(found.ffn_fisher, fisher[1] / 5)
    torch.testing.assert_close(found.ffn_rate, rates / tokens)
    blocks = fisher_blocks(net, data, loss_of, mode="spiking")
    torch.testing.assert_close(blocks["ffn"].diagonal(dim1=1, dim2=2), found.ffn_fisher)
    if options["coding"] == "per_step":  # which it is trained with if nobody says
        assert torch.equal(found.ffn_fisher, collect(net, data, loss_of).ffn_fisher)
    other = collect(net, data, loss_of, mode="equilibrium")
    for mine, theirs in zip(CRITERIA["fisher"](found), CRITERIA["fisher"](other), strict=True):
        assert not torch.allclose(mine, theirs, rtol=0.1)
    assert not torch.allclose(found.ffn_rate, other.ffn_rate, rtol=0.1)


@pytest.mark.parametrize("options", [KINDS[0], KINDS[2]], ids=str)
@pytest.mark.parametrize("mode", ["spiking", "equilibrium"])
def test_tuning_fits_what_the_forward_itself_adds_up(options, mode) -> None:
    net, batch = student(**options), batches((3,))[0]
    with torch.no_grad():
        residual = reader_inputs(net, net.layers[1].attention_neurons, batch, mode)[1]
        outputs = net(**inputs(batch), mode=mode)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(residual[real], outputs.hidden[1][real])


def learning(coding: str, forward_mode: str) -> DistillationModule:
    made = distillation(additions=0.0, hard=1.0)
    made.student, made.forward_mode = student(coding=coding).float(), forward_mode
    made.augmented = dict
    return made


DATA = SimpleNamespace(
    sample_batches=lambda *_: batches((4, 3), seed=3), fixed_batches=lambda *_: batches((4, 4), seed=2)
)
DECIDING = {"batches": 1, "batch_size": 4, "seed": 0, "begin": 0}
SPATIAL = {"heads": 0.5, "ffn": 0.5, "scope": "global", "min_heads": 1, "min_ffn": 4, "end": 0}
CALLBACKS = {name: lambda name=name: SpatialPruning(criterion=name, **SPATIAL, **DECIDING) for name in CRITERIA}
CALLBACKS |= {
    "kwon": lambda: MaskSearch(operations=0.5, min_heads=1, min_ffn=4, alone=False, **DECIDING),
    "convergence": lambda: TemporalPruning(t_steps=2, criterion="convergence", end=0, **DECIDING),
    "sensitivity": lambda: TemporalPruning(t_steps=2, criterion="sensitivity", end=0, **DECIDING),
    "budget": lambda: BudgetPruning(
        share=0.5, relative_to="student", min_ffn=4, sentences=8, measured=7, batch_size=4, settle=1, learn=False
    ),
}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("coding", ["per_step", "accumulate"])
def test_every_decision_looks_through_the_forward_that_is_trained(coding, name, monkeypatch) -> None:
    """Of `accumulate` the closed form, which is its simulation, may measure; slopes are of what is trained."""
    made = learning(coding, "spiking")
    mine = CALLBACKS[name]()
    seen, plain = [], type(made.student).forward
    before = made.student.heads.clone(), made.student.ffn.clone(), made.student.steps

    def watched(net, *args, mode="equilibrium", **asked):
        seen.append((mode, torch.is_grad_enabled()))
        return plain(net, *args, mode=mode, **asked)

    monkeypatch.setattr(type(made.student), "forward", watched)
    trainer = SimpleNamespace(current_epoch=0, sanity_checking=False, datamodule=DATA, loggers=[], global_step=0)
    if name == "budget":
        trainer.max_epochs = trainer.num_training_batches = 3
        mine.setup(trainer, made, "fit")
        mine.on_train_start(trainer, made)
    mine.decide(trainer, made, 1.0)
    assert before[2] != made.student.steps or not torch.equal(torch.cat(before[:2], 1), masks(made))
    assert seen and {mode for mode, slopes in seen if slopes or coding == "per_step"} <= {"spiking"}


def masks(made: DistillationModule) -> torch.Tensor:
    return torch.cat([made.student.heads, made.student.ffn], 1)
