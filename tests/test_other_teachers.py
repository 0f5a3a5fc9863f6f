"""Teachers of other architectures than the BERT family's, which teach their logits alone."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    DebertaV2Config,
    DistilBertConfig,
    FlaubertConfig,
    FunnelConfig,
    PreTrainedConfig,
    SqueezeBertConfig,
    XLMRobertaConfig,
    XLNetConfig,
)

import spikeprune
from spikeprune.config.derived import without_features
from spikeprune.config.load import load, read_resolved
from spikeprune.config.tasks import get_task
from spikeprune.cost.dense import dense
from spikeprune.data.tokenizer import train_wordpiece
from spikeprune.errors import InputError
from spikeprune.experiment import pipeline
from spikeprune.experiment.build.networks import dense_shape
from spikeprune.experiment.evaluation import evaluate
from spikeprune.experiment.prediction import open_predictor, predictions
from spikeprune.models.conversion import from_bert
from spikeprune.models.families import architecture, longest_text
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.teacher import Teacher, copy_encoder
from tests.micro import GLUE, micro, only, write_sst2

D, H, F, LAYERS, N, VOCAB = 12, 3, 37, 2, 8, 29
SIZE = {"vocab_size": VOCAB, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": H}
SIZE |= {"intermediate_size": F, "max_position_embeddings": 32, "num_labels": 3}
CONFIGS = {
    "distilbert": DistilBertConfig(
        vocab_size=VOCAB, dim=D, n_layers=LAYERS, n_heads=H, hidden_dim=F, max_position_embeddings=32, num_labels=3
    ),
    "albert": AlbertConfig(**SIZE, embedding_size=7),
    "deberta": DebertaV2Config(**SIZE, relative_attention=True, pos_att_type="p2c|c2p", position_biased_input=False),
    "xlm-roberta": XLMRobertaConfig(**SIZE),
    "flaubert": FlaubertConfig(  # it would look token types up among the words
        **{name: SIZE[name] for name in ("vocab_size", "intermediate_size", "max_position_embeddings", "num_labels")},
        **{"emb_dim": D, "n_layers": LAYERS, "n_heads": H},
    ),
}
architectures = pytest.mark.parametrize("kind", CONFIGS)


def random_model(config: PreTrainedConfig):
    """With weights large enough that answers differ."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCAB, (3, N), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(N) < torch.tensor([8, 5, 3])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


@architectures
@torch.no_grad()
def test_its_logits_are_those_of_transformers(kind, tmp_path) -> None:
    """Loaded with its classes in the task's order, and as another process unpickles it."""
    model, labels = random_model(CONFIGS[kind]), get_task("mnli").labels
    model.config.update({"id2label": dict(enumerate(reversed(labels))), "label2id": {}})
    model.save_pretrained(tmp_path)
    wanted = model(input_ids=batch()["input_ids"], attention_mask=batch()["attention_mask"]).logits
    teacher = Teacher.load(tmp_path, classes=3, labels=labels, dropout=0.0)
    assert not any(module.p for module in teacher.modules() if isinstance(module, torch.nn.Dropout))
    for found in (teacher.freeze(), pickle.loads(pickle.dumps(teacher))):
        torch.testing.assert_close(found(**batch()).logits, wanted.flip(-1))
    with pytest.raises(ValueError, match="teaches logits alone"):
        teacher(**batch(), hidden=True)


