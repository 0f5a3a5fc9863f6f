"""StopOnNonFinite: training and measuring end at the first number that is not finite, in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from spikeprune import distributed
from spikeprune.errors import InputError
from spikeprune.models.tensors import finite_flags, norms

LOOK_EVERY = 10  # steps between two looks where a look waits for a GPU or for other processes
SKIPS = 20  # steps in a row that a scaler of float16's loss may skip: it begins at 2**16 and halves with each
RUNAWAY = 10.0  # that a log(theta) moves by before thresholds are blamed: a factor of 22,000


@dataclass(frozen=True)
class Row:
    """What one step had: loss terms, norms of gradients, the largest weights after it; still on the device."""

    step: int  # of the stage, from 0, as metrics.jsonl counts
    names: list[tuple[str, str]]  # (kind, name) of each value
    values: Tensor  # float64

    def bad(self, finite: list[bool]) -> dict[str, list[str]]:
        """What was not finite, by kind, in the order in which a step works it out."""
        found: dict[str, list[str]] = {}
        for (kind, name), good in zip(self.names, finite, strict=True):
            if not good:
                found.setdefault(kind, []).append(name)
        return found


class StopOnNonFinite(L.Callback):
    """Raises InputError, on all processes together, at the first loss term, gradient or weight of a stage that is not
    finite, and at predictions of a validation that are not; no checkpoint is written with or after them.

    Each step leaves its terms and norms on the device, in one small tensor. They are looked at every tenth step, before
    a checkpoint, a validation and the end, so that a GPU need not be waited for; on a CPU alone after each. A late look
    finds the first bad step all the same, since each step has its own row. Under a loss scaler (16-mixed) a gradient
    that is not finite is a skipped step; `SKIPS` of them in a row, or nothing else in a stage, are a fault.

    `stage`: the one that trains or whose network is measured; `precision`: of its training. `graphed_norms(order)`
    makes what computes `tensors.norms` of that order, such as `cuda_graphs.GraphedNorms`; None: torch.
    """

    def __init__(
        self,
        stage: str,
        precision: str = "32-true",
        graphed_norms: Callable[[float], Callable[[Sequence[Tensor]], Tensor]] | None = None,
    ):
        self.stage, self.precision = stage, precision
        self.rows: list[Row] = []
        self.gradients: tuple[list[str], Tensor | None] = ([], None)
        make = graphed_norms or (lambda order: partial(norms, order=order))
        self.norms, self.sizes = make(2.0), make(math.inf)  # the largest weight: a norm may overflow
        self.begin: Tensor | None = None  # the largest weights before the first step
        self.before: tuple[Row, Tensor] | None = None  # the last good step
        self.skipped: list[tuple[Row, dict[str, list[str]], Tensor]] = []  # the bad steps since then
        self.wrong: dict[int, list[Tensor]] = {}  # predictions that are not finite, by dev split

    # ------------------------------------------------------------------------------------------------------- training

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        learning = pl_module.named_parameters()
        self.learning = {name: p for name, p in learning if p.requires_grad and p.numel()}
        self.first = trainer.global_step
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self.patience = SKIPS if scaled else 1
        alone = distributed.world() == 1 and pl_module.device.type == "cpu"
        self.every = 1 if alone else LOOK_EVERY
        self.begin = self.weights()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Before they are clipped: a norm that is infinite clips them to nothing, which looks harmless."""
        named = {name: p.grad for name, p in self.learning.items() if p.grad is not None}
        self.gradients = list(named), self.norms(list(named.values())) if named else None

    def weights(self) -> Tensor:
        """The largest magnitude in each that learns, `[n]`."""
        return self.sizes(list(self.learning.values()))

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        step, (grads, norms) = trainer.global_step - 1, self.gradients
        terms = getattr(pl_module, "terms", None) or {"loss": outputs["loss"].detach()}
        terms = sorted(terms.items(), key=lambda term: term[0] == "loss")  # the sum after what made it bad
        names = [("loss term" if name != "loss" else "loss", name) for name, _ in terms]
        parts = [torch.stack([term for _, term in terms])]
        if norms is not None:
            names += [("gradient", name) for name in grads] + [("gradient norm", "")]
            parts += [norms, norms.norm()[None]]
        names += [("weight", name) for name in self.learning]
        parts.append(self.weights())
        self.rows.append(Row(step, names, torch.cat(parts).double()))
        if (step + 1) % self.every == 0:
            self.look()

    def look(self) -> None:
        """Wait for the device, and stop at the first bad step there is."""
        rows, self.rows = self.rows, []
        if not rows:
            return
        values = distributed.total(torch.cat([row.values for row in rows]))  # not finite on one process, so on all
        finite = values.isfinite()
        if finite.all().item():
            self.before, self.skipped = (rows[-1], values[-len(rows[-1].names) :]), []
            return
        flags, numbers = (x.split([len(row.names) for row in rows]) for x in (finite, values))
        for row, good, own in zip(rows, flags, numbers, strict=True):
            self.judge(row, row.bad(good.tolist()), own)

    def judge(self, row: Row, bad: dict[str, list[str]], values: Tensor) -> None:
        if not bad:
            self.before, self.skipped = (row, values), []
            return
        self.skipped.append((row, bad, values))
        if self.patience > 1 and "weight" in bad:  # no scaler skips that
            self.skipped = [(row, {"weight": bad["weight"]}, values)]
            self.stop()
        if len(self.skipped) >= self.patience:
            self.stop()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.look()
        self.wrong = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.look()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.look()
        if self.skipped and self.before is None:
            self.stop()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before anything is written; buffers are looked at as well, which no step does."""
        self.look()
        names, flags = finite_flags(checkpoint["state_dict"])
        wrong = distributed.total((~flags).double().to(pl_module.device)).tolist()
        if bad := [name for name, count in zip(names, wrong, strict=True) if count]:
            self.refuse(
                f"stage {self.stage}, step {trainer.global_step - 1}: {shown(bad)} of the network is not finite"
            )

    def stop(self) -> None:
        row, bad, values = self.skipped[0]
        kind, names = next(iter(bad.items()))
        first = values[row.names.index((kind, names[0]))]
        many = f" in {len(self.skipped)} steps in a row" if len(self.skipped) > 1 else ""
        facts = {"precision": self.precision, "runaway": self.runaway(), "first": row.step == self.first}
        key = likely_key(self.stage, kind, names, **facts)
        what = f"{in_words(kind, names)} {'NaN' if first.isnan() else 'infinite'}{many}"
        self.refuse(
            f"stage {self.stage}, step {row.step}: {what}, likely because of {key}; change it in a new run.dir "
            "(run.start_from takes finished stages over). "
            "No checkpoint was written since: the same command resumes from the last good one"
        )

    def runaway(self) -> bool:
        """Whether a threshold had left, before the bad step, for where exp overflows."""
        if self.before is None:
            return False
        row, values = self.before
        begin, largest = dict(zip(self.learning, self.begin.tolist(), strict=True)), values.tolist()
        now = {name: value for (kind, name), value in zip(row.names, largest, strict=True) if kind == "weight"}
        thetas = [name for name in now if is_theta(name)]
        return any(now[name] / distributed.world() - begin[name] > RUNAWAY for name in thetas)  # `look` has summed

    @staticmethod
    def refuse(text: str) -> None:
        def say() -> None:
            raise InputError(text)

        distributed.from_rank_zero(say)

    # ----------------------------------------------------------------------------------------------------- validation

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        wrong = (~outputs.logits.isfinite().all(-1)).sum()
        self.wrong.setdefault(dataloader_idx, []).append(wrong)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before metrics are made of the predictions."""
        counts = torch.zeros(len(pl_module.dev_splits), device=pl_module.device)
        for split, wrong in self.wrong.items():
            counts[split] = torch.stack(wrong).sum()
        for split, count in zip(pl_module.dev_splits, distributed.total(counts).tolist(), strict=True):
            if count:
                self.refuse(
                    f"stage {self.stage}: {count:.0f} predictions of the split {split!r} are not finite numbers: "
                    f"weights are damaged or too large; lower stages.{self.stage}.lr, in a new run.dir"
                )


