"""The nine GLUE tasks: where their columns, labels and files are, and which metrics GLUE scores them by; and
`custom`, the task of a user's own data, which is made from what its files hold. No torch.

Source: Wang et al. 2019, GLUE (arXiv 1804.07461); label order as in the hub dataset `nyu-mll/glue`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from spikeprune.errors import InputError, nearest

TRAIN, VALIDATION = "train", "validation"
SELECT = "select"  # training examples that are held out and scored in place of the dev splits
CUSTOM = "custom"
CLASS_METRICS = ("accuracy", "macro_f1", "f1", "matthews")
NUMBER_METRICS = ("pearson", "spearman")
_DEV = ((VALIDATION, "dev.tsv"),)


@dataclass(frozen=True)
class Task:
    """One task. Class indices are positions in `labels`; `labels` is None for regression."""

    name: str
    columns: tuple[str, ...]  # hub column names of the one or two sentences
    folder: str  # of the original download
    tsv_columns: tuple[str, ...]  # the same sentences in the TSV files; with header False: numbers, from 0
    tsv_label: str
    labels: tuple[str, ...] | None  # names, in the order of the class indices
    tsv_labels: tuple[str, ...] | None  # the same labels as the TSV files spell them
    metrics: tuple[str, ...]
    main: tuple[str, ...]  # GLUE ranks by the mean of these
    header: bool = True  # the first TSV line names the columns
    tsv_width: int | None = None  # columns of a file without header
    range: tuple[float, float] | None = None  # of a regression score; None: any finite number
    skip_short_rows: bool = False  # QQP: rows that its release broke at a newline inside a question
    empty_sentences: bool = False  # QQP: a few of its questions are empty
    skip_labels: tuple[str, ...] = ()  # MNLI: '-', annotators without a majority
    dev: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(dict(_DEV)))  # split -> TSV file name

    def __reduce__(self):
        """Between the processes of a run goes the name, of `custom` what makes it."""
        if SELECT in self.dev:
            return selecting, (replace(self, dev=dict(_DEV)),)
        if self.name == CUSTOM:
            return custom_task, (self.columns, self.tsv_label, self.labels, self.metrics)
        return get_task, (self.name,)

    @property
    def pair(self) -> bool:
        return len(self.columns) == 2

    @property
    def regression(self) -> bool:
        return self.labels is None

    @property
    def fidelity(self) -> tuple[str, ...]:
        """How near a student is to its teacher, see `metrics.Fidelity`: the names of what is measured."""
        return ("divergence",) if self.regression else ("agreement", "divergence")

    @property
    def quality(self) -> tuple[str, ...]:
        """All that is measured of a student's predictions on a dev split."""
        return (*self.metrics, *self.fidelity)

    @property
    def num_labels(self) -> int:
        """Outputs of the classifier: one per class, or one number."""
        return 1 if self.labels is None else len(self.labels)

    @property
    def dev_splits(self) -> tuple[str, ...]:
        return tuple(self.dev)

    @property
    def files(self) -> dict[str, str]:
        """Split name (the hub's) -> TSV file name, training first."""
        return {TRAIN: "train.tsv", **self.dev}


def _task(name, columns, folder, labels, metrics, *, tsv_columns=None, tsv_label="label", tsv_labels=None, **extra):
    if labels and tsv_labels is None:
        tsv_labels = tuple(str(i) for i in range(len(labels)))
    main = extra.pop("main", metrics)
    return Task(name, columns, folder, tsv_columns or columns, tsv_label, labels, tsv_labels, metrics, main, **extra)


_S = ("sentence",)
_PAIR = ("sentence1", "sentence2")
_ENTAIL = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_MNLI_DEV = MappingProxyType({"validation_matched": "dev_matched.tsv", "validation_mismatched": "dev_mismatched.tsv"})

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task(
            "cola",
            _S,
            "CoLA",
            ("unacceptable", "acceptable"),
            ("matthews", "accuracy"),
            main=("matthews",),
            header=False,
            tsv_width=4,  # source, label, original author's mark, sentence
            tsv_columns=("3",),
            tsv_label="1",
        ),
        _task("sst2", _S, "SST-2", ("negative", "positive"), ("accuracy",)),
        _task(
            "mrpc",
            _PAIR,
            "MRPC",
            ("not_equivalent", "equivalent"),
            ("accuracy", "f1"),
            tsv_columns=("#1 String", "#2 String"),
            tsv_label="Quality",
        ),
        _task(
            "qqp",
            ("question1", "question2"),
            "QQP",
            ("not_duplicate", "duplicate"),
            ("accuracy", "f1"),
            tsv_label="is_duplicate",
            skip_short_rows=True,
            empty_sentences=True,
        ),
        _task("stsb", _PAIR, "STS-B", None, ("pearson", "spearman"), tsv_label="score", range=(0.0, 5.0)),
        _task(
            "mnli",
            ("premise", "hypothesis"),
            "MNLI",
            _NLI,
            ("accuracy",),
            tsv_columns=_PAIR,
            tsv_label="gold_label",
            tsv_labels=_NLI,
            skip_labels=("-",),
            dev=_MNLI_DEV,
        ),
        _task("qnli", ("question", "sentence"), "QNLI", _ENTAIL, ("accuracy",), tsv_labels=_ENTAIL),
        _task("rte", _PAIR, "RTE", _ENTAIL, ("accuracy",), tsv_labels=_ENTAIL),
        _task("wnli", _PAIR, "WNLI", ("not_entailment", "entailment"), ("accuracy",)),
    )
}


def get_task(name: str) -> Task:
    """The task called `name`; an unknown name is an `InputError` that lists the right ones."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; the tasks are {nearest(name, TASKS)}")
    return TASKS[name]


def selecting(task: Task) -> Task:
    """The task with the split SELECT in place of its dev splits."""
    return replace(task, dev=MappingProxyType({SELECT: ""}))


def custom_task(
    columns: tuple[str, ...], label: str, labels: tuple[str, ...] | None, metrics: tuple[str, ...] = ()
) -> Task:
    """The task of a user's own data. `columns` of the one or two sentences, `labels` the class names in the order of
    their indices, None for a regression; the first of the `metrics` is the main one, none stand for the usual."""
    metrics = metrics or (NUMBER_METRICS if labels is None else ("accuracy", "macro_f1"))
    return Task(CUSTOM, columns, CUSTOM, columns, label, labels, labels, metrics, main=metrics[:1])


def quality_names(task: str, metrics: Sequence[str]) -> tuple[str, ...]:
    """All that may be measured of a student's predictions, as far as the configuration tells: for `custom` without its
    `metrics` those of classes and of numbers."""
    if task != CUSTOM:
        return TASKS[task].quality
    return (*(metrics or (*CLASS_METRICS, *NUMBER_METRICS)), "agreement", "divergence")


def read_tasks(text: str | None) -> list[str]:
    """`mrpc rte` or `mrpc,rte` -> the tasks of an array, each once. Raises InputError that names all unknown ones."""
    names = list(dict.fromkeys((text or "").replace(",", " ").split()))
    unknown = [f"array: unknown task {name}; choose from {nearest(name, TASKS)}" for name in names if name not in TASKS]
    if unknown:
        raise InputError("\n".join(unknown))
    return names
