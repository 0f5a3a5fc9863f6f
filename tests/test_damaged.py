"""Files of a run that are damaged, missing or another's: a sentence that names the file and what to do."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import safetensors.torch
import torch
from micro import GLUE, micro, only

from spikeprune import cli
from spikeprune.errors import InputError, out_of_memory
from spikeprune.experiment import resume_checkpoint
from spikeprune.experiment.run_directory import RunDirectory, write_weights
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json
from spikeprune.models.tensors import misfit

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = [
    *only("teacher", "spatial"),
    "stages.temporal.t_steps=null",
    "stages.teacher.epochs=2",
    "stages.spatial.epochs=1",
]


# ---------------------------------------------------------------------------------------------------------------- JSON


def test_numbers_that_are_not_finite_are_null_however_deep() -> None:
    value = {"a": math.nan, "b": [math.inf, {"c": (-math.inf, 1.5)}], "d": 3, "e": "NaN"}
    assert json.loads(jsonfile.dumps(value), parse_constant=pytest.fail) == {
        "a": None,
        "b": [None, {"c": [None, 1.5]}],
        "d": 3,
        "e": "NaN",
    }
    assert math.isnan(value["a"])  # the value itself stays


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "empty"),
        (b"{", "no JSON"),
        (b'{"a": 1,\n\n', "no JSON from line 3 on"),
        (b'{"a": NaN}', "holds NaN"),
        (b"[1]", "no JSON object"),
        (b'{"b": 1}', "without 'a'"),
        (b'{"a": "\xff"}', "no text in UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, text, reason) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(text)
    with pytest.raises(InputError) as refused:
        jsonfile.read(path, "remove it", ("a",))
    assert str(refused.value).startswith(f"{path}: is damaged (") and reason in str(refused.value)
    assert str(refused.value).endswith("; remove it") and "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------------ a run directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory, glue) -> RunDirectory:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main(["train", str(GLUE), *micro(folder, glue), *SHORT]) == 0
    assert cli.main(["compact", str(folder)]) == 0
    return RunDirectory(folder)


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-20])

    return damage


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edited(name: str, place: str, value: object) -> Callable[[Path], None]:
    """A part of a JSON file, by its dotted path, is another."""

    def damage(folder: Path) -> None:
        *path, last = place.split(".")
        tree = holder = jsonfile.loads((folder / name).read_text())
        for part in path:
            holder = holder[part]
        holder[last] = value
        (folder / name).write_text(jsonfile.dumps(jsonfile.sealed(tree)))

    return damage


def other_digit(name: str, behind: str) -> Callable[[Path], None]:
    """One character of a text, as a disk may change it."""

    def damage(folder: Path) -> None:
        before, found, after = (folder / name).read_text().partition(behind)
        assert found
        (folder / name).write_text(before + found + ("1" if after[0] != "1" else "2") + after[1:])

    return damage


def without_sums(folder: Path) -> None:
    """As if the record were of these files."""
    edited("stages/spatial/record.json", "files", {})(folder)


def other_width(folder: Path) -> None:
    without_sums(folder)
    path = folder / "stages/spatial/config.json"
    path.write_text(jsonfile.dumps({**jsonfile.loads(path.read_text()), "intermediate_size": 38}))


def unknown_value(folder: Path) -> None:
    without_sums(folder)
    path = folder / "stages/spatial/config.json"
    path.write_text(jsonfile.dumps({**jsonfile.loads(path.read_text()), "colour": 1}))


def other_words(folder: Path) -> None:
    """Another letter in the vocabulary, which no reader would notice."""
    path = folder / "stages/spatial/tokenizer.json"
    path.write_text(path.read_text().replace('"film"', '"fiim"'))


def broken_line(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], '{"stage": "tea', *lines[3:]]) + "\n")
    shutil.rmtree(folder / "stages/spatial")
    (folder / "summary.json").unlink()


EVALUATE, TRAIN = ["evaluate"], ["train"]
DIGIT = "is damaged (it has changed since it was written)"
OTHER, AGAIN = "is missing or not the file", "make it again"
DAMAGE = {
    "summary": (TRAIN, cut("summary.json"), "summary.json: is damaged", "remove it, and the same `train`"),
    "data": (TRAIN, removed("data.json"), "data.json: is missing", "remove"),
    "metrics": (TRAIN, broken_line, "metrics.jsonl:3: is damaged (no JSON)", "remove this line"),
    "record": (EVALUATE, cut("stages/spatial/record.json"), "spatial/record.json: is damaged", "make the stage again"),
    "student": (
        EVALUATE,
        cut("stages/spatial/config.json"),
        "spatial/config.json: is missing or not the file",
        "make it again",
    ),
    "no student": (
        EVALUATE,
        removed("stages/spatial/config.json"),
        "config.json: is missing or not the file",
        "make it again",
    ),
    "another": (EVALUATE, other_width, "does not describe the network in model.safetensors", "and not ["),
    "other words": (EVALUATE, other_words, f"spatial/tokenizer.json: {OTHER}", AGAIN),
    "unknown": (EVALUATE, unknown_value, "config.json: describes no spiking BERT", "colour"),
    "teacher": (EVALUATE, cut("stages/teacher/config.json"), "teacher/config.json: is damaged", "copy it there"),
    "tokenizer": (EVALUATE, cut("stages/teacher/tokenizer.json"), "tokenizer.json: is damaged", "copy it there"),
    "config": (TRAIN, lambda f: (f / "config.yaml").write_text(""), "config.yaml: has no key 'task'", "restore it"),
    "no record": (EVALUATE, removed("stages/spatial/record.json"), "spatial/record.json: is missing", "`train`"),
    "another config": (EVALUATE, other_digit("config.yaml", "max_length: "), "config.yaml: has changed", "restore it"),
    "another digit": (EVALUATE, other_digit("stages/spatial/record.json", '"steps": '), DIGIT, "make the stage again"),
    "another result": (TRAIN, other_digit("summary.json", '"main": 0.'), DIGIT, "remove it, and the same `train`"),
    "other data": (EVALUATE, other_digit("data.json", '"fingerprint": "'), DIGIT, "begin again"),
    "another size": (
        [*EVALUATE, "--compact"],
        other_digit("compact/record.json", '"params": '),
        DIGIT,
        "`spikeprune compact",
    ),
    "compact": ([*EVALUATE, "--compact"], cut("compact/record.json"), "compact/record.json: is damaged", "compact"),
    "a summary by hand": (
        TRAIN,
        edited("summary.json", "stages.spatial.cost", {}),
        "summary.json: is not as",
        "KeyError",
    ),
    "sums by hand": (
        EVALUATE,
        edited("stages/spatial/record.json", "files", "x"),
        "spatial/record.json: is not as it was written (AttributeError",
        "to make it again",
    ),
    "a parent by hand": (
        [*EVALUATE, "--compact"],
        edited("compact/record.json", "parent", {}),
        "compact/record.json: is not as it was written (KeyError: 'stage')",
        "compact",
    ),
    "costs by hand": (
        ["report"],
        edited("stages/spatial/record.json", "cost.energy_pj", {}),
        "run: is not as it was written (TypeError",
        "remove the stage",
    ),
    "compacted": (
        [*EVALUATE, "--compact"],
        cut("compact/config.json"),
        "compact/config.json: is missing or not the file",
        "make it again",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_of_a_run_is_named(finished, glue, tmp_path, capsys, case) -> None:
    (command, *options), damage, what, remedy = DAMAGE[case]
    folder = tmp_path / "run"
    shutil.copytree(finished.path, folder)
    damage(folder)
    mine = [str(GLUE), *micro(folder, glue), *SHORT] if command == "train" else [str(folder), *options]
    capsys.readouterr()
    assert cli.main([command, *mine]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and what in said and remedy in said


def test_of_two_records_of_one_validation_the_later_is_read(tmp_path) -> None:
    run = RunDirectory(tmp_path)
    for loss in (1.0, 2.0):
        run.append_metrics({"stage": "spatial", "step": 7, "global_step": 7, "val/loss": loss})
    run.append_metrics({"stage": "spatial", "step": 7, "global_step": 7, "train/loss": 3.0})
    assert [r.get("val/loss") for r in run.read_metrics()] == [2.0, None]


def test_a_student_with_a_weight_that_is_not_finite_is_neither_read_nor_written(finished, tmp_path, capsys) -> None:
    """A simulation would pass over it: NaN reaches no threshold."""
    folder = tmp_path / "run"
    shutil.copytree(finished.path, folder)
    run = RunDirectory(folder)
    state = run.weights("spatial")
    state["spiking_bert.layers.0.down.weight"][0, 0] = math.nan
    data = safetensors.torch.save(state)
    (run.stage("spatial") / "model.safetensors").write_bytes(data)
    write_json(run.stage("spatial") / "record.json", {**run.record("spatial"), "weights": sha256(data).hexdigest()})
    for command in (["evaluate", "--json"], ["compact"]):
        assert cli.main([command[0], str(folder), *command[1:]]) == 2
        said = capsys.readouterr()
        assert "stages/spatial: layers.0.down.weight of the network is not finite" in said.err and not said.out
    with pytest.raises(InputError, match="x.safetensors: is not written, since .*down.weight is not finite"):
        write_weights(tmp_path / "x.safetensors", state)
    assert not (tmp_path / "x.safetensors").exists()


# ------------------------------------------------------------------------------------------------------- a checkpoint


@pytest.fixture
def checkpoint(tmp_path) -> tuple[Path, torch.nn.Module]:
    module = torch.nn.Linear(3, 2)
    torch.save({"global_step": 7, "state_dict": module.state_dict()}, tmp_path / "resume.ckpt")
    return tmp_path / "resume.ckpt", module


def test_a_checkpoint_tells_its_step(checkpoint) -> None:
    assert resume_checkpoint.resume_step(*checkpoint) == 7


def test_a_checkpoint_that_has_changed_on_disk_is_damaged(checkpoint) -> None:
    """A number of the weights, which torch would load."""
    path, module = checkpoint
    data = path.read_bytes()
    at = data.index(module.weight.detach().numpy().tobytes())
    for damaged in (data[:-30], data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :], b"", b"half a file"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="resume.ckpt: is damaged; remove it, and the stage begins again"):
            resume_checkpoint.resume_step(path, module)


def test_only_a_damaged_checkpoint_is_called_damaged(checkpoint, monkeypatch) -> None:
    path, module = checkpoint
    with pytest.raises(InputError, match=r"is of another network \(weight is \[2, 3\] and not \[2, 4\]\)"):
        resume_checkpoint.resume_step(path, torch.nn.Linear(4, 2))

    def load(error: Exception):
        def raising(*args, **kwargs):
            raise error

        return raising

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", load(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")))
        with pytest.raises(InputError, match="not enough memory to load it"):
            resume_checkpoint.resume_step(path, module)
        patch.setattr(torch, "load", load(IndexError("list index out of range")))
        with pytest.raises(InputError, match="is no checkpoint of a stage"):
            resume_checkpoint.resume_step(path, module)
    for other in ({"weights": 1}, {"global_step": -1, "state_dict": {}}, {"global_step": 1, "state_dict": {"a": 1}}):
        torch.save(other, path)
        with pytest.raises(InputError, match="is no checkpoint of a stage"):
            resume_checkpoint.resume_step(path, module)
    torch.save({"global_step": 1, "state_dict": {"weight": torch.full((2, 3), math.nan), "bias": torch.ones(2)}}, path)
    with pytest.raises(InputError, match="resume.ckpt: weight is not finite; remove it"):
        resume_checkpoint.resume_step(path, module)


def test_misfits_and_memory_in_words() -> None:
    own = {"a": torch.ones(2)}
    assert misfit(own, dict(own)) == "" and misfit(own, {}) == "a is missing"
    assert misfit(own, {**own, "b": own["a"]}) == "b is unknown"
    assert out_of_memory(MemoryError()) and out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("size mismatch"))
