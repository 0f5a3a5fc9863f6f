"""A spiking BERT as a model of transformers: every kind is the same network after `save_pretrained`, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from students import VOCAB, C, D, L, N, make, prune, sentences
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from spikeprune import SpikingBertConfig, SpikingBertForSequenceClassification
from spikeprune.errors import InputError
from spikeprune.models.architecture import RESIDUALS
from spikeprune.models.compaction import compact
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.quantization import QUANTIZERS
from spikeprune.models.serialization import file_tensors, nbytes
from spikeprune.models.variants import calibrate_dead_zones
from spikeprune.snn.coding import CODINGS
from spikeprune.snn.neurons import NEURONS

ROOT = Path(__file__).resolve().parents[1]


def quantized(weights: str, strength: float, **options) -> SpikingBert:
    student = prune(make(weights=weights, **options))
    student.set_strength(strength)
    return student


def sparse() -> SpikingBert:
    student = prune(make(sparse=True))
    with torch.no_grad():
        for layer in student.layers:
            for name in ("query", "out", "up", "down"):
                getattr(layer, name).weight[torch.rand_like(getattr(layer, name).weight) < 0.7] = 0
    student.refresh_synapses()
    return student


def with_feedback() -> SpikingBert:
    student = make(coding="running_mean", feedback=True)
    with torch.no_grad():
        student.embedding.feedback.weight.normal_(std=0.05)
    return student


def with_dead_zones() -> SpikingBert:
    student = prune(make(dead_zone=True))
    calibrate_dead_zones(student, sentences(), 60.0)
    return student


def float32_steps() -> SpikingBert:
    """Time steps that changed after the network was made, as temporal pruning changes them."""
    student = prune(make(dtype=torch.float32))
    student.set_t_steps([1, 3, 2])
    return student


KINDS = {
    **{f"coding {name}": lambda name=name: prune(make(coding=name)) for name in CODINGS},
    **{f"neuron {name}": lambda name=name: prune(make(spikes=name)) for name in NEURONS},
    **{f"residual {name}": lambda name=name: prune(make(residual=name)) for name in RESIDUALS},
    **{f"{name} at {s}": lambda name=name, s=s: quantized(name, s) for name in QUANTIZERS for s in (0.4, 1.0)},
    **{f"{name} packed": lambda name=name: compact(quantized(name, 1.0, fold=True)) for name in QUANTIZERS},
    "theta per tensor": lambda: make(theta="tensor", query="spiking", pooling="cls"),
    "leaky": lambda: make(leak=0.9, coding="running_mean"),
    "compacted": lambda: compact(prune(make())),
    "half quantized, compacted": lambda: compact(quantized("ternary", 0.4)),
    "sparse": sparse,
    "sparse, compacted": lambda: compact(sparse()),
    "feedback": with_feedback,
    "dead zones": with_dead_zones,
    "float32, other steps": float32_steps,
    "labels": lambda: make(labels=["no", "maybe", "yes"]),
    "regression": lambda: SpikingBert(**{**make().values, "classes": 1}).eval(),
}


@pytest.fixture
def tokenizer(tmp_path) -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *(f"w{i}" for i in range(VOCAB - 2))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_network_is_the_same_network(kind, tmp_path) -> None:
    student, batch = KINDS[kind](), sentences()
    model = SpikingBertForSequenceClassification.of(student).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(again) is SpikingBertForSequenceClassification and not again.training
    assert again.spiking_bert.values == {**student.values, "t_steps": student.steps, "labels": student.values["labels"]}
    assert again.spiking_bert.state_dict().keys() == student.state_dict().keys()
    for name, tensor in student.state_dict().items():
        other = again.spiking_bert.state_dict()[name]
        assert other.dtype == tensor.dtype and torch.equal(other, tensor), name
    assert again.spiking_bert.synapse_count() == student.synapse_count()
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    for mode in ("equilibrium", "spiking"):
        one, other = (network(**batch, mode=mode).logits for network in (again.spiking_bert, student.eval()))
        assert torch.equal(one, other), mode


def test_a_small_network_takes_a_small_file(tmp_path) -> None:
    """Packed codes, sparse weights and missing units are what the file holds, not only what it describes."""
    whole = nbytes(file_tensors(prune(make())))
    packed, thin = (nbytes(file_tensors(KINDS[kind]())) for kind in ("ternary packed", "sparse, compacted"))
    assert packed < thin < whole
    KINDS["sparse, compacted"]().eval()
    SpikingBertForSequenceClassification.of(compact(sparse())).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < whole


def test_a_configuration_round_trips_and_describes_everything(tmp_path) -> None:
    student = make(labels=["no", "maybe", "yes"], spikes="binary", leak=0.9)
    SpikingBertForSequenceClassification.of(student).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["model_type"] == "spiking_bert" and raw["architectures"] == ["SpikingBertForSequenceClassification"]
    assert raw["id2label"] == {"0": "no", "1": "maybe", "2": "yes"} and raw["label2id"]["yes"] == 2
    assert raw["hidden_size"] == D and raw["t_steps"] == student.steps and raw["spikes"] == "binary"
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, SpikingBertConfig) and config.model_values() == student.values
    made = AutoModelForSequenceClassification.from_config(config)
    assert made.spiking_bert.values == student.values


def test_a_network_is_loaded_with_other_time_steps_coding_and_classes(tmp_path) -> None:
    student, batch = make(dtype=torch.float32), sentences()
    SpikingBertForSequenceClassification.of(student).save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, t_steps=2, coding="running_mean")
    assert again.spiking_bert.steps == [2] * (L + 1) and again.spiking_bert.coding == "running_mean"
    with pytest.raises(InputError, match=r"classifier.weight is \[3, 12\] and not \[5, 12\]"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    five = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert five(**batch).logits.shape == (3, 5) and five(**batch).logits.isfinite().all()
    double = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert double(**batch).logits.dtype == torch.float64


@pytest.mark.parametrize("classes", [1, C])
def test_labels_give_a_loss_with_a_gradient(classes) -> None:
    config = SpikingBertConfig.of_values({**make().values, "classes": classes})
    model, batch = SpikingBertForSequenceClassification(config).train(), sentences()
    labels = torch.tensor([0.5, 2.0, 1.0]) if classes == 1 else torch.tensor([0, 2, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    first = model(**batch, labels=labels).loss
    first.backward()
    gradients = [p.grad for p in model.parameters()]
    assert first.isfinite() and all(g is not None and g.isfinite().all() for g in gradients)
    assert sum(float(g.abs().sum()) for g in gradients) > 0
    optimizer.step()
    with torch.no_grad():
        assert model(**batch, labels=labels).loss < first


def test_outputs_are_those_of_transformers() -> None:
    model, batch = SpikingBertForSequenceClassification.of(make()), sentences()
    outputs = model(**batch, labels=torch.tensor([0, 1, 2]), output_hidden_states=True)
    assert [tuple(h.shape) for h in outputs.hidden_states] == [(3, N, D)] * (L + 1)
    loss, logits = model(**batch, labels=torch.tensor([0, 1, 2]), return_dict=False)
    assert torch.equal(loss, outputs.loss) and torch.equal(logits, outputs.logits)
    assert model(**batch).hidden_states is None and model.num_parameters() == sum(p.numel() for p in model.parameters())


def test_texts_longer_than_the_positions_are_refused() -> None:
    model = SpikingBertForSequenceClassification.of(make())
    with pytest.raises(InputError, match=f"texts of {2 * N + 1} tokens do not fit"):
        model(torch.ones(1, 2 * N + 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "'colour' is no value of a spiking BERT"),
        ({"t_step": 3}, "did you mean t_steps?"),
        ({"spikes": "quaternary"}, "unknown spikes 'quaternary'"),
        ({"hidden_size": 15}, "does not describe the network in model.safetensors"),
        ({"t_steps": [1, 2]}, "t_steps must be 3 whole numbers"),
        ({"num_attention_heads": 5}, "hidden size 12 is no multiple of 5 heads"),
        ({"leak": -1.0}, "leak must be above 0 and at most 1, got -1.0"),
        ({"leak": None}, "leak = None is no float"),
        ({"layer_norm_eps": -1.0}, "eps must be at least 0 and finite"),
        ({"t_steps": 2**70}, "describes no spiking BERT"),
        ({"id2label": {"7": "a", "1": "b", "2": "c"}}, "id2label must name the classes from 0 to 2"),
        ({"dtype": True}, "dtype = True is no number type"),
    ],
)
def test_a_damaged_configuration_is_one_sentence(change, message, tmp_path) -> None:
    SpikingBertForSequenceClassification.of(make()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError) as caught:
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert message in str(caught.value).replace("\n", " ")


def test_a_weight_that_is_not_finite_is_refused(tmp_path) -> None:
    student = make()
    with torch.no_grad():
        student.classifier.weight[0, 0] = torch.nan
    SpikingBertForSequenceClassification.of(student).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="classifier.weight of the network is not finite"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


# ------------------------------------------------------------------------------------------------- in a fresh process


def python(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_name_of_the_model_registers_it_with_transformers(tokenizer, tmp_path) -> None:
    student = prune(make(dtype=torch.float32, labels=["no", "maybe", "yes"]))
    model = SpikingBertForSequenceClassification.of(student).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code = """
import json, sys
from spikeprune import SpikingBertConfig
from transformers import AutoModelForSequenceClassification, pipeline
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
found = pipeline("text-classification", sys.argv[1], top_k=None)(["w1 w2 w3", "w4"])
print(json.dumps([type(model).__name__, found]))
"""
    name, found = json.loads(python(code, str(tmp_path)).splitlines()[-1])
    assert name == "SpikingBertForSequenceClassification"
    for text, scores in zip(["w1 w2 w3", "w4"], found, strict=True):
        logits = model(**tokenizer(text, return_tensors="pt")).logits
        mine = dict(zip(["no", "maybe", "yes"], logits.softmax(-1)[0].tolist(), strict=True))
        assert {s["label"]: s["score"] for s in scores} == pytest.approx(mine, abs=1e-5)
