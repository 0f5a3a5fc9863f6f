"""Teachers of the BERT family and the students that start from them, against `transformers`' own classes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    ElectraConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

import spikeprune
from spikeprune.config.load import load
from spikeprune.config.tasks import get_task
from spikeprune.cost.dense import dense
from spikeprune.cost.shapes import model_bytes, parameters
from spikeprune.data.batching import encode
from spikeprune.data.tokenizer import load_tokenizer
from spikeprune.errors import InputError
from spikeprune.experiment import pipeline
from spikeprune.experiment.context import check_fit, types_of
from spikeprune.experiment.evaluation import evaluate
from spikeprune.models.checkpoint_config import read_config
from spikeprune.models.compaction import compact, compacted, scatter_into
from spikeprune.models.conversion import from_bert
from spikeprune.models.families import FAMILIES, architecture, family_of, longest_text
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.models.relative_bias import bucket
from spikeprune.models.sequence_classification import SpikingBertForSequenceClassification
from spikeprune.models.serialization import nbytes, parameter_count, stored_tensors
from spikeprune.models.shape import dense_shape, student_shape
from spikeprune.models.teacher import Teacher, copy_encoder
from spikeprune.runtime import Session, to_bytes
from spikeprune.training.objective import LossWeights, Objective
from tests.micro import GLUE, micro, only, write_sst2

D, H, F, N, LAYERS, C = 12, 3, 37, 8, 3, 3
SIZE = {"vocab_size": 29, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": H}
SIZE |= {"intermediate_size": F, "num_labels": C, "max_position_embeddings": 18}
CONFIGS = {
    "bert": BertConfig(**SIZE),
    "roberta": RobertaConfig(**SIZE, type_vocab_size=1, pad_token_id=1),
    "mpnet": MPNetConfig(**SIZE),
    "electra": ElectraConfig(**SIZE, embedding_size=7),
}
family = pytest.mark.parametrize("kind", CONFIGS)


def random_model(kind: str, seed: int = 0):
    """With weights large enough that attention, biases and activations are far from linear."""
    torch.manual_seed(seed)
    model = FAMILIES[kind].classifier._from_config(CONFIGS[kind], attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def batch_for(kind: str) -> dict[str, torch.Tensor]:
    """Three sentences, on the right of which are padding's own ids."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(N) < torch.tensor([8, 5, 3])[:, None]
    ids = torch.randint(3, 29, (3, N), generator=generator)
    batch = {"input_ids": torch.where(mask, ids, CONFIGS[kind].pad_token_id), "attention_mask": mask.long()}
    types = torch.randint(getattr(CONFIGS[kind], "type_vocab_size", 2), (3, N), generator=generator)
    return {**batch, "token_type_ids": types * mask}


def student_of(kind: str, teacher: Teacher | None = None, dtype=torch.float64, **options) -> SpikingBert:
    """Started from the teacher, if any; thresholds calibrated on the sentences."""
    values = {"t_steps": 3, "pooling": "cls", **options}
    torch.manual_seed(2)
    student = SpikingBert(**architecture(CONFIGS[kind]), layers=LAYERS, classes=C, **values).to(dtype).eval()
    copy_encoder(student, Teacher(random_model(kind)) if teacher is None else teacher, list(range(LAYERS)))
    with torch.no_grad():
        student(**batch_for(kind), mode="calibrate", percentile=100.0)
    return student


def test_each_family_has_a_case() -> None:
    assert set(CONFIGS) == set(FAMILIES)


@family
@torch.no_grad()
def test_logits_and_features_are_those_of_transformers(kind) -> None:
    model, batch = random_model(kind), batch_for(kind)
    given = batch if FAMILIES[kind].types else {k: v for k, v in batch.items() if k != "token_type_ids"}
    theirs = model(**given, output_attentions=True, output_hidden_states=True)
    teacher = Teacher(model).freeze()
    ours, plain = teacher(**batch, hidden=True, scores=True), teacher(**batch)
    torch.testing.assert_close(ours.logits, theirs.logits)
    torch.testing.assert_close(plain.logits, theirs.logits)
    assert plain.hidden == plain.scores == teacher(**batch, hidden=True).scores == ()
    blocked = torch.zeros(3, 1, 1, N).masked_fill(batch["attention_mask"][:, None, None] == 0, -torch.inf)
    assert len(ours.hidden) == LAYERS + 1 and len(ours.scores) == LAYERS
    for i in range(LAYERS):
        torch.testing.assert_close(ours.hidden[i + 1], theirs.hidden_states[i + 1])
        torch.testing.assert_close((ours.scores[i] + blocked).softmax(-1), theirs.attentions[i])


