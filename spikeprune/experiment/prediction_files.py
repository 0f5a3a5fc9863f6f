"""What `spikeprune predict` reads and writes: texts from the command line, standard input or a file, predictions as CSV
or JSON lines. All of it goes through one row at a time."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spikeprune.config.tasks import Task
from spikeprune.data.rows import FORMATS, Table, decoded_lines, open_table, text_lines
from spikeprune.errors import InputError
from spikeprune.experiment.prediction import Example, Prediction, Predictor, predictions, read_example, rounded
from spikeprune.files import jsonfile
from spikeprune.files.atomic import absent, new_file

LINES = ".txt"  # of a file without columns: one example a line
STDIN = "standard input"


def predict_to(
    run: str,
    open_run: Callable[[str], Predictor],
    words: Sequence[str],
    file: str | None,
    out: str | None,
    *,
    cost: bool,
) -> str:
    """Predict what is given: `words`, a `file`, else standard input; write it to the file `out`, else to standard
    output as CSV. Returns a line on what was written, empty for standard output. Raises InputError; `out` is then not
    there."""
    if words and file:
        raise InputError(f"--file {file}: texts are given as well; give one of the two")
    if not words and not file and sys.stdin.isatty():
        raise InputError("no text is given; write it behind RUN, name a --file, or pipe lines into the command")
    target = None if out is None else unwritten(out, *FORMATTED)
    predictor = open_run(run)
    cut: list[int] = []
    found = predictions(predictor, examples_of(predictor.task, words, file), cost, cut.append)
    lines = FORMATTED[".csv" if target is None else target.suffix.lower()](predictor.task, found, cost)
    if target is None:
        sys.stdout.writelines(lines)
    else:
        with new_file(target) as opened:
            opened.writelines(line.encode() for line in lines)
    if sum(cut):
        tokens = f"{predictor.config.data.max_length} tokens (data.max_length)"
        print(f"texts cut to {tokens}, as in training: {sum(cut)}", file=sys.stderr)
    return "" if target is None else f"written: {target}"


def unwritten(path: str, *suffixes: str) -> Path:
    """A file that may be written. Raises InputError for another suffix, and for one that exists."""
    file = Path(path)
    if file.suffix.lower() not in suffixes:
        raise InputError(f"{path}: is of no kind that is written; end its name in {' or '.join(suffixes)}")
    absent(file)
    if not file.parent.is_dir():
        raise InputError(f"{path}: {file.parent} is no directory; make it, or name another one")
    return file


def examples_of(task: Task, words: Sequence[str], file: str | None) -> Iterator[Example]:
    if words:
        return of_words(task, words)
    return read_file(task, file) if file else of_lines(task, decoded_lines(sys.stdin.buffer, STDIN), STDIN)


# -------------------------------------------------------------------------------------------------------------- reading


def of_words(task: Task, words: Sequence[str]) -> Iterator[Example]:
    """Of a task of pairs two words are an example."""
    size = len(task.columns)
    if len(words) % size:
        raise InputError(
            f"{len(words)} texts are given: the task has pairs ({', '.join(task.columns)}); give two for each"
        )
    for i in range(0, len(words), size):
        place = f"text {i + 1}" if size == 1 else f"texts {i + 1} and {i + 2}"
        yield read_example(task, place, words[i : i + size])


def of_lines(task: Task, lines: Iterable[tuple[int, str]], name: str) -> Iterator[Example]:
    """One example a line, the two texts of a pair with a tab between. Raises InputError where there is no line."""
    number = 0
    for number, line in lines:
        texts = line.removesuffix("\r").split("\t") if task.pair else [line]
        if len(texts) != len(task.columns):
            raise InputError(f"{name}:{number}: has {len(texts)} texts; write the two of a pair with one tab between")
        yield read_example(task, f"{name}:{number}", texts)
    if not number:
        raise InputError(f"{name}: is empty; there is nothing to predict")


def read_file(task: Task, file: str) -> Iterator[Example]:
    """The examples in a file: the columns of the run's own data in a table, one a line in a text file."""
    path = Path(file)
    if path.suffix.lower() == LINES:
        if not path.is_file():
            raise InputError(f"{path}: is missing; give a file of texts")
        return of_lines(task, text_lines(path), str(path))
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: is of no kind that is read; give one of {', '.join((LINES, *FORMATS))}")
    return of_table(task, open_table(path))


def of_table(task: Task, table: Table) -> Iterator[Example]:
    columns = text_columns(task, table)
    number = None
    for number, cells in table.rows:
        yield read_example(task, table.place(number), [cells.get(column) for column in columns])
    if number is None:
        raise InputError(f"{table.name}: holds no examples; there is nothing to predict")


def text_columns(task: Task, table: Table) -> tuple[str, ...]:
    """Of the texts: as the task's own data name them, of a GLUE task as the hub or as its files do. Raises InputError
    where they are not there."""
    ways = [task.columns, *([task.tsv_columns] if task.header else [])]
    columns = next((way for way in ways if set(way) <= set(table.columns)), ways[0])
    table.needs(columns, f"the run's texts are in {' and '.join(columns)}")
    return columns


# -------------------------------------------------------------------------------------------------------------- writing


def csv_lines(task: Task, found: Iterable[Prediction], cost: bool) -> Iterator[str]:
    """A header, then each example's texts, prediction, probability `p(class)` of each class, and costs."""
    classes = [] if task.regression else [f"p({name})" for name in task.labels]
    costs = ["additions", "energy_pj", "steps"] if cost else []
    for number, one in enumerate(found):
        if number == 0:  # not before there is a prediction
            yield csv_line([*task.columns, "prediction", *classes, *costs])
        numbers = [one.prediction, *(one.probabilities or ()), *(one.cost or ())]
        yield csv_line([*one.texts, *map(rounded, numbers)])


def csv_line(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def json_lines(task: Task, found: Iterable[Prediction], cost: bool) -> Iterator[str]:
    """An object for each example, see `Prediction.record`."""
    for one in found:
        yield jsonfile.dumps(one.record(task), ensure_ascii=False) + "\n"


FORMATTED: dict[str, Callable[[Task, Iterable[Prediction], bool], Iterator[str]]] = {
    ".csv": csv_lines,
    ".jsonl": json_lines,
}
