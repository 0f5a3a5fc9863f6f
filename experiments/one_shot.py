"""One-shot pruning of a finished run's student, no retraining: rankings against Kwon et al.'s search, as a table.

Usage: python experiments/one_shot.py runs/mrpc-tiny-s0 [--stage prediction_kd] [--shares 0.7 0.5 0.3 0.2] [--seed 0]

Every row starts from the same student and sees the same training sentences. A ranking keeps the same share of heads and
of neurons, the search a share of the operations that both cost; `operations` is the share that was reached, at prices
measured before pruning. `score` is the task's on the dev split, answered as a run measures it;
`tuned` the same after Kwon et al.'s mask tuning, which any choice of masks can use.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator

import torch

from spikeprune.config.derived import least_neurons
from spikeprune.experiment import checkpoints, evaluation, streams
from spikeprune.experiment.build.modules import student_module
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.models.shape import student_shape
from spikeprune.pruning import mask_search
from spikeprune.pruning.criteria import CRITERIA
from spikeprune.pruning.mask_tuning import tune
from spikeprune.pruning.schedules import keep_highest
from spikeprune.pruning.statistics import collect
from spikeprune.training.metrics import main_metric, task_metrics

BATCHES, BATCH_SIZE = 16, 32  # training sentences that decisions are made on


class OneShot:
    def __init__(self, run: str, stage: str | None, seed: int):
        directory, self.context = evaluation.reopen(run, None)
        self.stage = stage or directory.last_student()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.student = checkpoints.load_student(directory, self.stage)
        teacher = checkpoints.load_teacher(self.context, directory)
        self.module = student_module(self.context, self.stage, self.student, teacher).to(device).eval()
        self.mode = self.module.forward_mode
        self.context.data.setup("fit")
        batches = self.context.data.fixed_batches(BATCHES, BATCH_SIZE, seed)
        self.train = [{name: x.to(device) for name, x in batch.items()} for batch in batches]
        dev = self.context.data.val_dataloader()[0]
        self.dev = [{name: x.to(device) for name, x in batch.items()} for batch in dev]
        self.shape, self.seed = student_shape(self.student), seed
        self.floors = {"heads": 1, "ffn": least_neurons(self.student.ffn.shape[1])}
        self.prices = mask_search.unit_operations(self.student, self.train, self.shape)

    @torch.no_grad()
    def score(self, student: SpikingBert) -> float:
        metrics = task_metrics(self.context.task).to(self.dev[0]["labels"].device)
        for batch in self.dev:
            logits = infer(student.eval(), *(batch[name] for name in INPUTS)).logits
            answers = logits[:, 0] if self.context.task.regression else logits.argmax(-1)
            metrics.update(answers, batch["labels"])
        return 100 * float(main_metric(self.context.task, metrics.compute()))

    def operations(self, student: SpikingBert) -> float:
        kept = sum((self.prices[name] * getattr(student, name)).sum() for name in mask_search.KINDS)
        return (kept / sum(price.sum() for price in self.prices.values())).item()

    def ranked(self, criterion: str, share: float) -> SpikingBert:
        student = copy.deepcopy(self.student)
        stats = collect(student, self.train, self.module.sample_loss, mode=self.mode, seed=self.seed)
        for name, scores in zip(mask_search.KINDS, CRITERIA[criterion](stats), strict=True):
            mask = getattr(student, name)
            keep = round(share * mask.numel())
            mask.copy_(keep_highest(scores, mask, keep, floor=self.floors[name], scope="global"))
        return student

    def searched(self, share: float, rearranged: bool) -> SpikingBert:
        student, how = copy.deepcopy(self.student), {"operations": share, "floors": self.floors, "mode": self.mode}
        loss = self.module.sample_loss
        mask_search.search(student, self.train, loss, shape=self.shape, rearranged=rearranged, **how)
        return student

    def rows(self, share: float) -> Iterator[tuple[str, SpikingBert]]:
        for criterion in CRITERIA:
            yield f"{criterion}, ranked", self.ranked(criterion, share)
        yield "search", self.searched(share, rearranged=False)
        yield "search, rearranged", self.searched(share, rearranged=True)

    def table(self, shares: list[float]) -> Iterator[str]:
        yield f"{self.context.task.name}, stage {self.stage}, unpruned: {self.score(self.student):.1f}\n"
        yield "| share | chosen by | operations | heads | neurons | score | tuned |"
        yield "| --- " * 7 + "|"
        for share in shares:
            for name, student in self.rows(share):
                before = self.score(student)
                tune(student, self.student, self.train, self.module.sample_loss, mode=self.mode)
                kept = [f"{100 * getattr(student, kind).mean().item():.0f} %" for kind in mask_search.KINDS]
                found = [f"{self.operations(student):.3f}", *kept, f"{before:.1f}", f"{self.score(student):.1f}"]
                yield " | ".join([f"| {share}", name, *found]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--stage")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5, 0.3, 0.2])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for line in OneShot(args.run, args.stage, args.seed).table(args.shares):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(streams.exit_code(main))
