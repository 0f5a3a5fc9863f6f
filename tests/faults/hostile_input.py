"""Hostile input, in this process: files of data and JSON, configurations, command lines, sweeps."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from unittest import mock

import yaml
from micro import GLUE, ROOT, write_sst2

from faults import mutation
from faults.campaign import Attempt
from spikeprune import cli
from spikeprune.arguments.commands import parser
from spikeprune.config.keys import every_key, leaves
from spikeprune.config.load import load, to_yaml
from spikeprune.config.tasks import get_task
from spikeprune.data.own import Columns, load_own
from spikeprune.data.tsv import read_tsv
from spikeprune.errors import InputError
from spikeprune.experiment import prediction_files
from spikeprune.files import jsonfile
from spikeprune.integrations.sweeps import spec

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def command(words: list[str]) -> None:
    """`spikeprune` in this process. Raises InputError with its sentence where it exits with 2, RuntimeError for another
    code than 0."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    said = err.getvalue()
    if code == 2:
        raise InputError(said[said.rindex("error: ") :] if "error: " in said else "")
    if code:
        raise RuntimeError(f"exit code {code}: {said[-300:]}")


# -------------------------------------------------------------------------------------------------------------- data


def data_files(folder: Path) -> Attempt:
    """TSV of GLUE and tables of a user's own: read as training data, or as texts to predict."""
    glue, sst2 = write_sst2(folder / "glue", 12, 6), get_task("sst2")
    texts = [("a good film", 'a bad, "old" film')[i % 2] + f" {i}" for i in range(12)]
    rows = [{"text": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(texts)]
    valid = {".jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}
    valid[".csv"] = ("text,label\n" + "".join(prediction_files.csv_line(list(row.values())) for row in rows)).encode()
    valid[".tsv"] = b"text\tlabel\n" + b"".join(f"{r['text']}\t{r['label']}\n".encode() for r in rows)
    valid[".parquet"] = parquet(rows)
    valid[".txt"] = b"a good film\na bad one\n"
    glue_text = (glue / "SST-2" / "train.tsv").read_bytes()

    def attempt(random: Random) -> None:
        kind = random.choice((*valid, "glue"))
        if kind == "glue":
            path = folder / "train.tsv"
            path.write_bytes(mutation.of_bytes(random, glue_text))
            read_tsv(sst2, path)
            return
        path = folder / f"own{kind}"
        path.write_bytes(mutation.of_bytes(random, valid[kind]))
        if kind == ".txt" or random.random() < 0.2:
            for _ in prediction_files.read_file(sst2, str(path)):
                pass
            return
        load_own(
            train_file=str(path),
            dev_file=None,
            hub="",
            columns=Columns(("text",), "label"),
            metrics=(),
            seed=0,
            train_limit=None,
        )

    return attempt


def parquet(rows: list[dict]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


# ------------------------------------------------------------------------------------- configurations and commands


def configurations(folder: Path) -> Attempt:
    """Experiment files of up to 20 keys, and overrides."""
    whole = dict(leaves(yaml.safe_load(to_yaml(load(GLUE, ["preset=tiny", "data.source=embedded"])))))
    keys, path = list(every_key()), folder / "experiment.yaml"

    def attempt(random: Random) -> None:
        tree = nested({key: whole[key] for key in random.sample(list(whole), random.randint(0, 20))})
        text = dumped(mutation.of_tree(random, tree))
        path.write_bytes(mutation.of_bytes(random, text, 2) if random.random() < 0.5 else text)
        overrides = [f"{random.choice(keys)}={word(random)}" for _ in range(random.randrange(4))]
        to_yaml(load(path, overrides))

    return attempt


def nested(flat: dict) -> dict:
    """`{"a.b": 1}` -> `{"a": {"b": 1}}`."""
    tree: dict = {}
    for key, value in flat.items():
        *path, name = key.split(".")
        holder = tree
        for part in path:
            holder = holder.setdefault(part, {})
        holder[name] = value
    return tree


def dumped(tree: object) -> bytes:
    text = yaml.dump(tree, Dumper=DUMPER, sort_keys=False, allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


def word(random: Random) -> str:
    value = random.choice(mutation.VALUES)
    text = value if isinstance(value, str) else json.dumps(value)
    return (
        text
        if random.random() < 0.7
        else mutation.of_bytes(random, text.encode(), 2).decode("utf-8", "surrogateescape")
    )


def command_lines(folder: Path) -> Attempt:
    """Words of commands, options, keys and nonsense, up to where a command would begin to compute."""
    commands = list(cli.ACTIONS)
    top = next(a for a in parser()._actions if a.dest == "command").choices
    options = {name: [o for a in top[name]._actions for o in a.option_strings] for name in commands}
    not_run = [(import_module(module), function) for module, _, function in (t.rpartition(".") for t in NOT_RUN)]
    plain = [str(GLUE), str(folder / "nowhere"), "task=sst2", "preset=tiny", "data.source=embedded", "hf", "1", "text"]
    plain += [
        f"run.dir={folder}/run",
        "--",
        "-",
        "",
        "~",
        "=",
        "run.dir=",
        str(folder),
        str(ROOT / "experiments/sweeps/budget.yaml"),
    ]

    def a_word(random: Random, name: str) -> str:
        kind = random.randrange(5)
        if kind == 0:
            return random.choice(options[name])
        if kind == 1:
            return f"{random.choice(options[name])}={word(random)}"
        if kind == 2:
            return f"{random.choice(list(every_key()))}={word(random)}"
        return random.choice(plain) if kind == 3 else word(random)

    def attempt(random: Random) -> None:
        name = random.choice(commands)
        words = [a_word(random, name).replace("\0", "") for _ in range(random.randint(0, 5))]
        words.insert(random.randrange(len(words) + 1) if random.random() < 0.1 else 0, name)
        with contextlib.ExitStack() as stack, inside(folder):
            for module, function in not_run:
                stack.enter_context(mock.patch.object(module, function, lambda *_, **__: []))
            stack.enter_context(mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a line\n"))))
            command(words)

    return attempt


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


NOT_RUN = (
    "spikeprune.experiment.pipeline.run",
    "spikeprune.integrations.sweeps.local.run_local",
    "spikeprune.integrations.sweeps.report.report",
    "spikeprune.integrations.sweeps.online.run_online",
    "spikeprune.integrations.sweeps.online.run_on_slurm",
    "spikeprune.experiment.fetch.fetch",
    "spikeprune.integrations.wandb.tracker.sync",
    "spikeprune.integrations.launch.launch",
)


def sweep_files(folder: Path) -> Attempt:
    texts = [path.read_text() for path in sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))]
    trees = [yaml.safe_load(text.replace("experiments/glue.yaml", str(GLUE))) for text in texts]
    path = folder / "sweep.yaml"

    def attempt(random: Random) -> None:
        tree = mutation.of_tree(random, random.choice(trees))
        text = dumped(tree)
        path.write_bytes(mutation.of_bytes(random, text, 2) if random.random() < 0.3 else text)
        spec.read(path, [f"task={word(random)}"] if random.random() < 0.1 else [])

    return attempt


def json_files(folder: Path) -> Attempt:
    """Records and summaries, as all of the program reads them."""
    path, text = folder / "record.json", json.dumps({"weights": "x", "steps": 3, "metrics": {"accuracy": 0.5}}).encode()

    def attempt(random: Random) -> None:
        path.write_bytes(mutation.of_json(random, text))
        jsonfile.read(path, "remove it", ("weights", "steps"))

    return attempt


CAMPAIGNS: dict[str, Callable[[Path], Attempt]] = {
    "data files": data_files,
    "configurations": configurations,
    "command lines": command_lines,
    "sweep files": sweep_files,
    "JSON files": json_files,
}
