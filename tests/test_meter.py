"""The meter of a budget against the counted cost, and what single units save."""

from __future__ import annotations

import pytest
import torch
from pruning import F, H, L, batches, make

from spikeprune.config import names
from spikeprune.cost.dense import dense
from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.cost.network import dense_network
from spikeprune.cost.operations import count
from spikeprune.cost.opponents import equal_bits
from spikeprune.cost.shapes import Shape
from spikeprune.cost.summary import summarize
from spikeprune.models.outputs import INPUTS
from spikeprune.models.shape import student_network
from spikeprune.pruning.budget import TARGETS, Budget, CostMeter
from spikeprune.pruning.gates import KINDS
from spikeprune.snn.coding import CODINGS

SHAPE = Shape(hidden=12, heads=H, ffn=F, layers=L, classes=3, theta="channel", vocab_size=23, positions=8)
TEACHER = Shape(hidden=12, heads=H, ffn=F, layers=3, classes=3, pooling="cls", vocab_size=23, positions=8)


def meter(target: str = "energy", shape: Shape = SHAPE) -> CostMeter:
    return CostMeter(
        batches((4, 3), seed=3), target=target, shape=shape, dense_shape=TEACHER, model=ENERGY_MODELS["convention"]
    )


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("target", TARGETS)
def test_the_meter_reads_what_the_run_reports(coding, target) -> None:
    student = make(1, coding=coding).eval()
    student.heads[0, 1], student.ffn[1, 3:9] = 0, 0
    ops = plain = None
    with torch.no_grad():
        for batch in batches((4, 3), seed=3):
            lengths = batch["attention_mask"].sum(1)
            counts = student(*(batch[name] for name in INPUTS), mode="spiking", count=True).counts
            masks = {"heads": student.heads, "ffn": student.ffn, "t_steps": student.steps}
            one = count(counts, lengths, shape=SHAPE, coding=coding, **masks)
            ops = one if ops is None else ops + one
            here = dense(lengths, shape=TEACHER)
            plain = here if plain is None else plain + here
    common = {"dense_ops": plain, "model": ENERGY_MODELS["convention"]}
    cost = summarize(student_network(student, ops), shape=SHAPE, **masks, coding=coding, **common)
    teacher = summarize(dense_network(plain, shape=TEACHER), shape=TEACHER, **common)
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches((4, 3), seed=3)])
    equal = ENERGY_MODELS["convention"].per_sample(equal_bits(lengths, shape=SHAPE, **masks))
    wanted = {
        "equal_bits": cost["energy_pj"] / equal,
        "energy": cost["energy_pj"] / teacher["energy_pj"],
        "ac": cost["ac"] / teacher["mac"],
        "latency": cost["latency_steps"],
    }
    assert meter(target).value(student) == pytest.approx(wanted[target])
    student.train()
    assert meter(target).value(student) == pytest.approx(wanted[target]) and student.training


@pytest.mark.parametrize("coding", CODINGS)
def test_a_last_layers_neurons_save_as_estimated(coding) -> None:
    """Nothing but the output layer, which the mean pooling reads once, fires differently when they are gone: with its
    weights at zero not even that."""
    student, measure = make(1, coding=coding).eval(), meter("ac")
    with torch.no_grad():
        student.layers[-1].down.weight.zero_()
    before, (heads, ffn) = measure.value(student), measure.savings(student)
    student.ffn[-1, [2, 5, 30]] = 0
    assert before - measure.value(student) == pytest.approx(ffn[-1, [2, 5, 30]].sum().item())
    student.heads[0, 0] = 0
    assert (measure.savings(student)[1] > 0).all() and (heads > 0).all()


def test_latency_is_of_the_students_own_steps() -> None:
    assert Budget("latency", 0.5, reference=8.0).goal == 4 and Budget("energy", 0.5, reference=8.0).goal == 0.5
    with pytest.raises(ValueError, match="latency is a share of the student's own time steps"):
        Budget("latency", 0.5, "dense")
    with pytest.raises(ValueError, match="share = 0: must be above 0"):
        Budget("energy", 0.0)


def test_the_names_in_checks_are_those_of_the_registries() -> None:
    assert names.TARGETS == TARGETS and names.CANDIDATES == KINDS


@pytest.mark.parametrize(
    ("value", "reported", "start", "why"),
    [
        (100.0, 98.5, 90.0, ""),  # within 2 % of the goal
        (98.5, 101.5, 90.0, ""),
        (100.1, 100.1, None, "nothing is left that the floors allow to remove"),
        (97.9, 97.9, 100.0, "the stage began below the target"),
        (97.9, 97.9, 100.1, "firing rates fell after the last decision"),
        (97.9, 97.9, None, "firing rates fell after the last decision"),
        (99.0, 102.1, 90.0, "measured on 7 training sentences, the report on those that are scored"),
    ],
)
def test_why_a_cost_is_off_its_goal(value, reported, start, why) -> None:
    found = Budget("energy", 0.5, "student", reference=200.0).shortfall(value, reported, start=start, sentences=7)
    assert why in found and bool(found) == bool(why)


@pytest.mark.parametrize(
    ("target", "relative_to"), [*((target, "student") for target in TARGETS), *((t, "dense") for t in TARGETS[:-1])]
)
def test_every_cost_has_words(target, relative_to) -> None:
    unit = 5.0 if relative_to == "student" else 1.0
    words = Budget(target, 0.5, relative_to, reference=5.0).in_words(0.200002 * unit)
    assert words.startswith("0.2001 of the ") and ("uncompressed" in words) == (relative_to == "student")
