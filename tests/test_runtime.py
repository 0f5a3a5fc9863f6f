"""The C runtime beside the Python network: spikes, logits and operations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from runtime_networks import NETWORKS, quantized, sparse
from students import F64, H, make, prune, sentences

from spikeprune.errors import InputError
from spikeprune.models.compaction import compact
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.shape import student_operations
from spikeprune.runtime import Session, to_bytes
from spikeprune.runtime.session import LOOPS

pytestmark = pytest.mark.compiler

FAMILIES = {"relative_buckets": 8, "position_offset": 2, "pooler_act": "gelu"}  # what BERT's relatives have
NEURONS = [
    (coding, leak, spikes)
    for coding in ("accumulate", "per_step")
    for leak in (1.0, 0.8)
    for spikes in ("ternary", "binary")
]


def trains(session: Session, ids: np.ndarray, segments: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Spikes of each channel over the sentence, by spiking layer and step, and the logits."""
    found: dict[str, list[np.ndarray]] = {}
    session.observe(lambda name, step, spikes: found.setdefault(name, []).append(np.abs(spikes).sum(0)))
    logits = session.run(ids, segments).logits
    session.observe(None)
    return {name: np.stack(steps) for name, steps in found.items()}, logits


def assert_equal(student: SpikingBert, loop: str = "events", form: str = "auto", own_segments: bool = True) -> None:
    """Same spikes in every layer, channel and step, same logits, same operations; a sentence at a time. In double
    precision, of parameters that single precision has, the network rounds no current across a threshold."""
    student = copy.deepcopy(student).float().double()
    small, batch = compact(student), sentences()
    if not own_segments:
        batch["token_type_ids"].zero_()
    session = Session(to_bytes(student, form), max_tokens=16, loop=loop)
    assert session.used == session.arena_bytes
    fired = 0
    for b, n in enumerate(batch["attention_mask"].sum(1).tolist()):
        one = {name: x[b : b + 1, :n] for name, x in batch.items()}
        outputs = infer(small, **one)
        ids, segments = (one[name][0].numpy() for name in ("input_ids", "token_type_ids"))
        counts, logits = trains(session, ids, segments)
        np.testing.assert_allclose(logits, outputs.logits[0].numpy(), rtol=0, atol=2e-6)
        for name, spikes in counts.items():
            expected = outputs.counts[name][:, 0].numpy()
            if spikes.shape[0] != expected.shape[0]:  # the closed form counts whole trains
                spikes = spikes.sum(0, keepdims=True)
            np.testing.assert_array_equal(spikes, expected, err_msg=name)
            fired += spikes.sum()
        answer = session.run(ids, segments)
        counted = student_operations(small, outputs.counts, torch.tensor([n]))
        for found, wanted in (
            (answer.additions, counted.ac),
            (answer.multiplications, counted.mac),
            (answer.elementwise, counted.elementwise),
        ):
            np.testing.assert_array_equal(found, wanted.numpy())
    assert fired > 1000


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("coding", "leak", "spikes"), NEURONS)
def test_spikes_logits_and_operations_are_the_networks(coding, leak, spikes, network) -> None:
    student = prune(make(coding=coding, leak=leak, spikes=spikes, **NETWORKS[network]))
    assert_equal(student)
    if coding == "accumulate" and leak == 1.0:
        assert_equal(student, "counts")
    else:
        with pytest.raises(InputError, match="counts needs the coding accumulate"):
            Session(to_bytes(student), loop="counts")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("theta", ["channel", "tensor"])
@pytest.mark.parametrize("weights", ["binary", "ternary", "int8"])
def test_few_bit_weights(weights, theta, loop) -> None:
    assert_equal(prune(quantized(weights, fold=True, theta=theta)), loop)


