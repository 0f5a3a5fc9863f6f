"""Sweep files against the configuration, what is refused, and real sweeps: here with Optuna, and by W&B's agent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from micro import GLUE, ROOT, micro
from tiny_sweep import tiny, write

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.config.tasks import get_task
from spikeprune.experiment.reuse import common_stages
from spikeprune.integrations.sweeps import form, spec, study
from spikeprune.integrations.sweeps.form import Parameter
from spikeprune.report.results import names

FILES = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))

pytestmark = pytest.mark.filterwarnings("ignore")


# ------------------------------------------------------------------------------------------- the files of experiments/


def test_the_files_that_there_should_be() -> None:
    assert {path.stem for path in FILES} >= {"budget", "shares", "criteria", "temporal", "quantize"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_file_holds_keys_values_and_a_metric_that_are_there(path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = spec.read(path)  # loads the configuration of each combination, or each value
    assert sweep.swept and sweep.metric in names(get_task("mrpc").quality)
    assert sweep.size or sweep.run_cap
    # one with the agent's own words, as it will be started
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    words = sweep.tree["command"][6:-1]
    config = load(ROOT / sweep.experiment, [*words, *(f"{p.key}={p.samples()[0]}" for p in sweep.parameters)])
    assert config.run.dir == f"runs/sweeps/{path.stem}/s1/r1" and config.run.wandb == "auto"


@pytest.mark.parametrize(
    ("name", "last"), [(path.stem, {"temporal": 4, "quantize": 5}.get(path.stem, 3)) for path in FILES]
)
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
    ({"stages.spatial.heds": {"values": [0.5]}}, "heds: unknown key (did you mean stages.spatial.heads?)"),
    ({"stages.spatial.heads": {"values": [0.5, "half"]}}, "stages.spatial.heads = half: must be a finite number"),
    ({"stages.spatial.heads": {"values": [0.5, 1.5]}}, "stages.spatial.heads = 1.5: must be above 0 and at most 1"),
    (
        {"stages.spatial.heads": {"values": []}},
        "parameters.stages.spatial.heads.values = []: must be a list of at least one value",
    ),
    (
        {"stages.spatial.heads": {"min": 0.1, "max": 0.5}},
        "parameters.stages.spatial.heads: a grid has no ranges; list its values",
    ),
    ({"stages.spatial.heads": {"valeus": [1]}}, "parameters.stages.spatial.heads.valeus: not supported; there are"),
    ({"stages.spatial": {"parameters": {"heads": {"value": 1}}}}, "write dotted keys, such as stages.spatial.heads"),
    (
        {"stages.temporal.t_steps": {"values": [2, None]}},
        "parameters.stages.temporal.t_steps: null cannot be passed by W&B's agent",
    ),
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
    hyphens = [*command[:-1], "${args}"]  # gives --stages.spatial.heads=0.5
    assert "command: ${args}: write [" in refused({**tree, "command": hyphens}, tmp_path / "s.yaml", capsys)


def test_values_are_read_by_the_types_of_their_keys(tmp_path, capsys) -> None:
    """YAML 1.1 would take these for 8, true and 1e-3 as text; a directory keeps its spelling on the way to a trial."""
    tree = tiny(method="random", run_cap=2)
    tree["parameters"] |= {
        "seed": {"value": "SEED"},
        "data.hub": {"values": ["TEXT", "a #1"]},
        "student.feedback": {"value": "B"},
    }
    tree["parameters"] |= {"stages.spatial.lr": {"min": "LOW", "max": 0.1}, "student.t_steps": {"value": [4, 2, 2]}}

    def written(seed: str, truth: str = "false") -> Path:
        text = write(tmp_path / "s.yaml", tree).read_text(encoding="utf-8")
        for word, meant in {"SEED": seed, "TEXT": "1_0", "LOW": "1e-3", "B": truth}.items():
            text = text.replace(f": {word}\n", f": {meant}\n").replace(f"- {word}\n", f"- {meant}\n")
        (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "s.yaml"

    sweep = spec.read(written("10"), ["data.dir=glue #1"])
    found = {p.key: p.samples() for p in sweep.parameters}
    assert (found["seed"], found["data.hub"], found["student.feedback"]) == ([10], ["1_0", "a #1"], [False])
    assert (found["stages.spatial.lr"][0], found["student.t_steps"]) == (1e-3, [[4, 2, 2]])
    config = sweep.config({key: values[-1] for key, values in found.items()}, "run.dir=x")
    assert (config.data.hub, config.data.dir, config.student.t_steps) == ("a #1", "glue #1", [4, 2, 2])
    for seed, truth, words in (
        ("010", "false", "seed = 010: must be"),
        ("1", "yes", "student.feedback = yes: must be true"),
    ):
        assert cli.main(["sweep", str(written(seed, truth)), "--local", "--dir", str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err


def test_two_wrong_values_come_in_one_message(tmp_path, capsys) -> None:
    tree = tiny()
    tree["parameters"] |= {"stages.spatial.heads": {"values": [0.5, -1.0, 2.0]}}
    message = refused(tree, tmp_path / "s.yaml", capsys, "--local", "--dir", str(tmp_path / "out"))
    assert "stages.spatial.heads = -1.0" in message and "stages.spatial.heads = 2.0" in message


def test_the_command_lines_own_values(tmp_path, capsys, monkeypatch) -> None:
    file = write(tmp_path / "s.yaml", tiny())
    sweep = spec.read(file, ["stages.spatial.heads=0.5", "seed=3"])
    assert sweep.size == 2 and sweep.config(sweep.grid()[0], "run.dir=x").seed == 3
    assert cli.main(["sweep", str(file), "--local", "stages.spatial.heds=0.5"]) == 2
    assert "stages.spatial.heds: unknown key" in capsys.readouterr().err
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


def draw(*parameters: Parameter, count: int = 40) -> list[tuple]:
    """Values of the first trials of a random study."""
    import optuna

    drawn, sweep = optuna.create_study(), replace(SWEEP, parameters=parameters)
    return [tuple(study.draw(drawn.ask(), sweep).values()) for _ in range(count)]


SWEEP = spec.Sweep(Path("x"), {}, "random", "result/main", "maximize", (), "", ())


def test_ranges_and_lists_give_values_of_their_kind() -> None:
    kinds = (
        Parameter("a", (), 1, 4, "int_uniform"),
        Parameter("b", (), 1e-4, 1e-1, "log_uniform_values"),
        Parameter("c", (), 0.0, 1.0, "q_uniform", 0.25),
        Parameter("d", ([4, 2, 2], "x", 3)),  # a list is a value too
        Parameter("e", (), 0.0, 1.0, "uniform"),
    )
    a, b, c, d, e = zip(*draw(*kinds), strict=True)
    assert set(a) == {1, 2, 3, 4} and all(isinstance(v, int) for v in a)
    assert all(1e-4 <= v <= 1e-1 for v in b) and 5 < sum(v < 3e-3 for v in b) < 35  # as often below the middle decade
    assert set(c) <= {0.0, 0.25, 0.5, 0.75, 1.0} and len(set(c)) > 2
    assert [4, 2, 2] in d and "x" in d and 3 in d
    assert len(set(e)) == 40 and 0 <= min(e) <= max(e) <= 1


def test_each_trial_and_each_key_draws_its_own_values_and_always_these() -> None:
    one, other = (Parameter(name, (), 0.0, 1.0, "uniform") for name in "ab")
    found = draw(one, other)
    assert len({value for row in found for value in row}) == 80
    assert found == draw(one, other) == [row[::-1] for row in draw(other, one)]


def test_bayes_draws_near_what_was_good(tmp_path) -> None:
    """As a sweep asks: a new sampler for each value."""
    p = Parameter("a", (), 0.0, 1.0, "uniform")
    found = {}
    for method in ("bayes", "random"):
        sweep = replace(SWEEP, method=method, parameters=(p,))
        (tmp_path / method).mkdir()
        (asked, _), values = study.open_study(sweep, tmp_path / method), []
        for _ in range(30):
            trial = asked.ask()
            values.append(study.draw(trial, sweep)["a"])
            asked.tell(trial, -((values[-1] - 0.3) ** 2))
        found[method] = sum(abs(value - 0.3) for value in values[15:]) / 15
    assert found["bayes"] < 0.6 * found["random"]


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
    assert form.rungs(early, problems) == rungs and problems == []


# ---------------------------------------------------------------------------------------------- stages that are shared


@pytest.mark.parametrize(
    ("change", "common"),
    [
        ("stages.spatial.heads=0.8", 3),
        ("stages.spatial.criterion=rate", 3),
        ("stages.temporal.end=0.3", 4),
        ("stages.finetune.lr=1.0e-3", 5),
        ("stages.internal_kd.lr=2.0e-3", 1),
        ("student.t_steps=5", 1),  # another student of the same teacher
        ("data.replace_words=0.1", 1),
        ("stages.quantize.end=0.3", 6),
        ("teacher.size=[48,2,3,37,300]", 0),
        ("seed=1", 0),
        ("data.batch_size=4", 0),
        ("cost.model=int8", 6),  # it prices what was counted, and a budget alone aims at it
        ("run.precision=bf16-mixed", 0),
        ("run.log_every=7", 6),  # shown, not computed
        ("stages.prediction_kd.epochs=0", 2),
    ],
)
def test_which_stages_a_key_leaves_alike(change, common) -> None:
    stages = ("teacher", "internal_kd", "prediction_kd", "spatial", "temporal", "finetune")
    plain, changed = load(GLUE, micro(Path("x"))), load(GLUE, [*micro(Path("x")), change])
    assert common_stages(plain, changed) == common_stages(changed, plain) == list(stages[:common])
