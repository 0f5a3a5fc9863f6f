"""The closing table: its numbers, its warning, its width."""

import json

import pytest

from spikeprune.report.command_output import evaluation_lines
from spikeprune.report.energy_table import sentences
from spikeprune.report.numbers import energy_unit, si
from spikeprune.report.tables import budget_line, summary_table


def cost(energy, **more):
    return {"ac": 0, "mac": 0, "energy_pj": energy, "params": 1_234_567, "bytes": 4_938_268, **more}


def stage(main, energy, t_steps, heads, ffn):
    return {
        "metrics": {"accuracy": main, "f1": main + 0.01},
        "main": main + 0.005,
        "fidelity": {"agreement": 0.9454, "divergence": 0.1234, "mm/agreement": 0.5},
        "cost": cost(energy, ac=energy / 0.9, latency_steps=sum(t_steps)),
        "t_steps": t_steps,
        "heads": heads,
        "ffn": ffn,
        "encoder_weights": {"kind": "float", "stored_bits": 32, "bytes": 1_572_864, "float32": "everything"},
        "seconds": 12.5,
    }


def make_summary(layers=2, source="embedded"):
    whole = {"t_steps": [4] * (layers + 1), "heads": [4] * layers, "ffn": [512] * layers}
    small = {"t_steps": [2] + [1] * layers, "heads": [2] + [1] * (layers - 1), "ffn": [128] * layers}
    summary = {
        "task": "mrpc",
        "main_metric": "accuracy+f1",
        "preset": "tiny",
        "shape": {"layers": layers, "hidden": 128, "heads": 4, "ffn": 512},
        "seed": 0,
        "data": {"source": source, "origin": source, "fingerprint": "0" * 8, "banner": None},
        "teacher": {"metrics": {"accuracy": 0.95, "f1": 0.96}, "main": 0.955, "cost": cost(36.2e6, mac=7.87e6)},
        "stages": {
            "internal_kd": stage(0.921, 12e6, **whole),
            "prediction_kd": stage(0.942, 11.5e6, **whole),
            "temporal": stage(0.925, 1.81e6, **small),
        },
        "uncompressed": "prediction_kd",
        "final": "temporal",
    }
    return json.loads(json.dumps(summary))  # the table is made from a file


def cells(table, name):
    line = next(line for line in table.splitlines() if line.startswith(name))
    return line.removeprefix(name).split()


def test_rows():
    table = summary_table(make_summary())
    sizes = ["1.23M", "4.94M"]
    assert cells(table, "dense teacher") == ["95.5", "95.0", "96.0", "0", "7.87M", "36.2", "1.00", *"----", *sizes]
    student = ["94.7", "94.2", "95.2", "12.8M", "0", "11.5", "3.15", "4", "100%", "100%", "12", *sizes]
    assert cells(table, "prediction_kd") == student
    assert cells(table, "temporal  ") == [
        "93.0",
        "92.5",
        "93.5",
        "2.01M",
        "0",
        "1.81",
        "20.0",
        "1.33",
        "38%",
        "25%",
        "4",
        *sizes,
    ]
    assert "temporal: 93.0, 2.5 below the dense teacher; energy 36.2 → 1.81 µJ (÷ 20.0)" in table
    assert "  t_steps  2 1 1  (embedding first)\n  heads    2 1\n  neurons  128 128\n" in table


def test_quantized_weights_are_named_and_what_stays_float_too():
    summary = make_summary(layers=12)
    assert "weights" not in summary_table(summary)
    parts = "embeddings, pooler, classifier, biases, layer norms, thresholds"
    found = {"kind": "ternary", "stored_bits": 2, "bytes": 104_448, "float32": parts}
    summary["stages"]["temporal"]["encoder_weights"] = found
    table = summary_table(summary)
    assert "  weights  ternary, packed in 2 bits: the encoder's matrices take 104k bytes\n" in table
    assert f"           float32: {parts}\n" in table and max(map(len, table.splitlines())) <= 112


