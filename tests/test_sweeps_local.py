"""Sweeps without a server: real trials in processes of their own, killed and started again."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from micro import logged, only
from tiny_sweep import FFN, HEADS, begin, sweep, tiny, write

from spikeprune import cli
from spikeprune.config.load import read_resolved
from spikeprune.errors import InputError
from spikeprune.experiment import pipeline
from spikeprune.experiment.lock import RunLock
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_sealed
from spikeprune.integrations.sweeps import spec, study
from spikeprune.integrations.sweeps.local import Driver
from spikeprune.integrations.sweeps.trial import Trial
from spikeprune.report.results import results

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def ended(folder: Path) -> dict[str, int]:
    """When each finished trial wrote its summary."""
    return {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("trials/*/summary.json")}


@pytest.fixture(scope="module")
def swept(tmp_path_factory, glue) -> tuple[Path, dict[str, int], str, list[str]]:
    """A sweep of four, killed and started again: folder, what had ended at the kill, the second output, the words."""
    base = tmp_path_factory.mktemp("sweep")
    folder, file = base / "out", write(base / "tiny.yaml", tiny(glue))
    words, log = [str(file), "--local", "--dir", str(folder), "--jobs", "2"], base / "log"
    first = begin(log, *words)
    while len(ended(folder)) < 2:
        time.sleep(0.1)
        assert first.is_alive(), log.read_text()
    first.kill()
    first.join()
    before = ended(folder)
    return folder, before, sweep(log, *words), words


def test_killed_and_started_again_it_runs_only_what_is_missing(swept) -> None:
    folder, before, printed, _ = swept
    after = ended(folder)
    assert set(after) == set("0123") and 2 <= len(before) < 4
    assert {name: after[name] for name in before} == before
    begun = {line.split("]")[0].split()[1] for line in printed.splitlines() if "] stages.spatial.heads=" in line}
    assert begun == set(after) - set(before)
    values = [row["values"] for row in json.loads((folder / "results.json").read_text())["trials"]]
    assert values == [{"stages.spatial.heads": h, "stages.spatial.ffn": f} for h in HEADS for f in FFN]


def test_the_front_is_that_of_the_summaries(swept) -> None:
    folder, _, printed, _ = swept
    found = json.loads((folder / "results.json").read_text())
    for row in found["trials"]:
        run = folder / "trials" / str(row["trial"])
        summary = json.loads((run / "summary.json").read_text())
        assert row["results"] == results(summary["stages"]["spatial"], summary["teacher"])
    points = {r["trial"]: (r["results"]["result/energy_pj"], r["results"]["result/main"]) for r in found["trials"]}
    beaten = {
        n
        for n, (e, q) in points.items()
        if any(oe <= e and oq >= q and (oe, oq) != (e, q) for oe, oq in points.values())
    }
    assert set(found["front"]) <= set(points) - beaten and found["front"]
    assert {points[n] for n in found["front"]} == {points[n] for n in set(points) - beaten}
    lines = [line.split() for line in printed.splitlines() if line[:1] in "* " and line.strip()]
    assert {int(cells[1]) for cells in lines if cells[0] == "*"} == set(found["front"])
    figure = (folder / "front.svg").read_text()
    assert figure.startswith("<?xml") and "energy per sentence" in figure


def test_a_third_start_runs_nothing_and_shows_the_same(swept) -> None:
    folder, _, printed, words = swept
    before = ended(folder)
    again = sweep(folder.parent / "log", *words)
    assert ended(folder) == before and "[trial" not in again
    assert again.strip() == printed[printed.index("\ndata: ") :].strip()


def test_another_sweep_in_its_folder_is_refused(swept, tmp_path, glue, capsys) -> None:
    folder, _, _, words = swept
    other = write(tmp_path / "tiny.yaml", tiny(glue, metric={"name": "result/accuracy", "goal": "maximize"}))
    assert cli.main(["sweep", str(other), *words[1:]]) == 2
    assert "was started with another sweep (metric differ); use another --dir" in capsys.readouterr().err


def test_a_sweep_in_use_is_refused(swept, capsys) -> None:
    folder, _, _, words = swept
    with RunLock(folder):
        assert cli.main(["sweep", *words]) == 2
    message = capsys.readouterr().err
    assert f"--dir: {folder} is in use by another run (host" in message and f"pid {os.getpid()})" in message


def test_a_stage_that_was_taken_over_is_the_one_that_would_have_been_made(swept, glue, tmp_path) -> None:
    folder, _, _, _ = swept
    logs = {n: (folder / "trials" / f"{n}.log").read_text() for n in range(4)}
    assert sum("taken over from" in log for log in logs.values()) >= 2
    taken = next(n for n in range(4) if "taken over" in logs[n])
    read = spec.read(folder.parent / "tiny.yaml")
    pipeline.run(read.config(read.grid()[taken], f"run.dir={tmp_path / 'run'}", "run.wandb=off"))
    alone, shared = RunDirectory(tmp_path / "run"), RunDirectory(folder / "trials" / str(taken))
    for stage in ("teacher", "spatial"):
        assert alone.verified(stage) == shared.verified(stage)
    assert logged(alone) == logged(shared)


RANGES = {
    "stages.spatial.heads": {"distribution": "uniform", "min": 0.4, "max": 0.9},
    "seed": {"distribution": "int_uniform", "min": 0, "max": 1000},
}


def drawn(sweep: spec.Sweep, folder: Path, count: int) -> list[dict]:
    """What a sweep in an empty folder chooses for its first trials, of which none is run."""
    folder.mkdir()
    driver = Driver(sweep, folder, count, 1)
    return [driver.choose().values for _ in range(count)]


def over_ranges(method: str, glue: Path, path: Path) -> Path:
    return write(path, tiny(glue, method=method, parameters={"preset": {"value": "tiny"}, **RANGES}))


def test_after_a_kill_random_trials_are_those_of_an_undisturbed_sweep(glue, tmp_path) -> None:
    """Whole trials. The second has begun at the kill: it keeps its values, and the third is drawn as if nothing was."""
    file, folder, log = over_ranges("random", glue, tmp_path / "random.yaml"), tmp_path / "out", tmp_path / "log"
    words = [str(file), "--local", "--dir", str(folder), "--trials", "3"]
    log.touch()
    first = begin(log, *words, "--jobs", "1")
    while "[trial 1] stages.spatial.heads=" not in log.read_text():
        time.sleep(0.02)
        assert first.is_alive(), log.read_text()
    first.kill()
    first.join()
    before, said = ended(folder), [line for line in log.read_text().splitlines() if "] stages.spatial.heads=" in line]
    assert set(before) == {"0"}
    printed = sweep(log, *words, "--jobs", "2")
    again = [line for line in printed.splitlines() if "] stages.spatial.heads=" in line]
    assert again[0] == said[1] and len(again) == 2 and ended(folder)["0"] == before["0"]
    found = [row["values"] for row in json.loads((folder / "results.json").read_text())["trials"]]
    wanted = [{key: values[key] for key in RANGES} for values in drawn(spec.read(file), tmp_path / "undisturbed", 3)]
    assert found == wanted and all(len({row[key] for row in found}) == 3 for key in RANGES)
    for number, values in enumerate(found):
        config = read_resolved(folder / "trials" / str(number) / "config.yaml")
        assert (config.stages.spatial.heads, config.seed) == tuple(values[key] for key in RANGES)


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_kill_while_values_are_drawn_changes_none_of_them(method, glue, tmp_path) -> None:
    """The second trial has one of its two at the kill, the third none."""
    read = spec.read(over_ranges(method, glue, tmp_path / "s.yaml"))
    wanted = drawn(read, tmp_path / "undisturbed", 3)
    drawn(read, tmp_path / "out", 1)
    killed = Driver(read, tmp_path / "out", 3, 1).study
    study.draw(killed.ask(), replace(read, parameters=read.parameters[:2]))  # preset and heads
    killed.ask()
    again = Driver(read, tmp_path / "out", 3, 1)
    assert [trial.values for trial in again.known] == wanted and again.left == again.known


def test_a_trial_without_its_metric_is_named(swept, tmp_path) -> None:
    run = RunDirectory(Path(shutil.copytree(swept[0] / "trials" / "0", tmp_path / "old")))
    trial = Trial(None, {}, read_resolved(run.config), run)
    assert all(0 <= score <= 1 for score in trial.scores("result/agreement"))
    for file in run.path.glob("stages/*/record.json"):
        found = jsonfile.read_sealed(file, "")
        kept = {k: v for k, v in found.get("fidelity", {}).items() if k != "agreement"}
        write_sealed(file, {**found, "fidelity": kept})
    assert len(trial.scores("result/main")) == trial.steps()
    with pytest.raises(InputError, match="old: has no result/agreement of stage spatial"):
        trial.scores("result/agreement")


def test_a_trial_far_from_the_best_is_stopped_early(glue, tmp_path) -> None:
    """Of two at the first rung the better one goes on: fewer steps cost less energy, whatever is learnt."""
    tree = tiny(glue, metric={"name": "result/energy_pj", "goal": "minimize"})
    tree["early_terminate"] = {"type": "hyperband", "min_iter": 1, "eta": 2}
    tree["parameters"] = {"preset": {"value": "tiny"}, "student.t_steps": {"values": [2, 6]}}
    words = [*only("teacher", "internal_kd", "spatial"), "stages.spatial.heads=0.5", "stages.spatial.epochs=25"]
    tree["command"][-1:-1] = [*words, "stages.internal_kd.epochs=1"]
    file = write(tmp_path / "early.yaml", tree)
    printed = sweep(tmp_path / "log", str(file), "--local", "--dir", str(tmp_path / "out"), "--jobs", "1")
    assert "[trial 1] stopped early after internal_kd: result/energy_pj" in printed
    assert "1 trials were stopped early" in printed
    stopped = RunDirectory(tmp_path / "out" / "trials" / "1")
    assert stopped.finished("internal_kd") and not stopped.finished("spatial")
    assert [row["trial"] for row in json.loads((tmp_path / "out/results.json").read_text())["trials"]] == [0]


def test_a_trial_that_fails_is_named_and_tried_again(glue, tmp_path) -> None:
    """Its data are gone: exit code 1, and with the data back the same command makes up for it."""
    data = tmp_path / "glue"
    file = write(tmp_path / "tiny.yaml", tiny(data))
    words = [str(file), "stages.spatial.heads=0.5", "stages.spatial.ffn=0.4", "--local", "--dir", str(tmp_path / "out")]
    printed = sweep(tmp_path / "log", *words, code=1)
    assert "[trial 0] failed with exit code 2 (" in printed and str(data) in printed
    assert "1 trial failed" in printed and "the same command tries them again" in printed and "Traceback" not in printed
    shutil.copytree(glue, data)
    assert "[trial 0] result/main" in sweep(tmp_path / "log", *words)
