"""The comparison of the ways to meet a budget: which runs it starts, in which order, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from micro import GLUE


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script, with runs that only write down what they would measure; `script.started` names them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(GLUE.parent))
    import compare_budgets

    compare_budgets.started = []

    def train(directory: Path, overrides, own) -> str:
        if (directory / "summary.json").is_file():
            return ""
        compare_budgets.started.append((directory.name, own))
        words = dict(word.split("=", 1) for word in own)
        if directory.name == "refused":
            return "error: … this student still has 0.2 of the dense teacher's energy; that is the lowest value"
        if directory.name == "shared" and words["seed"] == "3":
            return "error: the teacher is no better than a constant"
        directory.mkdir(parents=True)
        share = float(words.get("stages.budget.value", 1))
        score = (
            {"sst2": 0.9, "mrpc": 0.8}[words["task"]]
            - 0.1 * int(words["seed"])
            - (words.get("stages.budget.candidates") == "[heads,ffn]") / 100
        )
        last = {
            "main": score,
            "heads": [1],
            "ffn": [2],
            "t_steps": [3],
            "seconds": 4.0,
            "budget": {
                "share": share,
                "reported": (0.99 if share < 0.1 else 0.97) * share,
                "why_not": "x" * (share > 0.1),
            },
        }
        scored = {"validation": 9} if "data.select=0" in overrides else {"select": 9}
        settings = " ".join([*overrides, *(word for word in own if "seed" not in word and "run." not in word)])
        made = {"data": {"scored": scored}, "hardware": "one GPU", "commit": "0123456789ab", "settings": settings}
        stages = {"budget": last, "finetune": last}
        summary = {"teacher": {"main": 0.95}, "stages": stages, "final": "finetune", **made}
        (directory / "summary.json").write_text(json.dumps(summary))
        return ""

    monkeypatch.setattr(compare_budgets, "train", train)
    return compare_budgets


def test_every_run_once_and_means_over_tasks_and_seeds(script, capsys) -> None:
    words = ["--tasks", "sst2 mrpc", "--seeds", "0 1", "--budgets", "0.04 lowest", "--tag", "x", "preset=minilm"]
    assert script.main(words) == 0
    names = [name for name, _ in script.started]
    assert names[:8] == ["shared"] * 4 + ["refused"] * 4
    of_each = ["0.04-all", "0.04-spatial", "lowest-all", "lowest-steps"]
    assert sorted(names[8:]) == sorted(of_each * 4)
    own = next(own for name, own in script.started if name == "lowest-steps")
    assert {"stages.budget.value=0.21", "stages.budget.candidates=[steps]"} <= set(own)
    assert any(word.startswith("run.start_from=") and word.endswith("shared") for word in own)
    table = Path("runs/budgets/minilm-x/budgets.md").read_text()
    # means of 90 and 80 and of 80 and 70 by seed; the teacher's are 95
    assert "| 0.04 | all | 85.0 ± 7.1 | 75.0 ± 7.1 | 80.0 ± 7.1 | 15.0 ± 7.1 | 0.990 ± 0.000 | 8 ± 0 | 0 1 |" in table
    assert "| 0.04 | spatial | 84.0 ± 7.1 |" in table and table.count("| lowest |") == 2
    assert "- 0.04: all less spatial, seed by seed: mean +1.000 ± 0.000 (above in 2 of 2)" in table
    assert "Training examples held out by data.select" in table
    assert "8 of 16 runs are more than 2% below their target, or above it, the farthest with 0.970 of it" in table
    assert len(Path("runs/budgets/minilm-x/budgets.csv").read_text().splitlines()) == 1 + 16
    assert len(script.finished(Path("runs/budgets/minilm-x"))) == 16
    script.started.clear()
    assert script.main(words) == 0 and script.started == []
    assert capsys.readouterr().out.count("| budget | way |") == 2


def test_what_fails_is_named_and_the_rest_compared(script, capsys) -> None:
    assert script.main(["--tasks", "sst2", "--seeds", "0 3", "--budgets", "0.04", "--ways", "all"]) == 2
    said = capsys.readouterr()
    assert "error: sst2 3: error: the teacher is no better" in said.err and "| 0.04 | all | 90.0 |" in said.out
    assert script.main(["--ways", "step"]) == 2


def test_a_budget_behind_other_compression_is_not_compared(script, capsys) -> None:
    assert script.main(["preset=minilm", "stages.budget.epochs=6"]) == 2
    assert "spatial and temporal would run before it" in capsys.readouterr().err and not script.started


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"--seeds": "1", "words": "data.select=0"}, "some runs were scored with data.select and others without"),
        ({"--seeds": "1", "words": "data.replace_words=0.2"}, "sst2 0.04 all: the seeds were run with different"),
        ({"--budgets": "lowest", "--seeds": "1", "words": "data.replace_words=0.2"}, ""),
    ],
)
def test_runs_of_other_settings_are_not_compared(script, other, said, capsys) -> None:
    """The finished ones are taken as they are; only a comparison of both meets the difference."""
    words = {"--tasks": "sst2", "--seeds": "0", "--budgets": "0.04", "--ways": "all"} | other
    extra = words.pop("words")
    arguments = [part for pair in words.items() for part in pair]
    assert script.main([*arguments, "--seeds", "0"]) == 0 and script.main([*arguments, extra]) == 0
    before = Path("runs/budgets/tiny/budgets.md").read_text()
    assert script.main([*arguments, "--seeds", "0 1"]) == (2 if said else 0)
    assert said in capsys.readouterr().err
    assert (Path("runs/budgets/tiny/budgets.md").read_text() == before) == bool(said)
