"""`summary.json`: the measurements of a run and its origin, read from the stages' records alone."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from spikeprune import __version__
from spikeprune.config.derived import active_stages, last_uncompressed
from spikeprune.config.keys import leaves
from spikeprune.config.load import MAY_DIFFER
from spikeprune.config.schema import Config
from spikeprune.config.tasks import CUSTOM
from spikeprune.experiment.build.arithmetic import device
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.dev_predictions import significance
from spikeprune.experiment.measurement import largest_class
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.files import jsonfile

TEACHER = ("metrics", "main", "cost", "energy", "steps", "seconds")  # of its record
ROW = (*TEACHER, "fidelity", "t_steps", "heads", "ffn", "encoder_weights")  # of a student's
MAYBE = ("budget", "synapses")  # … where it has them
STUDENT = ("spikes", "leak", "theta", "coding", "query", "residual", "feedback")  # of its configuration
# Keys left out of the hash of settings: a summary has them itself, or they differ from machine to machine.
NAMED = ("seed", "data.source", "data.dir", "data.hub", "data.train_file", "data.dev_file")


def data_facts(context: RunContext) -> dict[str, Any]:
    """Where the data are from, how many examples of which splits are scored, and as `largest_class` the metrics of one
    who always answers the largest; of own data also the classes as `labels`. Both are None for a regression."""
    raw, task = context.raw, context.raw.task
    facts = {"source": raw.source, "origin": raw.origin, "fingerprint": raw.fingerprint, "banner": raw.banner}
    facts["scored"] = {name: len(raw.splits[name]) for name in raw.task.dev_splits}
    own = {"labels": task.labels} if task.name == CUSTOM else {}
    return {**facts, **own, "largest_class": largest_class(context)}


def summarize_run(context: RunContext, directory: RunDirectory) -> dict[str, Any]:
    """The content of `summary.json`."""
    stages, teacher, rows = context.active()[1:], directory.record("teacher"), {}
    for name in stages:
        found = directory.record(name)
        rows[name] = {key: found[key] for key in ROW} | {key: found[key] for key in MAYBE if key in found}
        rows[name] |= significance(context.task, directory, name)
        # the dense teacher's energy over this student's
        rows[name]["energy_saving"] = teacher["cost"]["energy_pj"] / found["cost"]["energy_pj"]
    return {
        "task": context.task.name,
        "preset": context.config.preset,
        "seed": context.config.seed,
        "data": data_facts(context),
        "main_metric": "+".join(context.task.main),
        "shape": {
            "layers": len(context.layers),
            "hidden": context.teacher_config.hidden_size,
            "heads": context.teacher_config.num_attention_heads,
            "ffn": context.teacher_config.intermediate_size,
        },
        "student": {key: getattr(context.config.student, key) for key in STUDENT},
        "teacher": {key: teacher[key] for key in (*TEACHER, "note") if key in teacher or key != "note"}
        | significance(context.task, directory, "teacher"),
        "stages": rows,
        "uncompressed": last_uncompressed(context.config),
        "final": stages[-1] if stages else None,
        "settings": settings(context.config),
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(device(context.config)),
    }


def settings(config: Config) -> str:
    """16 hexadecimal digits, the same for runs that differ in seed and places alone: of the complete configuration as
    it is resolved, with defaults, so that a changed default is another setting. Left out are stages that do not run and
    keys that only place a run, show it or set how often it can be resumed."""
    idle = tuple(f"stages.{name}." for name in asdict(config.stages) if name not in active_stages(config))
    decides = {
        key: value
        for key, value in leaves(asdict(config))
        if key not in (*MAY_DIFFER, *NAMED) and not key.startswith(idle)
    }
    if config.teacher.checkpoint:
        decides["teacher.checkpoint"] = Path(config.teacher.checkpoint).name
    order = active_stages(config)
    return hashlib.sha256(jsonfile.dumps([order, decides], sort_keys=True).encode()).hexdigest()[:16]


def commit() -> str:
    """The commit of this source tree, `-dirty` if it has changed since, or `unknown` outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    return {"spikeprune": __version__, **{name: version(name) for name in ("torch", "lightning", "transformers")}}


def hardware(device: torch.device) -> str:
    """The device's description: the GPU's name, or the processor's with torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Linux only; some processors have no name there
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [f'{platform.machine()} CPU'])[0]}, {torch.get_num_threads()} threads"
