"""Every energy model on nets that a person can count, and what each must do with more or less work."""

from __future__ import annotations

import pytest
import torch
from students import CODINGS, make, prune, sentences
from test_cost import TINY, run, silent

from spikeprune.cost.dense import dense, weight_counts
from spikeprune.cost.energy_models import ENERGY_MODELS, per_bit
from spikeprune.cost.kinds import KINDS, of_rows
from spikeprune.cost.network import dense_network, level_bits, spiking_network
from spikeprune.cost.opponents import (
    OPPONENTS,
    comparison,
    energy_or_none,
    equal_bits,
    opponents,
    pays_below,
)
from spikeprune.cost.opponents import (
    silent as unfired,
)
from spikeprune.cost.shapes import SynapseCounts
from spikeprune.models.inference import infer
from spikeprune.models.shape import dense_shape, student_network, student_operations, student_shape

every_model = pytest.mark.parametrize("model", ENERGY_MODELS.values(), ids=list(ENERGY_MODELS))
HEADS, FFN = torch.ones(1, 2), torch.ones(1, 3)


def spiking(counts, *, steps=(1, 1), coding="accumulate", **how):
    ops = run(counts, steps=steps, coding=coding)
    return spiking_network(ops, shape=TINY, heads=HEADS, ffn=FFN, coding=coding, **how)


def simulated(student):
    """Spikes of each step."""
    return student(**sentences(), mode="spiking", count=True).counts


def one_spike(spiking_layer="layers.0.attention"):
    counts = silent(TINY, (1, 1))
    counts[spiking_layer][0, 0, 1] = 1
    return counts


# --------------------------------------------------------------------------------------------------- counted by hand


def test_the_work_of_one_spike() -> None:
    """One spike of h in a sentence of 4 tokens: 3 neurons and the residual; D = 2, 2 heads of 1 channel, 3 neurons."""
    found = {kind: values.tolist() for kind, values in run(one_spike()).kinds.items()}
    nothing = [0, 0, 0]
    assert found == {
        **dict.fromkeys(KINDS, nothing),
        "ac": [0, 4, 0],
        "mac": [0, 0, 4],
        "norm": [8, 16, 0],
        "softmax": [0, 32, 0],
        "activation": [0, 12, 0],
        "updates": [4 * 2, 4 * (2 + 2 + 2 + 2 + 3 + 2), 0],  # k, v, c, h, f, a'
        "spikes": [0, 1, 0],
        "events": [0, 1, 0],
        "weights": [0, 3, 0],  # the residual has none
        "dense_weights": [0, 0, 4],
        "inputs": [0, 0, 2],
        "outputs": [0, 0, 2],
    }


def test_a_key_spike_is_read_by_each_query() -> None:
    for coding, times in (("accumulate", 4), ("per_step", 1)):
        work = run(one_spike("layers.0.key"), coding=coding).kinds
        assert (work["operands"][1], work["weights"][1], work["events"][1]) == (4, 0, times)


def test_the_work_of_a_dense_network() -> None:
    found = dense(torch.tensor([4]), shape=TINY).kinds
    assert found["dense_weights"].tolist() == [0, 4 * 4 * 4 + 4 * 2 * 6, 4]
    assert found["dense_operands"].tolist() == [0, 2 * 16 * 2, 0] and found["kept_operands"].tolist() == [0, 16, 0]
    assert found["inputs"].tolist() == [0, 4 * (6 + 2 + 2 + 3) + 4 * 2 + 2 * 16, 2]
    assert found["outputs"].tolist() == [0, 4 * (6 + 2 + 3 + 2) + 4 * 2 + 2 * 16, 2]
    assert found["mac"].tolist() == (found["dense_weights"] + found["dense_operands"]).tolist()
    assert not any(found[kind].any() for kind in ("ac", "updates", "spikes", "events", "weights", "operands"))


BY_HAND = {  # of the sentence above: 4 additions, 4 MACs, 24 + 32 + 12 elements, 60 membrane updates, 1 spike
    "convention": 4 * 0.9 + 4 * 4.6,
    "fp32": (4 + 4 + 4 * 24 + 7 * 32 + 4 * 12 + 2 * 60 + 1) * 0.9 + (4 + 3 * 24 + 4 * 32 + 2 * 12) * 3.7,
    "fp16": (4 + 4 + 4 * 24 + 7 * 32 + 4 * 12 + 2 * 60 + 1) * 0.4 + (4 + 3 * 24 + 4 * 32 + 2 * 12) * 1.1,
    "int32": (4 + 4 + 4 * 24 + 7 * 32 + 4 * 12 + 2 * 60 + 1) * 0.1 + (4 + 3 * 24 + 4 * 32 + 2 * 12) * 3.1,
    "int8": (4 + 4 + 4 * 24 + 7 * 32 + 4 * 12 + 2 * 60 + 1) * 0.03 + (4 + 3 * 24 + 4 * 32 + 2 * 12) * 0.2,
    "spikingjelly": (4 + 2 * 60 + 1) * 0.9 + 4 * 4.6 + 24.96 * 4 * (3 + 4 + 2 * 60),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name) -> None:
    assert ENERGY_MODELS[name].per_sample(spiking(one_spike())) == pytest.approx(BY_HAND[name])