@pytest.mark.parametrize(("table", "weights"), [("int8", "ternary"), ("int4", "float"), ("ternary", "float")])
def test_few_bit_word_tables(table, weights) -> None:
    """A byte for each number, and a scale for each word."""
    student = quantized(weights, fold=weights != "float", word_table=table)
    assert_equal(student)
    few = to_bytes(student)
    student.set_strength(0.5)  # neither words nor matrices are in few bits yet
    half = to_bytes(student)
    assert (few[76], half[76]) == (8, 32) and len(half) - len(few) > 3 * 23 * 12 - 4 * 23 - 128


def test_thresholds_that_are_not_folded_take_float_rows() -> None:
    student = quantized("ternary")
    assert_equal(student)
    assert len(to_bytes(student)) > len(to_bytes(quantized("ternary", fold=True)))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("form", ["rows", "lists", "blocks", "auto"])
def test_sparse_matrices(form, loop) -> None:
    assert_equal(prune(sparse()), loop, form)


def test_layers_without_heads_or_neurons() -> None:
    student = make()
    student.heads[0] = 0
    student.ffn[1] = 0
    assert_equal(student)
    assert_equal(compact(student))


@pytest.mark.parametrize("segments", [0, 2])
def test_what_other_families_have(segments) -> None:
    student = make(**NETWORKS["membrane"], **FAMILIES)
    with torch.no_grad():
        student.relative_bias.table.weight.normal_()
    if not segments:
        student.values["segments"], student.embedding.segment = 0, None
    assert_equal(prune(student), own_segments=bool(segments))
    assert_equal(compact(student), own_segments=bool(segments))


def test_more_tokens_than_are_listed_at_a_time() -> None:
    student = make(seed=3)
    student.embedding.position = torch.nn.Embedding(70, 12).to(F64)
    student.values["positions"] = 70
    student = student.float().double()
    ids = torch.randint(23, (1, 70))
    outputs = infer(student, ids, torch.ones_like(ids))
    answer = Session(to_bytes(student)).run(ids[0].numpy())
    np.testing.assert_allclose(answer.logits, outputs.logits[0].detach().numpy(), atol=2e-6)


def test_the_networks_own_rounding_is_all_that_differs() -> None:
    """Given the same spikes below, a layer of the C program and one in single precision fire alike but for currents at
    a threshold: at most one spike in 100,000."""
    student = make(t_steps=(7, 7, 7), weights="ternary", fold=True)
    student.set_strength(1.0)
    student = compact(student).float()
    session, batch = Session(to_bytes(student), max_tokens=16), sentences((8,) * 48)
    with torch.no_grad():
        spiking_layers = student.spiking_layers()
        values = {}
        for name, layer in spiking_layers.items():
            layer.register_forward_hook(lambda _, __, train, name=name: values.__setitem__(name, train.value))
        infer(student, **batch)
    differ, total = [], 0
    for b in range(48):

        def compare(name, step, spikes, b=b):
            wanted = (values[name][b] / spiking_layers[name].theta * 7).round().to(torch.int8).numpy()
            differ.extend((name, b, *place) for place in np.argwhere(spikes != wanted))
            nonlocal total
            total += int(np.abs(wanted).sum())
            spikes[:] = wanted  # the layers above see the network's own

        session.observe(compare)
        session.run(batch["input_ids"][b].numpy(), batch["token_type_ids"][b].numpy())
    assert total > 100_000 and len(differ) <= total / 100_000, differ


def test_the_observer_changes_what_the_network_goes_on_with() -> None:
    student = make()
    session, ids = Session(to_bytes(student)), [1, 2, 3]
    plain = session.run(ids)

    def silence(name, step, spikes):
        spikes[:] = 0

    session.observe(silence)
    silent = session.run(ids)
    assert plain.additions.sum() > silent.additions.sum() == 0


def test_heads_are_head_major() -> None:
    """One head alone sees its own channels."""
    student = make()
    for head in range(H):
        alone = copy.deepcopy(student)
        alone.heads[:] = 0
        alone.heads[:, head] = 1
        assert_equal(alone)
