"""The report page of runs, written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spikeprune.errors import InputError
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.page_data.gather import gather, of_run
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.terminal import quiet
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_atomic
from spikeprune.report.page.document import page

PAGE = "report.html"


def write_report(
    runs: Sequence[str | Path], out: str | Path | None = None, texts: Sequence[str] = (), *, energy: bool = False
) -> Path:
    """Write the page of one run or several, over what was there, and return its path: `out`, or else `report.html` in
    the directory of a single run, of several in the present one.

    `texts`: sentences whose spikes are shown, in place of three of the dev split; a tab separates the two of a pair.
    `energy`: the student and dense networks are timed on this machine.
    Raises InputError for a directory that holds no run, texts that do not fit the task, and an `out` that cannot be.
    """
    for run in runs:
        RunDirectory.open(run)
    path = Path(out) if out else (Path(runs[0]) if len(runs) == 1 else Path()) / PAGE
    if path.is_dir() or not path.absolute().parent.is_dir():
        reason = "is a directory" if path.is_dir() else "its directory does not exist"
        raise InputError(f"{path}: {reason}; give -o the name of a file in a directory that exists")
    quiet()
    edited = "remove the stage whose record.json was edited, or summary.json"
    with jsonfile.as_written(", ".join(map(str, runs)), edited):
        made = page(gather(runs, texts, energy=energy))
    write_atomic(path, made)
    return path


def write_own(directory: RunDirectory, context: RunContext) -> Path:
    """The page of a run that is open, in its directory."""
    write_atomic(directory.path / PAGE, page({"runs": [of_run(directory, context=context)]}))
    return directory.path / PAGE
