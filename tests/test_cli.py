"""The command line as a user meets it: exit codes, streams, no traceback for what a user can cause, quick help."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from spikeprune import __version__, cli
from spikeprune.arguments import commands
from spikeprune.config.keys import every_key
from spikeprune.errors import InputError
from spikeprune.experiment import streams

ROOT = Path(__file__).resolve().parents[1]
GLUE = str(ROOT / "experiments" / "glue.yaml")


def spikeprune(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "spikeprune", *args], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the real modules, which take seconds to import and minutes to run."""
    from spikeprune import experiment

    fake = SimpleNamespace(run=lambda config, tracker: None, evaluate=lambda run, **options: {})
    monkeypatch.setattr("spikeprune.report.tables.summary_table", str)
    for module in ("pipeline", "evaluation"):
        monkeypatch.setitem(sys.modules, f"spikeprune.experiment.{module}", fake)
        monkeypatch.setattr(experiment, module, fake, raising=False)
    return fake


def raising(error: BaseException):
    def run(*_, **__):
        raise error

    return run


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("train", "--help"),
        ("evaluate", "--help"),
        ("compact", "--help"),
        ("launch", "--help"),
        ("--version",),
    ],
)
def test_help_is_there_at_once(args: tuple[str, ...]) -> None:
    start = time.monotonic()
    done = spikeprune(*args)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - start < 5  # at most 0.3 s on an idle machine; torch alone takes seconds
    if args[0] == "--version":
        assert done.stdout == f"spikeprune {__version__}\n"
    elif len(args) == 1:
        assert all(command in done.stdout for command in ("train", "evaluate", "compact", "launch", "fetch"))
    else:
        assert "examples:" in done.stdout and f"spikeprune {args[0]} " in done.stdout


@pytest.mark.parametrize("args", ["['--help']", "['train', 'no.yaml']", f"['train', {GLUE!r}, 'sed=1']"])
def test_help_and_a_wrong_key_load_nothing_heavy(args: str) -> None:
    code = f"""if True:
        import sys
        from spikeprune.cli import main
        try:
            main({args})
        except SystemExit:
            pass
        heavy = {{"torch", "lightning", "transformers", "wandb", "numpy"}}
        print(sorted(heavy & set(sys.modules)), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "[]"


def test_every_command_that_is_offered_does_something() -> None:
    offered = next(action.choices for action in commands.parser()._actions if action.dest == "command")
    assert set(offered) == set(cli.ACTIONS)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("train", GLUE, "task=mrcp"), "error: task = mrcp: choose from"),
        (("train", GLUE, "sed=1", "student.t_steps=0"), "error: 2 problems in the configuration:\n  sed: unknown key"),
        (("train", "experiments/glu.yaml"), "error: experiments/glu.yaml: no such file"),
        (("train", GLUE, "seed"), "error: seed: write key=value"),
        (("train", GLUE, "--seed=1"), "usage: "),
        (("train",), "usage: "),
        (("train", "task=mrcp"), "error: task = mrcp: choose from"),
        (("evaluate", "runs/x", "--compact", "--stage", "spatial"), "usage: "),
        (("launch", GLUE, "--seeds", "2-1", "sed=1"), "error: seeds = 2-1: write numbers"),
        (("launch", GLUE, "--gpus", "many"), "usage: "),
        (("launch", GLUE, "--gpus", "1_0"), "usage: "),
        (("sweep", "x.yaml", "--trials", "010"), "usage: "),
        ((), "usage: "),
    ],
)
def test_bad_input_is_exit_2_and_no_traceback(args: tuple[str, ...], message: str, capsys, monkeypatch) -> None:
    """Of the exceptions here only those of `sys.exit` print no traceback."""
    monkeypatch.chdir(ROOT)
    try:
        code = cli.main(args)
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "") and printed.err.startswith(message)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ("trian", GLUE),
            "unknown command trian; there are train, config, evaluate, compact, ",
        ),
        (("train", GLUE, "--seed=1"), "unknown option --seed; there are --help; a key of the configuration is written"),
        (("evaluate", "runs/x", "--stagge", "spatial"), "--json (did you mean --stage?)"),
        (("sync", "runs/x", "--force"), "unknown option --force; there are --help"),
        ((), "name a command, such as: spikeprune train experiments/glue.yaml"),
    ],
)
def test_a_typo_is_told_in_a_sentence(args: tuple[str, ...], sentence: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert sentence in printed.err.splitlines()[-1] and printed.err.startswith("usage: ")
    assert args or "train" in printed.err and "fetch" in printed.err  # the whole help


SHOUTING = """if True:
    import sys, types
    import spikeprune.config.load
    from spikeprune import cli
    def shout(args):
        for _ in range(100_000 if {many} else 1):
            print("teacher \\u2192 student")
    cli.ACTIONS["train"] = shout
    sys.exit(cli.main(["train", "x"]))
