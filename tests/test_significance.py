"""Bootstrap intervals and McNemar's test: by hand, against resampling itself, and from a run to its row."""

from __future__ import annotations

import random
from math import sqrt

import numpy as np
import pytest
from micro import GLUE, micro, only

from spikeprune.config.load import load
from spikeprune.config.tasks import get_task
from spikeprune.experiment import pipeline
from spikeprune.files import jsonfile
from spikeprune.training.metrics import COUNTED
from spikeprune.training.significance import confusion, intervals, mcnemar


def test_mcnemar_by_hand() -> None:
    """Right alone: the first model on 7, the second on 1; 2 (C(8,0) + C(8,1)) / 2^8."""
    labels = [1] * 20
    one, other = [1] * 7 + [0] + [1] * 12, [0] * 7 + [1] + [1] * 12
    assert mcnemar(one, other, labels) == {"first": 7, "second": 1, "p": 18 / 256}
    assert mcnemar(one, one, labels) == {"first": 0, "second": 0, "p": 1.0}
    assert mcnemar([1, 0], [0, 1], [1, 1])["p"] == 1.0


def test_an_interval_of_an_accuracy_is_the_binomial_one() -> None:
    right = 860
    found = intervals(get_task("sst2"), [1] * right + [0] * (1000 - right), [1] * 1000)["accuracy"]
    wide = 1.96 * sqrt(0.86 * 0.14 / 1000)
    assert found == pytest.approx([0.86 - wide, 0.86 + wide], abs=2e-3)
    assert found == intervals(get_task("sst2"), [1] * right + [0] * (1000 - right), [1] * 1000)["accuracy"]


def test_other_metrics_are_resampled_as_examples_are() -> None:
    drawn = random.Random(0)
    labels = [drawn.randrange(2) for _ in range(300)]
    predictions = [label if drawn.random() < 0.8 else 1 - label for label in labels]
    rows = np.random.default_rng(1).integers(300, size=(2000, 300))
    for name in ("f1", "matthews"):
        scores = [
            COUNTED[name](confusion([predictions[i] for i in row], [labels[i] for i in row], 2))
            for row in rows.tolist()
        ]
        task = get_task("cola" if name == "matthews" else "mrpc")
        assert intervals(task, predictions, labels)[name] == pytest.approx(
            np.quantile(scores, [0.025, 0.975]), abs=0.02
        )


def test_intervals_of_correlations_hold_them() -> None:
    normal = np.random.default_rng(0)
    y = normal.normal(size=400)
    x = y + normal.normal(size=400)
    found = intervals(get_task("stsb"), x.tolist(), y.tolist())
    for name in ("pearson", "spearman"):
        low, high = found[name]
        assert low < 1 / sqrt(2) < high and 0.05 < high - low < 0.2


@pytest.mark.filterwarnings("ignore")
def test_a_run_keeps_its_predictions_and_says_how_sure_its_scores_are(glue, tmp_path) -> None:
    run = tmp_path / "run"
    pipeline.run(load(GLUE, [*micro(run, glue), *only("prediction_kd", "spatial")]))
    summary = jsonfile.read(run / "summary.json", "")
    lines = (glue / "SST-2" / "dev.tsv").read_text().splitlines()[1:]
    labels = [int(line.split("\t")[1]) for line in lines]
    for stage, row in {"teacher": summary["teacher"], **summary["stages"]}.items():
        kept = jsonfile.read(run / "stages" / stage / "predictions.json", "")
        assert kept["split"] == "validation" and kept["labels"] == labels
        right = sum(a == b for a, b in zip(kept["predictions"], labels, strict=True))
        assert right / len(labels) == pytest.approx(row["metrics"]["accuracy"])
        low, high = row["intervals"]["accuracy"]
        assert low <= row["metrics"]["accuracy"] <= high
    assert "mcnemar" not in summary["teacher"] and 0 < summary["stages"]["spatial"]["mcnemar"]["p"] <= 1