def test_how_near_the_teacher_is_told():
    summary = make_summary()
    assert "(÷ 20.0)\nsame label as the teacher: 94.5 % (KL 0.123 nats)\n  t_steps" in summary_table(summary)
    summary["stages"]["temporal"]["fidelity"] = {"divergence": 0.5}
    assert "\nmean squared difference to the teacher: 0.500\n" in summary_table(summary)


def test_evaluation_lines_tell_it_too():
    measured = {"main": 0.9, "metrics": {"accuracy": 0.9}, "cost": {"ac": 5}, "stage": "finetune", "compacted": False}
    measured |= {"task": "sst2", "main_metric": "accuracy", "run": "r", "data": {"source": "dir"}}
    plain = evaluation_lines(measured).splitlines()
    told = evaluation_lines(measured | {"fidelity": {"agreement": 0.9454, "divergence": 0.1234}}).splitlines()
    assert [line.split()[:2] for line in told if line not in plain] == [["agreement", "94.5"], ["divergence", "0.123"]]


def test_evaluation_lines_have_words_and_units():
    measured = {"main": 0.905, "metrics": {"accuracy": 0.9, "f1": 0.91}, "cost": {"energy_pj": 2.5e6, "ac": 3_000_000}}
    measured |= {
        "task": "mrpc",
        "main_metric": "accuracy+f1",
        "run": "r",
        "stage": "finetune",
        "compacted": False,
        "data": {"source": "dir"},
    }
    lines = evaluation_lines(measured).splitlines()
    assert [line.split() for line in lines if line.startswith(("energy", "additions"))] == [
        ["energy,", "cost.model", "2.50M", "pJ", "per", "sentence"],
        ["additions", "(AC)", "3.00M", "per", "sentence"],
    ]
    assert lines[-1] == "score: mean of accuracy and F1 on the dev split, × 100."


def test_the_closing_table_defines_the_score():
    assert "\nUncompressed student: prediction_kd. score: mean of accuracy and F1 on the" in summary_table(
        make_summary()
    )


def test_scores_on_other_data_are_told_first():
    measured = {"main": 0.9, "metrics": {"accuracy": 0.9}, "cost": {"ac": 5}, "stage": "finetune", "compacted": False}
    measured |= {"task": "mrpc", "main_metric": "accuracy+f1", "run": "r", "data": {"source": "dir", "origin": "glue"}}
    first = evaluation_lines(
        measured | {"run_data": {"source": "embedded", "origin": "generated, seed 0"}}
    ).splitlines()
    assert first[0].startswith("warning: these are other data than the run's own. Measured on dir (glue), trained on ")
    assert first[1:] == evaluation_lines(measured).splitlines()


def test_embedded_scores_are_never_called_glue():
    assert "not GLUE scores" in summary_table(make_summary()).splitlines()[0]
    assert "GLUE" not in summary_table(make_summary(source="hub"))
    named = make_summary()
    named["data"]["banner"] = "made by the generator"
    assert summary_table(named).startswith("made by the generator\n")


@pytest.mark.parametrize("layers", [2, 12])
def test_fits_a_terminal(layers):
    assert max(map(len, summary_table(make_summary(layers=layers)).splitlines())) <= 112


def test_a_single_metric_is_shown_once():
    summary = make_summary()
    for row in (summary["teacher"], *summary["stages"].values()):
        row["metrics"] = {"accuracy": row["main"]}
    header = next(line for line in summary_table(summary).splitlines() if "score " in line)
    assert header.split()[:2] == ["score", "AC"]


def test_two_dev_sets_are_told_apart():
    summary = make_summary()
    for row in (summary["teacher"], *summary["stages"].values()):
        row["metrics"] = {f"validation_{s}/accuracy": row["main"] for s in ("matched", "mismatched")}
    assert "acc-m  acc-mm" in summary_table(summary)


