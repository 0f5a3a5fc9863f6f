"""A student of few-bit weights: what it answers, stores and costs."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from pruning import D, F, H, L, batches, inputs, loss_of, make
from weights import linear, matrix

from spikeprune.cost.shapes import Shape, matrix_bytes, model_bytes
from spikeprune.models.compaction import compact
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.quantization import MATRICES, QUANTIZERS, acting_weight, codes_of, weight_of
from spikeprune.models.serialization import nbytes, stored_tensors
from spikeprune.models.weights import acting_weight as acting_in
from spikeprune.models.weights import codes as codes_in
from spikeprune.pruning.statistics import collect
from spikeprune.training.callbacks.cost_logger import CostLogger

every = pytest.mark.parametrize("name", QUANTIZERS)

# ------------------------------------------------------------------------------------------------- a quantized student


def quantized(name: str, strength: float = 1.0, **options) -> SpikingBert:
    student = make(weights=name, **options)
    student.set_strength(strength)
    return student


def prune(student: SpikingBert) -> SpikingBert:
    student.heads[0, 1] = 0
    student.heads[1] = 0  # a layer without attention
    student.ffn[:, ::5] = 0
    return student


def by_hand(student: SpikingBert) -> SpikingBert:
    """A float student that stores what `student` acts with."""
    values = {name: x for name, x in student.state_dict().items() if name != "strength"}
    for i in range(len(student.layers)):
        kept = {"out": student.heads[i].repeat_interleave(D // H), "down": student.ffn[i]}
        for name in MATRICES:
            w, quantizer = values[f"layers.{i}.{name}.weight"], QUANTIZERS[student.weights]
            n = max(int(kept[name].sum()), 1) if name in kept else None
            codes, scale = quantizer.codes(w * kept[name] if name in kept else w, n)
            values[f"layers.{i}.{name}.weight"] = codes * scale
    plain = make(query="spiking" if student.query == "spiking" else "real")
    plain.load_state_dict(values)
    return plain


def answers(student: SpikingBert, mode: str = "equilibrium") -> torch.Tensor:
    with torch.no_grad():
        return student.eval()(**inputs(batches((3,))[0]), mode=mode).logits


@every
def test_strength_zero_is_the_float_student(name) -> None:
    plain, student = make(), make(weights=name)
    assert student.quantized == 0 and student.stored_bits == 32
    assert list(student.state_dict()) == [*list(plain.state_dict())[:3], "strength", *list(plain.state_dict())[3:]]
    for mode in ("equilibrium", "spiking"):
        assert torch.equal(answers(student, mode), answers(plain, mode))


@every
@pytest.mark.parametrize("query", ["real", "spiking"])
def test_strength_one_is_a_student_of_quantized_weights(name, query) -> None:
    student = prune(quantized(name, query=query))
    assert student.stored_bits == QUANTIZERS[name].stored
    for mode in ("equilibrium", "spiking"):
        assert torch.equal(answers(student, mode), answers(by_hand(student), mode))
    assert not torch.equal(answers(student), answers(prune(make(query=query))))


@every
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_simulated_is_still_the_equilibrium(name, strength) -> None:
    student = prune(quantized(name, strength))
    torch.testing.assert_close(answers(student, "spiking"), answers(student))


@every
def test_what_is_trained_is_the_full_precision_weight(name) -> None:
    student = prune(quantized(name)).train()
    plain = by_hand(student).train()
    batch = batches((3,))[0]
    for net in (student, plain):
        loss_of(batch, net(**inputs(batch))).sum().backward()
    for (key, mine), (_, theirs) in zip(student.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad), key  # straight through
    masked = student.layers[0].value.weight.grad.unflatten(0, (H, -1))[1]
    assert masked.eq(0).all() and student.layers[0].up.weight.grad[0].eq(0).all()
    assert student.layers[0].query.weight.grad.abs().max() > 0


@every
def test_state_dict_carries_it(name) -> None:
    student = prune(quantized(name, 0.25))
    other = make(5, weights=name)
    other.load_state_dict(student.state_dict())
    assert other.quantized == 0.25 and torch.equal(answers(other), answers(student))
    again = copy.deepcopy(student)
    again.set_strength(1.0)  # in place: the number is read again
    assert again.quantized == 1 and student.quantized == 0.25
    assert not torch.equal(answers(again), answers(student))


def test_a_float_student_refuses_a_quantized_checkpoint() -> None:
    with pytest.raises(RuntimeError, match='Unexpected key.*"strength"'):
        make().load_state_dict(quantized("ternary").state_dict())
    with pytest.raises(RuntimeError, match='Missing key.*"strength"'):
        make(weights="ternary").load_state_dict(make().state_dict())


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown weights 'ternery'; known:.*did you mean ternary"):
        make(weights="ternery")
    with pytest.raises(ValueError, match="a student of float weights has no strength; weights may be binary"):
        make().set_strength(1.0)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength must be from 0 to 1"):
            make(weights="int8").set_strength(strength)
        with pytest.raises(ValueError, match="strength must be from 0 to 1"):
            acting_weight(matrix(), "int8", strength)


def test_magnitude_judges_the_weights_that_act() -> None:
    stats, plain = (
        collect(net, batches((2,)), loss_of) for net in (quantized("ternary"), by_hand(quantized("ternary")))
    )
    assert torch.equal(stats.ffn_weight, plain.ffn_weight) and torch.equal(stats.head_weight, plain.head_weight)


# ------------------------------------------------------------------------------------------------------ bytes and cost

SHAPE = Shape(hidden=D, heads=H, ffn=F, layers=L, classes=3, vocab_size=23, positions=8, theta="channel")


def cut(student: SpikingBert, layer: int, name: str, w: torch.Tensor) -> torch.Tensor:
    """What masks leave of a matrix."""
    channels, neurons = student.heads[layer].repeat_interleave(D // H).bool(), student.ffn[layer].bool()
    if name in ("query", "key", "value", "up"):
        return w[neurons if name == "up" else channels]
    return w[:, neurons if name == "down" else channels]


@every
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("fold", [False, True])
def test_the_packed_encoder_is_the_one_that_acts_and_as_large_as_counted(name, pruned, fold) -> None:
    student = quantized(name, fold=fold).float()
    if pruned:
        prune(student)
    small, masks = compact(student), {"heads": student.heads, "ffn": student.ffn}
    for i in range(L):
        for key in MATRICES:
            assert torch.equal(acting_in(small, i, key), cut(student, i, key, acting_in(student, i, key))), key
    bits, tensors = QUANTIZERS[name].stored, stored_tensors(small)
    packed = {key: x for key, x in tensors.items() if key.endswith((".data", ".scale"))}
    assert nbytes(packed) == matrix_bytes(shape=SHAPE, **masks, bits=bits)
    assert nbytes(tensors) == model_bytes(shape=SHAPE, **masks, bits=bits)
    with pytest.raises(ValueError, match="a packed student's weights are final"):
        small.set_strength(1.0)


def test_masks_are_stored_unless_the_sizes_of_a_compacted_network_imply_them() -> None:
    small = compact(quantized("ternary"))
    assert not {"heads", "ffn", "t_steps"} & set(stored_tensors(small))
    small.ffn[0, 0] = 0
    for student in (small, make()):
        assert set(stored_tensors(student)) == set(student.state_dict())


@every
def test_scales_are_over_the_inputs_that_are_kept(name) -> None:
    """What is dead moves nothing: the scales are those of the matrix without its pruned columns."""
    student = prune(quantized(name))
    for i, key in ((0, "out"), (0, "down"), (1, "down")):
        left = cut(student, i, key, getattr(student.layers[i], key).weight)
        wanted = QUANTIZERS[name].codes(left)
        found = codes_in(student, i, key)
        assert torch.equal(cut(student, i, key, found[0]), wanted[0])
        torch.testing.assert_close(found[1], wanted[1])
    before = answers(student)
    with torch.no_grad():
        student.layers[0].down.weight[:, ::5] = 100.0
        student.layers[0].out.weight[:, D // H : 2 * D // H] = -100.0
    assert torch.equal(answers(student), before)


@every
def test_a_folded_theta_by_hand(name) -> None:
    w, sizes = matrix(4, 3, dtype=torch.float64)[:-1], torch.tensor([0.5, 0.0, 2.0]).double()
    codes, scale = codes_of(w, name, sizes)
    wanted = QUANTIZERS[name].codes(torch.stack([w[:, 0] * 0.5, w[:, 2] * 2], 1))
    assert torch.equal(codes[:, ::2], wanted[0])
    torch.testing.assert_close(scale, wanted[1])
    acts = weight_of(codes, scale, sizes)
    torch.testing.assert_close(acts[:, 0], codes[:, 0] * scale[:, 0] * 2)
    torch.testing.assert_close(acts[:, 2], codes[:, 2] * scale[:, 0] / 2)
    layer = linear(w)
    acting_weight(layer.weight, name, 1.0, sizes).sum().backward()
    assert layer.weight.grad.eq(1).all()  # straight through, past theta


def test_a_folded_student_learns_and_is_not_the_plain_one() -> None:
    folded, plain = prune(quantized("ternary", fold=True)), prune(quantized("ternary"))
    assert not torch.equal(answers(folded), answers(plain))
    folded.train()(**inputs(batches((3,))[0])).logits.square().sum().backward()
    assert folded.layers[0].down.weight.grad.abs().max() > 0
    assert folded.layers[0].intermediate_neurons.log_theta.grad.abs().max() > 0


def test_bytes_are_counted_as_stored_and_operations_as_before() -> None:
    rows = {}
    for student in (make(), quantized("ternary", 0.9), quantized("ternary")):
        counter, batch = CostLogger(teacher_shape=SHAPE, model="convention"), batches((3,))[0]
        with torch.no_grad():
            outputs = student.eval()(**inputs(batch), mode="spiking", count=True)
        module = SimpleNamespace(student=student, log_dict=lambda *_, **__: None)
        counter.on_validation_batch_end(None, module, outputs, batch, 0)
        counter.on_validation_epoch_end(SimpleNamespace(world_size=1), module)
        rows[student.weights, student.quantized] = counter.cost
    plain, nearly, packed = rows.values()
    assert plain["bytes"] == nearly["bytes"] == model_bytes(shape=SHAPE) > 2 * packed["bytes"]
    assert packed["bytes"] == model_bytes(shape=SHAPE, bits=2)
    assert plain["params"] == packed["params"] and packed["ac"] > 0
