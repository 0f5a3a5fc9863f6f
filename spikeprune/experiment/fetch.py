"""`spikeprune fetch`: data and checkpoints into the cache, then read again as on a compute node without network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha1, sha256
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers.utils import logging

from spikeprune.config.load import load
from spikeprune.config.schema import Config
from spikeprune.config.tasks import CUSTOM, get_task, read_tasks
from spikeprune.data.corpus import read_corpus
from spikeprune.data.tokenizer import load_tokenizer
from spikeprune.errors import InputError, collect
from spikeprune.experiment import context
from spikeprune.experiment.offline import OFFLINE
from spikeprune.models.teacher import Teacher

Need = Callable[[], str]  # reads one thing a run needs; returns a line on it, raises InputError where it is missing


def fetch(experiment: str, overrides: Sequence[str], *, array: str | None, check: bool) -> Iterator[str]:
    """Lines on everything that the runs need. `check`: only read what is there; the caller has forbidden the network
    (see `offline.py`). Raises InputError that names all that is missing or broken."""
    configs = _configs(experiment, overrides, array)
    yield from read(configs)
    if not check:
        apart = not all(map(local, configs))
        if apart and (missing := offline(experiment, overrides, read_tasks(array))):
            raise InputError(f"what was fetched cannot be read without the network:\n{missing}")
        yield "verified: a compute node without network finds all of it"


def read(configs: list[Config]) -> list[str]:
    """A line on each thing that the runs read. Raises InputError with all that is missing."""
    problems: list[str] = []
    found = [collect(problems, need) for need in needs(configs).values()]
    if problems:
        raise InputError("\n".join(problems))
    return found


def local(config: Config) -> bool:
    """Whether the run reads local files only."""
    data, files = config.data, [config.teacher.checkpoint or ".", *config.data.corpus]
    return (data.source in ("dir", "embedded") or data.train_file is not None) and all(
        Path(name).exists() for name in files
    )


def offline(experiment: str, overrides: Sequence[str], tasks: Sequence[str]) -> str:
    """The error of `fetch --check`, run in a process that is offline from its start; empty where nothing is missing."""
    array = [f"--array={' '.join(tasks)}"] if tasks else []
    command = [sys.executable, "-m", "spikeprune", "fetch", "--check", *array, experiment, *overrides]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env={**os.environ, **OFFLINE}
    )
    if done.returncode not in (0, 2):
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stderr.strip().removeprefix("error: ") if done.returncode else ""


def _configs(experiment: str, overrides: Sequence[str], array: str | None) -> list[Config]:
    chosen = [[f"task={task}"] for task in read_tasks(array)]
    return [load(experiment, [*overrides, *extra]) for extra in chosen or [[]]]


def needs(configs: list[Config]) -> dict[tuple, Need]:
    """Each thing that any of the runs reads, once."""
    wanted: dict[tuple, Need] = {}
    for config in configs:
        data, checkpoint = config.data, config.teacher.checkpoint
        place = data.source, data.dir, data.hub, data.train_file, data.dev_file
        wanted[("data", config.task, *place)] = lambda c=config: read_data(c)
        if checkpoint:
            wanted["teacher", checkpoint] = lambda c=config: read_teacher(c)
        if config.stages.general_kd.epochs:
            for source in data.corpus:
                wanted["corpus", source] = lambda s=source: read_text(s)
    return wanted


def read_data(config: Config) -> str:
    raw = context.read_data(replace(config, data=replace(config.data, train_limit=None)))
    return f"{raw.banner}; {', '.join(f'{len(split)} {name}' for name, split in raw.splits.items())}"


def read_teacher(config: Config) -> str:
    logging.set_verbosity_error()  # a classifier that is not there yet is what a stage makes
    name = str(config.teacher.checkpoint)
    load_tokenizer(name)
    teacher = Teacher.load(name, classes=2 if config.task == CUSTOM else get_task(config.task).num_labels)
    line = f"teacher: {name}, {sum(p.numel() for p in teacher.parameters()):,} parameters"
    if Path(name).exists():
        return line
    return f"{line}, {verify(Path(snapshot_download(name, local_files_only=True)))} files as the hub describes them"


def verify(snapshot: Path) -> int:
    """Check a cached model's files against the hashes that they are stored under (git's, or sha256 for large ones);
    returns their number. Raises InputError that names a file which is another one."""
    count = 0
    for path in sorted(snapshot.rglob("*")):
        blob = path.resolve()
        if not path.is_file() or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
            continue
        content = blob.read_bytes()
        git = sha1(b"blob %d\0" % len(content) + content).hexdigest()
        if blob.name not in (git, sha256(content).hexdigest()):
            raise InputError(f"{path}: is damaged in the cache; remove {blob} and run spikeprune fetch again")
        count += 1
    return count


def read_text(source: str) -> str:
    return f"corpus: {source}, {len(read_corpus([source])):,} paragraphs"