def test_figures_are_drawn_and_reproducible(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    from spikeprune.report.figures import results_figure

    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        drawn = results_figure([make_summary()], tmp_path / "figures" / "a.svg").read_text()
        again = results_figure([make_summary()], tmp_path / "b.svg").read_text()
    assert drawn == again
    assert all(
        text in drawn
        for text in ("not GLUE scores", "dense teacher", "tiny (embedded)", "-2.5", "times less energy per sentence")
    )
    assert "internal_kd" not in drawn  # before the uncompressed student
    shorter = make_summary()
    shorter["stages"] = {name: shorter["stages"][name] for name in (shorter["uncompressed"], shorter["final"])}
    mixed = [
        make_summary(),
        make_summary(),
        make_summary(source="hub"),
        shorter,
    ]  # other stages: no mean with the first
    assert results_figure(mixed, tmp_path / "four.png").stat().st_size > 10_000


def test_numbers_keep_three_digits():
    numbers = {0: "0", 7: "7", 0.5: "0.50", 12.34: "12.3", 99.96: "100", 999.4: "999", 999.6: "1.00k", 12_345: "12.3k"}
    assert {x: si(x) for x in numbers} == numbers
    assert [si(x) for x in (1.5e9, 2e12)] == ["1.50G", "2.00T"]
    assert energy_unit([3.1e9, 2e6]) == ("µJ", 1e6)
    assert energy_unit([0.5]) == ("pJ", 1.0)


def test_a_budgets_line():
    found = {"target": "latency", "of": "dense", "share": 0.3, "goal": 0.25, "reported": 0.25, "within": True}
    wanted = "budget of finetune: latency 0.25 of the dense teacher's, target 0.3 (whole steps: 0.25)"
    assert budget_line(found, "finetune") == wanted
    missed = {**found, "target": "equal_bits", "of": "student", "within": False, "why_not": "nothing is left"}
    assert budget_line(missed) == "budget: energy 0.25 of the same dense network's, target 0.3: nothing is left"


def test_where_spikes_pay_is_told():
    def row(ratio, below=None):
        return {"equal_bits": 1.0, "ratios": {"equal_bits": ratio}, "pays_below": below}

    pays, loses, never = row(2.0, 1.0), row(0.5, 0.06), row(0.5)
    found = "Firing at 20.0 %, spikes take less energy than the same network at equal bits under "
    assert sentences({"a": pays, "b": pays, "c": loses}, 0.2) == [f"{found}a and b.", "They would under c below 6.0 %."]
    assert sentences({"a": pays}, 0.2) == [f"{found}a."]
    assert sentences({"a": never}, 0.2) == [f"{found}no model.", "At no firing rate would they under a."]


def test_own_data_stand_beside_a_constant_answer():
    summary = {**make_summary(source="file"), "main_metric": "accuracy"}
    summary["data"] |= {"labels": ["no", "yes"], "largest_class": {"accuracy": 0.9, "f1": 0.4}}
    summary["stages"]["temporal"]["intervals"] = {"accuracy": [0.91, 0.94], "f1": [0.3, 0.5]}
    table = summary_table(summary)
    assert cells(table, "largest class") == ["90.0", "90.0", "40.0", *["-"] * 10]
    assert "\n95 % interval of the score: 91.0 to 94.0 (" in table and "warning" not in table
    summary["stages"]["temporal"]["intervals"]["accuracy"] = [1.0, 1.0]
    summary["data"]["scored"] = {"validation": 40}
    assert "without an error in 40 examples the true score may still be 92" in summary_table(summary)
    summary["stages"]["temporal"]["intervals"]["accuracy"] = [0.89, 0.94]
    assert "warning: not surely better than a constant answer, which scores 90.0" in summary_table(summary)
    summary["data"]["largest_class"] = None  # numbers: a constant has no correlation
    assert "largest" not in summary_table(summary) and "warning" not in summary_table(summary)
    summary["stages"]["temporal"]["intervals"]["accuracy"][0] = -0.1
    assert "which scores 0.0" in summary_table(summary)


def test_a_student_that_has_lost_its_task_is_told():
    summary = make_summary()
    summary["data"]["largest_class"] = {"accuracy": 0.6, "f1": 0.8}
    final = summary["stages"][summary["final"]]
    for main, told in ((0.71, False), (0.7, True)):
        final["main"] = main
        table = summary_table(summary)
        assert ("warning: not surely better than a constant answer, which scores 70.0" in table) is told
        assert "largest class" not in table  # a row of own data
