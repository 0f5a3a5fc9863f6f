"""`stages.spatial.synapses`: single weights leave, stay away, and are no longer paid for."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from micro import GLUE, micro, write_sst2
from students import D, H, L, make, prune, real, sentences
from test_dynamic import shape_of

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.cost import operations, synapses
from spikeprune.cost.shapes import matrix_bytes, model_bytes
from spikeprune.experiment import checkpoints, evaluation, pipeline
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.models.compaction import compact, compacted, scatter_into
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.packing import pack_sparse, unpack_sparse
from spikeprune.models.quantization import MATRICES
from spikeprune.models.serialization import full_state, nbytes, network, stored_tensors
from spikeprune.models.sparsity import allowed_mask, share, weights_of
from spikeprune.report.tables import summary_table
from spikeprune.snn.coding import CODINGS
from spikeprune.training.callbacks.synapses import SynapsePruning


def thinned(seed: int = 0, kept: float = 0.6, **options) -> SpikingBert:
    """A pruned student that has lost some of its synapses, by SynapsePruning, in a decision that goes all the way."""
    student = prune(make(seed, sparse=True, **options))
    SynapsePruning(kept=kept, begin=0, end=0).decide(None, SimpleNamespace(student=student), 1.0)
    return student


def ac_of(student: SpikingBert, batch, links) -> torch.Tensor:
    counts = student(**batch, mode="spiking", count=True).counts
    kept = {"heads": student.heads, "ffn": student.ffn, "t_steps": student.steps, "coding": student.coding}
    return operations.count(counts, batch["attention_mask"].sum(1), shape=shape_of(student), links=links, **kept).ac


def stored_shape(student: SpikingBert):
    return replace(shape_of(student), theta=student.values["theta"])


# ---------------------------------------------------------------------------------------------------------- what leaves


def test_a_matrix_by_hand() -> None:
    """W2 of a layer of two neurons and two channels, thresholds 1 and 3: a spike adds 5 and 1, or 3 times 2 and 0.5."""
    size = {"vocab": 5, "positions": 4, "segments": 1, "hidden": 2, "layers": 1, "heads": 1, "ffn": 2, "classes": 2}
    student = SpikingBert(**size, t_steps=1, sparse=True)
    layer = student.layers[0]
    with torch.no_grad():
        layer.down.weight.copy_(torch.tensor([[5.0, 2.0], [-1.0, -0.5]]))
        layer.intermediate_neurons.log_theta.copy_(torch.tensor([1.0, 3.0]).log())
    decide = SynapsePruning(kept=0.5, begin=0, end=0).decide
    decide(None, SimpleNamespace(student=student), 1.0)
    assert layer.down.weight.tolist() == [[5.0, 2.0], [0.0, 0.0]]  # 5 and 6 stay, 1 and 1.5 leave
    assert share(student) == 0.5
    assert student.links()[0].down.tolist() == [1, 1]


@pytest.mark.parametrize("theta", ["channel", "tensor"])
def test_the_smallest_leave_from_among_kept_units(theta) -> None:
    before, after = prune(make(0, sparse=True, theta=theta)), thinned(theta=theta)
    for (i, name, old), (_, _, new) in zip(weights_of(before), weights_of(after), strict=True):
        room = allowed_mask(after, i, name).bool()
        sizes = old.abs() * source_of(before, i, name).theta.expand(old.shape[1])
        assert int((new != 0)[room].sum()) == round(0.6 * int(room.sum()))
        assert sizes[room & (new != 0)].min() >= sizes[room & (new == 0)].max()
        assert torch.equal(new[new != 0], old[new != 0]) and torch.equal(new[~room], old[~room])
    assert 0.59 < share(after) < 0.61


@pytest.mark.parametrize("block", [3, 5])
def test_blocks_of_kept_outputs_leave_together(block) -> None:
    """Of one input each, by their sums: counted over the rows that compaction leaves, where the last may be short."""
    before, student = prune(make(0, sparse=True)), prune(make(0, sparse=True))
    for progress in (0.3, 1.0):  # what has left in part at first leaves whole
        SynapsePruning(kept=0.4, block=block, end=3).decide(None, SimpleNamespace(student=student), progress)
    small = compact(student)
    for (i, name, old), (*_, new), (*_, left) in zip(*map(weights_of, (before, student, small)), strict=True):
        room = allowed_mask(student, i, name).bool()
        assert torch.equal(new[~room], old[~room]) and torch.equal(left[left != 0], new[room & (new != 0)])
        blocks = torch.nn.functional.pad(left, (0, 0, 0, -len(left) % block)).unflatten(0, (-1, block))
        there = (blocks != 0).any(1)
        assert int(there.sum()) == round(0.4 * there.numel())
        assert int((blocks != 0).sum()) >= (there.sum() - there.shape[1]) * block  # no holes but at the end
    student.heads[0], student.ffn[1] = 0, 0
    SynapsePruning(kept=0.4, block=block, end=3).decide(None, SimpleNamespace(student=student), 1.0)


def source_of(student: SpikingBert, layer: int, name: str):
    here = student.layers[layer]
    below = student.layers[layer - 1].output_neurons if layer else student.embedding.neurons
    own = {"out": here.context_neurons, "up": here.attention_neurons, "down": here.intermediate_neurons}
    return own.get(name, below)


def test_on_a_schedule_what_has_left_does_not_come_back() -> None:
    student = prune(make(0, sparse=True))
    pruning, shares, missing = SynapsePruning(kept=0.3, begin=0, end=3), [], None
    for progress in (0.25, 0.5, 0.75, 1.0):
        pruning.decide(None, SimpleNamespace(student=student), progress)
        shares.append(share(student))
        now = torch.cat([(w == 0).flatten() for *_, w in weights_of(student)])
        assert missing is None or (now | ~missing).all()
        missing = now
        for parameter in student.parameters():  # what was small may be large by the next decision
            parameter.data += 0.1 * torch.randn_like(parameter) * (parameter != 0)
    assert shares == sorted(shares, reverse=True) and shares[-1] == pytest.approx(0.3, abs=0.01)


# ------------------------------------------------------------------------------------------------------ what stays away


def test_an_optimizer_brings_none_back() -> None:
    """Momentum from before would; gradients would."""
    student, batch = prune(make(0, sparse=True)), sentences()
    before = [weight.clone() for *_, weight in weights_of(student)]
    student.synapses.apply_masks(student)  # with none missing there is nothing to hold
    assert all(torch.equal(weight, old) for (*_, weight), old in zip(weights_of(student), before, strict=True))
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.05)

    def step() -> None:
        optimizer.zero_grad()
        student(**batch).logits.square().mean().backward()
        optimizer.step()

    step()
    SynapsePruning(kept=0.5, begin=0, end=0).decide(None, SimpleNamespace(student=student), 1.0)
    gone = [weight == 0 for *_, weight in weights_of(student)]
    step()
    assert any((weight[zero] != 0).any() for (*_, weight), zero in zip(weights_of(student), gone, strict=True))
    SynapsePruning(kept=1.0).on_train_batch_end(None, SimpleNamespace(student=student), None, None, 0)
    assert all((weight[zero] == 0).all() for (*_, weight), zero in zip(weights_of(student), gone, strict=True))
    assert all((weight[~zero] != 0).all() for (*_, weight), zero in zip(weights_of(student), gone, strict=True))


def test_a_loaded_student_knows_its_synapses() -> None:
    student = thinned()
    other = make(7, sparse=True)
    other.load_state_dict(student.state_dict())
    assert not any("mask_" in name or "links" in name for name in student.state_dict())
    for mine, its in zip(student.links(), other.links(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, its, strict=True))


def test_a_compacted_student_trains_and_is_scattered_back() -> None:
    student = thinned()
    gone = [(weight == 0) & allowed_mask(student, i, name).bool() for i, name, weight in weights_of(student)]
    small = compacted(student)
    with torch.no_grad():
        for *_, weight in weights_of(small):
            weight += 0.1
    small.synapses.apply_masks(small)
    scatter_into(small, student)
    assert all((weight[zero] == 0).all() for (*_, weight), zero in zip(weights_of(student), gone, strict=True))


# ------------------------------------------------------------------------------------------------------- what they cost


@pytest.mark.parametrize(("coding", "query"), list(itertools.product(CODINGS, ("real", "spiking"))))
@torch.no_grad()
def test_a_missing_synapse_saves_an_addition_a_spike(coding, query) -> None:
    """Against the count with all synapses, less those that are missing, one by one."""
    student, batch = thinned(coding=coding, query=query), sentences()
    counts = student(**batch, mode="spiking", count=True).counts
    saved_ = torch.zeros(L + 2, dtype=torch.float64)
    for i, name, weight in weights_of(student):
        below = "embedding" if i == 0 else f"layers.{i - 1}.output"
        spiking_layer = {
            "out": f"layers.{i}.context",
            "up": f"layers.{i}.attention",
            "down": f"layers.{i}.intermediate",
        }
        spikes = counts[spiking_layer.get(name, below)]
        heard = (
            spikes[: student.steps[i + 1]] if coding != "accumulate" and name in ("query", "key", "value") else spikes
        )
        missing = (weight == 0) & allowed_mask(student, i, name).bool()
        for channel in range(weight.shape[1]):
            saved_[i + 1] += heard[..., channel].sum() * int(missing[:, channel].sum())
    full, sparse = ac_of(student, batch, None), ac_of(student, batch, student.links())
    torch.testing.assert_close(full - sparse, saved_)
    assert (sparse[1:-1] < full[1:-1]).all()


@torch.no_grad()
def test_with_all_synapses_it_costs_what_it_did() -> None:
    student, batch = prune(make(0, sparse=True)), sentences()
    torch.testing.assert_close(ac_of(student, batch, student.links()), ac_of(student, batch, None), rtol=0, atol=0)
    assert make(0).links() is None and share(make(0)) == share(student) == 1.0


@torch.no_grad()
def test_the_loss_estimates_the_counted_additions() -> None:
    """Σ T · rate · fan-out over a sentence's tokens is its additions, in `accumulate`."""
    student, batch = thinned(), sentences((5,))
    outputs = student(**batch, mode="equilibrium", rate=True)
    units = {"shape": shape_of(student), "heads": student.heads, "ffn": student.ffn, "links": student.links()}
    fan_out = synapses.fan_out(tokens=5.0, **units)
    steps = {"embedding": student.steps[0], **{f"layers.{i}": t for i, t in enumerate(student.steps[1:])}}
    found = 0.0
    for name, rate in outputs.rates.items():
        t = steps[name if name == "embedding" else name.rpartition(".")[0]]
        found += 5 * t * (rate * fan_out[name]).sum()
    # the mean over tokens adds a spike of the last layer once
    torch.testing.assert_close(found, ac_of(student, batch, student.links()).sum())


