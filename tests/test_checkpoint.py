"""Checkpoints of every kind that is accepted compute what transformers computes; the others are refused in a sentence,
and the classes of a classifier are those of the task, by their names."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from spikeprune.config.load import load
from spikeprune.config.tasks import get_task
from spikeprune.data.tokenizer import train_wordpiece
from spikeprune.errors import InputError
from spikeprune.experiment.build.networks import student_values
from spikeprune.experiment.context import check_fit, tokens_of, types_of
from spikeprune.models.checkpoint_config import label_names, label_order, read_config
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.teacher import Teacher, copy_encoder
from tests.micro import GLUE

MNLI = get_task("mnli")
SIZE = {"vocab_size": 29, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZE |= {"intermediate_size": 37, "max_position_embeddings": 16, "num_labels": 3}

ACCEPTED = [
    {},
    {"hidden_act": "gelu_new"},
    {"hidden_act": "relu"},
    {"layer_norm_eps": 0.3},
    {"type_vocab_size": 1},
    {"type_vocab_size": 5},
    {"num_attention_heads": 1},
    {"num_attention_heads": 12},
    {"pad_token_id": 7},
    {"pad_token_id": None},
    {"max_position_embeddings": 8},
    {"num_hidden_layers": 1},
    {"hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.2},
    {"chunk_size_feed_forward": 3},
    {"return_dict": False},
    {"output_attentions": True, "output_hidden_states": True},
    {"position_embedding_type": "absolute"},
    {"embedding_size": 12},
    {"problem_type": "multi_label_classification"},
    {"dtype": "float16"},
    {"pruned_heads": {}},
    {"pooler_type": "first_token_transform", "directionality": "bidi"},  # of early BERTs, which nothing reads
]

REFUSED = [
    ({"is_decoder": True}, "is a BERT decoder"),
    ({"add_cross_attention": True}, "cross-attention"),
    ({"hidden_act": "silu"}, "hidden_act='silu'"),
    ({"hidden_act": "gelu_pytorch_tanh"}, "use one with gelu, gelu_new or relu"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
    ({"position_embedding_type": "relative_key_query"}, "position_embedding_type='relative_key_query'"),
    ({"embedding_size": 6}, "embedding_size=6 for hidden_size=12"),
    ({"num_attention_heads": 5}, "5 heads, which do not divide its hidden_size=12"),
    ({"num_attention_heads": 0}, "num_attention_heads=0"),
    ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
    ({"type_vocab_size": 0}, "type_vocab_size=0"),
    ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0"),
    ({"pad_token_id": 29}, "pad_token_id=29"),
    ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob=1.5"),
    ({"pruned_heads": {"0": [1]}}, "has pruned_heads"),
    ({"quantization_config": {"quant_method": "gptq"}}, "has quantization_config"),
    ({"auto_map": {"AutoModel": "own.OwnBert"}}, "has auto_map"),
    ({"hidden_size": "wide"}, "no model configuration"),
    ({"id2label": ["a", "b"]}, "no model configuration"),
    ({"model_type": "vit"}, "'vit' model; a teacher is one of BERT, RoBERTa, MPNet, ELECTRA"),
]


def write_checkpoint(folder: Path, **config) -> Path:
    """A random BERT with these values of `load.json`, written as they are; its weights fit them where they can."""
    torch.manual_seed(0)
    known = {key: value for key, value in config.items() if key in (*SIZE, "hidden_act", "type_vocab_size")}
    try:
        model = BertForSequenceClassification(BertConfig(**{**SIZE, **known}))
    except Exception:
        model = BertForSequenceClassification(BertConfig(**SIZE))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.to(getattr(torch, config.get("dtype", "float32"))).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def sentences(types: int = 2) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(29, (3, 6), generator=random),
        "attention_mask": (torch.arange(6) < torch.tensor([6, 5, 3])[:, None]).long(),
        "token_type_ids": torch.randint(types, (3, 6), generator=random),
    }


@pytest.mark.parametrize("config", ACCEPTED, ids=str)
@torch.no_grad()
def test_what_is_accepted_computes_what_transformers_computes(config, tmp_path) -> None:
    """The teacher bit for bit; its student in the limit of many steps and thresholds that cut nothing."""
    folder, batch = write_checkpoint(tmp_path, **config), sentences(min(2, config.get("type_vocab_size", 2)))
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=torch.float32).eval()
    theirs.config.chunk_size_feed_forward = 0
    for layer in theirs.bert.encoder.layer:
        layer.chunk_size_feed_forward = 0  # six tokens are two chunks, the same numbers
    wanted = theirs(**batch, return_dict=True).logits
    teacher = Teacher.load(folder, classes=3, labels=MNLI.labels).freeze()
    assert torch.equal(teacher(**batch).logits, wanted)
    features = teacher(**batch, hidden=True, scores=True)
    torch.testing.assert_close(features.logits, wanted)

    bert, settings = read_config(str(folder), classes=3), load(GLUE, ["task=mnli", "preset=tiny"])
    settings.student.pooling, settings.student.t_steps = "cls", 2**40
    context = SimpleNamespace(config=settings, teacher_config=bert, task=MNLI, layers=range(bert.num_hidden_layers))
    student = SpikingBert(**student_values(context)).double().eval()
    copy_encoder(student, teacher.double(), list(context.layers))
    student(**batch, mode="calibrate", percentile=100.0)
    for name, parameter in student.named_parameters():
        if name.endswith("log_theta"):
            parameter.add_(1e-9)
    torch.testing.assert_close(student(**batch).logits, teacher(**batch).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=[str(config) for config, _ in REFUSED])
def test_what_would_be_another_network_is_refused(config, message, tmp_path) -> None:
    folder = write_checkpoint(tmp_path, **config)
    with pytest.raises(InputError) as caught:
        read_config(str(folder), classes=3)
    text = str(caught.value)
    assert text.startswith("teacher.checkpoint: ") and message in text and str(folder) in text
    assert "\n" not in text and len(text) < 450


def test_layers_without_end_are_refused_before_any_is_made(tmp_path) -> None:
    path = write_checkpoint(tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 2**31}))
    with pytest.raises(InputError, match="has num_hidden_layers=2147483648; at most 1000 are read"):
        read_config(str(tmp_path), classes=3)


def test_an_adapter_is_refused(tmp_path) -> None:
    (write_checkpoint(tmp_path) / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter"):
        read_config(str(tmp_path), classes=3)


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_weights_that_no_module_takes_are_another_architecture(prefix, tmp_path) -> None:
    path = write_checkpoint(tmp_path) / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    if not prefix:
        weights = {k.removeprefix("bert."): v for k, v in weights.items() if not k.startswith("classifier.")}
    harmless = {f"{prefix}embeddings.position_ids": torch.arange(16)[None], "cls.predictions.bias": torch.zeros(29)}
    safetensors.torch.save_file(weights | harmless, path, {"format": "pt"})
    Teacher.load(tmp_path, classes=3)
    distances = {f"{prefix}encoder.layer.0.attention.self.distance_embedding.weight": torch.ones(31, 4)}
    safetensors.torch.save_file(weights | distances, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights .* first .*distance_embedding.weight; it is another architecture"):
        Teacher.load(tmp_path, classes=3)


# --------------------------------------------------------------------------------------- tokenizer, data and embeddings


def fits(task: str, **bert) -> None:
    tokenizer = train_wordpiece(["a film that never ends"], vocab_size=80)
    config = load(GLUE, [f"task={task}", "preset=tiny", "data.max_length=16"])
    sizes = {"vocab_size": tokens_of(tokenizer), "max_position_embeddings": 16, "type_vocab_size": 2}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, **bert}
    given = {"tokens": tokens_of(tokenizer), "types": types_of(tokenizer, get_task(task))}
    check_fit(config, SimpleNamespace(model_type="bert", **sizes), **given)


@pytest.mark.parametrize(
    ("task", "bert", "message"),
    [
        ("sst2", {}, ""),
        ("mrpc", {}, ""),
        ("sst2", {"type_vocab_size": 1}, ""),  # single sentences need no more
        ("mrpc", {"type_vocab_size": 1}, "2 token types but the model has only 1"),
        ("sst2", {"vocab_size": 5}, "the model has only 5 embeddings"),
        ("sst2", {"max_position_embeddings": 15}, "the teacher has 15 positions"),
        ("sst2", {"num_attention_heads": 1}, "stages.spatial.heads = 0.5: keeps fewer than the least, 1 of 1 a layer"),
    ],
)
def test_what_the_tokenizer_gives_has_embeddings(task, bert, message) -> None:
    if not message:
        return fits(task, **bert)
    with pytest.raises(InputError, match=message):
        fits(task, **bert)


def test_a_vocabulary_with_gaps_needs_rows_up_to_its_largest_id() -> None:
    class Gaps:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "b": 116}

    assert tokens_of(Gaps()) == 117


# ------------------------------------------------------------------------------------------------------------- labels


def named(*names: str) -> dict:
    return {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (("entailment", "neutral", "contradiction"), [0, 1, 2]),
        (("contradiction", "neutral", "entailment"), [2, 1, 0]),
        (("CONTRADICTION", "Entailment", "NEUTRAL"), [1, 2, 0]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), None),
        (("yes", "neutral", "no"), None),
    ],
    ids=str,
)
def test_classes_are_ordered_by_their_names(names, rows, tmp_path) -> None:
    folder = write_checkpoint(tmp_path, **named(*names))
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    teacher = Teacher.load(folder, classes=3, labels=MNLI.labels).eval()
    with torch.no_grad():
        wanted, found = theirs(**sentences()).logits, teacher(**sentences()).logits
    assert torch.equal(found, wanted[:, rows or [0, 1, 2]])
    assert (teacher.note == "") == (rows is not None) and "\n" not in teacher.note
    if rows is None:
        assert ", ".join(names) in teacher.note and ", ".join(MNLI.labels) in teacher.note
    as_it_is = Teacher.load(folder, classes=3).eval()  # a run's own, whose classes are the task's already
    with torch.no_grad():
        assert torch.equal(as_it_is(**sentences()).logits, wanted) and not as_it_is.note


def test_one_of_the_two_tables_is_enough_and_they_must_agree(tmp_path) -> None:
    names = ("contradiction", "neutral", "entailment")
    for key, table in named(*names).items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", key: table}))
        assert label_order(str(tmp_path), MNLI.labels) == ([2, 1, 0], "")
    plain = named("LABEL_0", "LABEL_1", "LABEL_2")
    for key in plain:  # left there by whoever changed the other one alone
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **plain, key: named(*names)[key]}))
        assert label_order(str(tmp_path), MNLI.labels) == ([2, 1, 0], "")
    for none in (None, ["a"], {"entailment": "x"}):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "label2id": none}))
        order, note = label_order(str(tmp_path), MNLI.labels)
        assert order == [0, 1, 2] and "(not named)" in note
    both = {**named(*names), "label2id": named(*MNLI.labels)["label2id"]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **both}))
    with pytest.raises(InputError, match="id2label and label2id .* contradict each other"):
        label_order(str(tmp_path), MNLI.labels)


def test_a_classifier_that_starts_at_random_has_no_order(tmp_path) -> None:
    write_checkpoint(tmp_path, num_labels=2, **named("no", "yes"))
    assert Teacher.load(tmp_path, classes=3, labels=MNLI.labels).note == ""


def test_names_as_transformers_has_them() -> None:
    config = BertConfig(**SIZE)
    config.update(label_names(MNLI.labels))
    assert config.num_labels == 3 and config.id2label[2] == "contradiction" and config.label2id["entailment"] == 0
