"""What a user gets wrong, through the command line: one clear sentence, exit code 2, and nothing half-made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spikeprune import cli

ROOT = Path(__file__).resolve().parents[1]
GLUE = str(ROOT / "experiments" / "glue.yaml")
MICRO = (
    "preset=tiny",
    "data.embedded=[64,32]",
    "stages.teacher.epochs=1",
)


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs `spikeprune train`, in this process since every new one imports torch; returns the message. An exception
    that the command line does not turn into a sentence comes out here."""

    def run(*overrides: str, folder: Path | None = None) -> str:
        target = (folder or tmp_path) / "run"
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        assert cli.main(["train", GLUE, *MICRO, f"run.dir={target}", *overrides]) == 2
        printed = capsys.readouterr().err
        assert printed.count("error: ") == 1, printed
        assert not target.exists()
        return printed[printed.index("error: ") :]

    return run


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """A small, sound MRPC in the original layout."""
    folder = tmp_path / "glue" / "MRPC"
    folder.mkdir(parents=True)
    rows = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    rows += [f"{i % 2}\t{i}\t{i}\tthe dog {i} barks\ta dog {i} runs" for i in range(40)]
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "override, words",
    [
        ("task=mrcp", ("mrcp", "mrpc")),
        ("stages.spatal.epochs=1", ("stages.spatal", "stages.spatial")),
        ("student.t_steps=0", ("student.t_steps = 0", "at least 1")),
        ("stages.spatial.heads=0", ("stages.spatial.heads = 0", "above 0")),
        ("stages.temporal.t_steps=0", ("stages.temporal.t_steps = 0", "at least 1")),
        ("student.coding=rate", ("student.coding = rate", "running_mean")),
        ("data.batch_size=many", ("data.batch_size", "whole number")),
        ("run.devices=0", ("run.devices = 0", "at least 1")),
    ],
)
def test_configuration(refuse, override: str, words: tuple[str, ...]) -> None:
    message = refuse(override)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("gpus", "overrides", "words"),
    [
        (0, ["run.accelerator=gpu"], "run.accelerator = gpu: this machine has none"),
        (0, ["run.accelerator=gpu", "run.devices=2"], "run.accelerator = gpu: this machine has none"),
        (1, ["run.accelerator=auto", "run.devices=2"], "run.devices = 2: this machine has 1 GPU"),
        (2, ["run.accelerator=gpu", "run.devices=3"], "run.devices = 3: this machine has 2 GPUs"),
        (0, ["run.accelerator=tpu"], "run.accelerator = tpu: choose from auto, cpu, gpu"),
    ],
)
def test_devices_that_are_not_there(refuse, monkeypatch, gpus: int, overrides: list[str], words: str) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    assert words in refuse("data.source=embedded", *overrides)


def test_several_problems_come_in_one_message(refuse) -> None:
    message = refuse("task=mrcp", "student.t_steps=0", "seeed=1")
    assert all(word in message for word in ("mrcp", "t_steps", "seeed")), message


def test_no_traceback_and_exit_code_2_from_a_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spikeprune", "train", str(ROOT / "experiments" / "glu.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "glue.yaml" in done.stderr


def test_data_directory(refuse, glue: Path, tmp_path: Path) -> None:
    assert "nowhere" in refuse("data.source=dir", "data.dir=nowhere")
    assert "SST-2" in refuse("task=sst2", "data.source=dir", f"data.dir={glue.parent}")
    (glue / "dev.tsv").unlink()
    assert "dev.tsv" in refuse("data.source=dir", f"data.dir={glue.parent}")


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("#2 String", "#3 String", ("train.tsv", "#2 String")),
        ("1\t7\t7\t", "yes\t7\t7\t", ("train.tsv:9", "yes")),
        ("1\t7\t7\t", "1\t7\t", ("train.tsv:9",)),
    ],
)
def test_broken_tsv(refuse, glue: Path, old: str, new: str, words: tuple[str, ...]) -> None:
    path = glue / "train.tsv"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    message = refuse("data.source=dir", f"data.dir={glue.parent}")
    assert all(word in message for word in words), message


def test_empty_split(refuse, glue: Path) -> None:
    path = glue / "dev.tsv"
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    message = refuse("data.source=dir", f"data.dir={glue.parent}")
    assert "dev.tsv holds no examples" in message


def save_bert(folder: Path, words: list[str]) -> None:
    """A tiny BERT with a vocabulary of its own."""
    from transformers import BertConfig, BertModel

    from spikeprune.data.tokenizer import train_wordpiece

    tokenizer = train_wordpiece(words, vocab_size=200)
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 37}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **size)).save_pretrained(folder)


