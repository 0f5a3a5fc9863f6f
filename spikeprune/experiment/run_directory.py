"""The run directory: its files, which stages are finished, and writes that are complete or absent.

runs/<name>/config.yaml        resolved configuration
           metrics.jsonl       one record a line, in the order logged; metrics.csv the same as a table
           run.log             what was printed, one attempt after the other
           tensorboard/<stage>/ with `run.tensorboard`
           summary.json        per stage quality, cost and shape
           stages/<stage>/     a model that transformers loads (config.json, model.safetensors, tokenizer), record.json
           stages/<stage>/resume.ckpt   only while the stage runs
           report.html         the page of `spikeprune report`, made when the run ends
           compact/            the compacted student and its tokenizer, after `spikeprune compact`
           lock.<n>            only while a run uses it: host, process and SLURM job
"""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from spikeprune.config.derived import active_stages
from spikeprune.config.load import read_resolved
from spikeprune.config.schema import Stages
from spikeprune.config.tasks import CUSTOM, Task, custom_task, get_task
from spikeprune.errors import InputError, check_format, nearest
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_atomic, write_sealed
from spikeprune.models.tensors import not_finite

WEIGHTS = "model.safetensors"
AGAIN = "remove it, and the same `train` writes it again"  # the summary
RECORD = ("weights", "steps")  # keys of every stage's record
STAGES = tuple(field.name for field in fields(Stages))
SUMMED = (".json", ".txt")  # files beside the weights that a record has the sha256 of
FORMAT = 1  # of a run directory; another one is refused


def write_weights(path: Path, state: dict[str, Tensor]) -> str:
    """Save as safetensors; returns the sha256 of the file. Raises InputError for a number that is not finite."""
    if wrong := not_finite(state):
        raise InputError(
            f"{path}: is not written, since {wrong[0]} is not finite; lower the stage's lr, in a new run.dir"
        )
    data = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in state.items()}, {"format": "pt"})
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def read_verified(path: Path, sha: str) -> bytes:
    """The bytes of a file. Raises InputError where it is missing or its sha256 is another."""
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != sha:
        raise InputError(
            f"{path}: is missing or not the file that record.json describes; remove {path.parent} to make it again"
        )
    return data


