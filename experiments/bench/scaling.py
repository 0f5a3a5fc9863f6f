"""One number of devices for `experiments/bench_ddp.py`, which starts this file once for each: epochs of distillation as
a run trains them (its losses, precision, kernels, CUDA graphs, optimizer, gradient message), of random weights and
random sentences about as long as SST-2's. Lightning starts the other processes; all sizes share their process group.

Each round has three epochs of the same number of steps: `loaded`, from the loader as in a run; `ready`, of batches that
lie on the device already; `unsent`, of those without the message that averages the gradients.
"""

from __future__ import annotations

import gc
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from experiments.bench import nets
from experiments.bench.clock import synchronize
from spikeprune import distributed
from spikeprune.config.load import Config, load
from spikeprune.config.tasks import TRAIN, get_task
from spikeprune.data.batching import PAD_REPLAYED, PAD_TO, Batch, BatchLoader, Encoded, TaskData
from spikeprune.experiment import processes, streams
from spikeprune.experiment.build import arithmetic
from spikeprune.experiment.build.modules import loss_weights
from spikeprune.experiment.build.trainers import CLIP
from spikeprune.experiment.summary import commit, hardware
from spikeprune.experiment.terminal import quiet
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json
from spikeprune.kernels import attach
from spikeprune.kernels.cuda_graphs import CAPTURE_AFTER, GraphedNorms, GraphedTerms
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.teacher import Teacher
from spikeprune.training.callbacks.finite import StopOnNonFinite
from spikeprune.training.callbacks.preempt import StopOnSignal
from spikeprune.training.callbacks.schedule import take_from_rank_zero
from spikeprune.training.callbacks.spatial import SpatialPruning
from spikeprune.training.lightning_patches import without_sigterm_broadcast
from spikeprune.training.modules.student import DistillationModule
from spikeprune.training.optimizer import Optimization

GLUE = Path(__file__).resolve().parents[1] / "glue.yaml"
WARM = CAPTURE_AFTER + 1  # epochs: an epoch is one pool of the loader, so that each has the same shapes of batches
MODES = ("loaded", "ready", "unsent")
LONGEST = 64  # tokens
STUDENT = ("t_steps", "spikes", "leak", "theta", "coding", "query", "pooling", "residual")


@dataclass(frozen=True)
class Setting:
    """A size as its preset trains it, in one of the preset's stages."""

    size: nets.Size
    preset: str
    stage: str


SETTINGS = {
    "tiny": Setting(nets.Size("tiny 2 x 24", 24, 2, 3, 37, vocab=300), "tiny", "internal_kd"),
    "minilm": Setting(nets.MINILM, "minilm", "internal_kd"),
    "base": Setting(nets.BASE, "base", "prediction_kd"),
}


class Strategy(processes.Replicas):
    """`silent`: the gradients of each process stay its own."""

    silent = False

    def post_backward(self, closure_loss: Tensor) -> None:
        if not self.silent:
            super().post_backward(closure_loss)


class Source:
    """The batches of a loader, or the `ready` ones while there are some."""

    def __init__(self, loader: BatchLoader):
        self.loader, self.ready = loader, None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        return iter(self.loader) if self.ready is None else iter(self.ready)


class Sentences(TaskData):
    """`count` random sentences of `size`'s vocabulary, their lengths about those of SST-2: a median of 10 tokens with
    the special ones, a mean of 13, at most 64. The same in every process."""

    def __init__(self, size: nets.Size, *, count: int, batch_size: int, pad_to: int):
        L.LightningDataModule.__init__(self)  # not that of texts and a tokenizer
        random = torch.Generator().manual_seed(0)
        words = torch.randn(count, generator=random).mul(0.84).add(2.08).exp().round()
        lengths = 2 + words.clamp(1, LONGEST - 2).long()
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        ids = torch.randint(1, size.vocab, (int(offsets[-1]),), generator=random)
        labels = torch.randint(2, (count,), generator=random)
        whole = {"offsets": offsets, "labels": labels, "pad_id": 0, "max_length": LONGEST}
        self.encoded = {TRAIN: Encoded(ids, torch.zeros_like(ids), **whole)}
        self.batch_size, self.seed, self.pad_to = batch_size, 0, pad_to
        self.source = Source(super().train_dataloader())

    def train_dataloader(self) -> Source:
        return self.source

    def batches(self, device: torch.device) -> list[Batch]:
        """This process' batches of an epoch, on the device."""
        return [{name: x.to(device) for name, x in batch.items()} for batch in super().train_dataloader()]


