"""The C runtime's benchmark and its comparison with the Python network; docs/runtime.md has what they give."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.bench import agreement, nets, runtime, runtime_report  # noqa: E402
from spikeprune.data.tokenizer import train_wordpiece  # noqa: E402
from spikeprune.errors import InputError  # noqa: E402
from spikeprune.models.sequence_classification import SpikingBertForSequenceClassification  # noqa: E402

CPU = torch.device("cpu")
TINY = nets.Size("tiny", 24, 2, 3, 37, vocab=50)


def test_the_runtimes_results_are_kept_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runtime_report, "KEPT", tmp_path / "kept.json")
    file = tmp_path / "bench-runtime.json"
    made = {"made": {"commit": "0123456789ab"}, "rows": [{"budget": 4}]}
    file.write_text(json.dumps({**made, "budgets": [4, 10, 30]}))
    with pytest.raises(InputError, match=r"cut short before its budgets 1/10, 1/30: measure again"):
        runtime_report.keep(file)
    file.write_text(json.dumps(made))
    with pytest.raises(InputError, match="budgets"):
        runtime_report.keep(file)
    assert not runtime_report.KEPT.exists()


@pytest.mark.compiler
def test_the_runtime_is_timed_at_its_budgets(tmp_path, monkeypatch) -> None:
    """Thresholds bring each form near the budget; a form's fit has its points on it."""
    forms = ("float rows, events", "ternary rows, events", "synapses in blocks of 16, as blocks")
    monkeypatch.setattr(runtime, "FORMS", {name: runtime.FORMS[name] for name in forms})
    monkeypatch.setattr(runtime, "STORED", {"tiny": (TINY, runtime.Units(2, 2, 9), "ternary, words of 8 bits", 8)})
    monkeypatch.setattr(runtime, "ARM", ["no-such-compiler"])
    monkeypatch.setattr(runtime.onnx_graph, "missing", lambda: ["onnxruntime"])
    monkeypatch.setattr(
        runtime, "warm_seconds", lambda works, budget: {n: work() and 1e-3 for n, work in works.items()}
    )
    made = runtime.run(tmp_path, [30, 75], 0.0, replace(TINY, hidden=48, ffn=96))
    assert [row["budget"] for row in made["rows"]] == [30, 75]
    for row in made["rows"]:
        assert set(row["seconds"]) == {*runtime.FORMS, runtime.SILENT}
        for name, facts in row["facts"].items():
            assert 0.5 < facts["energy"] / row["budget"] < 2, name
    assert [row["whole"] for row in made["differences"] if row["precision"] == "double"] == [0, 0]
    made["rows"][1]["seconds"] = dict.fromkeys(made["rows"][1]["seconds"], 5e-4)
    fixed, slope = runtime_report.fit(made, "float rows, events")
    first, second = (row["facts"]["float rows, events"]["additions"] / 1e6 for row in made["rows"])
    assert [fixed + slope * first, fixed + slope * second] == pytest.approx([1.0, 0.5])
    written = json.loads((tmp_path / "bench-runtime.json").read_text())
    runtime_report.draw(written, tmp_path / "runtime.svg")
    assert "| tiny | " in runtime_report.markdown(written) and (tmp_path / "runtime.svg").stat().st_size > 1000


@pytest.mark.compiler
def test_a_saved_student_is_compared_on_its_dev_split(tmp_path, monkeypatch) -> None:
    """Labels, and on the same spikes additions, agree; a spike that the C program fires elsewhere is counted."""
    made = nets.student(TINY, CPU, weights="ternary", fold=True, t_steps=3)
    made.set_strength(1.0)
    SpikingBertForSequenceClassification.of(made).save_pretrained(tmp_path)
    train_wordpiece(["a fine film", "a dull one"] * 9, vocab_size=TINY.vocab).save_pretrained(tmp_path)
    words = ["task=sst2", "preset=tiny", "data.source=embedded", "data.embedded=[8,6]", "data.max_length=16"]
    found = agreement.run(tmp_path, words)
    assert [row["weights"] for row in found["rows"]] == [*["ternary"] * 2, *["ternary, as floats"] * 2]
    for row in found["rows"]:
        assert row["labels"] == row["additions"] == row["sentences"] == 6 and row["spikes"] > 1000
        assert row["each"] <= row["spikes"] / 1e3 and row["own"] <= row["spikes"] / 10 and row["apart"] < 0.1
    assert "| ternary | single precision | 6 of 6 | " in agreement.markdown(found)

    def shifted(network, batch, spikes_of=agreement.spikes_of):
        trains, outputs = spikes_of(network, batch)
        trains["layers.1.output"][0, 3] += 1
        return trains, outputs

    monkeypatch.setattr(agreement, "spikes_of", shifted)
    found = agreement.run(tmp_path, words)
    assert all(row["each"] >= 6 and row["additions"] == 0 for row in found["rows"])
    assert "sentence 5, layers.1.output, token 0, channel 3: -1" in "".join(agreement.places(found))
    with pytest.raises(InputError, match="of the coding accumulate"):
        agreement.settled(nets.student(TINY, CPU, coding="per_step", t_steps=3))


def test_the_runtimes_page_is_what_its_kept_results_give() -> None:
    page = runtime_report.PAGE.read_text(encoding="utf-8")
    for script in (runtime_report, agreement):
        assert script.page_with(page, json.loads(script.KEPT.read_text(encoding="utf-8"))) == page
