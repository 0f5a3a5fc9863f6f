"""The dense opponent: real activations in place of spikes, under the same masks and recipe, beside the student."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from micro import GLUE, micro, only, write_sst2
from students import make, prune, sentences
from transformers import BertConfig, BertForSequenceClassification

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.cost.dense import dense
from spikeprune.errors import InputError
from spikeprune.experiment import pipeline, timing
from spikeprune.models.compaction import compact
from spikeprune.models.conversion import from_bert
from spikeprune.models.inference import infer
from spikeprune.models.shape import student_operations, student_shape

CONFIG = BertConfig(
    vocab_size=23,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=37,
    max_position_embeddings=16,
    num_labels=3,
)


@pytest.mark.parametrize("t_steps", [1, 3])
def test_it_is_the_bert_that_it_starts_from(t_steps) -> None:
    """Its activations are neither rounded nor clipped, whatever thresholds and steps are; so are its gradients."""
    torch.manual_seed(0)
    bert, batch = BertForSequenceClassification(CONFIG).double().eval(), sentences()
    student = from_bert(bert, batch, spikes="dense", pooling="cls", t_steps=t_steps).eval()
    wanted = bert(**batch).logits
    with torch.no_grad():
        for mode in ("equilibrium", "spiking", "clip"):
            torch.testing.assert_close(student(**batch, mode=mode).logits, wanted)
    student(**batch, mode="equilibrium").logits.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(
        student.layers[0].up.weight.grad, bert.bert.encoder.layer[0].intermediate.dense.weight.grad
    )


@torch.no_grad()
def test_it_costs_the_products_of_kept_units() -> None:
    student, batch = prune(make(3, spikes="dense")), sentences()
    lengths, kept = batch["attention_mask"].sum(1), {"heads": student.heads, "ffn": student.ffn}
    wanted = dense(lengths, shape=student_shape(student), **kept)
    for one in (student, compact(student)):
        ops = student_operations(one, infer(one, **batch).counts, lengths)
        assert ops.ac.sum() == 0 and torch.equal(ops.mac, wanted.mac) and ops.kinds["spikes"].sum() == 0


# ------------------------------------------------------------------------------------------------------- on a whole run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each: {spikes: (directory, summary)}."""
    folder = tmp_path_factory.mktemp("opponents")
    glue = write_sst2(folder / "glue")
    found = {}
    for spikes in ("ternary", "dense"):
        where = folder / spikes
        own = [f"student.spikes={spikes}", *only("internal_kd", "spatial"), "stages.internal_kd.epochs=1"]
        free = [f"stages.{stage}.losses.additions{rest}" for stage in ("spatial",) for rest in ("=0", "_limit=null")]
        config = load(GLUE, [*micro(where, glue), *own, *free])
        found[spikes] = where, pipeline.run(config)
    return found


def test_its_score_and_cost_stand_in_the_summary(runs, capsys) -> None:
    where, summary = runs["dense"]
    row = summary["stages"]["spatial"]
    assert row["cost"]["ac"] == 0 and row["cost"]["mac"] < summary["teacher"]["cost"]["mac"] and row["heads"] == [1, 2]
    energies = row["energy"]["convention"]
    assert energies["equal_bits"] is None and energies["pays_below"] is None
    assert energies["ratios"]["teacher"] == pytest.approx(summary["stages"]["spatial"]["energy_saving"])
    assert cli.main(["evaluate", str(where)]) == 0
    assert "Dense activations, no spikes" in capsys.readouterr().out


def test_evaluate_shows_models_and_opponents_and_times_them(runs, capsys, monkeypatch) -> None:
    """Each form that is timed computes the network that it is a form of."""
    where, summary = runs["ternary"]
    logits, milliseconds = [], timing.milliseconds

    def spy(form, batches) -> float:
        with torch.no_grad():
            found = form(batches[-1])
        found = found[0] if isinstance(found, list) else found.logits  # of onnxruntime, or of PyTorch and C
        logits.append(np.asarray(found, float).reshape(-1))
        return milliseconds(form, batches)

    monkeypatch.setattr(timing, "milliseconds", spy)
    assert cli.main(["evaluate", str(where), "--energy", "cost.model=memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    energy, ms = found["energy"], found["measured_ms"]
    assert found["cost"]["energy_pj"] == energy["memory"]["student"] != energy["convention"]["student"]
    for name, kept in summary["stages"]["spatial"]["energy"].items():
        assert energy[name]["teacher"] == kept["teacher"] and energy[name]["student"] == pytest.approx(kept["student"])
    assert [(form["network"], form["runs_in"]) for form in ms["forms"]] == list(timing.FORMS)
    assert all(form["ms"] > 0 if "ms" in form else form["absent"] for form in ms["forms"])
    assert ms["sentences"] == 24 and ms["machine"]
    first: dict[str, np.ndarray] = {}
    for form, found in zip((form for form in ms["forms"] if "ms" in form), logits, strict=True):
        network, in_int8, _ = form["network"].partition("_int8")
        np.testing.assert_allclose(found, first.setdefault(network, found), atol=0.3 if in_int8 else 1e-4)


def no_compiler(networks) -> timing.Form:
    raise InputError("cc is not on PATH")


def test_a_form_that_cannot_be_made_has_its_reason(runs, capsys, monkeypatch, tmp_path) -> None:
    where, _ = runs["ternary"]
    forms = {key: form for key, form in timing.FORMS.items() if key[1] == "PyTorch"}
    monkeypatch.setattr(timing, "FORMS", {**forms, ("student", "C"): no_compiler})
    assert cli.main(["evaluate", str(where), "--energy"]) == 0
    printed = capsys.readouterr().out
    for words in ("equal bits", "pays below", "spikes take less energy", "measured", "one thread", "dense teacher"):
        assert words in printed, words
    assert "student in C: cc is not on PATH" in printed
    assert cli.main(["evaluate", str(where), "--stage", "teacher", "--energy"]) == 2
    assert cli.main(["report", str(where), "--energy", "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "student in C: cc is not on PATH" in page and "on this machine" in page
    assert "on this machine" not in (where / "report.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["student.coding=per_step", "student.forward=spiking"],
            "student.coding = per_step: student.spikes = dense has no",
        ),
        (
            ["stages.temporal.t_steps=1", "stages.temporal.epochs=1"],
            "stages.temporal: student.spikes = dense has no spikes",
        ),
        (
            ["stages.finetune.losses.additions=1"],
            "stages.finetune.losses.additions = 1.0: student.spikes = dense has no",
        ),
    ],
)
def test_what_counts_or_shortens_trains_is_refused(overrides, message) -> None:
    plain = ["preset=tiny", "student.spikes=dense", *only("finetune"), "stages.finetune.losses.additions=0"]
    plain.append("stages.finetune.losses.additions_limit=null")
    load(GLUE, plain)
    with pytest.raises(InputError, match="student.spikes = dense") as error:
        load(GLUE, [*plain, *overrides])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cost.model=memry"], "(did you mean memory?)"),
        (["cost.prices=fp32"], "cost.prices: unknown key"),
        (
            ["cost.model=int8", "student.t_steps=200"],
            "cost.model = int8: has no figure for the 9 bits that student.t_steps = 200 takes densely; use int32",
        ),
    ],
)
def test_an_energy_model_that_is_none_or_lacks_a_figure(overrides, message) -> None:
    with pytest.raises(InputError) as error:
        load(GLUE, ["preset=tiny", *overrides])
    assert message in str(error.value) and "\n" not in str(error.value)
