"""Reads one file of a GLUE directory in the original TSV layout."""

from __future__ import annotations

from pathlib import Path

from spikeprune.config.tasks import Task
from spikeprune.data.cells import label, sentence
from spikeprune.data.rows import tab_cells, text_lines
from spikeprune.errors import InputError


def read_tsv(task: Task, path: Path) -> tuple[list[str], list[str] | None, list, int]:
    """(first sentences, second sentences or None, labels, rows skipped) of one file.

    Tabs separate, newlines end, and quotes are ordinary characters (GLUE's files are not CSV). A byte-order mark
    (MRPC) and blanks around a cell (SST-2) are dropped. Two kinds of rows are skipped and counted, as the hub's own
    loader and the authors of MNLI do: rows of QQP with too few columns (its release breaks some questions at a
    newline) and rows of MNLI labelled '-' (no majority). Everything else that is odd is an `InputError`.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; data.dir must hold {task.folder}/{path.name} for task {task.name}")
    lines = text_lines(path)
    columns, width = _columns(task, path, next(lines, (1, ""))[1] if task.header else "")
    *texts, label_at = columns
    sentences: list[list[str]] = [[] for _ in texts]
    labels, skipped = [], 0
    for number, line in lines:
        cells = tab_cells(line)
        if len(cells) < width and task.skip_short_rows:
            skipped += 1
            continue
        if len(cells) != width:
            raise InputError(
                f"{path}:{number}: {len(cells)} columns where {width} are needed; repair or drop this line"
            )
        if cells[label_at].strip() in task.skip_labels:
            skipped += 1
            continue
        try:
            labels.append(label(task, cells[label_at].strip()))
            for column, at in zip(sentences, texts, strict=True):
                column.append(sentence(cells[at], may_be_empty=task.empty_sentences))
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}; correct it or drop this line") from None
    if not labels:
        raise InputError(f"{path} holds no examples; put the {task.name} data there or choose another data.dir")
    return sentences[0], (sentences[1] if task.pair else None), labels, skipped


def _columns(task: Task, path: Path, first: str) -> tuple[list[int], int]:
    """Positions of the sentences and the label, and columns per row, from a file's `first` line."""
    names = [*task.tsv_columns, task.tsv_label]
    if not task.header:
        return [int(name) for name in names], task.tsv_width
    header = [cell.strip() for cell in tab_cells(first)]
    missing = [name for name in names if name not in header]
    if first and missing:
        raise InputError(
            f"{path}:1: no column {missing[0]!r} in the header ({', '.join(header)}); task {task.name} needs "
            f"{', '.join(names)}"
        )
    twice = [name for name in names if header.count(name) > 1]
    if twice:
        raise InputError(f"{path}:1: the header has column {twice[0]!r} more than once; rename all but the right one")
    return [header.index(name) for name in names] if first else [0] * len(names), len(header)
