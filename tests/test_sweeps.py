"""Sweep files against the configuration, what is refused, and real sweeps: here with Optuna, and by W&B's agent."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster import Cluster
from micro import GLUE, ROOT, micro, write_sst2
from wandb_server import wandb_server

from spikeprune import cli, pipeline
from spikeprune.config import load
from spikeprune.errors import InputError
from spikeprune.report.results import names, results
from spikeprune.rundir import RunDir
from spikeprune.sharing import common_stages
from spikeprune.sweeps import folder as folders
from spikeprune.sweeps import spec, study
from spikeprune.sweeps.spec import Parameter
from spikeprune.tasks import get_task

FILES = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
THREADS = f"run.threads={max(1, spec.cores() // 2)}"  # of a trial where two run at a time
HEADS, FFN = (0.5, 0.8), (0.2, 0.4, 0.6)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    return write_sst2(tmp_path_factory.mktemp("glue"))


def tiny(glue: Path | str = "glue", **changes) -> dict:
    """A grid of six over the smallest pipeline: teacher and spatial."""
    small = [o for o in micro(Path("x"), Path(glue)) if not o.startswith(("run.dir", "preset", "compress"))]
    small += [
        "run.stages=[teacher,spatial]",
        "compress.t_steps=null",
        "compress.spatial.min_ffn=4",
        "stages.spatial.epochs=2",
    ]
    own = "runs/sweeps/tiny/${oc.env:WANDB_RUN_ID}"
    head = ["${env}", "${interpreter}", "-m", "spikeprune", "train", str(GLUE)]
    tree = {
        "method": "grid",
        "metric": {"name": "result/main", "goal": "maximize"},
        "parameters": {
            "preset": {"value": "tiny"},
            "compress.heads": {"values": list(HEADS)},
            "compress.ffn": {"values": list(FFN)},
        },
        "command": [*head, *small, f"run.dir={own}", "run.wandb=true", "${args_no_hyphens}"],
    }
    return {**tree, **changes}


def write(path: Path, tree: dict) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


# ------------------------------------------------------------------------------------------- the files of experiments/


def test_the_files_that_there_should_be() -> None:
    assert {path.stem for path in FILES} >= {"budget", "shares", "criteria", "temporal", "quantize"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_file_holds_keys_values_and_a_metric_that_are_there(path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = spec.read(path)  # loads the configuration of each combination, or each value
    assert sweep.swept and sweep.metric in names(get_task("mrpc").metrics)
    assert sweep.size or sweep.run_cap
    # one with the agent's own words, as it will be started
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    words = sweep.tree["command"][6:-1]
    config = load(ROOT / sweep.experiment, [*words, *(f"{p.key}={p.samples()[0]}" for p in sweep.parameters)])
    assert config.run.dir == f"runs/sweeps/{path.stem}/s1/r1" and config.run.wandb


@pytest.mark.parametrize(("name", "last"), [(path.stem, 3) for path in FILES])
def test_the_stages_that_a_sweeps_header_calls_shared_are(name, last, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = spec.read(next(path for path in FILES if path.stem == name))
    one, other = ({p.key: p.samples()[i] for p in sweep.parameters} for i in (0, -1))
    stages = ["teacher", "internal_kd", "prediction_kd", "spatial", "temporal"]
    assert common_stages(*(sweep.config(values, "run.dir=x") for values in (one, other))) == stages[:last]


# ------------------------------------------------------------------------------------------------------ what is refused


def refused(tree: dict, path: Path, capsys, *more: str) -> str:
    assert cli.main(["sweep", str(write(path, tree)), *more]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("error: ") == 1
    assert [p.name for p in path.parent.iterdir()] == [path.name], "something was made"
    return printed.err.removeprefix("error: ").strip()


BAD = [
    ({"compress.heds": {"values": [0.5]}}, "compress.heds: unknown key (did you mean compress.heads?)"),
    ({"compress.heads": {"values": [0.5, "half"]}}, "compress.heads = half: must be a number"),
    ({"compress.heads": {"values": [0.5, 1.5]}}, "compress.heads = 1.5: must be above 0 and at most 1"),
    ({"compress.heads": {"values": []}}, "parameters.compress.heads.values = []: must be a list of at least one value"),
    ({"compress.heads": {"min": 0.1, "max": 0.5}}, "parameters.compress.heads: a grid has no ranges; list its values"),
    ({"compress.heads": {"valeus": [1]}}, "parameters.compress.heads.valeus: not supported; there are"),
    ({"compress": {"parameters": {"heads": {"value": 1}}}}, "write dotted keys, such as compress.heads"),
    ({"compress.t_steps": {"values": [2, None]}}, "parameters.compress.t_steps: null cannot be passed by W&B's agent"),
    ({"task": {"value": "mrcp"}}, "task = mrcp: choose from"),
    ({"task": {"values": ["rte", "mrpc"]}}, "parameters.task: scores of different tasks have no common front"),
]


@pytest.mark.parametrize(("parameters", "words"), BAD, ids=[words[:40] for _, words in BAD])
def test_a_wrong_parameter_is_one_sentence_and_nothing_starts(parameters, words, tmp_path, capsys) -> None:
    tree = tiny()
    tree["parameters"] |= parameters
    for where in (["--local", "--dir", str(tmp_path / "out")], []):
        message = refused(tree, tmp_path / "sweep.yaml", capsys, *where)
        assert message.startswith(f"{tmp_path / 'sweep.yaml'}: ") and words in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "gird"}, "method = gird: choose from grid, random, bayes (did you mean grid?)"),
        ({"metric": {"name": "result/mian", "goal": "maximize"}}, "metric.name = result/mian: is not logged; choose"),
        ({"metric": {"name": "result/matthews"}}, "metric.name = result/matthews: is not logged"),  # sst2 has none
        ({"metric": None}, "metric: write {name: result/main, goal: maximize}"),
        ({"paramters": {}}, "paramters: unknown; there are"),
        (
            {"command": ["python", "train.py", "${args}"]},
            "command: write [${env}, ${interpreter}, -m, spikeprune, train",
        ),
        ({"early_terminate": {"type": "envelope"}}, "early_terminate: write {type: hyperband"),
        ({"run_cap": 0}, "run_cap = 0: must be a whole number of at least 1"),
        ({"parameters": {}}, "parameters: must hold a section for each key"),
    ],
)
def test_a_file_that_is_no_sweep(changes, words, tmp_path, capsys) -> None:
    assert words in refused(tiny(**changes), tmp_path / "sweep.yaml", capsys, "--local", "--dir", str(tmp_path / "out"))


def test_each_trial_needs_its_own_directory_and_the_agents_macro(tmp_path, capsys) -> None:
    tree = tiny()
    command = tree["command"]
    shared = [word for word in command if not word.startswith("run.dir")]
    assert "each trial needs its own directory" in refused({**tree, "command": shared}, tmp_path / "s.yaml", capsys)
    hyphens = [*command[:-1], "${args}"]  # gives --compress.heads=0.5
    assert "command: ${args}: write [" in refused({**tree, "command": hyphens}, tmp_path / "s.yaml", capsys)


def test_two_wrong_values_come_in_one_message(tmp_path, capsys) -> None:
    tree = tiny()
    tree["parameters"] |= {"compress.heads": {"values": [0.5, -1.0, 2.0]}}
    message = refused(tree, tmp_path / "s.yaml", capsys, "--local", "--dir", str(tmp_path / "out"))
    assert "compress.heads = -1.0" in message and "compress.heads = 2.0" in message


def test_the_command_lines_own_values(tmp_path, capsys, monkeypatch) -> None:
    file = write(tmp_path / "s.yaml", tiny())
    sweep = spec.read(file, ["compress.heads=0.5", "seed=3"])
    assert sweep.size == 3 and sweep.config(sweep.grid()[0], "run.dir=x").seed == 3
    assert cli.main(["sweep", str(file), "--local", "compress.heds=0.5"]) == 2
    assert "compress.heds: unknown key" in capsys.readouterr().err
    random = write(tmp_path / "r.yaml", tiny(method="random"))
    assert cli.main(["sweep", str(random), "--local", "--dir", str(tmp_path / "out")]) == 2
    assert "a random sweep has no end; give --trials N or run_cap" in capsys.readouterr().err
    assert cli.main(["sweep", "nowhere.yaml", "--local"]) == 2
    assert "nowhere.yaml: no such file" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert cli.main(["sweep", str(file)]) == 2
    assert "there is no key for" in (message := capsys.readouterr().err) and "--local runs the same file" in message
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["sweep", str(file), "--slurm", ""]) == 2
    assert "sbatch is not on PATH" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ what is drawn


def draw(tmp_path: Path, begun: int, *parameters: Parameter, count: int = 40) -> list[tuple]:
    """Values of new trials of a random study."""
    import optuna

    drawn = optuna.create_study(sampler=study.sampler(SWEEP, begun))
    trials = [drawn.ask() for _ in range(count)]
    return [tuple(study.suggest(trial, p) for p in parameters) for trial in trials]


SWEEP = spec.Sweep(Path("x"), {}, "random", "result/main", "maximize", (), "", ())


def test_ranges_and_lists_give_values_of_their_kind(tmp_path) -> None:
    kinds = (
        Parameter("a", (), 1, 4, "int_uniform"),
        Parameter("b", (), 1e-4, 1e-1, "log_uniform_values"),
        Parameter("c", (), 0.0, 1.0, "q_uniform", 0.25),
        Parameter("d", ([4, 2, 2], "x", 3)),  # a list is a value too
        Parameter("e", (), 0.0, 1.0, "uniform"),
    )
    a, b, c, d, e = zip(*draw(tmp_path, 0, *kinds), strict=True)
    assert set(a) == {1, 2, 3, 4} and all(isinstance(v, int) for v in a)
    assert all(1e-4 <= v <= 1e-1 for v in b) and 5 < sum(v < 3e-3 for v in b) < 35  # as often below the middle decade
    assert set(c) <= {0.0, 0.25, 0.5, 0.75, 1.0} and len(set(c)) > 2
    assert [4, 2, 2] in d and "x" in d and 3 in d
    assert len(set(e)) == 40 and 0 <= min(e) <= max(e) <= 1


def test_a_sweep_that_goes_on_draws_new_values(tmp_path) -> None:
    p = Parameter("a", (), 0.0, 1.0, "uniform")
    assert draw(tmp_path, 0, p) == draw(tmp_path, 0, p)
    assert not set(draw(tmp_path, 0, p)) & set(draw(tmp_path, 5, p))


@pytest.mark.parametrize(
    ("early", "rungs"),
    [
        ({"type": "hyperband", "min_iter": 3}, (3, 3)),
        ({"type": "hyperband", "min_iter": 2, "eta": 2}, (2, 2)),
        ({"type": "hyperband", "max_iter": 27, "s": 2}, (3, 3)),  # W&B's own example: 27/3, 27/9
        (None, None),
    ],
)
def test_rungs_of_early_termination(early, rungs) -> None:
    problems: list[str] = []
    assert spec._rungs(early, problems) == rungs and problems == []


# ---------------------------------------------------------------------------------------------- stages that are shared


@pytest.mark.parametrize(
    ("change", "common"),
    [
        ("compress.heads=0.8", 3),
        ("compress.spatial.criterion=rate", 3),
        ("compress.temporal.end=0.3", 3),
        ("stages.finetune.lr=1.0e-3", 5),
        ("stages.internal_kd.lr=2.0e-3", 1),
        ("student.t_steps=5", 0),
        ("distill.replace_words=0.1", 0),
        ("compress.quantize.end=0.3", 3),
        ("teacher.hidden=48", 0),
        ("seed=1", 0),
        ("data.batch_size=4", 0),
        ("cost.prices=int8", 0),
        ("run.precision=bf16-mixed", 0),
        ("run.log_every=7", 6),  # shown, not computed
        ("run.stages=[teacher,internal_kd,spatial,temporal,finetune]", 2),
        ("stages.prediction_kd.callbacks=[spatial]", 2),
    ],
)
def test_which_stages_a_key_leaves_alike(change, common) -> None:
    stages = ("teacher", "internal_kd", "prediction_kd", "spatial", "temporal", "finetune")
    plain, changed = load(GLUE, micro(Path("x"))), load(GLUE, [*micro(Path("x")), change])
    assert common_stages(plain, changed) == common_stages(changed, plain) == list(stages[:common])


def test_a_key_acts_where_its_callback_is_in_either_of_two() -> None:
    """Pruned earlier in one of two runs, a differing share touches the other from there on, too."""
    early = ["stages.prediction_kd.callbacks=[spatial]", "stages.spatial.epochs=0"]
    one = load(GLUE, [*micro(Path("x")), *early])
    other = load(GLUE, [*micro(Path("x")), *early, "compress.ffn=0.4"])
    assert common_stages(one, other) == ["teacher", "internal_kd"]


# ----------------------------------------------------------------------------------------------------- a local sweep


def spikeprune(*args: str, **environment: str) -> subprocess.Popen:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_SILENT": "true", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-m", "spikeprune", *args], env=variables, **pipes)


def finish(child: subprocess.Popen) -> str:
    printed, _ = child.communicate(timeout=300)
    assert child.returncode == 0, printed
    return printed


def ended(folder: Path) -> dict[str, int]:
    """When each finished trial wrote its summary."""
    return {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("trials/*/summary.json")}


@pytest.fixture(scope="module")
def swept(tmp_path_factory, glue) -> tuple[Path, dict[str, int], str, list[str]]:
    """A sweep of six, killed and started again: folder, what had ended at the kill, the second output, the command."""
    base = tmp_path_factory.mktemp("sweep")
    folder, file = base / "out", write(base / "tiny.yaml", tiny(glue))
    command = ["sweep", str(file), "--local", "--dir", str(folder), "--jobs", "2"]
    first = spikeprune(*command)
    while len(ended(folder)) < 2:
        time.sleep(0.1)
        assert first.poll() is None, first.stdout.read()
    first.kill()
    first.wait()
    before = ended(folder)
    return folder, before, finish(spikeprune(*command)), command


def test_killed_and_started_again_it_runs_only_what_is_missing(swept) -> None:
    folder, before, printed, _ = swept
    after = ended(folder)
    assert set(after) == set("012345") and 2 <= len(before) < 6
    assert {name: after[name] for name in before} == before
    begun = {line.split("]")[0].split()[1] for line in printed.splitlines() if "] compress.heads=" in line}
    assert begun == set(after) - set(before)
    values = [row["values"] for row in json.loads((folder / "results.json").read_text())["trials"]]
    assert values == [{"compress.heads": h, "compress.ffn": f} for h in HEADS for f in FFN]


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
    folder, _, printed, command = swept
    before = ended(folder)
    again = finish(spikeprune(*command))
    assert ended(folder) == before and "[trial" not in again
    assert again.strip() == printed[printed.index("\ndata: ") :].strip()


def test_another_sweep_in_its_folder_is_refused(swept, tmp_path, glue, capsys) -> None:
    folder, _, _, command = swept
    other = write(tmp_path / "tiny.yaml", tiny(glue, metric={"name": "result/accuracy", "goal": "maximize"}))
    assert cli.main(["sweep", str(other), *command[2:]]) == 2
    assert "was started with another sweep (metric differ); use another --dir" in capsys.readouterr().err


def test_a_sweep_in_use_is_refused(swept, capsys, monkeypatch) -> None:
    folder, _, _, command = swept
    monkeypatch.setattr(folders, "PATIENCE", 0.0)
    with folders.locked(folder):
        assert cli.main(command) == 2
    assert f"is being run by process {os.getpid()} on" in capsys.readouterr().err


def test_a_stage_that_was_taken_over_is_the_one_that_would_have_been_made(swept, glue, tmp_path) -> None:
    folder, _, _, _ = swept
    logs = {n: (folder / "trials" / f"{n}.log").read_text() for n in range(6)}
    assert sum("taken over from" in log for log in logs.values()) >= 4
    taken = next(n for n in range(6) if "taken over" in logs[n])
    sweep = spec.read(folder.parent / "tiny.yaml")
    pipeline.run(sweep.config(sweep.grid()[taken], f"run.dir={tmp_path / 'run'}", "run.wandb=false", THREADS))
    alone, shared = RunDir(tmp_path / "run"), RunDir(folder / "trials" / str(taken))
    for stage in ("teacher", "spatial"):
        assert alone.verified(stage) == shared.verified(stage)
    assert alone.read_metrics() == shared.read_metrics()


def test_a_trial_far_from_the_best_is_stopped_early(glue, tmp_path) -> None:
    """Of two at the first rung the better one goes on: fewer steps cost less energy, whatever is learnt."""
    tree = tiny(glue, metric={"name": "result/energy_pj", "goal": "minimize"})
    tree["early_terminate"] = {"type": "hyperband", "min_iter": 1, "eta": 2}
    tree["parameters"] = {"preset": {"value": "tiny"}, "student.t_steps": {"values": [2, 6]}}
    words = ["run.stages=[teacher,internal_kd,spatial]", "compress.heads=0.5", "stages.spatial.epochs=40"]
    tree["command"][-1:-1] = [*words, "stages.internal_kd.epochs=1"]
    file = write(tmp_path / "early.yaml", tree)
    printed = finish(spikeprune("sweep", str(file), "--local", "--dir", str(tmp_path / "out"), "--jobs", "1"))
    assert "[trial 1] stopped early after internal_kd: result/energy_pj" in printed
    assert "1 trials were stopped early" in printed
    stopped = RunDir(tmp_path / "out" / "trials" / "1")
    assert stopped.finished("internal_kd") and not stopped.finished("spatial")
    assert [row["trial"] for row in json.loads((tmp_path / "out/results.json").read_text())["trials"]] == [0]


def test_a_trial_that_fails_is_named_and_tried_again(glue, tmp_path) -> None:
    """Its data are gone: exit code 1, and with the data back the same command makes up for it."""
    data = tmp_path / "glue"
    file = write(tmp_path / "tiny.yaml", tiny(data))
    command = ["sweep", str(file), "compress.heads=0.5", "compress.ffn=0.4", "--local", "--dir", str(tmp_path / "out")]
    child = spikeprune(*command)
    printed, _ = child.communicate(timeout=120)
    assert child.returncode == 1
    assert "[trial 0] failed with exit code 2 (" in printed and str(data) in printed
    assert "error: 1 trial failed; the same command tries again" in printed and "Traceback" not in printed
    shutil.copytree(glue, data)
    assert "[trial 0] result/main" in finish(spikeprune(*command))


# ---------------------------------------------------------------------------------------------------- W&B's own agent


def test_a_grid_of_four_by_wandbs_agent(glue, tmp_path) -> None:
    tree = tiny(glue)
    tree["parameters"]["compress.ffn"] = {"values": [0.2, 0.4]}
    words = [w.replace("runs/", f"{tmp_path}/runs/") if w.startswith("run.dir") else w for w in tree["command"]]
    tree["command"] = words
    file = write(tmp_path / "tiny.yaml", tree)
    with wandb_server() as board:
        online = {"WANDB_BASE_URL": board.url, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}
        printed = finish(spikeprune("sweep", str(file), **online, WANDB_DIR=str(tmp_path)))
        assert "sweep: spikeprune/sweep1" in printed
        assert board.sweeps["sweep1"]["config"]["parameters"] == tree["parameters"] and board.unknown == set()
        given = board.sweeps["sweep1"]["given"]
        assert set(board.runs) == set(given) == {"trial1", "trial2", "trial3", "trial4"}
        for name, values in given.items():
            assert board.runs[name]["exit"] == 0 and board.runs[name]["sweep"] == "sweep1"
            run = RunDir(tmp_path / "runs" / "sweeps" / "tiny" / name)
            config = board.config(name)
            assert config["compress"]["heads"] == values["compress.heads"] == config["compress.heads"]
            found = results(run.record("spatial"), run.record("teacher"))
            summary = board.summary(name)
            assert {key: summary[key] for key in found} == pytest.approx(found)
            steps = [row["_step"] for row in board.history(name)]
            assert steps == list(range(run.record("teacher")["steps"] + run.record("spatial")["steps"]))


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[Cluster]:
    """A SLURM of one node on loopback."""
    made = Cluster(tmp_path / "slurm", cpus=2)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    made.start()
    yield made
    made.stop_jobs()
    made.stop()


@pytest.mark.slurm
def test_an_array_job_of_agents(cluster, glue, tmp_path, monkeypatch) -> None:
    tree = tiny(glue)
    tree["parameters"] |= {"compress.ffn": {"value": 0.2}}
    tree["command"] = [
        w.replace("runs/", f"{tmp_path}/runs/") if w.startswith("run.dir") else w for w in tree["command"]
    ]
    file = write(tmp_path / "tiny.yaml", tree)
    monkeypatch.chdir(ROOT)
    with wandb_server() as board:
        online = {"WANDB_BASE_URL": board.url, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}
        more = {**online, "WANDB_DIR": str(tmp_path)}
        child = spikeprune("sweep", str(file), "--slurm=--partition=nowhere", **more)
        printed, _ = child.communicate(timeout=120)
        assert child.returncode == 2 and "error: sbatch refuses the job: " in printed and "invalid partition" in printed
        assert board.sweeps == {}
        printed = finish(spikeprune("sweep", str(file), f"--slurm=--output={tmp_path}/%a.log", **more))
        assert "--array=1-2 experiments/slurm/sweep.sh spikeprune/sweep1" in printed
        job = re.search(r"Submitted batch job (\d+)", printed)[1]
        ends = [cluster.wait(f"{job}_{index}")["JobState"] for index in (1, 2)]
        logs = "".join((tmp_path / f"{i}.log").read_text() for i in (1, 2))
        assert {name: run["exit"] for name, run in board.runs.items()} == {"trial1": 0, "trial2": 0}, logs
        assert ends == ["COMPLETED", "COMPLETED"], logs
        assert board.sweeps["sweep1"]["left"] == []


def test_an_unknown_sweep_value_is_refused_before_the_server_hears_of_it(glue, tmp_path, monkeypatch) -> None:
    with wandb_server() as board:
        monkeypatch.setenv("WANDB_BASE_URL", board.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        with pytest.raises(InputError, match="compress.heds: unknown key"):
            spec.read(write(tmp_path / "s.yaml", tiny(glue)), ["compress.heds=1"])
        assert board.sweeps == {}
