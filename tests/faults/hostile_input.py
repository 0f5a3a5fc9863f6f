"""Hostile input, in this process: files of data, configurations, command lines, sweeps, models and runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from unittest import mock

import torch
import yaml
from children import leg, run_command
from micro import GLUE, ROOT, micro, only, write_sst2

import spikeprune
from faults import mutation
from faults.campaign import Attempt, Row
from spikeprune import arguments, cli
from spikeprune.config.keys import every_key, leaves
from spikeprune.config.load import load, to_yaml
from spikeprune.config.tasks import get_task
from spikeprune.data.own import Columns, load_own
from spikeprune.data.tokenizer import load_tokenizer
from spikeprune.data.tsv import read_tsv
from spikeprune.errors import InputError
from spikeprune.experiment import prediction_files, resume_checkpoint
from spikeprune.experiment.build import networks
from spikeprune.experiment.context import prepare, tokens_of
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.files import jsonfile
from spikeprune.integrations.sweeps import spec

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
RUN = [*only("spatial"), "stages.temporal.t_steps=null", "stages.teacher.epochs=2", "stages.spatial.epochs=1"]
COMMIT = "spikeprune.experiment.summary.commit"  # asks git, in a process of its own


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
    top = next(a for a in arguments.parser()._actions if a.dest == "command").choices
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
    "spikeprune.integrations.wandb.sync.sync",
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


# -------------------------------------------------------------------------------------------------- models and runs


def copy_of(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


def mutate(random: Random, path: Path) -> None:
    """One file, by its kind."""
    how = mutation.of_json if path.suffix == ".json" else mutation.of_safetensors
    how = how if path.suffix in (".json", ".safetensors") else mutation.of_bytes
    path.write_bytes(how(random, path.read_bytes()))


def teachers(folder: Path) -> Attempt:
    """A checkpoint to start from: configuration, tokenizer and weights."""
    glue, source = write_sst2(folder / "glue", 12, 6), small_bert(folder / "bert")
    names = sorted(path.name for path in source.iterdir())

    def attempt(random: Random) -> None:
        given = copy_of(source, folder / "given")
        mutate(random, given / random.choice(names))
        context = prepare(
            load(GLUE, [*micro(folder / "run", glue), "data.replace_words=0", f"teacher.checkpoint={given}"])
        )
        teacher = networks.teacher(context).eval()
        with torch.no_grad():
            teacher(**{k: v for k, v in context.data.val_dataloader()[0].data.batch([0, 1]).items() if k != "labels"})

    return attempt


def small_bert(folder: Path) -> Path:
    from transformers import BertConfig, BertForSequenceClassification

    from spikeprune.data.tokenizer import train_wordpiece

    tokenizer = train_wordpiece(["the film was a long story of rain bad good"] * 4, vocab_size=120)
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 17}
    torch.manual_seed(0)
    BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **size)
    ).save_pretrained(folder)
    return folder


def finished_run(folder: Path) -> RunDirectory:
    """A finished run with its compacted model, made in `folder`."""
    glue = write_sst2(folder / "glue-of-run")
    command(["train", str(GLUE), *micro(folder / "run", glue), *RUN])
    command(["compact", str(folder / "run")])
    return RunDirectory(folder / "run")


def exports(folder: Path) -> Attempt:
    """An exported directory, loaded as `spikeprune.load` and transformers do."""
    run = finished_run(folder)
    command(["export", str(run.path), "--to", "hf", str(folder / "exported")])
    names = sorted(path.name for path in (folder / "exported").iterdir() if path.suffix != ".md")

    def attempt(random: Random) -> None:
        given = copy_of(folder / "exported", folder / "given")
        name = random.choice(names)
        mutate(random, given / name)
        model, tokenizer = spikeprune.load(given), load_tokenizer(str(given))
        if tokens_of(tokenizer) > model.config.vocab_size:
            raise InputError("the tokenizer is another model's, as `train` says of a teacher")
        logits = model(**tokenizer("a good film", return_tensors="pt")).logits
        if not logits.isfinite().all() and name.endswith(".json"):  # else weights that are huge
            raise ValueError("loaded, and its logits are not finite")

    return attempt


def run_directories(folder: Path) -> Attempt:
    """A run of which one file is another, or gone: predicted with, evaluated, compacted, resumed."""
    run = finished_run(folder)
    names = sorted(str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file())
    train = ["train", str(GLUE), *micro(folder / "given", folder / "glue-of-run"), *RUN]
    ways = (
        *([["predict", str(folder / "given"), "a good film"]] * 6),
        *([["predict", str(folder / "given"), "a good film", "--compact"]] * 2),
        *([train] * 4),
        ["evaluate", str(folder / "given"), "--json"],
        ["compact", str(folder / "given")],
        ["report", str(folder / "given"), "-o", str(folder / "page.html")],
    )

    def attempt(random: Random) -> None:
        given = copy_of(run.path, folder / "given")
        path = given / random.choice(names)
        path.unlink() if random.random() < 0.1 else mutate(random, path)
        words = random.choice(ways)
        if words is train and random.random() < 0.9:  # retraining a stage takes seconds
            (given / "config.yaml").write_bytes(mutation.of_bytes(random, (run.path / "config.yaml").read_bytes()))
        with mock.patch(COMMIT, lambda: ""):
            command(words)

    return attempt


class Malicious:
    def __reduce__(self):
        return os.system, ("true",)


def resume_checkpoints(folder: Path) -> Attempt:
    """A stage's checkpoint whose parts have the checksums of what was put into them."""
    module, path = torch.nn.Linear(3, 2), folder / "resume.ckpt"
    torch.save({"global_step": 7, "epoch": 1, "state_dict": module.state_dict(), "loops": {"a": [1, 2]}}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    data = next(name for name in parts if name.endswith("data.pkl"))

    def attempt(random: Random) -> None:
        changed = dict(parts)
        name = data if random.random() < 0.7 else random.choice(list(parts))
        changed[name] = mutation.of_bytes(random, parts[name], 3)
        if random.random() < 0.05:
            changed[data] = pickle.dumps(Malicious())
        if random.random() < 0.1:
            del changed[random.choice(list(changed))]
        with zipfile.ZipFile(path, "w") as archive:
            for part, content in changed.items():
                archive.writestr(part, content)
        if random.random() < 0.1:
            path.write_bytes(mutation.of_bytes(random, path.read_bytes()))
        resume_checkpoint.resume_step(path, module)

    return attempt


def resumed_stages(folder: Path) -> Attempt:
    """A stage that resumes from a checkpoint whose parts are whole, one of them another."""
    glue = write_sst2(folder / "glue")
    words = [*micro(folder / "run", glue), *RUN, "run.checkpoint_every=3", "stages.spatial.epochs=2"]
    leg(words, folder / "log", ("spatial", 11))
    run = RunDirectory(folder / "given")
    saved = torch.load(RunDirectory(folder / "run").resume("spatial"), weights_only=True)

    def attempt(random: Random) -> None:
        copy_of(folder / "run", run.path)
        torch.save(mutation.of_state(random, saved), run.resume("spatial"))
        with mock.patch(COMMIT, lambda: ""):
            command(["train", str(GLUE), *words, f"run.dir={run.path}"])

    return attempt


def json_files(folder: Path) -> Attempt:
    """Records and summaries, as all of the program reads them."""
    path, text = folder / "record.json", json.dumps({"weights": "x", "steps": 3, "metrics": {"accuracy": 0.5}}).encode()

    def attempt(random: Random) -> None:
        path.write_bytes(mutation.of_json(random, text))
        jsonfile.read(path, "remove it", ("weights", "steps"))

    return attempt


def whole_commands(folder: Path, seed: int, count: int, seconds: float) -> Row:
    """Inputs of several kinds to commands in processes of their own: exit code 0 or 2, and no traceback."""
    row, began, name = Row("whole commands", seed), time.monotonic(), "whole commands"
    run, log = finished_run(folder), folder / "log"
    tree, texts = yaml.safe_load(to_yaml(load(GLUE, ["preset=tiny", "task=sst2"]))), b"text,label\na good film,1\n"

    def words_of(random: Random, kind: str) -> list[str]:
        if kind == "data":
            (folder / "texts.csv").write_bytes(mutation.of_bytes(random, texts))
            return ["predict", str(run.path), "--file", str(folder / "texts.csv")]
        if kind == "configuration":
            text = dumped(mutation.of_tree(random, tree))
            (folder / "experiment.yaml").write_bytes(mutation.of_bytes(random, text))
            return ["config", str(folder / "experiment.yaml")]
        if kind == "command line":
            return [random.choice(("config", "evaluate", "compact", "predict")), *(word(random) for _ in range(3))]
        given = copy_of(run.path, folder / "given")
        mutate(random, random.choice(sorted(p for p in given.rglob("*") if p.is_file())))
        return ["predict", str(given), "a film", *random.choice(([], ["--compact"]))]

    while row.tried < count and time.monotonic() - began < seconds:
        random = Random(f"{name} {seed} {row.tried}")
        kind = ("data", "configuration", "command line", "run directory")[row.tried % 4]
        log.unlink(missing_ok=True)
        code = run_command([part.replace("\0", "") for part in words_of(random, kind)], log)
        said = log.read_text(errors="replace")
        row.refused, row.accepted = row.refused + (code == 2), row.accepted + (code == 0)
        if code not in (0, 2) or "Traceback" in said:
            row.lost.append(f"{row.tried}, {kind}: exit code {code}: {said[-200:]}")
        row.tried += 1
    row.seconds = time.monotonic() - began
    return row


CAMPAIGNS: dict[str, Callable[[Path], Attempt]] = {
    "data files": data_files,
    "configurations": configurations,
    "command lines": command_lines,
    "sweep files": sweep_files,
    "teacher checkpoints": teachers,
    "exported models": exports,
    "resume checkpoints": resume_checkpoints,
    "resumed stages": resumed_stages,
    "run directories": run_directories,
    "JSON files": json_files,
}