@torch.no_grad()
@pytest.mark.parametrize("coding", CODINGS)
def test_compacted_outputs_and_costs_are_equal(coding) -> None:
    student, batch = thinned(coding=coding), sentences()
    small = compact(student)
    assert small.layers[0].heads == H - 1 and small.layers[0].query.in_features == D
    for mode in ("equilibrium", "spiking"):
        torch.testing.assert_close(small(**batch, mode=mode).logits, student(**batch, mode=mode).logits)
    torch.testing.assert_close(ac_of(small, batch, small.links()), ac_of(student, batch, student.links()))
    assert real(student(**batch).hidden[-1], batch).abs().sum() > 0


def read_back(small: SpikingBert, tensors: dict[str, torch.Tensor]) -> SpikingBert:
    """The network that is loaded from these tensors of its file."""
    return network(small.values, full_state(small.values, tensors, "here", "mend it"))


@pytest.mark.parametrize("units", ["some", "none"])
@torch.no_grad()
def test_its_file_holds_no_zeros_and_is_read_exactly(units) -> None:
    """A bit for each place and a float for each synapse; a layer may have lost all of its heads and neurons."""
    student = thinned().float()
    if units == "none":
        student.heads[0], student.ffn[0] = 0, 0
    small = compact(student)
    tensors = stored_tensors(small)
    assert small.synapse_count() == student.synapse_count() == sum(int((w != 0).sum()) for *_, w in weights_of(small))
    masks = {"heads": student.heads, "ffn": student.ffn, "synapses": student.synapse_count()}
    assert nbytes(tensors) == model_bytes(shape=stored_shape(student), **masks)
    packed = {key: x for key, x in tensors.items() if key.endswith((".places", ".weights"))}
    assert nbytes(packed) == matrix_bytes(shape=shape_of(student), **masks)
    again = read_back(small, tensors)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in small.state_dict().items())


