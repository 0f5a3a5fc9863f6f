"""The report page of runs: its data gathered from their directories, and the page written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikeprune.config.derived import active_stages
from spikeprune.config.load import read_resolved
from spikeprune.config.schema import Config
from spikeprune.config.tasks import CUSTOM, get_task
from spikeprune.errors import InputError
from spikeprune.experiment.checkpoints import load_student, load_teacher
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.evaluation import reopen
from spikeprune.experiment.page_data.curves import curves
from spikeprune.experiment.page_data.examination import Sentence, examine, rasters
from spikeprune.experiment.page_data.layers import layer_maps
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.terminal import quiet
from spikeprune.experiment.timing import measured_ms
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_atomic
from spikeprune.report.page.document import page

PAGE = "report.html"
OF_STUDENT = ("layers", "energy", "spikes", "predictions")  # sections


def write_report(
    runs: Sequence[str | Path], out: str | Path | None = None, texts: Sequence[str] = (), *, energy: bool = False
) -> Path:
    """Write the page of one run or several, over what was there, and return its path: `out`, or else `report.html` in
    the directory of a single run, of several in the present one.

    `texts`: sentences whose spikes are shown, in place of three of the dev split; a tab separates the two of a pair.
    `energy`: the student and dense networks are timed on this machine.
    Raises InputError for a directory that holds no run, texts that do not fit the task, and an `out` that cannot be.
    """
    directories = [RunDirectory.open(run) for run in runs]
    path = Path(out) if out else (Path(runs[0]) if len(runs) == 1 else Path()) / PAGE
    if path.is_dir() or not path.absolute().parent.is_dir():
        reason = "is a directory" if path.is_dir() else "its directory does not exist"
        raise InputError(f"{path}: {reason}; give -o the name of a file in a directory that exists")
    quiet()
    edited = "remove the stage whose record.json was edited, or summary.json"
    with jsonfile.as_written(", ".join(map(str, runs)), edited):
        made = page({"runs": [of_run(directory, texts, energy=energy) for directory in directories]})
    write_atomic(path, made)
    return path


def write_own(directory: RunDirectory, context: RunContext) -> Path:
    """The page of a run that is open, in its directory."""
    write_atomic(directory.path / PAGE, page({"runs": [of_run(directory, context=context)]}))
    return directory.path / PAGE


def of_run(
    directory: RunDirectory, texts: Sequence[str] = (), context: RunContext | None = None, *, energy: bool = False
) -> dict[str, Any]:
    """The data of one run; `texts` and `energy` as in `write_report`. `context`: where it is open already."""
    config = read_resolved(directory.config) if context is None else context.config
    stages = active_stages(config)
    done = [name for name in stages if directory.finished(name)]
    records = {name: directory.record(name) for name in done}
    found = {
        "name": str(directory.path),
        "task": config.task,
        "preset": config.preset,
        "seed": config.seed,
        "stages": stages,
        "records": records,
        "summary": directory.read_summary() if directory.summary.is_file() else None,
        "main_metric": main_metric(config, records),
        "data": directory.data_facts(),
        "curves": curves(directory.read_metrics()),
        "texts": list(texts),
    }
    students = [name for name in done if name != "teacher"]
    if not students:
        return found | dict.fromkeys(OF_STUDENT, {"missing": "No stage of the student is finished yet."})
    sentences = [Sentence(tuple(text.split("\t"))) for text in texts]
    return found | look_at(directory, students[-1], context, sentences, energy=energy)


def main_metric(config: Config, records: Mapping[str, Any]) -> str:
    """The metrics whose mean is the score, joined by `+`; empty where no stage of a user's own task is finished."""
    if config.task != CUSTOM:
        return "+".join(get_task(config.task).main)
    metrics = next(iter(records.values()), {"metrics": {}})["metrics"]
    return next(iter(metrics), "")  # the first that is named is the score


def look_at(
    directory: RunDirectory,
    stage: str,
    context: RunContext | None,
    sentences: Sequence[Sentence],
    *,
    energy: bool,
) -> dict[str, Any]:
    """What the student of a finished stage keeps, fires, costs and predicts."""
    try:
        student = load_student(directory, stage).eval()
    except InputError as error:
        return dict.fromkeys(OF_STUDENT, missing(error))
    found: dict[str, Any] = {"layers": layer_maps(student)}
    try:
        context = reopen(directory.path, None)[1] if context is None else context
        teacher = load_teacher(context, directory)
    except InputError as error:
        spikes = rasters(student, directory, sentences) if sentences else missing(error)
        return {**found, "energy": missing(error), "predictions": missing(error), "spikes": spikes}
    found |= examine(context, directory, student, teacher, sentences)
    if energy:
        found["energy"]["measured_ms"] = measured_ms(context, student, teacher)
    return found


def missing(error: InputError) -> dict[str, str]:
    return {"missing": f"Not shown: {error}."}
