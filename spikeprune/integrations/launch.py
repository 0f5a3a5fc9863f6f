"""`spikeprune launch`: checked configurations become one readable sbatch script, written and submitted."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from os.path import commonpath
from pathlib import Path
from string import Template

from spikeprune.config.derived import active_stages, value_of
from spikeprune.config.load import load
from spikeprune.config.resources import folders
from spikeprune.config.schema import Config
from spikeprune.config.tasks import CUSTOM, read_tasks
from spikeprune.errors import InputError, collect
from spikeprune.experiment import fetch, slurm_job
from spikeprune.experiment.lock import RunLock
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.files import secrets
from spikeprune.files.atomic import write_atomic
from spikeprune.integrations.labels import label

SCRIPT = "job.sh"
MAX_RUNS = 1000  # of an array; SLURM's default limit (MaxArraySize) is 1001
SHORTEST = 300  # seconds: USR1 comes 90 s before the end, or up to 60 s earlier (man sbatch), and imports take time


@dataclass(frozen=True)
class Request:
    """Runs and resources that the user requests. None leaves a value to the experiment or the cluster."""

    array: str | None = None  # tasks
    seeds: str | None = None  # such as 0-4 or 0,2,5-7
    gpus: int | None = None  # of each node; 0 runs on the CPU
    nodes: int | None = None
    cpus: int | None = None  # of each process
    time: str | None = None
    partition: str | None = None
    options: Sequence[str] = field(default_factory=tuple)  # further options of sbatch
    template: str | None = None


@dataclass(frozen=True)
class Run:
    """One run of a launch, with the overrides that the request adds."""

    config: Config
    forced: tuple[str, ...]

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.config.run.dir)

    @property
    def finished(self) -> bool:
        return self.directory.complete(active_stages(self.config))


def launch(experiment: str, overrides: Sequence[str], request: Request, *, dry_run: bool, command: str) -> list[str]:
    """Write the script and submit it, or only write it; returns the lines to print.

    `command`: as the user gave it, for the script's first lines. Raises InputError before anything is written: for
    every problem of every run, for a missing sbatch, for missing data, and with SLURM's own message where it refuses.
    """
    template = Job(template_of(experiment, request.template))
    runs = plan(experiment, overrides, request)
    lines = [f"{run.directory.path}: finished, nothing to run" for run in runs if run.finished]
    runs = [run for run in runs if not run.finished]
    if not runs:
        return lines
    folder = runs[0].directory.path if len(runs) == 1 else launch_folder(runs)
    text = render(template, experiment, overrides, request, runs, folder, command)
    script = folder / SCRIPT
    if name := secrets.held(text):
        raise InputError(
            f"{script}: would hold the value of {name}; leave it in the environment, which sbatch passes on"
        )
    if not dry_run:
        check_submission(text, experiment, overrides, runs)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(script, text)
    if dry_run:
        return [*lines, f"wrote {script}; submit it with: sbatch {shlex.quote(str(script))}"]
    job = slurm_job.sbatch("--parsable", str(script)).partition(";")[0]
    lines.append(f"wrote {script}")
    if len(runs) == 1:
        return [*lines, f"job {job}: {folder.name}", f"log: {folder}/slurm-{job}.log"]
    return [*lines, f"job {job}: {len(runs)} runs", f"logs: {folder}/slurm-{job}_[0-{len(runs) - 1}].log"]


def check_submission(text: str, experiment: str, overrides: Sequence[str], runs: list[Run]) -> None:
    """Raises InputError where SLURM refuses the script, a run is in use, or data are missing from the cache."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="spikeprune-", suffix=".sh") as draft:
        draft.write(text)
        draft.flush()
        slurm_job.sbatch("--test-only", draft.name)
    for run in runs:
        RunLock(run.directory.path).check()
    if all(fetch.local(run.config) for run in runs):
        fetch.read([run.config for run in runs])
        return
    tasks = list(dict.fromkeys(run.config.task for run in runs))
    everything = [item for item in overrides if not item.startswith("task=")]
    if missing := fetch.offline(experiment, everything, tasks):
        raise InputError(f"{missing}\nspikeprune fetch, with the same arguments, downloads it")


