"""The teacher against `transformers` itself, the student that starts from it, and checkpoints that are no BERT."""

from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
)

from spikeprune.config.tasks import get_task
from spikeprune.errors import InputError
from spikeprune.models.checkpoint_config import read_config
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.teacher import Teacher, copy_encoder, scratch_config
from spikeprune.training.modules.task import TeacherModule
from spikeprune.training.optimizer import Optimization

D, H, F, N, LAYERS = 12, 3, 37, 8, 3
SIZE = {"vocab_size": 29, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": H}
SIZE |= {"intermediate_size": F, "max_position_embeddings": 16, "num_labels": 3}


def bert(seed: int = 0, **options) -> BertForSequenceClassification:
    """With weights large enough that attention and gelu are far from linear."""
    torch.manual_seed(seed)
    model = BertForSequenceClassification._from_config(BertConfig(**SIZE), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def sentences() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(29, (3, N), generator=generator),
        "attention_mask": (torch.arange(N) < torch.tensor([8, 5, 3])[:, None]).long(),
        "token_type_ids": torch.randint(2, (3, N), generator=generator),
    }


def test_a_frozen_teacher_stays_frozen() -> None:
    teacher, batch = Teacher(bert()), sentences()
    assert not torch.equal(teacher.train()(**batch).logits, teacher(**batch).logits)  # dropout
    teacher.freeze()
    outer = torch.nn.ModuleDict({"teacher": teacher}).train()
    assert outer.training and not any(module.training for module in teacher.modules())
    first, again = teacher(**batch).logits, teacher(**batch).logits
    assert torch.equal(first, again) and not first.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_features_are_those_of_transformers() -> None:
    model, batch = bert(attn_implementation="eager").eval(), sentences()
    with torch.no_grad():
        theirs = model(**batch, output_attentions=True, output_hidden_states=True)
        ours = Teacher(model)(**batch, hidden=True, scores=True)
        plain = Teacher(model)(**batch)
    assert len(ours.hidden) == LAYERS + 1 and len(ours.scores) == LAYERS
    assert plain.hidden == plain.scores == ()
    torch.testing.assert_close(ours.logits, theirs.logits)
    torch.testing.assert_close(plain.logits, theirs.logits)
    blocked = torch.zeros(3, 1, 1, N).masked_fill(batch["attention_mask"][:, None, None] == 0, -torch.inf)
    for i, layer in enumerate(model.bert.encoder.layer):
        torch.testing.assert_close(ours.hidden[i + 1], theirs.hidden_states[i + 1])
        torch.testing.assert_close((ours.scores[i] + blocked).softmax(-1), theirs.attentions[i])
        own = layer.attention.self
        for h in range(H):  # q k^T / sqrt d of one head, from the weights
            rows = slice(h * D // H, (h + 1) * D // H)
            q = ours.hidden[i] @ own.query.weight[rows].T + own.query.bias[rows]
            k = ours.hidden[i] @ own.key.weight[rows].T + own.key.bias[rows]
            torch.testing.assert_close(ours.scores[i][:, h], q @ k.transpose(1, 2) / math.sqrt(D // H))


def test_features_leave_no_hooks_behind() -> None:
    teacher = Teacher(bert()).freeze()
    for _ in range(2):
        assert len(teacher(**sentences(), hidden=True, scores=True).scores) == LAYERS
    attention = teacher.bert.bert.encoder.layer[0].attention.self
    assert not attention.query._forward_hooks and not attention.key._forward_hooks


def student_of(layers: int, **options) -> SpikingBert:
    size = {"vocab": 29, "positions": 16, "segments": 2, "hidden": D, "heads": H, "ffn": F, "classes": 3}
    return SpikingBert(**size, layers=layers, t_steps=2**40, **options).double().eval()


@pytest.mark.parametrize("theta", ["channel", "tensor"])
@pytest.mark.parametrize("query", ["real", "spiking"])
def test_a_student_with_fine_steps_and_wide_thresholds_is_the_teacher(theta, query) -> None:
    """Thetas at each channel's largest activation: the clip cuts nothing, 2^40 steps round nothing away."""
    teacher, batch = Teacher(bert().double()).freeze(), sentences()
    student = student_of(LAYERS, spikes="ternary", theta=theta, query=query, pooling="cls")
    copy_encoder(student, teacher, list(range(LAYERS)))
    with torch.no_grad():
        student(**batch, mode="calibrate", percentile=100.0)
        for parameter in (p for name, p in student.named_parameters() if name.endswith("log_theta")):
            parameter.add_(1e-9)  # so that the largest activation itself is inside
        ours, theirs = student(**batch), teacher(**batch, hidden=True, scores=True)
    real = batch["attention_mask"].bool()
    for i in range(LAYERS + 1):
        torch.testing.assert_close(ours.hidden[i][real], theirs.hidden[i][real], atol=1e-7, rtol=1e-7)
    for i in range(LAYERS):
        pairs = real[:, None, :, None] & real[:, None, None, :]
        torch.testing.assert_close(ours.scores[i] * pairs, theirs.scores[i] * pairs, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("tokens", [0, 17])
def test_a_text_that_does_not_fit_the_positions_is_refused(tokens) -> None:
    config = scratch_config(vocab=30, hidden=12, layers=2, heads=3, ffn=10, positions=16, dropout=0.0, classes=2)
    sizes = {"hidden": 12, "layers": 2, "heads": 3, "ffn": 10, "classes": 2}
    student = SpikingBert(vocab=30, positions=16, segments=2, t_steps=4, **sizes)
    ids = torch.ones(2, tokens, dtype=torch.long)
    for model in (Teacher.scratch(config).eval(), student.eval()):
        with pytest.raises(InputError, match=rf"texts of {tokens} tokens do not fit .* from 1 to 16; .*max_length=16"):
            model(ids, torch.ones_like(ids))
        assert model(ids.new_ones(2, 16), ids.new_ones(2, 16)).logits.isfinite().all()


def test_chosen_layers_are_copied_and_the_copy_is_the_students_own() -> None:
    teacher, student = Teacher(bert().double()), student_of(2, pooling="mean")
    before = student.classifier.weight.clone()
    copy_encoder(student, teacher, [0, 2])
    for target, source in zip(student.layers, (0, 2), strict=True):
        layer = teacher.bert.bert.encoder.layer[source]
        assert torch.equal(target.out.weight, layer.attention.output.dense.weight)
        assert torch.equal(target.down.bias, layer.output.dense.bias)
        assert torch.equal(target.query.weight, layer.attention.self.query.weight)
        assert torch.equal(target.attention_norm.weight, layer.attention.output.LayerNorm.weight)
    assert torch.equal(student.classifier.weight, before)  # the teacher's reads its pooler, not the mean
    teacher.bert.bert.embeddings.word_embeddings.weight.data.zero_()
    assert student.embedding.word.weight.any()


# --------------------------------------------------------------------------------------------------------- checkpoints


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def test_a_saved_bert_comes_back_and_a_missing_classifier_starts_anew(tmp_path) -> None:
    model = bert().eval()
    teacher = Teacher.load(saved(model, tmp_path / "whole"), classes=3).eval()
    with torch.no_grad():
        torch.testing.assert_close(teacher(**sentences()).logits, model(**sentences()).logits)
    bare = Teacher.load(saved(model.bert, tmp_path / "bare"), classes=2)
    assert bare.bert.classifier.weight.shape == (2, D)
    assert torch.equal(bare.bert.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


def of_pictures(folder) -> str:
    return str(saved(ViTConfig(), folder))


def without_encoder_weights(folder) -> str:
    saved(bert(), folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "layer.1.attention.self.key" not in k}
    assert len(kept) == len(weights) - 2
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def without_weights(folder) -> str:
    saved(bert(), folder)
    (folder / "model.safetensors").unlink()
    return str(folder)


def cut_short(folder) -> str:
    saved(bert(), folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return str(folder)


def decoder(folder) -> str:
    BertConfig(**SIZE, is_decoder=True).save_pretrained(folder)
    return str(folder)


def other_activation(folder) -> str:
    BertConfig(**SIZE, hidden_act="silu").save_pretrained(folder)
    return str(folder)


def bad_json(folder) -> str:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert",')
    return str(folder)


def empty(folder) -> str:
    folder.mkdir()
    return str(folder)


def test_the_classifier_of_another_task_is_made_anew(tmp_path) -> None:
    other = BertForSequenceClassification(BertConfig(**{**SIZE, "num_labels": 5}))
    loaded = Teacher.load(saved(other, tmp_path / "x"), classes=3).bert
    assert loaded.classifier.weight.shape == (3, 12)
    assert torch.equal(loaded.bert.pooler.dense.weight, other.bert.pooler.dense.weight)


BROKEN = [
    (of_pictures, "'vit' model; a teacher is one of BERT, RoBERTa, MPNet, ELECTRA; for its logits alone any other"),
    (lambda folder: str(folder / "nowhere"), "no model configuration at"),
    (empty, "no model configuration at"),
    (bad_json, "no model configuration at"),
    (
        without_encoder_weights,
        "lacks 2 of the encoder's weights or has them in another size, first bert.encoder.layer.1.attention.self.key",
    ),
    (without_weights, "cannot be loaded as a BERT"),
    (cut_short, "cannot be loaded as a BERT"),
    (decoder, "is a BERT decoder"),
    (other_activation, "hidden_act='silu'"),
]


@pytest.mark.parametrize(("make", "message"), BROKEN, ids=[m.split(";")[0][:30].strip("'") for _, m in BROKEN])
def test_what_is_no_bert_is_one_clear_sentence(make, message, tmp_path) -> None:
    path = make(tmp_path / "x")
    with pytest.raises(InputError) as caught:
        Teacher.load(path, classes=3)
    text = str(caught.value)
    assert text.startswith("teacher.checkpoint: ") and message in text and path in text
    assert "\n" not in text and len(text) < 450


@pytest.mark.parametrize(("asked", "rate"), [(None, 0.1), (0.0, 0.0), (0.4, 0.4)])
def test_a_checkpoint_trains_with_its_own_dropout_or_the_given_one(asked, rate, tmp_path) -> None:
    """`transformers` hands out models in evaluation mode, and nothing later would change that."""
    teacher = Teacher.load(saved(bert(), tmp_path), classes=3, dropout=asked)
    drops = [module for module in teacher.modules() if isinstance(module, torch.nn.Dropout)]
    assert drops and all(module.training and module.p == rate for module in drops)
    assert teacher.bert.config.attention_probs_dropout_prob == rate
    first, again = (teacher(**sentences()).logits for _ in range(2))
    assert torch.equal(first, again) == (rate == 0)


def test_the_configuration_is_judged_without_the_weights(tmp_path) -> None:
    with pytest.raises(InputError, match="'vit' model"):
        read_config(of_pictures(tmp_path / "x"), classes=2)
    assert read_config(str(saved(bert(), tmp_path / "y")), classes=2).num_labels == 2


def test_a_teacher_from_scratch_has_the_given_size() -> None:
    config = scratch_config(vocab=29, hidden=12, layers=2, heads=3, ffn=37, positions=9, dropout=0.25, classes=4)
    teacher = Teacher.scratch(config)
    shapes = {name: tuple(p.shape) for name, p in teacher.bert.named_parameters()}
    assert shapes["bert.embeddings.word_embeddings.weight"] == (29, 12)
    assert shapes["bert.embeddings.position_embeddings.weight"] == (9, 12)
    assert shapes["bert.encoder.layer.1.intermediate.dense.weight"] == (37, 12)
    assert shapes["classifier.weight"] == (4, 12)
    assert {m.p for m in teacher.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


def teacher_module() -> TeacherModule:
    config = scratch_config(vocab=29, hidden=D, layers=2, heads=H, ffn=F, positions=16, dropout=0.0, classes=2)
    torch.manual_seed(0)
    common = {"task": get_task("sst2"), "dev_splits": ["validation"], "optimization": Optimization(1e-3, 1e-2, 0.1, 0)}
    return TeacherModule(Teacher.scratch(config), **common).double()


def test_a_teacher_learns_from_true_labels_alone() -> None:
    module, batch = teacher_module(), {**sentences(), "labels": torch.tensor([0, 1, 1])}
    terms = module.loss_terms(batch)
    assert set(terms) == {"loss", "hard"} and terms["loss"] == terms["hard"]
