"""Commands and their options, and how words are read as them. `cli.py` has the actions."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from os.path import expanduser
from pathlib import Path

from spikeprune import __version__
from spikeprune.arguments import examples
from spikeprune.config import scalars
from spikeprune.config.keys import type_of
from spikeprune.config.names import EXPORTS, RUNTIMES
from spikeprune.config.resources import experiment_file
from spikeprune.errors import nearest

TIMED = "also time student and dense networks on this machine: PyTorch, onnxruntime, C; one thread"
CHANGED = "values that replace the run's, of keys that need no training: student.dead_zone, student.coding, …"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="spikeprune",
        description="Distil BERT into spiking language models, and prune them in space and time.",
        epilog="spikeprune COMMAND --help shows examples.",
    )
    top.add_argument("--version", action="version", version=f"spikeprune {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_train, _config, _evaluate, _compact, _export, _predict, _report, _sync, _sweep, _launch, _fetch):
        add(commands)
    return top


def _train(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "train", "run the stages of an experiment, or resume them", examples.TRAIN)
    _experiment(command)


def _config(commands: argparse._SubParsersAction) -> None:
    text = "print the resolved configuration, and where each value is set"
    command = _command(commands, "config", text, examples.CONFIG)
    _experiment(command)
    _flag(command, "--help-keys", "print every key with its values, default and meaning")


def _evaluate(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "evaluate", "measure quality and cost from saved checkpoints", examples.EVALUATE)
    _run(command)
    _overrides(command, CHANGED)
    _which(command)
    _path(command, "--data", "DIR", "a GLUE directory, or a file of own data, to measure on instead of the run's")
    _flag(command, "--energy", TIMED)
    _flag(command, "--stepwise", "simulate step by step, not in closed form")
    _flag(command, "--early-exit", "also measure inference that stops once it is confident")
    _flag(command, "--json", "print JSON instead of a table")


def _compact(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "compact", "write a student without its pruned heads and neurons", examples.COMPACT)
    _run(command)
    _overrides(command, CHANGED)
    _stage(command)
    _path(command, "--data", "DIR", "a GLUE directory, or a file of own data, to compare logits on")


def _export(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "export", "write a student as files that other programs load", examples.EXPORT)
    _run(command)
    kinds = f"of the files: {', '.join(EXPORTS)}"
    command.add_argument("--to", choices=EXPORTS, required=True, metavar="FORMAT", help=kinds)
    _path(command, "directory", "DIR", "a directory that does not exist yet")
    _which(command)
    _path(command, "--data", "DIR", "a GLUE directory to check the files on")


def _predict(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "predict", "predict texts with a run's network", examples.PREDICT)
    _run(command)
    command.add_argument("texts", metavar="text", nargs="*", help="what to predict; with --glue-test: further runs")
    _which(command)
    _path(command, "--file", "IN", "a file of texts")
    _path(command, "--out", "OUT", "a .csv or .jsonl file; with --glue-test a directory")
    command.add_argument("--runtime", choices=RUNTIMES, default="torch", help="what computes: torch, or the C program")
    _flag(command, "--cost", "with additions, energy and time steps of each text")
    _flag(command, "--glue-test", "write GLUE's submission files, of its test splits")
    _path(command, "--data", "DIR", "with --glue-test: a GLUE directory with them")
    _path(command, "--zip", "FILE", "with --glue-test: into one archive")


def _report(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "report", "write a page about one run or several", examples.REPORT)
    _runs(command)
    _path(command, "--out", "FILE", "the page; by default report.html, of one run in its directory", short="-o")
    shown = "a sentence whose spikes are shown, a pair with a tab between; by default some of the dev split"
    command.add_argument("--text", metavar="TEXT", action="append", default=[], help=shown)
    _flag(command, "--energy", TIMED)


def _sync(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "sync", "send runs to W&B that were offline", examples.SYNC)
    _runs(command)


def _sweep(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "sweep", "run many trials of an experiment", examples.SWEEP)
    command.add_argument("file", metavar="FILE", help="a sweep file, such as experiments/sweeps/budget.yaml")
    _overrides(command, "keys that are fixed for all trials")
    _number(command, "--trials", "trials in all; by default run_cap or the grid's size", least=1)
    where = command.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="without a server, on this machine")
    where.add_argument("--slurm", metavar="OPTIONS", help="agents as an array job; options of sbatch, or ''")
    _number(command, "--jobs", "local trials at a time; by default one per GPU or core", least=1)
    _path(command, "--dir", "DIR", "of a local sweep; by default runs/sweeps/FILE-TASK-PRESET")
    _number(command, "--agents", "W&B agents; by default one per GPU, 0 only makes the sweep")


def _launch(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "launch", "submit an experiment to SLURM, one run or an array", examples.LAUNCH)
    _experiment(command)
    command.add_argument("--array", metavar="TASKS", help='tasks of an array, such as "mrpc rte"')
    command.add_argument("--seeds", metavar="SEEDS", help="seeds of an array, such as 0-4 or 0,2,5-7")
    _number(command, "--gpus", "GPUs of each node; 0 runs on the CPU (default: 1)")
    _number(command, "--nodes", "nodes of each run")
    _number(command, "--cpus", "CPU cores of each process")
    command.add_argument("--time", metavar="TIME", help="limit of each job, as sbatch reads it: 30:00, 4:00:00, 1-0")
    command.add_argument("--partition", metavar="NAME", help="partition of the cluster")
    command.add_argument("--sbatch", metavar="OPTION", action="append", default=[], help="a further option of sbatch")
    _path(command, "--template", "FILE", "script template, by default slurm/job.sh")
    _flag(command, "--dry-run", "write the script and submit nothing")


def _fetch(commands: argparse._SubParsersAction) -> None:
    command = _command(commands, "fetch", "get data and checkpoints into the cache, and verify them", examples.FETCH)
    _experiment(command)
    command.add_argument("--array", metavar="TASKS", help='several tasks, such as "mrpc rte"')
    _flag(command, "--check", "use no network, only say what is missing")


def _command(commands: argparse._SubParsersAction, name: str, text: str, examples: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _run(command: argparse.ArgumentParser) -> None:
    _path(command, "run", "RUN", "a run's directory, such as runs/mrpc-tiny-s0")


def _runs(command: argparse.ArgumentParser) -> None:
    text = "a run's directory, such as runs/mrpc-tiny-s0"
    command.add_argument("runs", type=expanduser, metavar="RUN", nargs="+", help=text)


def _which(command: argparse.ArgumentParser) -> None:
    """Of a run's networks."""
    which = command.add_mutually_exclusive_group()
    _stage(which)
    which.add_argument("--compact", action="store_true", help="the model that `spikeprune compact` wrote")


