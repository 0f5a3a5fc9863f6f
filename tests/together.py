"""Several processes that somebody else than Lightning has started, and runs of them compared with one; not a test."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import safetensors.torch
import torch
from children import process, speak_into
from micro import GLUE, STAGES, logged

from spikeprune import cli, distributed
from spikeprune.experiment.build import trainers
from spikeprune.experiment.run_directory import RunDirectory


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def enter(rank: int, world: int, port: int, log: Path, target: Callable, args: tuple) -> None:
    speak_into(log)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(target(*args))


def together(world: int, log: Path, target: Callable, *args) -> list[int]:
    """Exit codes of `world` processes that somebody else than Lightning has started."""
    port = free_port()
    children = [process(enter, (rank, world, port, log, target, args)) for rank in range(world)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    return [child.exitcode for child in children]


class Watch(L.Callback):
    """Writes down what each process trains at the start of each batch, and kills it at a step, if one is given."""

    def __init__(self, folder: Path, stage: str, kill: int | None):
        self.folder, self.stage, self.kill = folder, stage, kill

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        if self.stage == "teacher":
            return
        s = module.student
        found = [s.heads.tolist(), s.ffn.tolist(), s.steps, s.embedding.neurons.theta.tolist()]
        found += [module.objective.additions.limit.item()]
        with (self.folder / f"rank{distributed.rank()}.jsonl").open("a") as file:
            file.write(json.dumps([self.stage, trainer.global_step, found]) + "\n")


plain_broadcast = torch.distributed.broadcast


def answered_by_us(*args, **kwargs):
    """Lightning would ask before every batch, and wait for a GPU's answer."""
    if sys._getframe(1).f_globals["__name__"].startswith("lightning"):
        os._exit(9)
    return plain_broadcast(*args, **kwargs)


def attempt(overrides: list[str], watched: Path, kill: tuple[str, int] | None = None) -> int:
    plain = trainers.stage_callbacks

    def with_watch(context, name, run):
        return [Watch(watched, name, kill[1] if kill and kill[0] == name else None), *plain(context, name, run)]

    trainers.stage_callbacks = with_watch
    torch.distributed.broadcast = answered_by_us
    return cli.main(["train", str(GLUE), *overrides])


# nothing drawn at random in training, and digits enough that no rounding moves a rate to its neighbour
EXACT = [
    "run.precision=64-true",
    "teacher.dropout=0.0",
    "data.replace_words=0.0",
]
EXACT += ["data.eval_batch_size=5", "stages.finetune.losses.additions=0.5"]
EXACT += ["stages.finetune.losses.hard=0.5"]


def check_weights(one: RunDirectory, two: RunDirectory, rtol: float = 1e-6) -> None:
    for name in STAGES:
        found, wanted = (safetensors.torch.load_file(run.stage(name) / "model.safetensors") for run in (two, one))
        assert set(found) == set(wanted)
        for key, value in wanted.items():
            exact = key in ("heads", "ffn", "t_steps")
            torch.testing.assert_close(found[key], value, rtol=0 if exact else rtol, atol=0 if exact else rtol / 100)


def check_measurements(one: RunDirectory, two: RunDirectory) -> None:
    for name in STAGES:
        found, wanted = two.record(name), one.record(name)
        for key in ("metrics", "main", "steps", *(("t_steps", "heads", "ffn") if name != "teacher" else ())):
            assert found[key] == wanted[key], (name, key)
        assert found.get("fidelity", {}) == pytest.approx(wanted.get("fidelity", {}), rel=1e-6, abs=1e-12)
        assert ("fidelity" in found) == (name != "teacher")
        rates = found["cost"].pop("rates", {}), wanted["cost"].pop("rates", {})
        assert rates[0] == pytest.approx(rates[1], rel=1e-12)
        work = found["cost"].pop("work"), wanted["cost"].pop("work")
        assert work[0].keys() == work[1].keys()
        assert all(work[0][kind] == pytest.approx(values, rel=1e-12) for kind, values in work[1].items())
        assert found["cost"] == pytest.approx(wanted["cost"], rel=1e-12)
    found, wanted = logged(two), logged(one)
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.pop("stage") == theirs.pop("stage")
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-9)
