"""Hostile models, checkpoints and runs, in this process."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from unittest import mock

import children
import torch
from micro import GLUE, micro, only, write_sst2

import spikeprune
from faults import mutation
from faults.campaign import Attempt
from faults.hostile_input import command
from spikeprune.config.load import load
from spikeprune.data.tokenizer import load_tokenizer
from spikeprune.errors import InputError
from spikeprune.experiment import resume_checkpoint
from spikeprune.experiment.build import networks
from spikeprune.experiment.context import prepare, tokens_of
from spikeprune.experiment.run_directory import RunDirectory

RUN = [*only("spatial"), "stages.temporal.t_steps=null", "stages.teacher.epochs=2", "stages.spatial.epochs=1"]
COMMIT = "spikeprune.experiment.summary.commit"  # asks git, in a process of its own


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
    children.attempt(words, folder / "log", ("spatial", 11))
    run = RunDirectory(folder / "given")
    saved = torch.load(RunDirectory(folder / "run").resume("spatial"), weights_only=True)

    def attempt(random: Random) -> None:
        copy_of(folder / "run", run.path)
        torch.save(mutation.of_state(random, saved), run.resume("spatial"))
        with mock.patch(COMMIT, lambda: ""):
            command(["train", str(GLUE), *words, f"run.dir={run.path}"])

    return attempt


CAMPAIGNS: dict[str, Callable[[Path], Attempt]] = {
    "teacher checkpoints": teachers,
    "exported models": exports,
    "resume checkpoints": resume_checkpoints,
    "resumed stages": resumed_stages,
    "run directories": run_directories,
}
