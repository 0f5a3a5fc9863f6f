"""Parameters and bytes, by hand and against a BERT of transformers."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from spikeprune.cost.shapes import Shape, model_bytes, parameters
from spikeprune.models.modeling import SpikingBert


def test_a_bert_has_as_many_parameters():
    shape = Shape(hidden=36, heads=3, ffn=37, layers=2, classes=3, pooling="cls", vocab_size=41, positions=12)
    config = BertConfig(
        hidden_size=36,
        num_attention_heads=3,
        intermediate_size=37,
        num_hidden_layers=2,
        num_labels=3,
        vocab_size=41,
        max_position_embeddings=12,
    )
    assert parameters(shape=shape).total == sum(p.numel() for p in BertForSequenceClassification(config).parameters())


@pytest.mark.parametrize("theta", ["tensor", "channel"])
@pytest.mark.parametrize("query", ["real", "spiking"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_student_has_as_many_parameters(pooling, query, theta):
    sizes = {"hidden": 36, "heads": 3, "ffn": 37, "layers": 2, "classes": 3, "positions": 12}
    kind = {"pooling": pooling, "query": query, "theta": theta}
    student = SpikingBert(vocab=41, segments=2, t_steps=1, **sizes, **kind)
    assert parameters(shape=Shape(vocab_size=41, **sizes, **kind)).total == sum(p.numel() for p in student.parameters())


def test_parameters_and_bytes_by_hand():
    shape = Shape(hidden=2, heads=2, ffn=3, layers=1, classes=2, vocab_size=5, positions=4, types=2, theta="channel")
    full = parameters(shape=shape)
    # Tables 2·(5+4+2), layer norm 4, thresholds 2. Encoder: weights 16 + 12, biases 8 + 5, norms 8, thresholds 13.
    assert (full.embeddings, full.encoder, full.head) == (28, 62, 6)
    masks = {"heads": torch.tensor([[0.0, 1.0]]), "ffn": torch.tensor([[1.0, 0.0, 1.0]])}
    # Weights 3·2 + 2 + 4 + 4; biases 3 + 2 + 2 + 2; norms 8; thresholds 3 + 2 + 2 + 2.
    assert parameters(shape=shape, **masks).encoder == 16 + 9 + 8 + 9
    assert model_bytes(shape=shape, **masks) == 4 * (28 + 42 + 6)
    # Matrices of 2, 2, 2, 2, 4, 4 weights and 1, 1, 1, 2, 2, 2 output channels, each rounded up to a byte.
    assert model_bytes(shape=shape, **masks, bits=2) == 4 * (28 + 26 + 6) + 4 * 9 + 6
    assert model_bytes(shape=shape, **masks, bits=8) == 4 * (28 + 26 + 6) + 4 * 9 + 16
    none = parameters(shape=shape, heads=torch.zeros(1, 2), ffn=torch.zeros(1, 3))
    assert none.encoder == 4 + 8 + 4  # the biases of Wo and W2, norms, thresholds of h and a'


def test_thresholds_per_tensor_and_a_spiking_query():
    fixed = {"hidden": 2, "heads": 2, "ffn": 3, "layers": 1, "classes": 2, "vocab_size": 5, "positions": 4}
    plain = parameters(shape=Shape(**fixed)).total
    assert parameters(shape=Shape(**fixed, theta="tensor")).total == plain + 7  # embedding, k, v, c, h, f, a'
    assert parameters(shape=Shape(**fixed, theta="tensor", query="spiking")).total == plain + 8


def test_wrong_input_is_named():
    shape = Shape(hidden=2, heads=2, ffn=3, layers=1, classes=2)
    with pytest.raises(ValueError, match="of 3 bits; known: 1, 2, 4, 8"):
        model_bytes(shape=shape, bits=3)
    with pytest.raises(ValueError, match="masks are"):
        parameters(shape=shape, heads=torch.ones(1, 3), ffn=torch.ones(1, 3))
    with pytest.raises(ValueError, match="no multiple of 3 heads"):
        Shape(hidden=4, heads=3, ffn=1, layers=1, classes=2)
    with pytest.raises(ValueError, match=r"unknown pooling 'means'.*did you mean mean"):
        Shape(hidden=2, heads=2, ffn=3, layers=1, classes=2, pooling="means")