@family
@torch.no_grad()
def test_a_student_with_fine_steps_and_wide_thresholds_is_the_teacher(kind) -> None:
    teacher, batch = Teacher(random_model(kind).double()).freeze(), batch_for(kind)
    student = student_of(kind, teacher, t_steps=2**40)
    for name, parameter in student.named_parameters():
        if name.endswith("log_theta"):
            parameter.add_(1e-9)  # so that the largest activation itself is inside
    theirs, real = teacher(**batch, hidden=True, scores=True), batch["attention_mask"].bool()
    for mode in ("equilibrium", "clip"):
        ours = student(**batch, mode=mode)
        for i in range(LAYERS + 1):
            torch.testing.assert_close(ours.hidden[i][real], theirs.hidden[i][real], atol=1e-6, rtol=1e-6)
        for i in range(LAYERS):
            pairs = real[:, None, :, None] & real[:, None, None, :]
            torch.testing.assert_close(ours.scores[i] * pairs, theirs.scores[i] * pairs, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-6, rtol=1e-6)


@family
def test_a_student_made_from_a_model_alone(kind) -> None:
    made = from_bert(random_model(kind), batch_for(kind), t_steps=5, pooling="cls")
    own, found = student_of(kind, dtype=torch.float32).state_dict(), made.state_dict()
    assert set(own) == set(found)
    assert all(torch.equal(found[name], own[name]) for name in own if "log_theta" not in name and name != "t_steps")


@family
def test_a_saved_model_comes_back_with_its_classes_in_order(kind, tmp_path) -> None:
    """Whole, and as a bare encoder, whose head starts at random."""
    model, batch, labels = random_model(kind), batch_for(kind), get_task("mnli").labels
    model.config.update({"id2label": dict(enumerate(reversed(labels))), "label2id": {}})
    model.save_pretrained(tmp_path / "whole")
    family_of(model.config).encoder(model).save_pretrained(tmp_path / "bare")
    with torch.no_grad():
        wanted = Teacher(model).freeze()(**batch, hidden=True)
        found = Teacher.load(tmp_path / "whole", classes=C, labels=labels).freeze()(**batch)
        torch.testing.assert_close(found.logits, wanted.logits.flip(-1))
        bare = Teacher.load(tmp_path / "bare", classes=2).freeze()(**batch, hidden=True)
    torch.testing.assert_close(bare.hidden[-1], wanted.hidden[-1])
    assert bare.logits.shape == (3, 2)


@pytest.mark.parametrize("coding", ["accumulate", "running_mean"])
@family
@torch.no_grad()
def test_masked_compacted_and_saved_students_are_the_same_network(kind, coding, tmp_path) -> None:
    student, batch = student_of(kind, coding=coding), batch_for(kind)
    student.heads[0, 0], student.heads[2, 1], student.ffn[:, ::5] = 0, 0, 0
    small = compact(student)
    assert [layer.heads for layer in small.layers] == [2, 3, 2]
    wanted = infer(student, **batch).logits
    torch.testing.assert_close(infer(small, **batch).logits, wanted)
    torch.testing.assert_close(small(**batch, mode="clip").logits, student(**batch, mode="clip").logits)
    for network in (student, small):
        SpikingBertForSequenceClassification.of(network).save_pretrained(tmp_path)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(again(**batch).logits, infer(network, **batch).logits)
        assert again.config.pad_token_id == CONFIGS[kind].pad_token_id
    again = compacted(student)
    for parameter in again.parameters():
        parameter.add_(0.01)
    scatter_into(again, student)
    torch.testing.assert_close(student(**batch, mode="clip").logits, again(**batch, mode="clip").logits)


@family
@torch.no_grad()
def test_the_closed_form_is_the_simulation(kind) -> None:
    student, batch = student_of(kind), batch_for(kind)
    closed, stepped = infer(student, **batch), infer(student, **batch, stepwise=True)
    torch.testing.assert_close(closed.logits, stepped.logits)
    assert torch.equal(closed.counts["layers.1.key"], stepped.counts["layers.1.key"].sum(0, keepdim=True))


