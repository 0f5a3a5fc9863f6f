"""The table of tasks, and their metrics against scikit-learn and scipy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from spikeprune.errors import InputError
from spikeprune.metrics import main_metric, task_metrics
from spikeprune.tasks import TASKS, get_task

REFERENCE = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": sklearn.metrics.f1_score,
    "matthews": sklearn.metrics.matthews_corrcoef,
    "pearson": lambda labels, predictions: scipy.stats.pearsonr(labels, predictions)[0],
    "spearman": lambda labels, predictions: scipy.stats.spearmanr(labels, predictions)[0],
}
OFFICIAL = {  # gluebenchmark.com/tasks; the first is what a single number means, unless two are averaged
    "cola": (["matthews", "accuracy"], ["matthews"]),
    "sst2": (["accuracy"], ["accuracy"]),
    "mrpc": (["accuracy", "f1"], ["accuracy", "f1"]),
    "qqp": (["accuracy", "f1"], ["accuracy", "f1"]),
    "stsb": (["pearson", "spearman"], ["pearson", "spearman"]),
    "mnli": (["accuracy"], ["accuracy"]),
    "qnli": (["accuracy"], ["accuracy"]),
    "rte": (["accuracy"], ["accuracy"]),
    "wnli": (["accuracy"], ["accuracy"]),
}


def test_the_nine_tasks():
    assert list(TASKS) == list(OFFICIAL)
    for name, task in TASKS.items():
        assert task.name == name and (list(task.metrics), list(task.main)) == OFFICIAL[name]
        assert len(task.columns) == len(task.tsv_columns) == (1 if name in ("cola", "sst2") else 2)
        assert task.pair == (len(task.columns) == 2) and task.regression == (name == "stsb")
        assert task.num_labels == {"stsb": 1, "mnli": 3}.get(name, 2)
        assert task.regression or len(task.labels) == len(task.tsv_labels) == task.num_labels
    assert get_task("mnli").files == {
        "train": "train.tsv",
        "validation_matched": "dev_matched.tsv",
        "validation_mismatched": "dev_mismatched.tsv",
    }
    assert get_task("stsb").range == (0, 5) and get_task("mrpc").dev_splits == ("validation",)


def test_an_unknown_task_lists_the_right_ones():
    with pytest.raises(InputError, match=r"unknown task 'mrcp'.*wnli \(did you mean mrpc\?\)"):
        get_task("mrcp")


def test_tasks_need_no_torch():
    code = "import sys, spikeprune.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", TASKS)
def test_metrics_agree_with_scikit_learn(name):
    task, random = get_task(name), np.random.default_rng(7)
    if task.regression:
        labels = random.integers(0, 26, size=301) / 5
        predictions = labels + random.normal(size=301)
        batches = (torch.tensor(predictions).float(), torch.tensor(labels).float())
    else:
        labels = random.integers(task.num_labels, size=301)
        predictions = np.where(random.random(301) < 0.6, labels, random.integers(task.num_labels, size=301))
        batches = (torch.tensor(predictions), torch.tensor(labels))
    metrics = task_metrics(task)
    for predicted, true in zip(*(tensor.split(64) for tensor in batches), strict=True):
        metrics.update(predicted, true)
    results = metrics.compute()
    assert set(results) == set(task.metrics)
    for metric, value in results.items():
        assert float(value) == pytest.approx(REFERENCE[metric](labels, predictions), abs=1e-5), metric
    wanted = np.mean([REFERENCE[metric](labels, predictions) for metric in task.main])
    assert main_metric(task, results) == pytest.approx(wanted, abs=1e-5)


def test_main_metric_wants_every_part():
    with pytest.raises(KeyError):
        main_metric(get_task("mrpc"), {"accuracy": 0.5})