def sums(folder: Path) -> dict[str, str]:
    """The sha256 of each file beside the weights: configuration and tokenizer decide its predictions, too."""
    paths = [path for path in sorted(folder.iterdir()) if path.suffix in SUMMED and path.name != "record.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def verified_weights(folder: Path, record: dict[str, Any]) -> bytes:
    """The weights of a folder. Raises InputError where one of its files is not that of its `record`."""
    with jsonfile.as_written(folder / "record.json", f"remove {folder} to make it again"):
        for name, sha in record.get("files", {}).items():
            read_verified(folder / Path(name).name, sha)
        return read_verified(folder / WEIGHTS, record["weights"])


class RunDirectory:
    """One run's directory. Made by `create` or `open`; neither changes a finished stage."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "run.log"
        self.summary = self.path / "summary.json"
        self.compact = self.path / "compact"

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """A directory that holds a run. Raises InputError where there is none, its configuration has changed, or the
        last stage of a complete run is no longer there, in whose place an earlier one would be taken."""
        run = cls(path)
        if not run.config.is_file():
            raise InputError(
                f"{path}: holds no run (config.yaml is missing); give a directory made by spikeprune train"
            )
        own = hashlib.sha256(run.config.read_bytes()).hexdigest()
        if (run.path / "data.json").is_file() and run.data_facts().get("config", own) != own:
            raise InputError(
                f"{run.config}: has changed since the run began; restore it, or make the run again in another run.dir"
            )
        last = run.read_summary().get("final") if run.summary.is_file() else None
        if last and not run.finished(last):
            path = run.stage(last) / "record.json"
            raise InputError(f"{path}: is missing, and the run was complete; the same `train` makes the stage again")
        return run

    def begin(self, config: str, facts: dict[str, Any]) -> None:
        """Write the resolved configuration, and before it `data.json`: its checksum and the facts of the data."""
        own = hashlib.sha256(config.encode()).hexdigest()
        write_sealed(self.path / "data.json", {"format": FORMAT, **facts, "config": own})
        write_atomic(self.config, config)

    def create(self, *, need: int) -> None:
        """Make the directory. Raises InputError where it cannot be written or has fewer than `need` bytes left."""
        existing = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        try:
            free = shutil.disk_usage(existing).free
            if free < need:
                raise InputError(
                    f"run.dir: {self.path} has {free / 1e6:.0f} MB left and the run needs about {need / 1e6:.0f} MB; "
                    "free some space or choose another run.dir"
                )
            (self.path / "stages").mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / ".writable", "")
            (self.path / ".writable").unlink(missing_ok=True)  # two runs that start together both try
        except OSError as error:
            raise InputError(
                f"run.dir: {self.path} cannot be written ({error.strerror}); choose another run.dir or mend its rights"
            ) from None

    def read_summary(self) -> dict[str, Any]:
        """Raises InputError for a damaged one."""
        return jsonfile.read_sealed(self.summary, AGAIN, ("stages", "teacher"))

    def data_facts(self) -> dict[str, str]:
        """Source and fingerprint of the run's data. Raises InputError where the file is missing or damaged."""
        remedy = f"without it the data cannot be compared: remove {self.path} to begin again"
        facts = jsonfile.read_sealed(self.path / "data.json", remedy, ("source", "origin", "fingerprint"))
        check_format(facts.get("format", 1), FORMAT, str(self.path), "make the run again with this version")
        return facts

    def task(self) -> Task:
        """The run's task; that of own data has the classes that were found in them when the run began."""
        data = read_resolved(self.config)
        if data.task != CUSTOM:
            return get_task(data.task)
        remedy = f"without it the classes are not known: remove {self.path} to begin again"
        labels = jsonfile.read_sealed(self.path / "data.json", remedy, ("labels",))["labels"]
        columns = tuple(data.data.text), data.data.label
        return custom_task(*columns, None if labels is None else tuple(labels), tuple(data.data.metrics))

    def stage(self, name: str) -> Path:
        """Raises InputError for a name that is no stage's: one in a file may lead out of the directory."""
        if name not in STAGES:
            raise InputError(f"{self.path}: {name!r} is no stage; there are {nearest(name, STAGES)}")
        return self.path / "stages" / name

    def make_stage(self, name: str) -> Path:
        """A stage's folder, made if no checkpoint has made it yet."""
        self.stage(name).mkdir(parents=True, exist_ok=True)
        return self.stage(name)

    def resume(self, name: str) -> Path:
        return self.stage(name) / "resume.ckpt"

    def finished(self, name: str) -> bool:
        """A stage's record is the last file it writes."""
        return (self.stage(name) / "record.json").is_file()

    def last_student(self) -> str:
        """The last finished stage of the student. Raises InputError where none is finished."""
        stages = active_stages(read_resolved(self.config))
        finished = [name for name in stages if name != "teacher" and self.finished(name)]
        if not finished:
            resumes = "the same `spikeprune train` command resumes the run"
            raise InputError(f"{self.path}: no stage of the student is finished; {resumes}")
        return finished[-1]

    def kept(self, name: str) -> bool:
        """Whether an earlier attempt has finished a stage. Its files are verified, and a checkpoint is removed that a
        kill between record and removal has left. Raises InputError for a file that has changed."""
        if not self.finished(name):
            return False
        self.verified(name)
        self.resume(name).unlink(missing_ok=True)
        return True

    def complete(self, stages: Iterable[str]) -> bool:
        """Whether a run of these stages has nothing left to do."""
        return self.summary.is_file() and all(self.finished(name) for name in stages)

    def record(self, name: str) -> dict[str, Any]:
        """Measurements and origin of a finished stage. Raises InputError for a stage that is not finished."""
        path = self.stage(name) / "record.json"
        if not path.is_file():
            done = [p.parent.name for p in sorted((self.path / "stages").glob("*/record.json"))]
            there = f"finished are: {', '.join(done)}" if done else "none is; `spikeprune train` makes them"
            raise InputError(f"{self.path}: stage {name!r} is not finished; {there}")
        return jsonfile.read_sealed(path, f"remove {path.parent} to make the stage again", RECORD)

    def finish(self, name: str, record: dict[str, Any]) -> None:
        write_sealed(self.stage(name) / "record.json", record)
        self.resume(name).unlink(missing_ok=True)

    def weights(self, name: str) -> dict[str, Tensor]:
        """Tensors of a finished stage. Raises InputError where the file is not the one that its record describes."""
        return safetensors.torch.load(self.verified(name))

    def verified(self, name: str) -> bytes:
        """The weights file of a finished stage, if it and the files beside it are those that its record describes."""
        return verified_weights(self.stage(name), self.record(name))

    def compact_record(self) -> dict[str, Any]:
        """The record of `compact/`. Raises InputError where there is none, or its stage has changed."""
        path = self.compact / "record.json"
        again = f"`spikeprune compact {self.path}` makes it"
        if not path.is_file():
            raise InputError(f"{self.path}: holds no compacted model; {again}")
        record = jsonfile.read_sealed(path, f"{again} again", ("parent", "weights"))
        with jsonfile.as_written(path, f"{again} again"):
            stage, weights = record["parent"]["stage"], record["parent"]["weights"]
        if not self.finished(stage) or self.record(stage)["weights"] != weights:
            raise InputError(f"{self.compact}: its stage {stage!r} has changed since; {again} again")
        return record

    def append_metrics(self, record: dict[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(jsonfile.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every record; a last line that a kill cut short is left out, and of two with the same keys of one step, as a
        validation leaves them that was begun again, the earlier. Raises InputError for another broken line."""
        lines = self.metrics.read_bytes().split(b"\n")[:-1] if self.metrics.is_file() else []
        remedy, needs = "remove this line: a step's records are lost, nothing else", ("stage", "step", "global_step")
        places = (f"{self.metrics}:{number}" for number in range(1, len(lines) + 1))
        found = [jsonfile.parsed(line, place, remedy, needs) for line, place in zip(lines, places, strict=True)]
        return list({(str(r["stage"]), str(r["step"]), *sorted(r)): r for r in found}.values())

    def write_metrics(self, records: Iterable[dict[str, Any]]) -> None:
        write_atomic(self.metrics, "".join(jsonfile.dumps(r) + "\n" for r in records))

    def rewind_metrics(self, stages: Iterable[str], stage: str, step: int) -> None:
        """Drop what a killed attempt logged after its last checkpoint. Kept are records of finished `stages` and of the
        first `step` steps of `stage` (Lightning counts them from 0). The checkpoint of a later stage goes as well: what
        it was made from is being made again."""
        done = set(stages)
        for later in set(STAGES) - done - {stage}:
            self.resume(later).unlink(missing_ok=True)
        kept = [r for r in self.read_metrics() if r["stage"] in done or (r["stage"] == stage and r["step"] < step)]
        self.write_metrics(kept)

    def write_csv(self) -> None:
        """`metrics.csv`, a column a metric, for tools that read no JSON lines."""
        records = self.read_metrics()
        columns = list(dict.fromkeys(key for record in records for key in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(records)
        write_atomic(self.path / "metrics.csv", text.getvalue())