@family
def test_fused_attention_is_attention(kind) -> None:
    """With scores wanted and without, with gradient and without."""
    student, batch = student_of(kind), batch_for(kind)
    outputs = [student(**batch, scores=scores) for scores in (True, False)]
    with torch.no_grad():
        outputs += [student(**batch, mode="clip", scores=scores) for scores in (True, False)]
    assert outputs[0].scores and not outputs[1].scores
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    torch.testing.assert_close(outputs[2].logits, outputs[3].logits)


@pytest.mark.gpu
def test_a_cuda_graph_holds_the_teacher() -> None:
    """MPNet: the others' attention is fused by transformers, as runs with CUDA graphs show."""
    batch = {name: x.cuda() for name, x in batch_for("mpnet").items()}
    teacher = Teacher(random_model("mpnet")).freeze().cuda()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        plain = teacher(**batch, hidden=True).logits.clone()
        with torch.cuda.graph(graph, stream=stream):
            captured = teacher(**batch, hidden=True).logits
        graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(captured, plain)


def test_the_relative_position_bias_is_learnt() -> None:
    student = student_of("mpnet").train()
    student(**batch_for("mpnet")).logits.square().sum().backward()
    gradient = student.relative_bias.table.weight.grad
    used = bucket(torch.arange(1 - N, N), 32).unique()
    assert gradient[used].abs().sum(1).gt(0).all() and gradient.abs().sum(1).gt(0).sum() == len(used)


def test_buckets_of_distances_are_those_of_transformers() -> None:
    distances = torch.arange(-300, 301)
    encoder = random_model("mpnet").mpnet.encoder
    assert torch.equal(bucket(distances, 32), encoder.relative_position_bucket(distances))


@family
@torch.no_grad()
def test_parameters_bytes_and_operations_are_counted(kind) -> None:
    student = student_of(kind, dtype=torch.float32)
    found = parameters(shape=student_shape(student))
    assert found.total == parameter_count(student)
    model = random_model(kind)
    head = [parameter for module in FAMILIES[kind].head(model) for parameter in module.parameters()]
    assert sum(p.numel() for p in head) == found.head
    assert sum(p.numel() for p in model.parameters()) == parameters(shape=dense_shape(student)).total
    small = compact(student)
    masks = {"heads": small.heads, "ffn": small.ffn}
    assert nbytes(stored_tensors(small)) == model_bytes(shape=student_shape(student), **masks)
    whole = {**batch_for(kind), "attention_mask": torch.ones(3, N, dtype=torch.long)}
    whole = whole if FAMILIES[kind].types else {k: v for k, v in whole.items() if k != "token_type_ids"}
    with FlopCounterMode(display=False) as counter:
        model(**whole)
    assert counter.get_total_flops() == 2 * dense(torch.tensor([N] * 3), shape=dense_shape(student)).mac.sum()


@family
def test_texts_up_to_the_last_position(kind) -> None:
    longest = longest_text(CONFIGS[kind])
    assert longest == {"bert": 18, "roberta": 16, "mpnet": 16, "electra": 18}[kind]
    teacher, student = Teacher(random_model(kind)).freeze(), student_of(kind)
    for length in (longest, longest + 1):
        ids = torch.full((1, length), 5)
        for network in (teacher, student):
            if length == longest:
                assert network(ids, torch.ones_like(ids)).logits.isfinite().all()
                continue
            with pytest.raises(InputError, match=f"reads from 1 to {longest}"):
                network(ids, torch.ones_like(ids))


def test_the_c_program_refuses_what_it_lacks() -> None:
    with pytest.raises(InputError, match="the C runtime does not have embeddings of another width"):
        to_bytes(student_of("electra", pooling="mean"))