@torch.no_grad()
def test_a_few_zeros_are_written_out() -> None:
    """A checkpoint may have some; a bit for each place would be more."""
    student = thinned(kept=0.99).float()
    tensors = stored_tensors(compact(student))
    assert not any(key.endswith(".places") for key in tensors)
    masks = {"heads": student.heads, "ffn": student.ffn}
    dense = model_bytes(shape=stored_shape(student), **masks)
    assert (
        dense == nbytes(tensors) == model_bytes(shape=stored_shape(student), **masks, synapses=student.synapse_count())
    )
    again = read_back(compact(student), tensors)
    assert again.synapse_count() == student.synapse_count()


@torch.no_grad()
def test_with_all_synapses_its_file_is_what_it_was() -> None:
    student = prune(make(0, sparse=True)).float()
    tensors = stored_tensors(compact(student))
    assert student.synapse_count() is None and set(tensors) == set(stored_tensors(compact(prune(make(0)))))
    assert nbytes(tensors) == model_bytes(shape=stored_shape(student), heads=student.heads, ffn=student.ffn)


def test_places_by_hand() -> None:
    places, weights = pack_sparse(torch.tensor([[0.0, 5.0], [-2.0, 0.0], [0.0, 1.0]]))
    assert places.tolist() == [0b100110] and weights.tolist() == [5.0, -2.0, 1.0]
    assert unpack_sparse(places, weights, (3, 2)).tolist() == [[0.0, 5.0], [-2.0, 0.0], [0.0, 1.0]]
    with pytest.raises(ValueError, match="2 weights for 3 synapses"):
        unpack_sparse(places, weights[:2], (3, 2))