def _stage(command: argparse._ActionsContainer) -> None:
    command.add_argument("--stage", metavar="NAME", help="a finished stage; by default the student's last one")


def _experiment(command: argparse.ArgumentParser) -> None:
    text = "an experiment file, such as experiments/glue.yaml; by default the glue.yaml that the package carries"
    command.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help=text)
    _overrides(command, "values that replace the file's")


def _overrides(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=text)  # or it is called required


def _flag(command: argparse.ArgumentParser, name: str, text: str) -> None:
    command.add_argument(name, action="store_true", help=text)


def _path(command: argparse.ArgumentParser, name: str, metavar: str, text: str, short: str = "") -> None:
    command.add_argument(*filter(None, (short, name)), type=expanduser, metavar=metavar, help=text)


def _number(command: argparse.ArgumentParser, name: str, text: str, least: int | None = None) -> None:
    command.add_argument(name, metavar="N", type=partial(_whole, least=least), help=text)


def _whole(text: str, least: int | None) -> int:
    try:
        number = scalars.read(text, int)
    except scalars.Unreadable:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number in plain digits") from None
    if least is not None and number < least:
        raise argparse.ArgumentTypeError(f"{text}: must be at least {least}")
    return number


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments; key=value, or texts, may also stand behind an option, where argparse does not look for them."""
    top = parser()
    commands = next(action.choices for action in top._actions if action.dest == "command")
    command = next((word for word in words if not word.startswith("-")), None)
    if not words:
        top.print_help(sys.stderr)
        top.exit(2, "\nspikeprune: error: name a command, such as: spikeprune train experiments/glue.yaml\n")
    if command is not None and command not in commands:
        top.error(f"unknown command {command}; there are {nearest(command, commands)}")
    args, rest = top.parse_known_args(words)
    for word in rest:
        taken = "texts" in args or ("overrides" in args and "=" in word)
        if word.startswith("-") or not taken:
            commands[args.command].error(_unknown(word, commands[args.command]))
    if rest and "texts" in args:
        args.texts += rest
    elif rest:
        args.overrides += rest
    if "experiment" in args:
        _default_experiment(args, commands[args.command])
    args.words = list(words)
    return args


def _default_experiment(args: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    """Where the first word is a key=value, the experiment is the one that the package carries."""
    if args.experiment is not None and re.match(r"[\w.-]+=", args.experiment) and not Path(args.experiment).exists():
        args.overrides = [args.experiment, *args.overrides]
        args.experiment = None
    if args.experiment is None:
        if not args.overrides and args.command != "config":
            command.error(f"name an experiment file or a task, such as: {command.prog} task=mrpc preset=tiny")
        args.experiment = str(experiment_file())


def _unknown(word: str, command: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"unrecognized argument: {word}"
    name = word.partition("=")[0]
    options = [option for action in command._actions for option in action.option_strings if option.startswith("--")]
    key = name.lstrip("-")
    hint = f"; a key of the configuration is written without dashes: {key}=…" if type_of(key) else ""
    return f"unknown option {name}; there are {nearest(name, options)}{hint}"
