"""The benchmark: its peers are the same network, its figures are counted right, and docs/performance.md has them.
No speed is asserted here."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from experiments.bench import __main__ as bench  # noqa: E402
from experiments.bench import clock, deployed, nets, peers, report, rooflines, rows, training  # noqa: E402
from spikeprune.errors import InputError  # noqa: E402
from spikeprune.runtime import onnx_graph  # noqa: E402

CPU = torch.device("cpu")
TINY = nets.Size("tiny", 24, 2, 3, 37, vocab=50)
AT = rows.Setting(
    device=CPU, kernels="torch", sizes=(TINY,), sentences=4, tokens=8, t_steps=3, budget=0.01, growth=(2, 3)
)


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_is_the_same_network(name) -> None:
    """In float64 no current lands beside its threshold by rounding: the logits are ours."""
    if reason := peers.lacking(name):
        pytest.skip(reason)
    assert rows.exact_difference(name) < 1e-12
    student = AT.student(TINY, unit_theta=True, t_steps=7, coding="per_step", spikes="binary").double()
    batch = AT.batch(TINY)
    ours = rows.simulated(student, batch)()
    with torch.no_grad():
        rates = [(count > 0).double().mean() for count in student(**batch, mode="spiking", count=True).counts.values()]
    assert all(0.05 < rate < 1 for rate in rates[:-1])  # every spiking layer is at work
    run = peers.PEERS[name](student, 7)
    for _ in range(2):  # it starts from rest each time
        torch.testing.assert_close(run(batch["input_ids"], batch["attention_mask"]), ours, rtol=0, atol=1e-9)


def test_a_peer_with_other_outputs_is_not_compared(monkeypatch) -> None:
    """Its row says why, and the others are measured."""
    loop = peers.loop

    def other_start(student, t_steps):
        run = loop(student, t_steps)
        return lambda ids, mask: 1.1 * run(ids, mask)

    monkeypatch.setitem(peers.PEERS, "loop", other_start)
    found = {row.comparison: row for row in rows.simulation(AT)}
    row = found[f"times as fast as {rows.TITLES['loop'][0]}"]
    assert row.skipped.startswith("not the same network") and row.ratio is None
    assert all(other.ratio or other.skipped for other in found.values())


def test_operations_are_what_a_counter_counts() -> None:
    shape = {"t_steps": 3, "sentences": 2, "tokens": 8}
    run = rooflines.products(TINY, **shape, device=CPU)
    with FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() == rooflines.operations(TINY, **shape)


def test_timings_take_turns_and_give_quartiles() -> None:
    order = []
    found = clock.timings({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, budget=0.0, least=3)
    assert order == ["a", "a", "b", "b", *["a", "b"] * 3] and found["a"].runs == 3
    assert clock._timing([1.0, 2.0, 3.0, 4.0, 9.0]) == clock.Timing(3.0, 2.0, 4.0, 5)


def test_peak_memory_by_hand() -> None:
    def work() -> None:
        for _ in range(3):
            one = torch.empty(1000)
            torch.cat([one, one])  # 4,000 bytes and 8,000 at once; freed after each turn

    assert clock.peak_bytes(work, CPU) == pytest.approx(12_000, rel=0.05)


def test_shares_are_of_one_whole() -> None:
    x = torch.randn(300, 300)
    found = clock.shares(lambda: x @ x, CPU)
    assert set(found) == set(clock.GROUPS) and sum(found.values()) == pytest.approx(1)
    assert found["matrix products"] > found["attention"] == 0


def cells_of(function) -> dict:
    """What a closure holds."""
    names = function.__code__.co_freevars
    return {name: cell.cell_contents for name, cell in zip(names, function.__closure__ or (), strict=True)}


def test_a_dense_and_a_spiking_step_both_learn() -> None:
    for spiking in (True, False):
        step = training.distillation(AT, TINY, spiking=spiking)
        cells = cells_of(step) | cells_of(cells_of(step)["learn"])
        before = [p.detach().clone() for p in cells["learner"].parameters()]
        step()
        changed = [not torch.equal(a, b) for a, b in zip(before, cells["learner"].parameters(), strict=True)]
        assert sum(changed) > len(changed) / 2


@pytest.mark.slow
def test_a_whole_run_writes_what_it_measured(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(bench, "settings", lambda device, backend: dict.fromkeys(report.PARTS, AT))
    monkeypatch.setattr(bench, "ceilings", lambda device, budget: {"bytes a second": 2e9})
    made = bench.run(CPU, "torch", tmp_path, list(report.PARTS))
    written = json.loads((tmp_path / "bench-cpu.json").read_text())
    assert written["rows"] == json.loads(json.dumps(made["rows"])) and len(written["rows"]) == 11
    ours = next(row for row in written["rows"] if "loop over steps" in row["comparison"])
    assert ours["ratio"] == pytest.approx(ours["other"]["median"] / ours["ours"]["median"])
    assert {row["T"] for row in written["growth"]} == {2, 3} and len(written["profiles"]) == 10
    text = (tmp_path / "bench-cpu.md").read_text()
    assert re.search(r"without attention scores.*; [\d,.]+ samples per second, ours; [\d,.]+ .*, dense\) \|", text)
    assert "| simulation: times as fast as a loop over steps" in text and "2 · 10⁹ bytes a second" in text
    closed = [row["bytes"] for row in written["growth"] if row["way"] == "accumulate, closed form" and row["N"] == 8]
    assert closed[0] == closed[1]  # memory at T = 2 and at T = 3
    monkeypatch.setattr(report, "KEPT", tmp_path / "kept")
    report.keep(tmp_path / "bench-cpu.json", report.PARTS)
    assert [path.name for path in report.KEPT.iterdir()] == ["cpu.json"]  # nothing of it was missed


def test_goals_say_whether_they_are_met() -> None:
    row = rows.Row("g", "n", "s", "w", ratio=1.5, goal=("at most", 1.5))
    assert row.met and rows.Row("g", "n", "s", "w", ratio=1.5, goal=("at least", 2.0)).met is False
    assert rows.Row("g", "n", "s", "w", ratio=1.5).met is None
    assert AT.goal("at most", 1.0) is None  # a GPU's goals are none of the CPU's


def test_the_page_is_what_the_kept_results_give() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.with_results(page, report.kept_results()) == page


def test_a_ratio_says_what_it_is_of_and_that_it_misses_its_goal() -> None:
    ours, other = ({"median": seconds} for seconds in (0.002, 0.003))
    row = {"ours": ours, "other": other, "ratio": 1.5, "met": False, "difference": 0.02, "skipped": "", "more": {}}
    assert report.ratio_of(row) == "1.50, **missed** (2.00 against 3.00 ms; logits 0.02 apart)"
    assert report.ratio_of(row | {"ours": None, "met": None, "difference": None}) == "1.50"
    assert report.ratio_of(row | {"skipped": "not installed"}) == "not installed" and report.ratio_of(None) == ""


@pytest.mark.parametrize("commit", ["unknown", "0123456789ab-dirty"])
def test_results_of_no_commit_are_not_kept(commit, tmp_path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"made": {"commit": commit}}))
    with pytest.raises(InputError, match="measure again from a clean checkout"):
        report.keep(path, report.PARTS)


def kept(parts, folder: Path, monkeypatch, *, without: str | None = None) -> dict[str, dict]:
    """What is in the folder of results after one with all parts, or all but one, has been taken in; by name."""
    groups = {"simulation": "simulation", "evaluation": "evaluation, accumulate", "training": "training step"}
    made = {part: [part] if part in report.TABLES else {"group": groups[part]} for part in report.PARTS}
    made.pop(without, None)
    results = {
        "made": {"device": "cpu", "commit": "0123456789ab"},
        "rows": [row for row in made.values() if "group" in row],
    }
    results |= {part: made.get(part, []) for part in report.TABLES}
    path = folder / "result.json"
    path.write_text(json.dumps(results))
    monkeypatch.setattr(report, "KEPT", folder / "kept")
    report.keep(path, parts)
    return {path.stem: json.loads(path.read_text()) for path in report.KEPT.iterdir()}


def test_all_parts_of_a_result_are_kept_under_its_device(tmp_path, monkeypatch) -> None:
    found = kept(report.PARTS, tmp_path, monkeypatch)
    assert set(found) == {"cpu"} and found["cpu"]["growth"] == ["growth"] and found["cpu"]["profiles"] == ["profiles"]
    assert [row["group"] for row in found["cpu"]["rows"]] == ["simulation", "evaluation, accumulate", "training step"]


@pytest.mark.parametrize(
    ("parts", "name", "groups", "others"),
    [
        (["training"], "cpu-training", ["training step"], []),
        (["simulation", "evaluation"], "cpu-evaluation-simulation", ["simulation", "evaluation, accumulate"], []),
        (["growth", "evaluation"], "cpu-evaluation-growth", ["evaluation, accumulate"], ["growth"]),
    ],
)
def test_some_parts_are_kept_under_their_names(parts, name, groups, others, tmp_path, monkeypatch) -> None:
    """The rows of the others are left out."""
    found = kept(parts, tmp_path, monkeypatch)
    assert set(found) == {name}
    assert [row["group"] for row in found[name]["rows"]] == groups
    assert found[name]["growth"] + found[name]["profiles"] == others


def test_a_result_that_lacks_a_part_is_kept_under_those_it_has(tmp_path, monkeypatch) -> None:
    found = kept(report.PARTS, tmp_path, monkeypatch, without="profiles")
    assert set(found) == {"cpu-deployed-evaluation-growth-simulation-training"} and len(found.popitem()[1]["rows"]) == 3


def test_a_missing_gpu_is_one_sentence(capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert bench.main(["--device", "cuda"]) == 2
    assert capsys.readouterr().err == "error: --device cuda: needs a CUDA device, which is not here\n"


@pytest.mark.parametrize(
    "kernel", ["resident_product", "streamed_product", "split_product", "sm90_xmma_gemm_f32f32", "cutlass"]
)
def test_a_profile_knows_the_kernels_of_products(kernel: str) -> None:
    assert clock._group(kernel) == "matrix products"


@pytest.mark.slow
def test_the_ways_of_a_deployed_student_are_compared(monkeypatch) -> None:
    """The dense network's own rows without a goal; the exported students compute their twins in PyTorch."""
    if reason := onnx_graph.missing():
        pytest.skip(f"not installed: {', '.join(reason)}")
    monkeypatch.setattr(deployed, "SENTENCES", (2,))
    monkeypatch.setattr(deployed, "THREADS", (1,))
    monkeypatch.setattr(deployed, "STUDENTS", {"ternary student": deployed.STUDENTS["ternary student"]})
    found = list(deployed.deployed(AT))
    assert [row["way"] for row in found][:2] == ["ternary student, exported", "ternary student, PyTorch"]
    assert found[0]["difference"] < 1e-5 and all(row["memory"] >= 0 and row["file"] > 0 for row in found)
    text = report.of_a_call(found)
    assert text.startswith("Milliseconds of a whole call") and len(text.splitlines()) == 4 + len(found) == 9


def test_a_call_of_an_exported_student_says_whether_it_misses_a_goal() -> None:
    goals = dict(zip(report.GOALS, (3.5, 0.9), strict=True))
    row = {"seconds": 0.002, "way": "student, exported", **{f"ratio {name}": x for name, x in goals.items()}}
    assert report.call_of(row) == "2.00 (3.50 / 0.90, **missed**)"
    assert report.call_of(row | {"way": "student, PyTorch"}) == "2.00 (3.50 / 0.90)"
    assert report.call_of(None) == ""  # a run that is still measuring
