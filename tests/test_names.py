"""A name that chooses a way of computing is one of the right ones, or refused with them; none falls through."""

from __future__ import annotations

import pytest
import torch
from students import make, sentences

from spikeprune.config import names
from spikeprune.config.load import load
from spikeprune.config.tasks import get_task
from spikeprune.cost.summary import latency_stages, latency_steps
from spikeprune.data.glue import load_raw
from spikeprune.errors import InputError
from spikeprune.experiment.prediction import open_predictor
from spikeprune.kernels import attach
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.pruning.schedules import keep_highest
from spikeprune.snn.neurons import LONGEST
from spikeprune.training.callbacks.budget import BudgetPruning
from spikeprune.training.callbacks.quantization import WeightQuantization
from spikeprune.training.callbacks.spatial import SpatialPruning
from spikeprune.training.callbacks.temporal import TemporalPruning
from spikeprune.training.modules.student import DistillationModule
from tests.micro import GLUE

WRONG = "acumulate"
SPATIAL = {"heads": 0.5, "ffn": 0.5, "criterion": "fisher", "scope": "global", "min_heads": 1, "min_ffn": 1}
BATCHES = {"batches": 1, "batch_size": 1, "seed": 0, "begin": 0, "end": 1}
TEMPORAL = {"t_steps": 2, "criterion": "uniform"}
JOINT = {"target": "ac", "share": 0.5, "relative_to": "dense", "candidates": ["ffn"], "min_heads": 1, "min_ffn": 1}
JOINT |= {"sentences": 1, "measured": 1, "batch_size": 1, "seed": 0}
JOINT |= dict.fromkeys(("dense_shape",))
JOINT |= {"settle": 1, "end": 1}
RAW = {"task": get_task("sst2"), "directory": None, "hub": "", "seed": 0, "train_limit": None}
RAW |= {"embedded_train": 1, "embedded_dev": 1}
NOTHING = dict.fromkeys(("losses", "layer_map"))


def student_with(name: str):
    return lambda: make(**{name: WRONG})


def keep():
    keep_highest(torch.ones(2, 3), torch.ones(2, 3), 2, floor=1, scope=WRONG)


CHOICES = [
    ("mode", lambda: make()(**sentences(), mode=WRONG), "equilibrium, spiking, calibrate, clip"),
    ("spikes", student_with("spikes"), "binary, ternary, ternary_scaled"),
    ("coding", student_with("coding"), "accumulate, running_mean, per_step"),
    ("query", student_with("query"), "real, spiking"),
    ("pooling", student_with("pooling"), "mean, cls"),
    ("theta", student_with("theta"), "channel, tensor"),
    ("act", student_with("act"), "gelu, gelu_new, relu"),
    ("residual", student_with("residual"), "spikes, membrane"),
    ("weights", student_with("weights"), "float, binary, ternary, int8"),
    ("kernels", lambda: attach(make(), WRONG), "torch, triton"),
    ("forward mode", lambda: DistillationModule(None, None, **NOTHING, forward_mode=WRONG), "equilibrium, spiking"),
    ("scope", keep, "global, layer"),
    ("coding", lambda: latency_steps([1, 2], WRONG), "accumulate, running_mean, per_step"),
    ("coding", lambda: latency_stages([1, 2], WRONG), "accumulate, running_mean, per_step"),
    ("criterion", lambda: SpatialPruning(**{**SPATIAL, **BATCHES, "criterion": WRONG}), "magnitude, rate, taylor"),
    ("scope", lambda: SpatialPruning(**{**SPATIAL, **BATCHES, "scope": WRONG}), "global, layer"),
    ("criterion", lambda: TemporalPruning(**{**TEMPORAL, **BATCHES, "criterion": WRONG}), "uniform, convergence"),
    ("target", lambda: BudgetPruning(**{**JOINT, "target": WRONG}), "ac, energy, equal_bits, latency"),
    ("relative_to", lambda: BudgetPruning(**{**JOINT, "relative_to": WRONG}), "dense, student"),
    ("model", lambda: BudgetPruning(**{**JOINT, "model": WRONG}), "convention, fp32"),
    ("weights", lambda: WeightQuantization(WRONG), "binary, ternary, int8"),
    ("runtime", lambda: open_predictor("no run", runtime=WRONG), "torch, c"),
    ("candidate", lambda: BudgetPruning(**{**JOINT, "candidates": [WRONG]}), "heads, ffn, steps"),
    ("data.source", lambda: load_raw(**RAW, source=WRONG), "auto, hub, dir, embedded"),
]


IDS = [f"{what}-{i}" for i, (what, *_) in enumerate(CHOICES)]


@pytest.mark.parametrize(("what", "call", "right"), CHOICES, ids=IDS)
def test_a_wrong_name_lists_the_right_ones(what, call, right) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert what in text and WRONG in text and right in text and "\n" not in text


def test_heads_that_do_not_divide_the_width_are_no_student() -> None:
    with pytest.raises(ValueError, match="12 is no multiple of 5 heads"):
        SpikingBert(vocab=9, positions=9, segments=2, hidden=12, layers=1, heads=5, ffn=8, classes=2, t_steps=1)
    with pytest.raises(ValueError, match="3 classes need as many labels, not 2"):
        make(labels=("a", "b"))


def test_the_longest_train_of_a_configuration_is_the_longest_that_is_simulated() -> None:
    assert names.LONGEST == LONGEST
    for steps in (LONGEST + 1, f"[{LONGEST + 1},2,2]"):
        with pytest.raises(InputError, match=f"student.t_steps = .* at most {LONGEST} steps"):
            load(GLUE, ["task=sst2", "preset=tiny", f"student.t_steps={steps}"])


def test_the_right_names_are_taken() -> None:
    assert SpatialPruning(**SPATIAL, **BATCHES).scope == "global"
    TemporalPruning(**TEMPORAL, **BATCHES)
    BudgetPruning(**JOINT)
    infer(make(), **sentences())
