"""Exports of a finished run: the directory that the command leaves, its model card, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hub import Hub
from huggingface_hub import ModelCard
from micro import GLUE, ROOT, micro, only, write_sst2
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from spikeprune import cli
from spikeprune.config import names
from spikeprune.config.load import load, read_resolved, to_yaml
from spikeprune.config.reference import words_of
from spikeprune.errors import InputError
from spikeprune.experiment import compaction, pipeline
from spikeprune.experiment.checkpoints import load_student
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.export import command, licence
from spikeprune.export.c import pieces
from spikeprune.models.compaction import compact
from spikeprune.report.numbers import digits
from spikeprune.runtime import onnx_graph

TERNARY = ["stages.quantize.weights=ternary", "stages.quantize.epochs=1", "stages.quantize.fold=true"]
TERNARY += ["stages.quantize.embeddings=int4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    """A teacher, pruned and then quantized students."""
    folder = tmp_path_factory.mktemp("runs")
    stages = [*only("teacher", "spatial", "quantize"), "stages.spatial.epochs=1", "stages.temporal.t_steps=null"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        words = [*micro(folder / "sst2", write_sst2(folder / "glue")), *stages, *TERNARY]
        pipeline.run(load(GLUE, words))
    return RunDirectory(folder / "sst2")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> dict[str, Path]:
    """The last stage in each format, but for one whose extra is not installed."""
    folder = tmp_path_factory.mktemp("exports")
    formats = [name for name in command.FORMATS if name != "onnx" or not onnx_graph.missing()]
    for name in formats:
        assert cli.main(["export", str(run.path), "--to", name, str(folder / name)]) == 0
    return {name: folder / name for name in formats}


def test_every_format_leaves_a_record_and_nothing_else_beside_it(run, exported, capsys) -> None:
    assert tuple(command.FORMATS) == names.EXPORTS
    for name, folder in exported.items():
        record = json.loads((folder / "export.json").read_text())
        assert (record["format"], record["stage"]) == (name, "quantize")
        assert record["weights"] == run.record("quantize")["weights"]
        assert record["command"] == f"spikeprune export {run.path} --to {name} {folder}"
        assert record["bytes"] == {
            path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != "export.json"
        }
        assert record["check"]["words"]
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}, name  # readable when it is copied
    left = sorted(path.name for path in next(iter(exported.values())).parent.iterdir())
    assert left == sorted(exported)


# --------------------------------------------------------------------------------------------------- Hugging Face

FOREIGN = """
import json, sys
from transformers import AutoTokenizer, pipeline
from spikeprune import SpikingBertConfig
found = pipeline("text-classification", sys.argv[1])("the film was good", top_k=None)
assert not any(name.startswith(("lightning", "spikeprune.training", "spikeprune.experiment")) for name in sys.modules)
print(json.dumps({row["label"]: row["score"] for row in found}))
"""


def test_transformers_loads_it_without_the_trainer(run, exported) -> None:
    words = [sys.executable, "-c", FOREIGN, str(exported["hf"])]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    student = compact(load_student(run, "quantize")).eval()
    tokens = AutoTokenizer.from_pretrained(run.stage("teacher"))("the film was good", return_tensors="pt")
    with torch.no_grad():
        probabilities = student(**tokens).logits.softmax(-1)[0]
    assert list(found) and set(found) == {"negative", "positive"}
    assert [found["negative"], found["positive"]] == pytest.approx(probabilities.tolist(), abs=1e-6)


PUSHED = """
import sys
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForSequenceClassification
import torch
from spikeprune import SpikingBertForSequenceClassification
own = SpikingBertForSequenceClassification.from_pretrained(sys.argv[1])
own.push_to_hub("me/pushed")
HfApi().upload_folder(repo_id="me/pushed", folder_path=sys.argv[1])
there = AutoModelForSequenceClassification.from_pretrained("me/pushed")
ids = torch.ones(2, 5, dtype=torch.long)
assert torch.equal(there(input_ids=ids).logits, own(input_ids=ids).logits)
assert ModelCard.load("me/pushed").data.eval_results
"""


def test_it_is_pushed_to_a_hub_and_loaded_from_there(exported, tmp_path) -> None:
    with Hub(tmp_path / "hub") as hub:
        here = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        words = [sys.executable, "-c", PUSHED, str(exported["hf"])]
        environment = {**os.environ, **here, "HF_TOKEN": "hf_none", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    pushed = tmp_path / "hub" / "models" / "me" / "pushed"
    names_of = {path.name for path in exported["hf"].iterdir()}
    assert names_of <= {path.name for path in pushed.iterdir()}
    assert (pushed / "README.md").read_bytes() == (exported["hf"] / "README.md").read_bytes()


def test_weights_are_packed_and_units_left_out(run, exported) -> None:
    tensors = safetensors.torch.load_file(exported["hf"] / "model.safetensors")
    assert tensors["spiking_bert.layers.0.up.data"].dtype == torch.uint8
    kept = run.record("quantize")["ffn"]
    model = AutoModelForSequenceClassification.from_pretrained(exported["hf"])
    assert [layer.ffn for layer in model.spiking_bert.layers] == kept and max(kept) < 37


def test_the_card_is_read_back_with_scores_and_energy(run, exported) -> None:
    card, record = ModelCard.load(exported["hf"] / "README.md"), run.record("quantize")
    assert card.data.pipeline_tag == "text-classification" and card.data.license is None
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type) == ("sst2", "accuracy")
    assert result.metric_value == pytest.approx(record["metrics"]["accuracy"], abs=1e-6)
    fingerprint, saved = run.data_facts()["fingerprint"], read_resolved(run.config)
    energy = run.record("teacher")["cost"]["energy_pj"] / record["cost"]["energy_pj"]
    for words in (fingerprint, digits(energy), f"--to hf {exported['hf']}", *words_of(saved)):
        assert words in card.content, words


def test_the_licence_is_the_one_that_the_teachers_card_states(tmp_path) -> None:
    assert licence.teacher_of(None).licence is None
    assert licence.teacher_of(str(tmp_path)).licence is None
    for text, stated in (
        ("---\nlicense: mit\n---\n# BERT\n", "mit"),
        ("no card", None),
        ("---\nlicense: [\n---\n", None),
    ):
        (tmp_path / "README.md").write_text(text)
        assert licence.teacher_of(str(tmp_path)).licence == stated
    assert licence.teacher_of("nobody/has-this").licence is None  # tests see no hub


def test_the_words_of_a_run_give_its_configuration_again(run) -> None:
    saved = read_resolved(run.config)
    again = load(GLUE, [*words_of(saved), f"run.dir={run.path}"])
    again.run.log_every = saved.run.log_every
    assert to_yaml(again) == to_yaml(saved)


def test_the_words_of_own_data_keep_the_preset() -> None:
    own = ["data.train_file=my reviews.csv", 'data.text=["the text"]', "data.label=mood", "data.max_length=40"]
    assert words_of(load(GLUE, ["task=custom", "preset=tiny", *own])) == ["task=custom", "preset=tiny", *own]


def test_the_c_export_has_the_vocabulary_that_its_program_reads(run, exported) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run.stage("teacher"))
    lines = (exported["c"] / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert [tokenizer.get_vocab()[line] for line in lines] == list(range(len(tokenizer)))
    cased = AutoTokenizer.from_pretrained(run.stage("teacher"))
    cased.backend_tokenizer.normalizer = None
    assert pieces(tokenizer) and not pieces(cased)


# -------------------------------------------------------------------------------------------------------- refusals


def test_what_compact_left_is_exported_as_it_is(run, tmp_path) -> None:
    compaction.compact_run(run.path, stage="spatial", overrides=["student.dead_zone=20"])
    record = command.export(run.path, "hf", tmp_path / "out", compacted=True)
    assert record["stage"] == "spatial" and record["command"].endswith("--compact")
    own, there = (safetensors.torch.load_file(f / "model.safetensors") for f in (run.compact, tmp_path / "out"))
    assert own.keys() == there.keys() and all(torch.equal(own[name], there[name]) for name in own)
    rate = ModelCard.load(tmp_path / "out" / "README.md").content.partition("firing rate")[2].split("|")[1]
    assert float(rate) < run.record("spatial")["cost"]["rate"]  # measured with its dead zones


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--to", "hf", "{there}"], "{there}: exists; nothing is overwritten"),
        (["--to", "hf", "{new}", "--stage", "finetune"], "stage 'finetune' is not finished"),
        (["--to", "hf", "{new}", "--stage", "teacher"], "the teacher is no spiking student"),
    ],
)
def test_refused_in_a_sentence_with_nothing_written(words, sentence, run, tmp_path, capsys) -> None:
    (tmp_path / "there").mkdir()
    places = {"there": tmp_path / "there", "new": tmp_path / "new"}
    assert cli.main(["export", str(run.path), *(word.format(**places) for word in words)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence.format(**places) in said and len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch) -> None:
    def fails(student, tokenizer, facts, directory):
        (directory / "half").write_text("")
        raise InputError("this student has no place in it")

    monkeypatch.setitem(command.FORMATS, "hf", fails)
    with pytest.raises(InputError, match="no place"):
        command.export(run.path, "hf", tmp_path / "out")
    assert not list(tmp_path.iterdir())
