"""Whole runs of the golden values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spikeprune.config.load import load
from spikeprune.experiment import pipeline
from tests.golden.counts import COSTS
from tests.micro import GLUE, micro, only, write_sst2

MICRO_RUNS = {
    "mrpc": (  # generated pairs, of which a network of this size learns nothing in so few steps
        "data.embedded=[120,40]",
        *only("teacher", "internal_kd", "prediction_kd", "quantize", "budget", "finetune"),
        "stages.budget.target=energy",
        "stages.budget.value=0.06",
        "stages.quantize.weights=ternary",
        "stages.teacher.lr=1.0e-3",
        "stages.budget.epochs=3",
        "stages.quantize.epochs=2",
    ),
    "sst2": (),  # sentences that one word decides: teacher and student learn them
}


def micro_run(task: str, folder: Path) -> dict[str, Any]:
    """The summary of a whole run: what is left of network, steps and costs after each stage."""
    data = write_sst2(folder / "glue") if task == "sst2" else None
    overrides = [*micro(folder / "run", data), f"task={task}", *MICRO_RUNS[task]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of a sum decides on single spikes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spikeprune.experiment.stage.check_teacher", lambda *_: None)  # chance is enough here
        summary = pipeline.run(load(GLUE, overrides))
    torch.set_num_threads(threads)
    stages = {"teacher": summary["teacher"], **summary["stages"]}
    return {name: stage_facts(row) for name, row in stages.items()}


def stage_facts(row: dict[str, Any]) -> dict[str, Any]:
    facts = {"accuracy": row["metrics"]["accuracy"], "optimizer steps": row["steps"]}
    named = {"AC": "ac", "MAC": "mac", "elementwise": "elementwise", **COSTS}
    facts |= {words: row["cost"][name] for words, name in named.items() if name in row["cost"]}
    masks = {"heads kept": "heads", "neurons kept": "ffn", "t_steps": "t_steps"}
    return {**facts, **{words: row[name] for words, name in masks.items() if name in row}}