@architectures
@torch.no_grad()
def test_a_student_starts_from_the_embeddings_and_costs_are_not_overstated(kind) -> None:
    teacher = Teacher(random_model(CONFIGS[kind])).freeze()
    values = architecture(teacher.encoder_config)
    assert [values[name] for name in ("hidden", "heads", "ffn", "vocab")] == [D, H, F, VOCAB]
    assert longest_text(teacher.encoder_config) == (30 if kind == "xlm-roberta" else 32)
    student = SpikingBert(**values, layers=LAYERS, classes=3, t_steps=4, pooling="cls").eval()
    copy_encoder(student, teacher, list(range(LAYERS)))
    assert torch.equal(student.embedding.word.weight, teacher.bert.get_input_embeddings().weight)
    assert student(**batch()).logits.isfinite().all()
    ids = torch.ones(3, N, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        teacher(ids, torch.ones_like(ids), torch.zeros_like(ids))
    counted = 2 * dense(torch.tensor([N] * 3), shape=dense_shape(teacher.encoder_config, 3)).mac[:-1].sum()
    assert counter.get_total_flops() >= counted - 3 * LAYERS * 4 * N**2 * D  # some kernels' attention is not counted


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SqueezeBertConfig(**{**SIZE, "intermediate_size": 36, "embedding_size": D}), "of the work of a BERT"),
        (FunnelConfig(vocab_size=VOCAB, d_model=D), "Funnel without max_position_embeddings and intermediate_size"),
        (XLNetConfig(vocab_size=VOCAB, d_model=D, n_head=H), "'xlnet' model; a teacher is one of"),
        (BartConfig(vocab_size=VOCAB, d_model=D), "is a Bart with a decoder"),
        (DistilBertConfig(n_heads=5), "5 heads, which do not divide"),
        (DistilBertConfig(n_layers=10**9), "num_hidden_layers=1000000000; at most 1000 are read"),
        (AlbertConfig(**SIZE, inner_group_num=10**9), "inner_group_num=1000000000; at most 1000 are read"),
    ],
)
def test_one_that_the_costs_do_not_fit_is_refused(config, message, tmp_path) -> None:
    config.save_pretrained(tmp_path)
    if isinstance(config, SqueezeBertConfig):
        random_model(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        Teacher.load(tmp_path, classes=3)


def test_a_damaged_one_is_refused(tmp_path) -> None:
    """Fewer layers in its configuration than it has, and more; the bare encoder has no prefix."""
    model = random_model(CONFIGS["distilbert"])
    for layers, message in ((1, "weights that a DistilBert of transformers does not read"), (3, "lacks 16 of")):
        for saved in (model, model.distilbert):
            saved.save_pretrained(tmp_path)
            DistilBertConfig(**{**CONFIGS["distilbert"].to_dict(), "n_layers": layers}).save_pretrained(tmp_path)
            with pytest.raises(InputError, match=message):
                Teacher.load(tmp_path, classes=3)


def test_no_student_is_converted_from_it() -> None:
    with pytest.raises(InputError, match="'albert' model cannot become a spiking one"):
        from_bert(random_model(CONFIGS["albert"]), batch())


def test_losses_that_need_features_become_soft_labels() -> None:
    own = ["data.replace_words=0", "stages.finetune.losses={hard: 1.0, soft: 0.0}"]
    config = without_features(load(GLUE, ["preset=minilm", *own]))
    assert without_features(config) == config
    losses = {name: getattr(config.stages, name).losses for name in ("internal_kd", "prediction_kd", "finetune")}
    assert all(not (loss.hidden or loss.scores) for loss in losses.values())
    assert {name: loss.soft for name, loss in losses.items()} == {
        "internal_kd": 1.0,
        "prediction_kd": 1.0,
        "finetune": 0.0,
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["distilbert", "albert"])
def test_a_run_of_its_answers(kind, tmp_path, capsys) -> None:
    """To the summary with a preset's own losses, and what is made of the run."""
    folder, data = tmp_path / "checkpoint", write_sst2(tmp_path / "glue")
    text = (data / "SST-2" / "train.tsv").read_text()
    tokenizer = train_wordpiece(text.splitlines(), vocab_size=200, max_length=32)
    config = type(CONFIGS[kind]).from_dict({**CONFIGS[kind].to_dict(), "vocab_size": len(tokenizer), "num_labels": 2})
    random_model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = [*micro(tmp_path / "run", data), *only("internal_kd", "spatial"), f"teacher.checkpoint={folder}"]
    words += ["stages.teacher.epochs=8", "teacher.dropout=0"]
    found = pipeline.run(load(GLUE, words))
    printed = " ".join(capsys.readouterr().out.split())
    assert "hidden and scores are left out of internal_kd, spatial; soft takes their place in internal_kd" in printed
    assert printed.count(f"{found['teacher']['note']}") == 2  # before the run and below its table
    assert found["teacher"]["cost"]["params"] == sum(p.numel() for p in random_model(config).parameters())
    losses = read_resolved(tmp_path / "run" / "config.yaml").stages.internal_kd.losses
    assert (losses.hidden, losses.scores, losses.soft) == (0.0, 0.0, 1.0)
    assert pipeline.run(load(GLUE, words)) == found
    assert evaluate(tmp_path / "run")["fidelity"] == found["stages"]["spatial"]["fidelity"]
    assert found["teacher"]["note"].split(":")[0] in (tmp_path / "run" / "report.html").read_text()
    assert evaluate(tmp_path / "run", "teacher")["metrics"] == found["teacher"]["metrics"]
    predictor = open_predictor(tmp_path / "run", "teacher")
    assert next(predictions(predictor, [("here", ("a good film",))], cost=True)).cost.energy_pj > 0
    teacher = spikeprune.load(tmp_path / "run" / "stages" / "teacher")
    assert type(teacher) is type(random_model(config))
    assert spikeprune.load(tmp_path / "run").spiking_bert.heads.sum() < H * LAYERS
