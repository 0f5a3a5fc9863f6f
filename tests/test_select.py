"""`data.select`: training examples are held out and scored in place of the dev split, which is not read."""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from pathlib import Path

import pytest
from micro import GLUE, micro, only, write_sst2

from spikeprune.config.load import load
from spikeprune.config.tasks import get_task
from spikeprune.data.own import Columns, load_own
from spikeprune.errors import InputError
from spikeprune.experiment import pipeline
from spikeprune.experiment.context import read_data
from spikeprune.experiment.evaluation import evaluate
from spikeprune.files import jsonfile
from spikeprune.report.tables import score_line

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import kept_results  # noqa: E402

TRAIN, DEV = 80, 24


@pytest.fixture
def glue(tmp_path) -> Path:
    """Without a dev split: a run that reads one fails."""
    folder = write_sst2(tmp_path / "glue", TRAIN, DEV)
    (folder / "SST-2" / "dev.tsv").unlink()
    return folder


def data(glue: Path, *words: str):
    return read_data(load(GLUE, ["task=sst2", "preset=tiny", f"data.dir={glue}", "data.source=dir", *words]))


def test_a_stratified_part_is_held_out_and_dev_is_not_read(glue) -> None:
    raw = data(glue, "data.select=0.25")
    assert list(raw.splits) == ["train", "select"] and raw.task.dev_splits == ("select",)
    train, held = raw.splits["train"], raw.splits["select"]
    assert Counter(held.labels) == {0: 10, 1: 10} and len(train) == 60
    lines = (glue / "SST-2" / "train.tsv").read_text().splitlines()[1:]
    assert sorted(train.first + held.first) == sorted(line.split("\t")[0] for line in lines)
    assert "20 training examples held out by seed 0, dev is not read" in raw.banner
    again, other = data(glue, "data.select=0.25"), data(glue, "data.select=0.25", "seed=1")
    assert again == raw and other.splits["select"] != held
    assert data(glue, "data.select=0.25", "data.train_limit=40").splits["select"].labels.count(1) in range(3, 8)


def test_without_it_the_dev_split_is_read(glue) -> None:
    with pytest.raises(InputError, match=r"dev\.tsv"):
        data(glue)


def test_the_task_survives_a_pickle(glue) -> None:
    task = data(glue, "data.select=0.25").task
    assert pickle.loads(pickle.dumps(task)) == task != get_task("sst2")
    mnli = read_data(load(GLUE, ["task=mnli", "preset=tiny", "data.source=embedded", "data.select=0.1"]))
    assert mnli.task.dev_splits == ("select",) and set(mnli.splits) == {"train", "select"}


def test_of_own_data_neither_the_dev_file_nor_what_is_cut_off_as_one(tmp_path) -> None:
    rows = "".join(f"text {i},{('no', 'yes')[i % 2]}\n" for i in range(100))
    (tmp_path / "train.csv").write_text("text,label\n" + rows)
    how = {"train_file": str(tmp_path / "train.csv"), "hub": "no/such", "columns": Columns(("text",), "label")}
    how |= {"metrics": [], "seed": 0, "train_limit": None, "select": 0.2}
    given = load_own(**how, dev_file=str(tmp_path / "nowhere.csv"))
    assert {name: len(split) for name, split in given.splits.items()} == {"train": 80, "select": 20}
    cut = load_own(**how, dev_file=None)
    assert {name: len(split) for name, split in cut.splits.items()} == {"train": 72, "select": 18}
    assert pickle.loads(pickle.dumps(cut.task)) == cut.task


def test_too_few_examples_are_refused(tmp_path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,no\nb,yes\n")
    columns = Columns(("text",), "label")
    how = {"train_file": str(tmp_path / "train.csv"), "dev_file": "x.csv", "hub": "", "columns": columns}
    with pytest.raises(InputError, match=r"data\.select = 0\.1: 2 training examples are too few"):
        load_own(**how, metrics=[], seed=0, train_limit=None, select=0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_scored_on_it_and_makes_no_row(glue, tmp_path) -> None:
    run = tmp_path / "run"
    pipeline.run(load(GLUE, [*micro(run, glue), *only("prediction_kd"), "data.select=0.3"]))
    summary = jsonfile.read(run / "summary.json", "")
    assert summary["data"]["scored"] == {"select": 24}
    assert "held-out training examples" in score_line(summary) and "dev split" in score_line({**summary, "data": {}})
    measured = evaluate(run)
    assert measured["same_data"] and measured["metrics"] == summary["stages"]["prediction_kd"]["metrics"]
    with pytest.raises(InputError, match="a row is of a run with data.select=0"):
        kept_results.keep(run)
