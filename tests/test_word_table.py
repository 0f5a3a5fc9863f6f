"""Word embeddings in few bits: rows as bytes, the gradient, and students whose table is quantized with and without
their weights."""

from __future__ import annotations

import pytest
import torch
from micro import GLUE
from students import make, prune, sentences

from spikeprune.config import names
from spikeprune.config.load import load
from spikeprune.cost.shapes import model_bytes
from spikeprune.errors import InputError
from spikeprune.models.compaction import as_float, compact, compacted
from spikeprune.models.quantization import TABLES
from spikeprune.models.sequence_classification import SpikingBertForSequenceClassification
from spikeprune.models.serialization import nbytes, parameter_count, stored_tensors
from spikeprune.models.shape import student_shape
from spikeprune.models.word_table import PackedWordTable, WordTable, packed_rows

every = pytest.mark.parametrize("weights", TABLES)


def student_of(table: str, strength: float = 1, **options):
    student = make(dtype=torch.float32, word_table=table, **options)
    student.set_strength(strength)
    return prune(student)


def logits(student) -> torch.Tensor:
    with torch.no_grad():
        return student(**sentences()).logits


def test_the_names_are_those_of_the_configuration() -> None:
    assert ("float", *TABLES) == names.TABLES


@pytest.mark.parametrize("away", [1, 3, 5])
def test_a_strength_set_elsewhere_is_read_after_the_return(away) -> None:
    """The tensor that comes back may lie where one lay that had been read."""
    for _ in range(20):
        student = student_of("int8", 0, weights="ternary").double().float()
        assert student.quantized == 0 and not student.embedding.word.final
        for _ in range(away):
            student.double().float()
        student.double().set_strength(1)
        assert student.float().quantized == 1 and student.embedding.word.final


@every
@pytest.mark.parametrize("width", [12, 13])
def test_rows_are_looked_up_as_they_were_packed(weights, width) -> None:
    torch.manual_seed(0)
    table = WordTable(7, width, weights=weights)
    table.strength.fill_(1)
    codes, scale = table.codes()
    packed = PackedWordTable(7, width, weights=weights)
    packed.load_state_dict({"data": packed_rows(codes, weights), "scale": scale})
    ids = torch.tensor([[6, 0, 3], [3, 3, 5]])
    assert torch.equal(packed(ids), table(ids)) and torch.equal(table(ids), (codes * scale)[ids])
    assert torch.equal(packed.whole(), table.whole()) and packed.stored_bits == table.stored_bits
    assert packed.data.shape == (7, -(-width * TABLES[weights].stored // 8))
    assert codes.abs().max() == TABLES[weights].high


@every
def test_rows_move_to_their_codes_and_the_gradient_passes_straight_through(weights) -> None:
    table, ids = WordTable(5, 8, weights=weights), torch.tensor([1, 4, 1])
    assert torch.equal(table(ids), table.weight[ids])
    table.strength.fill_(0.5)
    codes, scale = table.codes()
    torch.testing.assert_close(table(ids), (table.weight + codes * scale)[ids] / 2)
    table.strength.fill_(1)
    table(ids).sum().backward()
    assert table.weight.grad[:, 0].tolist() == [0, 2, 0, 0, 1]


@every
@pytest.mark.parametrize(
    "options",
    [{}, {"weights": "ternary", "fold": True}, {"dead_zone": True}, {"dead_zone": True, "theta": "tensor"}],
    ids=["float weights", "ternary", "dead zone", "dead zone, one theta"],
)
def test_a_compacted_student_is_as_large_as_counted_and_answers_alike(weights, options, tmp_path) -> None:
    student = student_of(weights, **options)
    small = compact(student)
    assert torch.equal(logits(small), logits(student)) and torch.equal(logits(as_float(small)), logits(small))
    shape, bits = student_shape(small), small.stored_bits
    assert nbytes(stored_tensors(small)) == model_bytes(shape=shape, heads=small.heads, ffn=small.ffn, bits=bits)
    assert nbytes(stored_tensors(small)) < nbytes(stored_tensors(compact(as_float(student))))
    assert parameter_count(small) == parameter_count(compact(as_float(student)))
    SpikingBertForSequenceClassification.of(small).save_pretrained(tmp_path)
    again = SpikingBertForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(again.spiking_bert.embedding.word, PackedWordTable)
    assert torch.equal(logits(again.spiking_bert), logits(small))


def test_half_way_a_compacted_student_is_float_and_one_to_train_stays_quantized() -> None:
    student = student_of("int8", 0.5)
    small = compact(student)
    assert small.values["word_table"] == "float" and not small.packed
    torch.testing.assert_close(logits(small), logits(student))
    trained = compacted(student)
    assert trained.embedding.word.strength == 0.5 and torch.equal(logits(trained), logits(student))


def test_a_stage_that_quantizes_nothing_but_the_table() -> None:
    words = ["preset=tiny", "task=sst2", "stages.quantize.epochs=2"]
    assert load(GLUE, [*words, "stages.quantize.embeddings=int4"]).stages.quantize.weights == "float"
    with pytest.raises(InputError, match="set its weights or embeddings"):
        load(GLUE, words)
