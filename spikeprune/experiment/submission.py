"""GLUE's submission files, `index<TAB>prediction`, from runs on its tasks (gluebenchmark.com, "submit")."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spikeprune.config.schema import Config
from spikeprune.config.tasks import CUSTOM, Task
from spikeprune.data.hub import load_splits
from spikeprune.data.rows import Table, hub_table, open_table
from spikeprune.errors import InputError
from spikeprune.experiment.prediction import Example, Predictor, predictions, read_example
from spikeprune.experiment.prediction_files import text_columns, unwritten
from spikeprune.experiment.terminal import print_once
from spikeprune.files.atomic import absent, new_file, write_atomic

INDEX = ("index", "idx", "id")  # columns that number a test split's rows
FOLDER = "submission"  # of a run


@dataclass(frozen=True)
class Test:
    """A test split of GLUE: its file in GLUE's download, and its configuration and split on the hub."""

    file: str
    config: str
    split: str
    optional: bool = False


def tests(task: Task) -> dict[str, Test]:
    """Name of a submission file -> the split of its predictions. MNLI's model also predicts the diagnostic set, AX."""
    if task.name != "mnli":
        return {f"{task.folder}.tsv": Test(f"{task.folder}/test.tsv", task.name, "test")}
    return {
        "MNLI-m.tsv": Test("MNLI/test_matched.tsv", "mnli", "test_matched"),
        "MNLI-mm.tsv": Test("MNLI/test_mismatched.tsv", "mnli", "test_mismatched"),
        "AX.tsv": Test("diagnostic/diagnostic.tsv", "ax", "test", optional=True),
    }


def submit(
    runs: Sequence[str],
    open_run: Callable[[str], Predictor],
    data_dir: str | None,
    out: str | None,
    archive: str | None,
) -> list[str]:
    """Write the submission files of the `runs`, one for each task, into the directory `out` (by default the first run's
    `submission/`), or with `archive` into that zip file, as GLUE takes them. `data_dir`: a GLUE directory in place of
    the runs' own data. Returns a line for each file. Raises InputError, before anything is written."""
    if out and archive:
        raise InputError(f"--out {out}: --zip {archive} is given as well; give one of the two")
    target = unwritten(archive, ".zip") if archive else Path(out) if out else Path(runs[0]) / FOLDER
    files: dict[str, str] = {}
    for run in runs:
        predictor = open_run(run)
        if predictor.task.name == CUSTOM:
            raise InputError(f"{run}: is a run on own data, of which GLUE has no test")
        for name, text in of_run(predictor, data_dir):
            if name in files:
                raise InputError(f"{run}: {name} is another run's already; give one run for each task")
            if not archive:
                absent(target / name)
            files[name] = text
    if archive:
        with new_file(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, text in files.items():
                zipped.writestr(name, text)
    else:
        target.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomic(target / name, text)
    return [f"{target}: {name}, {text.count(chr(10)) - 1} predictions" for name, text in files.items()]


def of_run(predictor: Predictor, data_dir: str | None) -> Iterator[tuple[str, str]]:
    """Each submission file of a run's task: its name and its text."""
    for name, test in tests(predictor.task).items():
        table = test_table(predictor.config, test, data_dir)
        if table is None:
            print_once(f"{name} is left out: there is no {test.file}")
            continue
        numbers: list[str] = []
        found = predictions(predictor, examples(predictor.task, table, numbers))
        lines = [spelling(predictor.task, one.prediction) for one in found]
        rows = (f"{number}\t{line}" for number, line in zip(numbers, lines, strict=True))
        yield name, "\n".join(["index\tprediction", *rows]) + "\n"


def test_table(config: Config, test: Test, data_dir: str | None) -> Table | None:
    """A test split, from `data_dir` or where the run's own data are from; None for an optional one that is not there.
    Raises InputError for a run on generated data."""
    folder = data_dir or config.data.dir
    if folder:
        path = Path(folder) / test.file
        return None if test.optional and not path.exists() else open_table(path)
    if config.data.source == "embedded":
        raise InputError("the run is on generated data, which have no test split; name a GLUE directory by --data")
    loaded = load_splits(config.data.hub, test.config, instead="name a GLUE directory by --data")
    if test.split not in loaded:
        raise InputError(f"dataset {config.data.hub} ({test.config}) has no split {test.split}; give --data")
    return hub_table(f"dataset {config.data.hub} ({test.config}), split {test.split}", loaded[test.split])


def examples(task: Task, table: Table, numbers: list[str]) -> Iterator[Example]:
    """The rows of a test split; appends the number of each, its index column's or counted, to `numbers`."""
    columns = text_columns(task, table)
    index = next((column for column in INDEX if column in table.columns), None)
    for count, (number, cells) in enumerate(table.rows):
        numbers.append(str(count if index is None else cells[index]).strip())
        yield read_example(task, table.place(number), [cells.get(column) for column in columns])
    if not numbers:
        raise InputError(f"{table.name}: holds no examples; give another --data")


def spelling(task: Task, prediction: str | float) -> str:
    """As GLUE's files spell it: a label's name for inference tasks, 0 or 1 for the others, a score from 0 to 5."""
    if task.regression:
        low, high = task.range
        return f"{min(max(prediction, low), high):.3f}"
    return task.tsv_labels[task.labels.index(prediction)]
