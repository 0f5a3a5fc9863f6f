"""Files, names and keys from elsewhere: no code of theirs runs, no path of theirs leads out of a directory, no secret
is written down, and another version of a format is refused."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from micro import GLUE, ROOT, micro, only

import spikeprune
from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.config.tasks import TASKS
from spikeprune.data.tokenizer import load_tokenizer
from spikeprune.errors import InputError
from spikeprune.experiment import measurement, resume_checkpoint, streams
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.files import secrets
from spikeprune.files.atomic import write_sealed
from spikeprune.models.teacher import Teacher

pytestmark = pytest.mark.filterwarnings("ignore")
PLANTED = {"WANDB_API_KEY": "planted-wandb-0123456789abcdef", "HF_TOKEN": "hf_plantedplantedplanted"}
SHORT = [*only("spatial"), "stages.temporal.t_steps=null", "stages.teacher.epochs=2", "stages.spatial.epochs=1"]


@pytest.fixture
def planted(monkeypatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def run(tmp_path_factory, glue) -> RunDirectory:
    """Made by a process with keys in its environment."""
    folder = tmp_path_factory.mktemp("untrusted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        assert cli.main(["train", str(GLUE), *micro(folder, glue), *SHORT]) == 0
        assert cli.main(["compact", str(folder)]) == 0
        assert cli.main(["export", str(folder), "--to", "hf", str(folder.parent / "hf")]) == 0
    return RunDirectory(folder)


# ---------------------------------------------------------------------------------------------------------------- code


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(place, dotted name, call) of every call in the program and its experiments."""
    for path in [*ROOT.glob("spikeprune/**/*.py"), *ROOT.glob("experiments/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def given(call: ast.Call, name: str) -> object:
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


def test_nothing_loads_pickles_or_code() -> None:
    forbidden = ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "eval", "exec")
    forbidden += ("read_pickle", "marshal.loads", "shelve.open", "load_from_checkpoint", "torch.hub.load")
    found = list(calls())
    assert [place for place, name, _ in found if name in forbidden] == []
    loads = {place: given(call, "weights_only") for place, name, call in found if name == "torch.load"}
    assert loads and set(loads.values()) == {"True"}, loads
    fits = {p: given(c, "weights_only") for p, n, c in found if n.endswith(".fit") and given(c, "ckpt_path")}
    assert fits and set(fits.values()) == {"True"}, fits
    numpy = [place for place, name, call in found if name in ("np.load", "numpy.load") and given(call, "allow_pickle")]
    assert numpy == []
    auto = {p: given(c, "trust_remote_code") for p, n, c in found if n.startswith("Auto") and "from_pretrained" in n}
    assert auto and set(auto.values()) == {"False"}, auto


class Malicious:
    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_a_malicious_resume_checkpoint_does_nothing(tmp_path) -> None:
    module, mark = torch.nn.Linear(3, 2), tmp_path / "mark"
    saved = {"global_step": 7, "state_dict": module.state_dict(), "optimizer_states": [Malicious(mark)]}
    torch.save(saved, tmp_path / "resume.ckpt")
    with pytest.raises(InputError, match="is no checkpoint of a stage"):
        resume_checkpoint.resume_step(tmp_path / "resume.ckpt", module)
    assert not mark.exists()
    torch.load(tmp_path / "resume.ckpt", weights_only=False)  # or this test would show nothing
    assert mark.exists()


def test_a_malicious_teacher_does_nothing(run, tmp_path) -> None:
    """Weights as a pickle, and code that the configuration or the tokenizer name."""
    bert, mark = tmp_path / "bert", tmp_path / "mark"
    shutil.copytree(run.stage("teacher"), bert)
    (bert / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Malicious(mark)}, bert / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        Teacher.load(bert, classes=2)
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(mark)))
    with pytest.raises(InputError, match="cannot be loaded"):
        Teacher.load(bert, classes=2)
    (bert / "code.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    settings = json.loads((bert / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", "code.Mine"]}}
    (bert / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(str(bert)).is_fast  # the library's own class for these files
    assert not mark.exists()


def test_a_malicious_data_set_does_nothing(tmp_path, capsys) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "set"
    folder.mkdir()
    (folder / "train.pkl").write_bytes(pickle.dumps(Malicious(mark)))
    (folder / "set.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    words = ["task=custom", f"data.hub={folder}", "data.text=[text]", "data.label=label", "preset=tiny"]
    assert cli.main(["train", str(GLUE), *words, f"run.dir={tmp_path / 'run'}"]) == 2
    assert "error: " in capsys.readouterr().err and not mark.exists() and not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------------------- paths


def test_names_do_not_lead_out_of_a_run(run, tmp_path, capsys) -> None:
    outside = run.path.parent / "outside"
    shutil.copytree(run.stage("spatial"), outside, dirs_exist_ok=True)
    for command in (["predict", str(run.path), "text"], ["evaluate", str(run.path)], ["compact", str(run.path)]):
        assert cli.main([*command, "--stage", "../../outside"]) == 2
        assert "'../../outside' is no stage; there are teacher, " in capsys.readouterr().err
    shutil.copytree(run.path, tmp_path / "run")
    path = tmp_path / "run" / "compact" / "record.json"
    record = json.loads(path.read_text())
    write_sealed(path, record | {"parent": {**record["parent"], "stage": "../../outside"}})
    assert cli.main(["predict", str(tmp_path / "run"), "text", "--compact"]) == 2
    assert "is no stage" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- secrets


def test_no_secret_is_in_any_file(run) -> None:
    files = [path for path in run.path.parent.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        assert not [name for name, value in PLANTED.items() if value.encode() in path.read_bytes()], path


def test_a_secret_is_refused_as_a_value_and_not_repeated(planted, tmp_path, capsys) -> None:
    key = PLANTED["HF_TOKEN"]
    for word in (
        f"data.hub=owner/{key}",
        f"data.text=[{key}]",
        "data.dir=${oc.env:HF_TOKEN}",
        f"seed={key}",
        f"{key}=1",
    ):
        with pytest.raises(InputError):
            load(GLUE, ["preset=tiny", word])
        assert cli.main(["train", str(GLUE), "preset=tiny", word]) == 2
        said = capsys.readouterr().err
        assert "error: " in said and key not in said
    assert "holds the value of HF_TOKEN" in refusal(load, GLUE, ["preset=tiny", f"data.hub=owner/{key}"])
    words = ["launch", str(GLUE), "task=sst2", "preset=tiny", "data.source=embedded", "--gpus=0", "--dry-run"]
    words += [f"run.dir={tmp_path / 'run'}", f"--sbatch=--export=HF_TOKEN={key}"]
    assert cli.main(words) == 2
    assert "would hold the value of HF_TOKEN" in capsys.readouterr().err and not (tmp_path / "run").exists()


def refusal(act, *args) -> str:
    with pytest.raises(InputError) as refused:
        act(*args)
    return str(refused.value)


def test_secrets_are_not_shown(planted, tmp_path) -> None:
    key = PLANTED["WANDB_API_KEY"]
    text = f"refused {key} at https://user:password@host/x"
    assert secrets.redacted(text) == "refused *** at https://***@host/x" == streams.shown(text)
    with pytest.raises(RuntimeError), streams.recorded(tmp_path / "run.log"):
        print(f"the key is {key}")
        raise RuntimeError(f"401 for {key}")
    written = (tmp_path / "run.log").read_text()
    assert "401 for ***" in written and key not in written


def test_what_a_message_quotes_steers_no_terminal() -> None:
    assert streams.shown("a\x1b[2Jb\nc\x85") == "a\\x1b[2Jb\nc\\x85"
    assert len(streams.shown("x" * 100_000)) < 2000


# ------------------------------------------------------------------------------------------------------------ versions


@pytest.mark.parametrize(("found", "words"), [(2, "install that one"), (0, "make the run again"), ("x", "run again")])
def test_another_version_of_a_run_is_refused(run, glue, tmp_path, capsys, found, words) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder)
    facts = json.loads((folder / "data.json").read_text())
    assert facts["format"] == 1
    write_sealed(folder / "data.json", facts | {"format": found})
    for command in (["predict", str(folder), "a"], ["train", str(GLUE), *micro(folder, glue), *SHORT]):
        assert cli.main(command) == 2
        said = capsys.readouterr().err
        assert f"is in format {found!r} and this version reads format 1" in said and words in said


def test_another_version_of_a_model_is_refused(run, tmp_path) -> None:
    shutil.copytree(run.path.parent / "hf", tmp_path / "hf")
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert values["format"] == 1
    (tmp_path / "hf" / "config.json").write_text(json.dumps(values | {"format": 2}))
    with pytest.raises(
        InputError, match="config.json: is in format 2 and this version reads format 1; a newer version"
    ):
        spikeprune.load(tmp_path / "hf")
    with pytest.raises(InputError, match="config.json: is in format 2"):
        spikeprune.SpikingBertForSequenceClassification.from_pretrained(tmp_path / "hf")


@pytest.mark.parametrize("wrong", [{"leak": [1]}, {"model_type": []}, {"id2label": {"x": "y"}}, {"hidden_size": "12"}])
def test_a_model_of_wrong_values_is_refused(run, tmp_path, wrong) -> None:
    shutil.copytree(run.path.parent / "hf", tmp_path / "hf")
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(values | wrong))
    with pytest.raises(InputError, match="config.json: describes "):
        spikeprune.load(tmp_path / "hf")


# ------------------------------------------------------------------------------------------------------------- numbers


def test_too_little_memory_is_one_sentence(monkeypatch, capsys) -> None:
    def act(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation")

    monkeypatch.setitem(cli.ACTIONS, "train", act)
    assert cli.main(["train", "task=sst2"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "lower data.batch_size" in said and "Tried to allocate 20.00 GiB." in said


def test_layers_without_a_spike_are_named() -> None:
    measured = {"cost": {"rates": {"embedding": 0.3, "layers.0.key": 0.0, "layers.1.output": 0.0}}}
    assert measurement.silent_layers(measured) == ["layers.0.key", "layers.1.output"]


CONSTANT = {"sst2": 0.75, "mrpc": (0.75 + 6 / 7) / 2, "cola": 0.0, "stsb": 0.0}  # three of four labels are 1


@pytest.mark.parametrize(("task", "constant"), CONSTANT.items())
def test_a_student_no_better_than_a_constant_answer_is_named(task: str, constant: float) -> None:
    facts = TASKS[task]
    splits = {facts.dev_splits[0]: SimpleNamespace(labels=[1, 1, 1, 0])}
    context = SimpleNamespace(task=facts, raw=SimpleNamespace(splits=splits))
    for more, lost in ((1e-6, False), (0.0, True), (-0.1, True)):
        assert measurement.no_better_than_constant(context, {"main": constant + more}) is lost


@pytest.mark.gpu
def test_a_deterministic_run_gives_equal_bits_on_a_gpu(glue, tmp_path) -> None:
    for name in ("a", "b"):
        words = [*micro(tmp_path / name, glue), *SHORT, "run.accelerator=gpu", "run.deterministic=true"]
        assert cli.main(["train", str(GLUE), *words]) == 0
    for made in ("teacher", "spatial"):
        one, two = (RunDirectory(tmp_path / name).stage(made) / "model.safetensors" for name in ("a", "b"))
        assert one.read_bytes() == two.read_bytes(), made