def test_few_bit_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="a sparse student's weights are float, not ternary"):
        make(0, sparse=True, weights="ternary")


# ----------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with all synapses, and one from its uncompressed student that loses some."""
    folder = tmp_path_factory.mktemp("synapses")
    glue = write_sst2(folder / "glue")
    pipeline.run(load(GLUE, micro(folder / "all", glue)))
    more = [f"run.start_from={folder / 'all'}", "stages.spatial.synapses=0.4"]
    pipeline.run(load(GLUE, [*micro(folder / "few", glue), *more]))
    return RunDirectory(folder / "all"), RunDirectory(folder / "few")


@pytest.mark.filterwarnings("ignore")
def test_a_run(runs, capsys) -> None:
    """It takes over what was not compressed, loses synapses in `spatial`, keeps to that, and pays for what is left."""
    dense, run = runs
    assert "taken_from" in run.record("prediction_kd") and "taken_from" not in run.record("spatial")
    records = [r["compress/synapses"] for r in run.read_metrics() if "compress/synapses" in r]
    assert records == sorted(records, reverse=True) and records[-1] == pytest.approx(0.4, abs=0.02)
    for name in ("spatial", "temporal", "finetune"):
        student = checkpoints.load_student(run, name)
        assert student.values["sparse"] and share(student) == pytest.approx(0.4, abs=0.02), name
    assert run.record("finetune")["synapses"] == pytest.approx(0.4, abs=0.02)
    assert json.loads(run.summary.read_text())["stages"]["temporal"]["synapses"] == pytest.approx(0.4, abs=0.02)
    assert "synapses" not in dense.record("finetune")
    for stepwise in (False, True):
        found = evaluation.evaluate(run.path, stepwise=stepwise)
        assert found["cost"]["ac"] == pytest.approx(run.record("finetune")["cost"]["ac"])
    capsys.readouterr()
    assert cli.main(["evaluate", str(run.path)]) == 0
    assert re.search(r"^synapses +\d+\.\d  ?%", capsys.readouterr().out, re.M)
    assert "synapses 40 % of those between kept units" in summary_table(json.loads(run.summary.read_text()))
    assert cli.main(["compact", str(run.path)]) == 0
    record, bytes_ = json.loads((run.compact / "record.json").read_text()), run.record("finetune")["cost"]["bytes"]
    assert record["tensor_bytes"] == bytes_ < dense.record("finetune")["cost"]["bytes"]
    capsys.readouterr()
    assert cli.main(["evaluate", str(run.path), "--compact", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cost"]["ac"] == pytest.approx(run.record("finetune")["cost"]["ac"])


def test_every_matrix_has_lost_some(runs) -> None:
    _, run = runs
    student = checkpoints.load_student(run, "finetune")
    for i, name, weight in weights_of(student):
        assert ((weight == 0) & allowed_mask(student, i, name).bool()).any(), (i, name)
    assert {name for _, name, _ in weights_of(student)} == set(MATRICES)
