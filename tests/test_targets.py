"""What a joint budget may ask for, decided before anything is loaded; ablation files; the ablation's table."""

from __future__ import annotations

import csv
import io

import pytest
from micro import GLUE, ROOT

from spikeprune.config.derived import active_stages, compresses
from spikeprune.config.load import load
from spikeprune.errors import InputError
from spikeprune.report.ablation import rows, spread, to_csv, to_markdown

STAGES = ("stages.prediction_kd.epochs=1", "stages.budget.epochs=2")
ENERGY = (*STAGES, "stages.budget.value=0.02")
LATENCY = (*STAGES, "stages.budget.target=latency", "stages.budget.value=0.5")
WRONG = [
    (STAGES, "stages.budget: the stage would compress nothing; set its value"),
    ((*ENERGY, "stages.budget.target=enrgy"), "stages.budget.target = enrgy: choose from"),
    ((*ENERGY, "stages.budget.value=1.5"), "stages.budget.value = 1.5: must be above 0 and at most 1"),
    ((*ENERGY, "stages.budget.value=0"), "stages.budget.value = 0.0: must be above 0"),
    ((*ENERGY, "stages.budget.candidates=[head]"), "stages.budget.candidates: unknown head; choose from"),
    ((*ENERGY, "stages.budget.candidates=[]"), "stages.budget.candidates = []: must name"),
    ((*ENERGY, "stages.budget.candidates=[ffn,ffn]"), "stages.budget.candidates = ['ffn', 'ffn']: must name"),
    ((*LATENCY, "stages.budget.candidates=[heads]"), "stages.budget.target = latency: only time steps change it"),
    (
        (*LATENCY, "stages.budget.value=0.2"),
        "stages.budget.value = 0.2: leaves fewer than 3 of student.t_steps' 12",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG, ids=[message[:60] for _, message in WRONG])
def test_what_cannot_work_is_told(overrides, message, tmp_path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "empty.yaml", overrides)
    lines = [line for line in str(caught.value).splitlines() if line.strip().startswith(message)]
    assert len(lines) == 1, str(caught.value)
    assert lines[0].endswith("[command line]")


def test_what_can_work_is_accepted(tmp_path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    heads = (*ENERGY, "stages.budget.candidates=[heads]")
    for more in (ENERGY, heads, LATENCY, (*LATENCY, "stages.budget.value=0.25")):
        load(tmp_path / "empty.yaml", more)
    for steps in ("4", "[4,2,2]"):  # of layers that tick together the longest is the latency
        ticking = ["student.coding=running_mean", f"student.t_steps={steps}"]
        load(tmp_path / "empty.yaml", [*LATENCY, *ticking, "stages.budget.value=0.25"])


@pytest.mark.parametrize("preset", ["tiny", "minilm", "base", "paper"])
def test_a_budget_takes_the_place_and_the_length_of_the_other_stages(preset) -> None:
    plain = load(GLUE, [f"preset={preset}"]).stages
    config = load(GLUE, [f"preset={preset}", "stages.budget.value=0.01"])
    stages, removed = config.stages, (plain.spatial, plain.temporal)
    assert [s for s in active_stages(config) if compresses(config, s)] == ["budget", "finetune"]
    assert stages.budget.epochs == sum(stage.epochs for stage in removed) > 0
    assert stages.budget.steps == sum(stage.steps for stage in removed)
    assert (stages.finetune.epochs, stages.finetune.steps) == (
        -(-stages.budget.epochs // 2),
        -(-stages.budget.steps // 2),
    )
    for losses in (stages.budget.losses, stages.finetune.losses):  # the price is in their place
        assert losses.additions == 0 and losses.additions_limit is None
    given = [
        "stages.budget.value=0.01",
        "stages.temporal.epochs=2",
        "stages.finetune.steps=7",
        "stages.finetune.losses={additions: 1, additions_limit: 0.5}",
    ]
    stages = load(GLUE, [f"preset={preset}", *given]).stages
    assert (stages.temporal.epochs, stages.finetune.losses.additions_limit) == (2, 0.5)  # the command line stays
    assert stages.finetune.steps == 7
    own = load(GLUE, [f"preset={preset}", "stages.budget.value=0.01", "stages.budget.epochs=3"]).stages
    assert own.spatial.epochs and not own.finetune.losses.additions
    latency = load(GLUE, [f"preset={preset}", "stages.budget.value=0.5", "stages.budget.target=latency"]).stages
    assert latency.finetune.losses == plain.finetune.losses  # which firing does not change


# ------------------------------------------------------------------------------------------------------------ ablations

ABLATIONS = sorted(path.stem for path in (ROOT / "experiments" / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("preset", ["tiny", "minilm", "base", "paper"])
def test_every_ablation_goes_with_every_preset(name, preset) -> None:
    for task in ("sst2", "stsb"):
        config = load(GLUE, [f"task={task}", f"preset={preset}", f"ablation={name}"])
        assert config.run.dir == f"runs/{task}-{preset}-{name}-s0"
        compressing = [s for s in active_stages(config) if compresses(config, s)]
        everything = ["spatial", "temporal", "quantize"]
        wanted = {"spatial+temporal": everything[:2], "none": [], "all": everything, "dense": everything[:1]}
        if not name.startswith("joint"):
            assert compressing == wanted.get(name, [name])
        else:
            assert compressing == ["budget", "finetune"] and config.stages.budget.value == 0.02


def test_the_ablations_that_the_script_runs_are_files() -> None:
    text = (ROOT / "experiments" / "ablation.py").read_text()
    line = next(line for line in text.splitlines() if line.startswith("ABLATIONS = "))
    assert set(eval(line.partition("=")[2])) <= set(ABLATIONS)


# ---------------------------------------------------------------------------------------------------------------- table


def summary(seed: int, accuracy: float, ac: float, budget=None) -> dict:
    dense = {"ac": 0.0, "mac": 1000.0, "energy_pj": 4600.0, "bytes": 400}
    full = dense | {"ac": 2000.0, "mac": 10.0, "energy_pj": 1846.0, "latency_steps": 12}
    small = full | {"ac": ac, "energy_pj": 0.9 * ac + 46.0, "latency_steps": 6, "bytes": 100}

    def row(score: float, cost: dict) -> dict:
        return {"metrics": {"accuracy": score}, "main": score, "cost": cost}

    stages = {"prediction_kd": row(0.9, full), "finetune": row(accuracy, small)}
    if budget:
        stages["finetune"]["budget"] = budget
    facts = {"task": "sst2", "preset": "tiny", "seed": seed, "data": {"source": "dir", "banner": None}}
    return facts | {"teacher": row(0.95, dense), "stages": stages, "uncompressed": "prediction_kd", "final": "finetune"}


def test_the_table_by_hand() -> None:
    off = {"within": False, "why_not": "nothing is left"}
    found = {("joint", 0): summary(0, 0.8, 100.0), ("joint", 1): summary(1, 0.84, 300.0, off)}
    table = to_markdown(found, {("joint-temporal", 0): "out of reach"})
    line = next(line for line in table.splitlines() if line.startswith("| joint |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # mean 82, deviation √8; additions 200 ± √20000; energy 136 and 316 pJ; 4600 / 136 and 4600 / 316
    assert cells[:4] == ["joint", "82.0 ± 2.8", "200 ± 141", "10.0 ± 0"]
    assert cells[4:] == ["226 ± 127", "24.2 ± 13.6", "6.00 ± 0", "100 ± 0", "0 1"]
    assert "| dense teacher | 95.0 ± 0.0 |" in table and "| spiking student | 90.0 ± 0.0 |" in table
    assert "- joint, seed 1: off its target by more than 2 %: nothing is left" in table
    assert "- joint-temporal, seed 0: out of reach" in table
    assert "cheapest first: joint." in table  # the only one; teacher and student are no way of compressing
    flat = list(csv.DictReader(io.StringIO(to_csv(rows(found)))))
    assert [(row["ablation"], row["seed"]) for row in flat] == [
        ("dense teacher", "0"),
        ("spiking student", "0"),
        ("dense teacher", "1"),
        ("spiking student", "1"),
        ("joint", "0"),
        ("joint", "1"),
    ]
    assert float(flat[-1]["energy_saving"]) == pytest.approx(4600 / 316) and flat[0]["latency_steps"] == ""


def test_the_table_tells_who_is_near_the_teacher() -> None:
    """Of the first dev split; where an older result of another ablation does not know it, and of the teacher, `-`."""
    found = {("joint", 0): summary(0, 0.8, 100.0), ("joint", 1): summary(1, 0.84, 300.0), ("old", 0): summary(0, 1, 1)}
    assert "agreement" not in to_markdown(found, {}) and "agreement" not in to_csv(rows(found))
    for seed, agreement, divergence in ((0, 0.9, 0.1), (1, 0.94, 0.3)):
        mine = {"agreement": agreement, "divergence": divergence, "mm/agreement": 0.5, "mm/divergence": 2.0}
        found["joint", seed]["stages"]["finetune"]["fidelity"] = mine
    table = to_markdown(found, {})
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}
    assert lines[""].startswith("|  | accuracy | agreement | KL | AC |")
    assert lines["joint"].startswith("| joint | 82.0 ± 2.8 | 92.0 ± 2.8 | 0.200 ± 0.141 | 200 ± 141 |")
    for name in ("dense teacher", "spiking student", "old"):
        assert lines[name].split("|")[3:5] == [" - ", " - "]
    assert len({line.count("|") for line in lines.values()}) == 1 and ", nats." in table
    flat = {(row["ablation"], row["seed"]): row for row in csv.DictReader(io.StringIO(to_csv(rows(found))))}
    assert (flat["joint", "1"]["agreement"], flat["joint", "1"]["divergence"]) == ("0.94", "0.3")
    assert flat["old", "0"]["agreement"] == flat["dense teacher", "0"]["divergence"] == ""


def test_a_regression_has_no_agreement_in_the_table() -> None:
    found = {("joint", 0): summary(0, 0.8, 100.0)}
    found["joint", 0]["stages"]["finetune"]["fidelity"] = {"divergence": 0.25}
    table = to_markdown(found, {})
    assert "| accuracy | agreement | squared difference | AC |" in table and "| joint | 80.0 | - | 0.250 |" in table
    assert "KL" not in table and "between the student's outputs and the teacher's." in table


def test_ways_are_compared_seed_by_seed() -> None:
    """Only where both have two seeds in common: c has one of a's. Scores and agreement in points, KL as it is."""
    scores = {("a", 0): 0.80, ("a", 1): 0.90, ("b", 1): 0.86, ("b", 0): 0.82, ("c", 1): 0.5, ("c", 2): 0.5}
    found = {(name, seed): summary(seed, score, 100.0) for (name, seed), score in scores.items()}
    line = "- a less b, seed by seed: score +1.000 ± 4.243 (above in 1 of 2)"
    assert [row for row in to_markdown(found, {}).splitlines() if "seed by seed" in row] == [line]
    for (name, seed), divergence in {("a", 0): 0.1, ("a", 1): 0.2, ("b", 0): 0.15, ("b", 1): 0.3}.items():
        mine = {"agreement": 0.9 + divergence, "divergence": divergence}
        found[name, seed]["stages"]["finetune"]["fidelity"] = mine
    more = ", agreement -7.500 ± 3.536 (above in 0 of 2), KL -0.075 ± 0.035 (above in 0 of 2)"
    assert line + more in to_markdown(found, {}).splitlines()


def test_a_single_seed_has_no_spread() -> None:
    assert spread([0.5], str) == "0.5"


def test_the_front_of_the_table() -> None:
    """Of means: b is dearer and worse than the mean of a."""
    found = {("a", 0): summary(0, 0.8, 100.0), ("a", 1): summary(1, 0.9, 300.0)}
    found |= {("b", 0): summary(0, 0.84, 250.0), ("c", 0): summary(0, 0.86, 400.0), ("d", 0): summary(0, 0.5, 50.0)}
    assert "cheapest first: d, a, c." in to_markdown(found, {})
