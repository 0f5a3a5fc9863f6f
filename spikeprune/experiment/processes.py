"""The processes of a run on several devices: launch, rendezvous, end.

One process a device. `spikeprune train` on one machine starts the others itself, by Lightning's launcher: the same
command again, with LOCAL_RANK set; srun and torchrun start them themselves. All connect before anything is read and run
the same stages in parallel; only rank 0 returns from the run.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from joblib import cpu_count
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from spikeprune import distributed
from spikeprune.config.schema import Config, Run
from spikeprune.errors import InputError
from spikeprune.training import signals

GRACE = 30.0  # seconds that the other processes get to end after rank 0
PARENT = "SPIKEPRUNE_PARENT"  # the number of the process that starts others, for them
VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", PARENT)  # that launching sets


def size(run: Run) -> int:
    """Processes of the run: one a device."""
    return run.devices * run.num_nodes


class Replicas(DDPStrategy):
    """Data parallelism that averages all gradients of a step in one message after the backward pass, as a CUDA graph
    delivers them; torch's DDP wrapper reduces them in buckets during it.

    Every rank must have gradients of the same parameters: all run the same configuration. Masks and time steps are not
    sent: they change in decisions that all ranks share.
    """

    def configure_ddp(self) -> None:
        """Every rank starts from rank 0's parameters and buffers."""
        for tensor in self.model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)

    def post_backward(self, closure_loss: Tensor) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        message = torch.cat([gradient.flatten() for gradient in gradients]).div_(self.world_size)
        torch.distributed.all_reduce(message)
        parts = message.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def placement(config: Config) -> dict[str, Any]:
    """The Trainer's arguments for devices: those of the run once its processes are connected, else one device."""
    run = config.run
    if not distributed.running():
        return {"accelerator": run.accelerator, "devices": 1}
    return {"accelerator": run.accelerator, "devices": run.devices, "num_nodes": run.num_nodes, "strategy": Replicas()}


@contextmanager
def started(config: Config) -> Iterator[None]:
    """The body runs in each process of the run; after it only rank 0 continues, the others exit.

    Raises InputError where the machine or the launcher does not fit the configuration. With one device it does
    nothing else.
    """
    run = config.run
    check_devices(run.accelerator, run.devices)
    check(run)
    if size(run) == 1:
        yield
        return
    before = {name: os.environ.get(name) for name in VARIABLES}
    children = meet(run)
    try:
        yield
    except BaseException as error:
        if distributed.rank() and isinstance(error, KeyboardInterrupt):
            raise SystemExit(0) from None  # rank 0 reports it
        if isinstance(error, (InputError, OSError)):
            distributed.dismiss()
        end(children, patience=GRACE if isinstance(error, (InputError, OSError, KeyboardInterrupt)) else 1.0)
        raise
    leader = distributed.rank() == 0
    torch.distributed.destroy_process_group()  # NCCL does it together, so before anybody waits
    if not leader:
        raise SystemExit(0)
    end(children, patience=GRACE)
    for name, value in before.items():  # or the next run in this interpreter would wait for processes
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def meet(run: Run) -> list[subprocess.Popen]:
    """Start the other processes of this machine unless a launcher has, and connect all; returns those started here."""
    try:
        trainer = L.Trainer(
            accelerator=run.accelerator,
            devices=run.devices,
            num_nodes=run.num_nodes,
            strategy=DDPStrategy(),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (ValueError, RuntimeError) as error:  # SLURM's tasks do not fit Lightning
        raise InputError(f"run.devices = {run.devices}: {' '.join(str(error).split())}") from None
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[PARENT] = str(os.getpid())
    else:
        signals.end_with_parent()  # a GPU would wait for it
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
            raise SystemExit(0)  # it was killed while this process imported, and would be waited for half an hour
    launcher = trainer.strategy.launcher
    try:
        launcher.launch(trainer.strategy.setup_environment, trainer=trainer)
    except torch.distributed.DistNetworkError as error:
        raise InputError(
            f"run.devices = {run.devices}: the processes cannot connect at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')} ({' '.join(str(error).split())}); set MASTER_PORT to a free port"
        ) from None
    distributed.connect()
    use_threads(run)
    return launcher.procs


def use_threads(run: Run) -> None:
    """Torch's threads in this process: torch's own number (OMP_NUM_THREADS), but no more than its share of the CPUs
    that all processes of this machine may use, a container's quota included."""
    beside = run.devices if distributed.running() else 1
    torch.set_num_threads(min(torch.get_num_threads(), max(1, cpu_count() // beside)))


def end(children: list[subprocess.Popen], *, patience: float) -> None:
    """Wait for the processes started here, then kill the remaining ones."""
    until = time.monotonic() + patience
    for child in children:
        try:
            child.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def check(run: Run) -> None:
    """Raises InputError where this machine or this launcher does not fit the configuration."""
    wanted = f"run.devices × run.num_nodes = {run.devices} × {run.num_nodes}"
    if SLURMEnvironment.detect() and "SLURM_STEP_ID" not in os.environ:  # in the order of Lightning's Trainer
        if size(run) > 1:
            raise InputError(f"{wanted}: start it with srun, which makes a process for each device")
    elif SLURMEnvironment.detect():
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ["SLURM_NTASKS"]))
        if tasks != size(run):
            raise InputError(f"{wanted}: srun has started {tasks} tasks; give --ntasks-per-node={run.devices}")
    elif TorchElasticEnvironment.detect():
        if int(os.environ["WORLD_SIZE"]) != size(run):
            raise InputError(f"{wanted}: torchrun has started {os.environ['WORLD_SIZE']} processes; let both agree")
    elif run.num_nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= set(os.environ):
        raise InputError(
            f"{wanted}: the run is started on one machine only; use srun, torchrun, or the same command on each "
            "with MASTER_ADDR, MASTER_PORT and NODE_RANK set"
        )


def check_devices(accelerator: str, devices: int) -> None:
    """Raises InputError where this machine lacks the GPUs that the configuration names."""
    gpus = torch.cuda.device_count()
    if accelerator == "gpu" and not gpus:
        raise InputError("run.accelerator = gpu: this machine has none that torch can use; use cpu or auto")
    if accelerator != "cpu" and gpus and gpus < devices:
        raise InputError(f"run.devices = {devices}: this machine has {gpus} GPU{'s' * (gpus > 1)}")