def template_of(experiment: str, given: str | None) -> str:
    """The template's text: the given file, or `slurm/job.sh` in one of `resources.folders`."""
    paths = [Path(given)] if given else [folder / SCRIPT for folder in folders("slurm", Path(experiment))]
    for path in paths:
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise InputError(f"{' and '.join(map(str, paths))}: no such file; give a script's template with --template")


def plan(experiment: str, overrides: Sequence[str], request: Request) -> list[Run]:
    """The runs in the order of the array. Raises InputError with every problem of the request and of every run."""
    problems = list(_request_problems(overrides, request))
    tasks = collect(problems, read_tasks, request.array) or []
    seeds = collect(problems, read_seeds, request.seeds) if request.seeds is not None else []
    words = [[f"task={task}" for task in tasks], [f"seed={seed}" for seed in seeds or []]]
    chosen = list(itertools.product(*filter(None, words)))
    if len(chosen) > MAX_RUNS:
        problems.append(f"{len(chosen)} runs are more than an array takes ({MAX_RUNS}); launch fewer at a time")
        chosen = chosen[:1]
    tried = [collect(problems, _run, experiment, [*overrides, *mine], request) for mine in chosen]
    runs = [run for run in tried if run is not None]
    problems += _together(runs)
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return runs


def read_seeds(text: str) -> list[int]:
    """`0-4` or `0,2,5-7` -> the seeds, each once. Raises InputError."""
    seeds: dict[int, None] = {}
    for part in text.replace(",", " ").split() or [""]:
        found = re.fullmatch(r"(0|[1-9][0-9]{,9})(?:-(0|[1-9][0-9]{,9}))?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last or last - first >= MAX_RUNS:
            raise InputError(f"seeds = {text}: write numbers and rising ranges, such as 0-4 or 0,2,5-7")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def _request_problems(overrides: Sequence[str], request: Request) -> Iterator[str]:
    keys = [item.partition("=")[0] for item in overrides]
    for key, given, option in (("task", request.array, "array"), ("seed", request.seeds, "seeds")):
        if given is not None and key in keys:
            yield f"{key}: is given twice, as {key}=… and in --{option}; leave one of them out"
    lowest = (("gpus", request.gpus, 0), ("nodes", request.nodes, 1), ("cpus", request.cpus, 1))
    for name, value, low in lowest:
        if value is not None and value < low:
            yield f"{name} = {value}: must be at least {low}"
    if request.time and (seconds := slurm_job.read_time(request.time)) is not None and seconds < SHORTEST:
        least = f"give at least {SHORTEST // 60} minutes, or hours as 4:00:00"
        yield f"time = {request.time}: is {seconds / 60:g} minutes to SLURM, too short to save the run; {least}"


def _run(experiment: str, overrides: Sequence[str], request: Request) -> Run:
    """A run with the devices that the request gives it. Raises InputError for contradictions."""
    config = load(experiment, overrides)
    cpu, devices = config.run.accelerator == "cpu", config.run.devices
    gpus = request.gpus if request.gpus is not None else 0 if cpu else devices
    if gpus and cpu:
        raise InputError(f"gpus = {gpus}: contradicts run.accelerator=cpu; leave one of them out")
    for name, requested, key in (("gpus", gpus, "devices"), ("nodes", request.nodes, "num_nodes")):
        value = value_of(config, f"run.{key}")
        if requested and value not in (1, requested):
            raise InputError(f"{name} = {requested}: contradicts run.{key} = {value}; leave one of them out")
    nodes = request.nodes or config.run.num_nodes
    values = {"run.accelerator": "gpu" if gpus else "cpu", "run.devices": gpus or devices, "run.num_nodes": nodes}
    forced = tuple(f"{key}={value}" for key, value in values.items() if value != value_of(config, key))
    config = load(experiment, [*overrides, *forced])
    if any(char < " " or char in "\x7f\\" for char in str(Path(config.run.dir).absolute())):
        raise InputError(
            f"run.dir = {config.run.dir!r}: a job's log cannot have a backslash or a line break in its path"
        )
    if config.data.source == "auto" and config.task != CUSTOM:  # that of own data then reads its file
        raise InputError(
            "data.source = auto: a compute node must not choose its data by the network it has; set data.source=hub "
            "(after spikeprune fetch), data.source=dir with data.dir, or data.source=embedded"
        )
    return Run(config, forced)


def _together(runs: list[Run]) -> Iterator[str]:
    if len({run.forced for run in runs}) > 1:
        yield "the tasks of the array differ in run.devices or run.accelerator; launch them one by one"
    for folder, count in Counter(run.config.run.dir for run in runs).items():
        if count > 1:
            yield f"run.dir = {folder}: {count} runs of the array share it; write ${{task}} and ${{seed}} into it"


def launch_folder(runs: list[Run]) -> Path:
    """A directory of the launch's own, beside the runs' directories."""
    above = commonpath([run.directory.path.absolute().parent for run in runs])
    relative = Path(above).relative_to(Path.cwd()) if Path(above).is_relative_to(Path.cwd()) else Path(above)
    name = f"launch-{datetime.now():%Y%m%d-%H%M%S}"
    return next(p for n in range(1000) if not (p := relative / (f"{name}-{n}" if n else name)).exists())


class Job(Template):
    """A template with placeholders `@{name}`, since shell scripts use dollars."""

    delimiter = "@"
    pattern = r"@\{(?:(?P<braced>[a-z]+)\}|(?P<escaped>@)|(?P<named>\b\B)|(?P<invalid>))"  # an @ alone is an @


def render(
    template: Job,
    experiment: str,
    overrides: Sequence[str],
    request: Request,
    runs: list[Run],
    folder: Path,
    command: str,
) -> str:
    """The script. Raises InputError for a template with an unknown placeholder."""
    shared = [item for item in overrides if not item.startswith(("task=", "seed="))]  # these two are in the script
    known = {
        "name": label(folder),
        "script": shlex.quote(str(folder / SCRIPT)),
        "command": " ".join(command.split()),
        "resources": "\n".join(f"#SBATCH {line}" for line in resources(request, runs, folder)),
        "choice": choice(runs),
        "train": shlex.join([sys.executable, "-m", "spikeprune", "train", experiment, *shared, *runs[0].forced]),
    }
    try:
        return template.substitute(known)
    except (KeyError, ValueError) as error:
        raise InputError(f"the template has the placeholder {error}; there are {', '.join(known)}") from None


def resources(request: Request, runs: list[Run], folder: Path) -> Iterator[str]:
    run = runs[0].config.run
    single = len(runs) == 1
    log = folder.absolute() / ("slurm-%j.log" if single else "slurm-%A_%a.log")
    if not single:
        yield f"--array=0-{len(runs) - 1}"
    yield f"--chdir={quoted(str(Path.cwd()))}"
    yield f"--output={quoted(str(log.parent).replace('%', '%%') + '/' + log.name)}"
    yield f"--nodes={run.num_nodes}"
    yield f"--ntasks-per-node={run.devices}"
    yield f"--cpus-per-task={request.cpus or 2}"
    if run.accelerator == "gpu":
        yield f"--gres=gpu:{run.devices}"
    if request.time:
        yield f"--time={quoted(request.time)}"
    if request.partition:
        yield f"--partition={quoted(request.partition)}"
    yield from request.options


def quoted(text: str) -> str:
    """As sbatch reads the value of a directive: a backslash escapes inside quotes of either kind, and # needs some."""
    if re.fullmatch(r"[\w@%+=:,./-]+", text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def choice(runs: list[Run]) -> str:
    """Shell lines that set `task` and `seed`: of the one run, or by SLURM_ARRAY_TASK_ID."""
    if len(runs) == 1:
        return f"task={runs[0].config.task} seed={runs[0].config.seed}"
    rows = "\n".join(f'  "{run.config.task} {run.config.seed}"' for run in runs)
    return f'runs=(  # task and seed\n{rows}\n)\nread -r task seed <<<"${{runs[$SLURM_ARRAY_TASK_ID]}}"'