def in_words(kind: str, names: Sequence[str]) -> str:
    """`loss terms hidden and scores are`, `the gradient norm is`."""
    if kind in ("loss", "gradient norm"):
        return f"the {kind} is"
    return f"{kind}{'s' * (len(names) > 1)} {shown(names)} {'are' if len(names) > 1 else 'is'}"


def shown(names: Sequence[str]) -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def is_theta(name: str) -> bool:
    return name.endswith("log_theta")


def likely_key(stage: str, kind: str, names: Sequence[str], *, precision: str, runaway: bool, first: bool) -> str:
    """The key of the configuration that most likely made the `names` of this `kind` (`Row.names`) not finite.

    `runaway`: thresholds had left their range before; `first`: no step had been made yet.
    """
    section = f"stages.{stage}"
    if runaway or kind in ("weight", "gradient") and all(map(is_theta, names)):
        return f"{section}.theta_lr"
    if kind == "loss":  # each of its terms is finite
        return f"the weights of {section}.losses"
    if precision == "16-mixed" and kind != "weight":
        return f"run.precision = 16-mixed, whose numbers end at 65,504 (else {section}.lr)"
    if first and kind == "loss term":
        return f"{section}.losses.temperature" if list(names) == ["soft"] else "teacher.checkpoint"
    return f"{section}.lr"
