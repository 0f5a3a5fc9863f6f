"""Where a run's sentences come from, and the devices that they are shared out to."""

from __future__ import annotations

from collections.abc import Iterator

from spikeprune.config.derived import active, stage_rows
from spikeprune.config.schema import Config
from spikeprune.errors import Problem


def data(config: Config) -> Iterator[Problem]:
    d, keys = config.data, ("data.dir", "data.source")
    if d.source == "dir" and not d.dir:
        yield keys, "data.source = dir: needs data.dir, a GLUE directory"
    if d.source in ("hub", "embedded") and d.dir:
        text = f"contradicts data.source = {d.source}; use data.source=dir, or leave data.dir out"
        yield keys, f"data.dir = {d.dir}: {text}"
    if active(config, "general_kd") and not d.corpus:
        text = "needs data.corpus, the text it learns from; or set it to 0"
        yield ("stages.general_kd.epochs", "data.corpus"), f"stages.general_kd.epochs: {text}"


def devices(config: Config) -> Iterator[Problem]:
    if config.run.accelerator == "cpu" and config.run.precision == "16-mixed":
        keys = ("run.precision", "run.accelerator")
        yield keys, "run.precision = 16-mixed: needs a GPU; on run.accelerator=cpu use bf16-mixed or 32-true"
    if config.run.kernels == "triton" and config.run.accelerator == "cpu":
        keys = ("run.kernels", "run.accelerator")
        yield keys, "run.kernels = triton: needs a GPU; on run.accelerator=cpu use torch or auto"
    if config.run.cuda_graphs == "on" and config.run.accelerator == "cpu":
        keys = ("run.cuda_graphs", "run.accelerator")
        yield keys, "run.cuda_graphs = on: needs a GPU; on run.accelerator=cpu use off or auto"
    if config.run.cuda_graphs == "on" and config.student.feedback:
        text = (
            "a step with student.feedback iterates until it has converged, which no graph can replay; use off or auto"
        )
        yield ("run.cuda_graphs", "student.feedback"), f"run.cuda_graphs = on: {text}"
    if config.run.cuda_graphs == "on" and config.run.precision == "16-mixed":
        keys = ("run.cuda_graphs", "run.precision")
        text = "run.precision=16-mixed scales each loss before its gradient, which a graph has in it"
        yield keys, f"run.cuda_graphs = on: {text}; use bf16-mixed or tf32, or cuda_graphs=off or auto"
    yield from _shared_batches(config)


def _shared_batches(config: Config) -> Iterator[Problem]:
    """Each of several processes needs a sentence of every batch."""
    run, sizes = config.run, {"data.batch_size": config.data.batch_size}
    processes = run.devices * run.num_nodes
    for name, stage in stage_rows(config):
        if active(config, name) and stage.batch_size is not None:
            sizes[f"stages.{name}.batch_size"] = stage.batch_size
    for key, size in sizes.items() if processes > 1 else []:
        if size < processes:
            text = f"is shared by all devices, run.devices × run.num_nodes = {processes}; it must not be below that"
            yield (key, "run.devices", "run.num_nodes"), f"{key} = {size}: {text}"