@pytest.mark.compiler
@pytest.mark.parametrize("kind", ["mpnet", "roberta"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_c_program_gives_their_logits(kind, pooling) -> None:
    student = student_of(kind, pooling=pooling).float().double().eval()
    ids = torch.randint(5, student.values["vocab"], (1, 12))
    logits = infer(student, ids, torch.ones_like(ids)).logits[0]
    found = Session(to_bytes(student)).run(ids[0].numpy()).logits
    torch.testing.assert_close(torch.from_numpy(found).double(), logits.detach(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("mpnet", {"relative_attention_num_buckets": 16}, "transformers computes with 32"),
        ("roberta", {"pad_token_id": None}, "has no pad_token_id"),
        ("roberta", {"pad_token_id": 17}, "none of which is behind that of padding"),
        ("electra", {"embedding_size": 0}, "embedding_size=0; a ELECTRA needs at least 1"),
        ("roberta", {"is_decoder": True}, "is a RoBERTa decoder"),
    ],
)
def test_what_would_be_another_network_is_refused(kind, change, message, tmp_path) -> None:
    config = type(CONFIGS[kind])(**{**CONFIGS[kind].to_dict(), **change})
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        read_config(str(tmp_path), classes=C)


def roberta_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(("<s>", "<pad>", "</s>", "<unk>", "a", "b", *words))}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


@family
def test_token_types_matter_where_the_encoder_reads_them(kind) -> None:
    """A tokenizer with types for a family without any is no fault; more types than rows is one."""
    config = load(GLUE, ["task=mrpc", "preset=tiny", "data.max_length=16", "stages.spatial.ffn=1"])
    given = SimpleNamespace(**{**CONFIGS[kind].to_dict(), "vocab_size": 29, "num_attention_heads": 4})
    assert types_of(roberta_tokenizer(), get_task("mrpc")) == 1
    check_fit(config, given, tokens=6, types=1)
    if kind != "roberta":
        return check_fit(config, given, tokens=6, types=2)
    with pytest.raises(InputError, match="2 token types but the model has only 1"):
        check_fit(config, given, tokens=6, types=2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["mpnet", pytest.param("roberta", marks=pytest.mark.slow)])
def test_a_run_from_a_checkpoint_to_a_pruned_student(kind, tmp_path) -> None:
    """With the family's special tokens, pooling by its head; what the run leaves is loaded again."""
    folder = tmp_path / "checkpoint"
    FAMILIES[kind].encoder(random_model(kind)).save_pretrained(folder)
    roberta_tokenizer("the", "film", "was", "long", "story", "of", "rain", "bad", "good").save_pretrained(folder)
    words = [*micro(tmp_path / "run", write_sst2(tmp_path / "glue")), *only("prediction_kd", "spatial")]
    words += [f"teacher.checkpoint={folder}", "data.max_length=16", "student.pooling=cls", "teacher.dropout=0"]
    pipeline.run(load(GLUE, [*words, "stages.teacher.epochs=8", "run.precision=bf16-mixed"]))
    student = spikeprune.load(tmp_path / "run")
    assert student.config.position_offset == 2 and student.config.pad_token_id == 1
    assert student.spiking_bert.heads.sum() < H * LAYERS
    record = evaluate(tmp_path / "run")
    assert record["same_data"] and record["fidelity"]["agreement"] > 0.5


def test_math_of_the_distance_bounds() -> None:
    """Half of a direction's buckets hold one distance each, the others grow up to 128."""
    sizes = bucket(-torch.arange(1000), 32)
    first = [int((sizes == i).nonzero()[0]) for i in range(16)]
    assert first == [*range(8), *(math.ceil(8 * 2 ** (k / 2) - 1e-9) for k in range(8))]


# --------------------------------------------------------------------------------------------------------- a real one

MPNET = Path(__file__).resolve().parents[2] / "shared" / "checkpoints" / "mpnet-base"


@pytest.mark.slow
@pytest.mark.skipif(not MPNET.is_dir(), reason="no mpnet-base beside the checkout")
def test_mpnet_base_teaches_a_step(tmp_path) -> None:
    """Two sentences: the student in its limit has the teacher's hidden states, and one step of distillation a finite
    loss."""
    subprocess.run([sys.executable, MPNET / "unpack.py", tmp_path / "mpnet"], check=True)
    tokenizer = load_tokenizer(str(tmp_path / "mpnet"))
    teacher = Teacher.load(tmp_path / "mpnet", classes=2, labels=("no", "yes")).freeze()
    encoded = encode(tokenizer, ["a fine film", "a long and tedious one"], labels=[1, 0], max_length=16)
    batch = encoded.batch([0, 1])
    inputs = {name: batch[name] for name in INPUTS}
    student = from_bert(teacher.bert, inputs, pooling="cls")
    objective = Objective(
        LossWeights(soft=1.0, hidden=1.0), layer_map=range(12), shape=student_shape(student), regression=False
    )
    wanted, real = objective.teacher_outputs(batch, teacher), batch["attention_mask"].bool()
    with torch.no_grad():
        found = student(**inputs, mode="clip", scores=False)
    for ours, theirs in zip(found.hidden, wanted.hidden, strict=True):
        assert torch.nn.functional.cosine_similarity(ours[real], theirs[real]).mean() > 0.99
    terms = objective(batch, student(**inputs, scores=False), student, wanted)
    objective.total(terms).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
