"""The arithmetic of a run: the kernels of its spiking layers, CUDA graphs, the precision of its products."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spikeprune.config.schema import Config
from spikeprune.errors import InputError
from spikeprune.experiment.context import RunContext
from spikeprune.kernels import lacking


def kernels(config: Config) -> str:
    """`torch` or `triton`: what the spiking layers compute with. Raises InputError for triton where it cannot run.

    `auto` is triton where the machine has it and the kernels cover the run: not on the CPU, not LIF, not float64.
    """
    run, missing = config.run, lacking()
    if run.kernels == "triton" and missing:
        raise InputError(f"run.kernels = triton: needs {missing}, which is not here; use run.kernels=torch or auto")
    covered = run.accelerator != "cpu" and run.precision != "64-true" and config.student.leak == 1.0
    if run.kernels == "auto":
        return "triton" if covered and not missing else "torch"
    return run.kernels


def precision(config: Config) -> str:
    """Lightning's name for the precision that is trained in. Raises InputError where the machine lacks it: Lightning
    would train in another one."""
    if config.run.precision == "16-mixed" and not on_gpu(config):
        raise InputError("run.precision = 16-mixed: needs a GPU, which is not here; use bf16-mixed or 32-true")
    return "32-true" if config.run.precision == "tf32" else config.run.precision


def on_gpu(config: Config) -> bool:
    return torch.cuda.is_available() and config.run.accelerator != "cpu"


def device(config: Config) -> torch.device:
    """Of one process outside a Trainer."""
    return torch.device("cuda" if on_gpu(config) else "cpu")


def cuda_graphs(config: Config) -> bool:
    """Whether training replays CUDA graphs: on a GPU, unless run.kernels is torch."""
    run = config.run
    # feedback reads residuals within the step, and 16-mixed scales each loss before its gradient
    return on_gpu(config) and run.kernels != "torch" and not config.student.feedback and run.precision != "16-mixed"


def replays(context: RunContext) -> bool:
    """`cuda_graphs` of a run. The code of another architecture's teacher may wait for the GPU, which no graph holds."""
    return cuda_graphs(context.config) and not context.logits_alone


@contextmanager
def repeatable(config: Config) -> Iterator[None]:
    """While it lasts, CUDA adds in one order where the configuration says so, also outside a Trainer."""
    if not config.run.deterministic:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def products(config: Config) -> Iterator[None]:
    """While it lasts, CUDA multiplies float32 matrices in TensorFloat-32 where the configuration says so."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if config.run.precision == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
