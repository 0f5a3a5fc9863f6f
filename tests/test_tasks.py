"""The table of tasks, and their metrics against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from spikeprune.config.tasks import TASKS, get_task
from spikeprune.errors import InputError
from spikeprune.training.metrics import Fidelity, main_metric, matthews, task_metrics

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


def computed(name: str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """In batches of 64."""
    metrics = task_metrics(get_task(name))
    for predicted, true in zip(*(torch.tensor(x).split(64) for x in (predictions, labels)), strict=True):
        metrics.update(predicted, true)
    return metrics.compute()


@pytest.mark.parametrize("name", TASKS)
def test_metrics_agree_with_scikit_learn(name):
    task, random = get_task(name), np.random.default_rng(7)
    if task.regression:
        labels = (random.integers(0, 26, size=301) / 5).astype(np.float32)
        predictions = (labels + random.normal(size=301)).round(1).astype(np.float32)  # some are equal
    else:
        labels = random.integers(task.num_labels, size=301)
        predictions = np.where(random.random(301) < 0.6, labels, random.integers(task.num_labels, size=301))
    results = computed(name, predictions, labels)
    assert set(results) == set(task.metrics)
    labels, predictions = (x.astype(np.float64) if task.regression else x for x in (labels, predictions))
    wanted = {metric: REFERENCE[metric](labels, predictions) for metric in task.metrics}
    assert results == pytest.approx(wanted, abs=1e-12)
    assert main_metric(task, results) == pytest.approx(np.mean([wanted[metric] for metric in task.main]), abs=1e-12)


@pytest.mark.parametrize("name", ["cola", "mrpc", "mnli"])
@pytest.mark.parametrize("ones", [0, 1, 721, 1042, 1043])
@pytest.mark.parametrize("answer", ["no", "yes", "right", "wrong"])
@pytest.mark.filterwarnings("ignore")
def test_metrics_of_degenerate_predictions_are_scikit_learns(name, ones, answer):
    labels = np.array([1] * ones + [0] * (1043 - ones))
    made = {"no": 0 * labels, "yes": 0 * labels + 1, "right": labels, "wrong": 1 - labels}[answer]
    wanted = {metric: REFERENCE[metric](labels, made) for metric in get_task(name).metrics}
    assert computed(name, made, labels) == pytest.approx(wanted, abs=1e-12)


def test_counts_of_a_large_split_do_not_overflow():
    """The product of the four sums of Matthews' correlation has more than 64 bits."""
    found = matthews([[3_000_000, 1_000_000], [2_000_000, 4_000_000]])
    assert found == pytest.approx(10 / np.sqrt(600), abs=1e-12)  # (12 - 2) / √(4·6·5·5)


def test_constant_scores_correlate_with_nothing():
    scores = np.linspace(0, 5, 7, dtype=np.float32)
    for predictions, wanted in ((0 * scores + 2.3, 0.0), (scores * 2, 1.0), (-scores, -1.0)):
        assert computed("stsb", predictions.astype(np.float32), scores) == pytest.approx(
            {"pearson": wanted, "spearman": wanted}, abs=1e-12
        )
    predictions = np.where(scores == 0, np.nan, scores).astype(np.float32)
    assert np.isnan(list(computed("stsb", predictions, scores).values())).all()  # a broken network is not hidden


def test_main_metric_wants_every_part():
    with pytest.raises(KeyError):
        main_metric(get_task("mrpc"), {"accuracy": 0.5})


# ------------------------------------------------------------------------------------------ a student and its teacher


def test_fidelity_by_hand() -> None:
    """Teacher 3/4 against 1/4, student 1/2 each way and then the other way round, in batches of two and one."""
    three, even, turned = torch.tensor([3.0, 1.0]).log(), torch.zeros(2), torch.tensor([1.0, 3.0]).log()
    student, teacher = torch.stack([even, three, turned]), torch.stack([three] * 3)
    fidelity = Fidelity(regression=False)
    for rows in ([0, 1], [2]):
        fidelity.update(student[rows], teacher[rows])
    found = fidelity.compute()
    apart = [np.log(2) + 0.75 * np.log(0.75) + 0.25 * np.log(0.25), 0.0, 0.5 * np.log(3)]
    assert float(found["agreement"]) == pytest.approx(2 / 3)  # of equal logits the first counts as the larger
    assert float(found["divergence"]) == pytest.approx(sum(apart) / 3, rel=1e-6)
    fidelity.reset()
    fidelity.update(teacher, teacher)
    assert {name: float(value) for name, value in fidelity.compute().items()} == {"agreement": 1.0, "divergence": 0.0}


def test_fidelity_of_a_regression_is_the_squared_difference() -> None:
    fidelity = Fidelity(regression=True)
    for student, teacher in (([[1.0], [2.0]], [[1.5], [2.0]]), ([[0.0]], [[2.0]])):
        fidelity.update(torch.tensor(student), torch.tensor(teacher))
    assert {name: float(value) for name, value in fidelity.compute().items()} == pytest.approx({"divergence": 4.25 / 3})


def test_fidelity_of_half_precision_is_that_of_its_numbers() -> None:
    fidelity = Fidelity(regression=False)
    fidelity.update(torch.tensor([[4.0, -4.0]]).bfloat16(), torch.tensor([[4.0, -4.03125]]).bfloat16())
    p, q = (1 / (1 + np.exp(-gap)) for gap in (8.03125, 8.0))
    wanted = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))  # about 1.6e-7
    assert float(fidelity.compute()["divergence"]) == pytest.approx(wanted, rel=1e-6)