class Rounds(L.Callback):
    """Seconds of each epoch, by mode; before the first a pruning decision, whose masks are taken back."""

    def __init__(self, data: Sentences, rounds: int):
        self.data, self.modes = data, ["warm"] * WARM + [*MODES] * rounds
        self.seconds: dict[str, list[float]] = {name: [] for name in ("warm", *MODES)}
        self.batches: list[Batch] = []
        self.decision: dict[str, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.batches = self.data.batches(pl_module.device)
        self.decision = decided(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        mode = self.modes[trainer.current_epoch]
        self.data.source.ready = self.batches if mode in ("ready", "unsent") else None
        trainer.strategy.silent = mode == "unsent"
        self.since = together(pl_module.device)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        synchronize(pl_module.device)
        self.seconds[self.modes[trainer.current_epoch]].append(time.perf_counter() - self.since)


def together(device: torch.device) -> float:
    """The time at which all processes have come here and their devices are idle."""
    synchronize(device)
    distributed.gather(None)
    return time.perf_counter()


def decided(trainer: L.Trainer, module: DistillationModule) -> dict[str, Any]:
    """Seconds of one decision of spatial pruning, the second of two, and whether all processes have the same masks."""
    student: SpikingBert = module.student
    masks = {name: getattr(student, name) for name in ("heads", "ffn")}
    pruning = SpatialPruning(heads=0.5, ffn=0.3, scope="layer", end=0)
    for _ in range(2):
        for mask in masks.values():
            mask.fill_(1.0)
        since = together(module.device)
        pruning.decide(trainer, module, 1.0)
        take_from_rank_zero(student)
        synchronize(module.device)
        seconds = time.perf_counter() - since
    own = {name: mask.tolist() for name, mask in masks.items()}
    for mask in masks.values():
        mask.fill_(1.0)
    return {"seconds": max(distributed.gather(seconds)), "same": all(own == other for other in distributed.gather(own))}


def configuration(name: str, args: Namespace) -> Config:
    preset = ["task=sst2", f"preset={SETTINGS[name].preset}"]
    return load(GLUE, [*preset, f"run.devices={args.count}", f"run.accelerator={args.accelerator}"])


def module_of(name: str, config: Config, device: torch.device) -> DistillationModule:
    """Teacher and student of this size, the student with the options and losses of the preset."""
    setting = SETTINGS[name]
    size, stage = setting.size, getattr(config.stages, setting.stage)
    student = nets.student(size, device, **{key: getattr(config.student, key) for key in STUDENT})
    attach(student, arithmetic.kernels(config))
    return DistillationModule(
        student.train(),
        Teacher(size.bert()).to(device),
        losses=loss_weights(setting.stage, stage),
        layer_map=list(range(size.layers)),
        forward_mode=config.student.forward,
        task=get_task("sst2"),
        dev_splits=["validation"],
        optimization=Optimization(lr=1e-5, theta_lr=1e-4),  # random weights learn nothing: they only stay finite
        graphs=GraphedTerms if arithmetic.cuda_graphs(config) else None,
    )


def trainer_of(config: Config, stage: str, rounds: Rounds) -> L.Trainer:
    """As `experiment.build.trainers` makes it, without records, checkpoints and validation."""
    place = processes.placement(config) | ({"strategy": Strategy()} if distributed.running() else {})
    norms = GraphedNorms if arithmetic.cuda_graphs(config) else None
    return without_sigterm_broadcast(
        L.Trainer(
            **place,
            precision=arithmetic.precision(config),
            max_epochs=len(rounds.modes),
            gradient_clip_val=CLIP,
            callbacks=[StopOnNonFinite(stage, config.run.precision, norms), StopOnSignal(), rounds],
            logger=False,
            log_every_n_steps=config.run.log_every,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
    )


def measured(name: str, scaling: str, batch: int, args: Namespace) -> dict[str, Any]:
    """Seconds of the epochs of one size, the slowest process', where a step has `batch` sentences in all."""
    config = configuration(name, args)
    device = torch.device("cuda", distributed.rank()) if arithmetic.on_gpu(config) else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    pad_to = PAD_REPLAYED if arithmetic.cuda_graphs(config) else PAD_TO
    data = Sentences(SETTINGS[name].size, count=batch * args.steps, batch_size=batch, pad_to=pad_to)
    rounds = Rounds(data, args.rounds)
    with arithmetic.products(config):
        trainer_of(config, SETTINGS[name].stage, rounds).fit(module_of(name, config, device), datamodule=data)
    seconds = {
        mode: [max(of_ranks) for of_ranks in zip(*distributed.gather(rounds.seconds[mode]), strict=True)]
        for mode in MODES
    }
    row = {"size": SETTINGS[name].size.name, "scaling": scaling, "devices": args.count, "batch": batch}
    return {**row, "sentences": batch * args.steps, "seconds": seconds, "decision": rounds.decision}


def measure(args: Namespace) -> int:
    quiet()
    rows: list[dict[str, Any]] = []
    first = configuration(args.sizes.split()[0], args)
    device = torch.device("cuda" if arithmetic.on_gpu(first) else "cpu")
    made = {"hardware": hardware(device), "device": device.type, "torch": torch.__version__, "commit": commit()}
    with processes.started(first):  # only rank 0 leaves it
        for name in args.sizes.split():
            for scaling, batch in (("weak", args.count * args.sentences), ("strong", args.whole_batch)):
                rows.append(measured(name, scaling, batch, args))
                distributed.from_rank_zero(lambda: write_json(Path(args.json), {"made": made, "rows": rows}))
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":  # its one argument: the options of `bench_ddp.py` as JSON, with `count` of the devices
    sys.exit(streams.exit_code(lambda: measure(Namespace(**jsonfile.loads(sys.argv[1])))))