def test_memory_by_hand() -> None:
    """Weights, membranes and activations of a layer: 28, 13 and 16 numbers of 4 bytes, far below 8 KiB."""
    step = 10 / (8 * 1024) / 64  # pJ a bit, for each byte that the memory holds
    parts = {kind: values[1].item() for kind, values in ENERGY_MODELS["memory"].energy(spiking(one_spike())).items()}
    assert parts["weights"] == pytest.approx(3 * 32 * 4 * 28 * step)
    assert parts["synapse places"] == 0
    assert parts["spikes"] == pytest.approx(2 * 3 * 1000 * 3 / 8 * step)  # written, read: an address of 3, and a sign
    assert parts["membranes"] == pytest.approx(2 * (4 + 52) * 32 * 4 * 13 * step)
    assert parts["activations"] == pytest.approx(2 * (16 + 32 + 12) * 32 * 4 * 16 * step)
    assert parts["addresses"] == pytest.approx(4 * 0.1)


def test_a_larger_memory_costs_more_up_to_the_largest_known() -> None:
    sizes = torch.tensor([0.0, 4, 8, 20, 32, 528, 1024, 5000], dtype=torch.float64) * 1024 * 8
    assert (per_bit(sizes) * 64).tolist() == pytest.approx([0, 5, 10, 15, 20, 60, 100, 100])


def test_listed_synapses_pay_for_their_places() -> None:
    """Half of the synapses of up: as many weights are read by a spike, each with 2 bits of a place."""
    links = [
        SynapseCounts(
            torch.full((2, 2), 3.0), torch.full((2,), 2.0), torch.tensor([[1.0, 0, 0]] * 2), torch.full((3,), 2.0)
        )
    ]
    held = weight_counts(shape=TINY, heads=HEADS, ffn=FFN, links=links)
    assert held.tolist() == [0, 12 + 4 + 2 + 6, 4]
    listed = spiking(one_spike(), links=links)
    parts = ENERGY_MODELS["memory"].energy(listed)
    assert parts["synapse places"][1] == pytest.approx(parts["weights"][1].item() * 2 / 32)


# ---------------------------------------------------------------------------------------------------------- contracts


@every_model
def test_nothing_costs_nothing(model) -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    ops = of_rows(3, zero, tokens=torch.tensor(4.0), samples=1)
    for network in (
        spiking_network(ops, shape=TINY, heads=HEADS, ffn=FFN, coding="per_step"),
        dense_network(ops, shape=TINY),
    ):
        assert model.per_sample(network) == 0