def test_checkpoints(refuse, tmp_path: Path) -> None:
    assert "nothing-here" in refuse(f"teacher.checkpoint={tmp_path}/nothing-here")
    bert = tmp_path / "bert"
    save_bert(bert, ["the red fox and the blue dog saw a man in a park"] * 4)
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    message = refuse(f"teacher.checkpoint={bert}")
    assert "gpt2" in message and "BERT" in message


def test_a_saved_tokenizer_cuts_to_what_the_model_reads(tmp_path: Path) -> None:
    """The tokenizer of this checkpoint says 512 tokens, its model has 64 positions."""
    from spikeprune.config.load import load
    from spikeprune.experiment.context import prepare

    save_bert(tmp_path, ["the quick brown fox jumps over a lazy dog"] * 4)
    known = [*MICRO, "data.source=embedded", "data.max_length=32", f"teacher.checkpoint={tmp_path}"]
    tokenizer = prepare(load(GLUE, known)).tokenizer
    assert len(tokenizer("fox " * 100, truncation=True)["input_ids"]) == 64


def drop_weights(bert: Path) -> None:
    (bert / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes()[:-50])


def set_values(**values):
    def change(bert: Path) -> None:
        config = json.loads((bert / "config.json").read_text())
        (bert / "config.json").write_text(json.dumps(config | values))

    return change


def move_a_token(bert: Path) -> None:
    tree = json.loads((bert / "tokenizer.json").read_text())
    tree["model"]["vocab"]["park"] = 9999
    (bert / "tokenizer.json").write_text(json.dumps(tree))


def drop_processor(bert: Path) -> None:
    tree = json.loads((bert / "tokenizer.json").read_text())
    (bert / "tokenizer.json").write_text(json.dumps(tree | {"post_processor": None}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_weights, ("weights", "cannot be loaded")),
        (set_values(num_hidden_layers=3), ("lacks 16 of the encoder's weights",)),
        (set_values(type_vocab_size=1), ("2 token types", "type_vocab_size")),
        (set_values(num_attention_heads=5), ("5 heads", "hidden_size=12")),
        (set_values(max_position_embeddings=16), ("16 positions", "data.max_length")),
        (move_a_token, ("ids go up to 9999",)),
        (drop_processor, ("[CLS] and [SEP]",)),
    ],
    ids=lambda value: getattr(value, "__name__", " ".join(value) if isinstance(value, tuple) else ""),
)
def test_a_checkpoint_that_does_not_fit_leaves_nothing(refuse, glue, tmp_path: Path, change, words) -> None:
    bert = tmp_path / "bert"
    save_bert(bert, ["the red fox and the dog barks runs saw a man in a park 0 1 2 3 4 5 6 7 8 9"] * 4)
    change(bert)
    given = ("task=mrpc", "data.source=dir", f"data.dir={glue.parent}", "data.max_length=24")
    message = refuse(f"teacher.checkpoint={bert}", *given)
    assert all(word in message for word in words) and len(message.strip().splitlines()) == 1, message


def test_vocabulary_that_does_not_match(refuse, tmp_path: Path) -> None:
    bert = tmp_path / "bert"
    save_bert(bert, ["ДЖЗИ ЛШ ФЯЮ", "ЪЫЩ ЦЧ"])
    message = refuse(f"teacher.checkpoint={bert}", "data.source=embedded")
    assert "[UNK]" in message and "vocabulary" in message


def test_run_directory_that_cannot_be_written(refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refuse("data.source=embedded", folder=tmp_path / "file")
    assert "run.dir" in message and "cannot be written" in message
    assert "run.dir" in refuse("data.source=embedded", folder=Path("/proc/nowhere"))


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of its own; `size` in MB."""
    folder, mounted = tmp_path / "disk", []

    def mount(size: int) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "spikeprune-test", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system needs root")
        mounted.append(folder)
        return folder

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


def test_full_disk_is_seen_before_anything_is_written(refuse, small_disk) -> None:
    message = refuse("data.source=embedded", folder=small_disk(1))
    assert "MB left" in message and "needs about" in message


def test_disk_that_fills_up_on_the_way(small_disk, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Another program takes the space after the check: the run stops with one sentence, and what it wrote is whole."""
    from spikeprune.experiment import pipeline

    disk, teach = small_disk(40), pipeline.train_teacher

    def teach_on_a_full_disk(*args) -> None:
        free = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize - 200_000))
        teach(*args)

    monkeypatch.setattr(pipeline, "train_teacher", teach_on_a_full_disk)
    assert cli.main(["train", GLUE, *MICRO, "data.source=embedded", f"run.dir={disk / 'run'}"]) == 2
    assert "No space left" in capsys.readouterr().err
    left = [p.name for p in (disk / "run" / "stages").rglob("*") if p.is_file()]
    assert not [name for name in left if name.startswith(".") or name in ("record.json", "model.safetensors")], left
