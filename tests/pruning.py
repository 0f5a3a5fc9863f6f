"""A student small enough to try every choice on, and labelled sentences for it; not a test."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from spikeprune.config.tasks import TASKS
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.teacher import Teacher, scratch_config
from spikeprune.pruning.statistics import TemporalStatistics
from spikeprune.training.losses import hard_loss
from spikeprune.training.modules.student import DistillationModule
from spikeprune.training.objective import LossWeights
from spikeprune.training.optimizer import Optimization

D, H, F, N, L = 12, 3, 37, 8, 2


def make(seed: int = 0, t_steps=(3, 4, 2), **options) -> SpikingBert:
    torch.manual_seed(seed)
    size = {"vocab": 23, "positions": N, "segments": 2, "hidden": D, "heads": H, "ffn": F, "classes": 3}
    student = SpikingBert(**size, layers=len(t_steps) - 1, t_steps=list(t_steps), **options).double()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.dim() == 2 and not name.startswith("embedding"):
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif name.endswith("log_theta"):
                parameter.copy_(-1 + 0.3 * torch.randn_like(parameter))
    return student


def batches(sizes=(3, 2), seed: int = 1) -> list[dict[str, torch.Tensor]]:
    generator, out = torch.Generator().manual_seed(seed), []
    for size in sizes:
        lengths = torch.randint(2, N + 1, (size, 1), generator=generator)
        out.append(
            {
                "input_ids": torch.randint(23, (size, N), generator=generator),
                "attention_mask": (torch.arange(N) < lengths).long(),
                "token_type_ids": torch.randint(2, (size, N), generator=generator),
                "labels": torch.randint(3, (size,), generator=generator),
            }
        )
    return out


def loss_of(batch, outputs) -> torch.Tensor:
    return hard_loss(outputs.logits, batch["labels"], regression=False)


def inputs(batch):
    return {name: x for name, x in batch.items() if name != "labels"}


def distillation(**losses) -> DistillationModule:
    """The student with a teacher of three layers, learning MNLI by these losses; it logs nothing."""
    task, student = TASKS["mnli"], make(1).float()
    torch.manual_seed(0)
    config = scratch_config(vocab=23, positions=8, hidden=D, layers=3, heads=H, ffn=F, classes=3, dropout=0.0)
    how = Optimization(lr=1e-3, theta_lr=1e-3, warmup=0.0, weight_decay=0.0)
    common = {"task": task, "dev_splits": task.dev_splits, "optimization": how, "layer_map": [0, 2]}
    weights = LossWeights(**({"soft": 1.0, "additions": 2.0} | losses))
    made = DistillationModule(student, Teacher.scratch(config), losses=weights, **common)
    made.log = lambda *_: None
    return made.train()


class Module:
    """What the callbacks ask of a LightningModule."""

    device = torch.device("cpu")
    sample_loss = staticmethod(loss_of)
    losses = SimpleNamespace(soft=1.0)
    forward_mode = "equilibrium"

    def __init__(self, student: SpikingBert):
        self.student, self.logged = student, {}

    def log(self, name, value, **_) -> None:
        self.logged[name] = float(value)


def never(*_):
    raise AssertionError("measured for nothing")


def known(t_steps, profile=None, loss=never) -> TemporalStatistics:
    """Statistics that need no student; what is not given must not be asked for."""
    return TemporalStatistics(t_steps, never if profile is None else lambda: profile, loss)