@every_model
@pytest.mark.parametrize("coding", CODINGS)
@torch.no_grad()
def test_less_work_costs_less(model, coding) -> None:
    """Fewer spikes, a shorter train, a masked head, a masked neuron."""

    def energy(student, change=lambda counts: counts) -> float:
        batch = sentences()
        counts = change(simulated(student))
        return model.per_sample(
            student_network(student, student_operations(student, counts, batch["attention_mask"].sum(1)))
        )

    student = make(3, coding=coding)
    before = energy(student)
    assert energy(student, lambda counts: {spiking_layer: x // 2 for spiking_layer, x in counts.items()}) < before
    for name, unit in (("heads", (0, 1)), ("ffn", (1, 3))):
        fewer = make(3, coding=coding)
        counts = infer(fewer, **sentences()).counts
        getattr(fewer, name)[unit] = 0
        assert energy(fewer, lambda _, counts=counts: counts) < before
    shorter = make(3, (3, 3, 2), coding=coding)
    counts = {
        spiking_layer: x[: 3 if spiking_layer.startswith("layers.0") else len(x)]
        for spiking_layer, x in simulated(student).items()
    }
    assert energy(shorter, lambda _: counts) < before


@every_model
def test_kinds_and_rows_add_up_and_batches_too(model) -> None:
    student, batch = prune(make(3)), sentences()
    with torch.no_grad():
        counts = infer(student, **batch).counts
    network = student_network(student, student_operations(student, counts, batch["attention_mask"].sum(1)))
    energies = model.energy(network)
    assert all(values.shape == (4,) and (values >= 0).all() for values in energies.values())
    assert sum(values.sum().item() for values in energies.values()) == pytest.approx(3 * model.per_sample(network))
    twice = student_network(student, network.ops + network.ops)
    assert model.per_sample(twice) == pytest.approx(model.per_sample(network))


@every_model
def test_a_model_describes_itself(model) -> None:
    assert ENERGY_MODELS[model.name] is model and model.constants
    for text in (model.source, model.counted, model.left_out):
        assert len(text) > 20 and "\n" not in text


@every_model
def test_gradients_reach_the_masks(model) -> None:
    student, batch = make(3), sentences()
    with torch.no_grad():
        counts = infer(student, **batch).counts
    masks = {"heads": student.heads.double().requires_grad_(), "ffn": student.ffn.double().requires_grad_()}
    ops = student_operations(student, counts, batch["attention_mask"].sum(1), **masks)
    grads = torch.autograd.grad(model.total(student_network(student, ops, **masks)), list(masks.values()))
    assert all((grad > 0).all() for grad in grads)


# ---------------------------------------------------------------------------------------------------------- opponents


@pytest.mark.parametrize(
    ("t_steps", "ternary", "binary"), [(1, 2, 1), (2, 3, 2), (3, 3, 2), (4, 4, 3), (127, 8, 7), (128, 9, 8)]
)
def test_levels_in_bits(t_steps, ternary, binary) -> None:
    assert (level_bits(t_steps, signed=True), level_bits(t_steps, signed=False)) == (ternary, binary)


def table(student, rate=0.3, **how):
    batch = sentences()
    with torch.no_grad():
        counts = infer(student, **batch).counts
    lengths, shape = batch["attention_mask"].sum(1), student_shape(student)
    own = student_network(student, student_operations(student, counts, lengths))
    form = {"heads": student.heads, "ffn": student.ffn, "t_steps": student.steps, **how}
    others = opponents(lengths, shape=shape, teacher_shape=dense_shape(student), **form)
    without = unfired(own, shape=shape, t_steps=student.steps, coding=student.coding)
    return comparison(own, others, without, rate=rate), own, others, without


@pytest.mark.parametrize("coding", CODINGS)
def test_the_table_of_opponents(coding) -> None:
    found, own, others, without = table(prune(make(3, coding=coding)))
    assert set(found) == set(ENERGY_MODELS) and set(others) == set(OPPONENTS)
    for name, row in found.items():
        model = ENERGY_MODELS[name]
        assert row["student"] == pytest.approx(sum(row["parts"].values()))
        assert row["teacher"] > row["masked_teacher"] > 0 and row["equal_bits"] > 0
        assert row["ratios"]["teacher"] == row["teacher"] / row["student"]
        assert 0 < model.per_sample(without) < row["student"]
        if row["pays_below"] is not None and row["pays_below"] < 1:  # there both cost the same
            share = row["pays_below"] / 0.3
            between = model.per_sample(without) + share * (row["student"] - model.per_sample(without))
            assert between == pytest.approx(row["equal_bits"])


def test_the_dense_opponents_do_the_products_of_kept_units_alone() -> None:
    _, own, others, _ = table(prune(make(3)))
    whole, masked, equal = (others[name].ops.mac[1:3] for name in OPPONENTS)
    assert torch.equal(masked, equal) and (masked < whole).all()
    assert others["equal_bits"].activation_bits.tolist() == [3, 4, 3, 3]  # T 3, 4, 2
    assert others["equal_bits"].ops.kinds["updates"].sum() * 2 < own.ops.kinds["updates"].sum()


@pytest.mark.parametrize("coding", ["accumulate", "per_step"])
def test_a_silent_student_pays_for_the_currents_of_each_layer_s_own_steps(coding) -> None:
    """What no spike causes is what remains of the count when no neuron fires."""
    student, lengths = make(3, (3, 5, 2), coding=coding, residual="membrane"), sentences()["attention_mask"].sum(1)
    shape, form = student_shape(student), {"t_steps": student.steps, "coding": coding}
    fired = simulated(student)
    still = {name: torch.zeros_like(counts) for name, counts in fired.items()}
    own, none = (student_network(student, student_operations(student, counts, lengths)) for counts in (fired, still))
    found = unfired(own, shape=shape, **form).ops.kinds
    assert {kind: found[kind].tolist() for kind in KINDS} == {kind: none.ops.kinds[kind].tolist() for kind in KINDS}


def test_embedding_and_head_keep_floats_where_the_encoder_has_few_bits() -> None:
    """The classifier's 4 weights, read from a memory of 4 floats, by MACs of floats."""
    few, whole = (spiking(one_spike(), bits=bits) for bits in (1, 32))
    for name in ("memory", "stationary", "spikingjelly"):
        one, other = (ENERGY_MODELS[name].energy(network) for network in (few, whole))
        assert {kind: (pj[0], pj[-1]) for kind, pj in one.items()} == {
            kind: (pj[0], pj[-1]) for kind, pj in other.items()
        }
        assert one["weights"][1] < other["weights"][1]


def test_a_width_without_figure_is_no_number() -> None:
    student = make(3, (200, 2, 2))
    wide = equal_bits(
        torch.tensor([4]), shape=student_shape(student), heads=student.heads, ffn=student.ffn, t_steps=student.steps
    )
    assert energy_or_none(ENERGY_MODELS["int8"], wide) is None
    assert energy_or_none(ENERGY_MODELS["int32"], wide) > 0


def test_where_spikes_pay() -> None:
    assert pays_below(10.0, 2.0, 6.0, 0.4) == pytest.approx(0.2)
    assert pays_below(10.0, 2.0, 1.0, 0.4) is None and pays_below(10.0, 2.0, None, 0.4) is None
    assert pays_below(10.0, 2.0, 1e3, 0.4) == 1.0