"""


@pytest.mark.parametrize(
    "environment", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "latin-1"}]
)
def test_what_the_terminal_cannot_show_is_replaced(environment: dict[str, str]) -> None:
    code = SHOUTING.format(many=False)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, env={**os.environ, **environment}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"teacher ? student")


@pytest.mark.parametrize("command", ["-c SHOUTING", "-m spikeprune launch --help"])
@pytest.mark.parametrize("into", ["", "2>&1"])
def test_a_reader_that_is_gone_ends_it_quietly(command: str, into: str, tmp_path) -> None:
    """As `| head -1` does; the reader is gone before the first word comes."""
    words = command.replace("SHOUTING", shlex.quote(SHOUTING.format(many=True)))
    shell = f"({sys.executable} {words} {into}; echo $? > {tmp_path}/code) | true"
    done = subprocess.run(["bash", "-c", f"{shell}; sleep 0"], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "" and (tmp_path / "code").read_text().strip() in ("141", "0")  # argparse hides it: 0


def test_an_input_error_of_the_run_is_one_sentence(pipeline, capsys) -> None:
    pipeline.run = raising(InputError("MRPC/train.tsv: line 7 has no label"))
    assert cli.main(["train", GLUE]) == 2
    assert capsys.readouterr().err == "error: MRPC/train.tsv: line 7 has no label\n"


@pytest.mark.parametrize("number", streams.UNWRITABLE)
def test_a_full_or_closed_disk_is_one_sentence(pipeline, capsys, number: int) -> None:
    pipeline.run = raising(OSError(number, "the reason", "runs/x/metrics.jsonl"))
    assert cli.main(["train", GLUE]) == 2
    assert capsys.readouterr().err == "error: runs/x/metrics.jsonl: cannot be written: the reason\n"


@pytest.mark.parametrize("kind", [SafetensorError, Exception])  # tokenizers raises the latter
def test_what_a_library_in_rust_could_not_write_is_one_sentence(pipeline, capsys, kind) -> None:
    pipeline.run = raising(kind("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert cli.main(["train", GLUE]) == 2
    assert capsys.readouterr().err == "error: cannot be written: No space left on device\n"
    pipeline.run = raising(kind("Error while serializing (os error 9)"))
    with pytest.raises(kind):
        cli.main(["train", GLUE])


@pytest.mark.parametrize("where", ["file", "file/below", "x" * 300])
def test_a_sweeps_directory_that_cannot_be_is_one_sentence(where: str, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(ROOT)
    words = ["sweep", "experiments/sweeps/budget.yaml", "--local", "--trials", "1", "--dir", str(tmp_path / where)]
    assert cli.main(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {tmp_path / where}") and "cannot be written: " in printed


def test_anything_else_keeps_its_traceback(pipeline) -> None:
    for error in (RuntimeError("a bug"), OSError(errno.EBADF, "a bug"), ValueError("a bug")):
        pipeline.run = raising(error)
        with pytest.raises(type(error), match="a bug"):
            cli.main(["train", GLUE])


def test_ctrl_c_prints_how_to_resume(pipeline, capsys) -> None:
    pipeline.run = pipeline.evaluate = raising(KeyboardInterrupt())
    assert cli.main(["train", GLUE]) == 130
    assert capsys.readouterr().err == "\ninterrupted; the same command resumes where this one stopped\n"
    assert cli.main(["evaluate", "runs/x"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


# --- what the commands hand on ----------------------------------------------------------------------------------------


def test_config_prints_each_value_and_who_set_it(capsys, monkeypatch) -> None:
    """With the experiment file and without one, which is then experiments/glue.yaml."""
    monkeypatch.chdir(ROOT)
    given = ["preset=minilm", "ablation=joint", "stages.spatial.heads=0.25"]
    printed = []
    for words in (given, ["experiments/glue.yaml", *given]):
        assert cli.main(["config", *words]) == 0
        printed.append(dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines()))
    one, two = printed
    assert one == two and list(one) == list(every_key())
    values = {key: [part.strip() for part in line.rsplit("  # ", 1)] for key, line in one.items()}
    assert values["stages.spatial.heads"] == ["0.25", "command line"]
    assert values["stages.budget.value"] == ["0.02", "experiments/ablations/joint.yaml"]
    assert values["teacher.dropout"] == ["0.0", "experiments/presets/minilm.yaml"]
    assert values["task"] == ["mrpc", "experiments/glue.yaml"] and values["seed"] == ["0", "default"]
    assert cli.main(["config", "sed=1"]) == 2
    assert "sed: unknown key (did you mean seed?)" in capsys.readouterr().err


def test_config_prints_every_key(capsys) -> None:
    assert cli.main(["config", "--help-keys"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    shared = {"stages.STAGE." + key.split(".", 2)[2] for key in every_key() if key.startswith("stages.teacher.")}
    assert shared < set(lines) and {key for key in every_key() if not key.startswith("stages.")} < set(lines)
    theta = lines["student.theta"]
    assert theta.endswith("  one threshold per channel or per layer [channel, tensor; default channel]")
    assert "[a finite number; default 1.0]" in lines["stages.spatial.heads"]


def test_train_hands_on_the_configuration(pipeline) -> None:
    seen = []
    pipeline.run = lambda config, tracker: seen.append(config)
    assert cli.main(["train", GLUE, "task=rte", "seed=7"]) == 0
    assert (seen[0].task, seen[0].seed, seen[0].preset) == ("rte", 7, "tiny")


def test_without_a_file_the_experiment_is_the_packages_own(pipeline, capsys) -> None:
    seen = []
    pipeline.run = lambda config, tracker: seen.append(config)
    assert cli.main(["train", "task=rte", "seed=7"]) == cli.main(["train", GLUE, "seed=7", "task=rte"]) == 0
    assert seen[0] == seen[1] and seen[0].task == "rte"
    with pytest.raises(SystemExit):
        cli.main(["train"])
    assert "name an experiment file or a task, such as: spikeprune train task=mrpc" in capsys.readouterr().err


def test_evaluate_prints_json_or_a_table(pipeline, capsys, monkeypatch) -> None:
    seen, changed = [], []

    def evaluate(
        run: str, stage, data_dir, compacted: bool, stepwise: bool, early_exit: bool, energy: bool, overrides: list[str]
    ) -> dict:
        seen.append((run, stage, data_dir, compacted, stepwise, early_exit or energy))
        changed.extend(overrides)
        return {"task": "rte"}

    pipeline.evaluate = evaluate
    monkeypatch.setattr(
        "spikeprune.report.command_output.evaluation_lines", lambda found: f"a table of {found['task']}"
    )
    assert cli.main(["evaluate", "runs/x", "--stage", "spatial", "--data", "glue", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"task": "rte"}
    assert cli.main(["evaluate", "runs/x"]) == 0
    assert capsys.readouterr().out == "a table of rte\n"
    assert cli.main(["evaluate", "runs/x", "--compact"]) == 0
    assert cli.main(["evaluate", "runs/x", "--stepwise"]) == 0
    assert seen[:2] == [("runs/x", "spatial", "glue", False, False, False), ("runs/x", None, None, False, False, False)]
    assert cli.main(["evaluate", "runs/x", "--early-exit"]) == 0
    assert [row[3:] for row in seen[2:]] == [(True, False, False), (False, True, False), (False, False, True)]
    assert changed == []
    assert cli.main(["evaluate", "runs/x", "student.dead_zone=60", "--stage", "spatial", "--json"]) == 0
    assert changed == ["student.dead_zone=60"]
