"""Tables as rows, read one at a time: CSV, TSV, JSON lines and parquet files, and splits of a hub data set.

Reading is strict: a row with too few cells, an open quote, bytes that are no UTF-8 or a line that is no JSON is an
InputError with file and line, never a row less.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from spikeprune.errors import InputError, in_a_line, nearest
from spikeprune.files import jsonfile

Row = tuple[int, Mapping[str, Any]]  # its line, or its number from 0, and its cells by column
REPAIR = "repair it or drop this line"
UNREADABLE = (ValueError, OSError, TypeError, KeyError, AttributeError, NotImplementedError)  # Arrow's among them


@dataclass(frozen=True)
class Table:
    """A table whose rows are read once, in order."""

    name: str  # the file, or the data set and its split
    columns: tuple[str, ...]
    rows: Iterator[Row]
    by_line: bool = True  # whether a row's number is its line
    names: Mapping[str, list[str]] = field(default_factory=dict)  # of columns that store a number for each name

    def place(self, number: int) -> str:
        return f"{self.name}:{number}" if self.by_line else f"{self.name}, row {number}"

    def other_separator(self) -> str:
        """That the single column of a table has in its name, where none has been found."""
        return next((mark for mark in ";\t|," if len(self.columns) == 1 and mark in self.columns[0]), "")

    def needs(self, columns: Iterable[str], remedy: str) -> None:
        """Raises InputError for a column that is not there, with the nearest one that is."""
        for column in columns:
            if column not in self.columns:
                there = nearest(column, (" ".join(name.split()) for name in self.columns))  # a CSV's may have newlines
                if other := self.other_separator():
                    remedy = f"if {other!r} separates its columns, save it with commas as .csv or with tabs as .tsv"
                raise InputError(f"{self.name}: no column {column!r}; it has {there}; {remedy}")
            if self.columns.count(column) > 1:
                raise InputError(f"{self.name}: column {column!r} is there twice; rename all but the right one")


def open_table(path: Path) -> Table:
    """The table in a file, by its suffix. Raises InputError where there is none; the rows raise their own."""
    if path.is_dir():
        raise InputError(f"{path}: is a directory; give a file of examples")
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: is of no kind that is read; give one of {', '.join(FORMATS)}")
    if not path.exists():
        raise InputError(f"{path}: is missing; give a file of examples")
    return FORMATS[path.suffix.lower()](path)


# ----------------------------------------------------------------------------------------------------------- text files


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file from 1, ended by a newline alone and without it; a byte-order mark is dropped."""
    try:
        file = open(path, "rb")  # noqa: SIM115 it is closed by the block below
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); mend its rights or name another file") from None
    with file:
        yield from decoded_lines(file, str(path))


def decoded_lines(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """As `text_lines`, of bytes by lines that `name` tells where from."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}:{number}: is not UTF-8 text ({error.reason}); save the file as UTF-8") from None
        yield number, text.removesuffix("\n")


def tab_cells(line: str) -> list[str]:
    """Of a TSV line: tabs separate, and quotes are ordinary characters, as in GLUE's files."""
    return line.removesuffix("\r").split("\t")


def _tsv(path: Path) -> Table:
    return _with_header(path, ((n, tab_cells(line) if line.strip("\r") else []) for n, line in text_lines(path)))


def _csv(path: Path) -> Table:
    return _with_header(path, _csv_cells(path))


def _csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Records with the line that each begins at, an empty line without a cell: a quoted cell may hold commas, quotes
    (doubled), newlines, and nothing."""
    reader = csv.reader((f"{line}\n" for _, line in text_lines(path)), strict=True)
    number = 1
    try:
        for cells in reader:
            yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{number}: is no CSV ({error}); {REPAIR}") from None


def _with_header(path: Path, records: Iterator[tuple[int, list[str]]]) -> Table:
    """The first record names the columns; empty lines are read over at the end alone."""
    _, header = next(records, (1, []))  # none: an empty file
    columns = tuple(cell.strip() for cell in header)
    if not any(columns):
        raise InputError(f"{path}: is empty; its first line must name the columns")

    def rows() -> Iterator[Row]:
        empty = 0
        for number, cells in records:
            if not cells:
                empty = empty or number
                continue
            if empty or len(cells) != len(columns):
                counted = f"{len(cells)} columns where the header has {len(columns)}"
                raise InputError(f"{path}:{empty or number}: {'an empty line' if empty else counted}; {REPAIR}")
            yield number, dict(zip(columns, cells, strict=True))

    return Table(str(path), columns, rows())


def _jsonl(path: Path) -> Table:
    records = _json_objects(path)
    first = next(records, None)
    if first is None:
        raise InputError(f"{path}: is empty; it must hold one JSON object a line")
    return Table(str(path), tuple(first[1]), chain([first], records))


def _json_objects(path: Path) -> Iterator[Row]:
    for number, line in text_lines(path):
        if number == 1 and line.lstrip().startswith("["):
            raise InputError(
                f"{path}: is one JSON array; write one JSON object a line (pandas: to_json(…, lines=True))"
            )
        if line.strip():
            yield number, jsonfile.parsed(line, f"{path}:{number}", f"write one JSON object a line, or {REPAIR}")


# ------------------------------------------------------------------------------------------------------------- datasets


def _parquet(path: Path) -> Table:
    """A batch of rows at a time; names of classes that `datasets` has stored are read too."""
    import pyarrow.parquet
    from datasets import Features

    try:
        file = pyarrow.parquet.ParquetFile(path)
        features = Features.from_arrow_schema(file.schema_arrow)
    except UNREADABLE as error:
        raise InputError(f"{path}: is no parquet file ({in_a_line(error)}); write it again") from None
    return _of_dataset(str(path), (row for batch in file.iter_batches() for row in batch.to_pylist()), features)


def hub_table(name: str, rows: Any) -> Table:
    """A split of a loaded data set; `name` tells the data set and the split."""
    return _of_dataset(name, rows, rows.features)


def _of_dataset(name: str, rows: Iterable[Mapping[str, Any]], features: Mapping[str, Any]) -> Table:
    named = {column: kind.names for column, kind in features.items() if getattr(kind, "names", None)}

    def read() -> Iterator[Row]:
        try:
            yield from enumerate(rows)
        except UNREADABLE as error:
            raise InputError(f"{name}: cannot be read ({in_a_line(error)}); write it again") from None

    return Table(name, tuple(features), read(), by_line=False, names=named)


FORMATS: dict[str, Callable[[Path], Table]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _jsonl,
    ".parquet": _parquet,
}
