"""Kwon's mask search against enumeration, its exchanges, its least squares against torch's, a stage of no epochs."""

from __future__ import annotations

import copy
import itertools
import json
import signal
import warnings
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from micro import GLUE, micro, write_sst2
from test_compress import D, F, H, L, batches, inputs, loss_of, make
from test_resume import start as leg_of

from spikeprune import compaction, pipeline
from spikeprune.compress import search as kwon
from spikeprune.compress import tuning
from spikeprune.compress.stats import collect
from spikeprune.config import load
from spikeprune.errors import InputError
from spikeprune.operations import count
from spikeprune.rundir import RunDir
from spikeprune.size import Shape

SHAPE = Shape(hidden=D, heads=H, ffn=F, layers=L, classes=3, vocab_size=23, positions=8, theta="channel")
FLOORS = {"heads": 1, "ffn": 4}


# -------------------------------------------------------------------------------------------------------- 1: the search


def by_enumeration(worth, alive, prices, budget, floors) -> float:
    """The greatest worth of all masks there are."""
    options = {}
    for name in kwon.KINDS:
        there = alive[name].flatten().bool()
        every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=int(there.sum()))), dtype=torch.float64)
        masks = every.new_zeros(len(every), len(there))
        masks[:, there] = every
        layers = masks.unflatten(1, alive[name].shape).sum(2)
        masks = masks[(layers >= alive[name].sum(1).clamp(max=floors[name])).all(1)]
        options[name] = masks.sum(1) * prices[name], masks @ worth[name].flatten().double()
    (heads_cost, heads), (ffn_cost, ffn) = options["heads"], options["ffn"]
    total = (heads[:, None] + ffn[None]).masked_fill(heads_cost[:, None] + ffn_cost[None] > budget + 1e-9, -torch.inf)
    return total.max().item()


@given(st.integers(0, 2**31), st.floats(0.05, 1), st.floats(0.2, 5), st.integers(0, 2), st.booleans())
@settings(max_examples=60)
def test_no_other_mask_within_the_budget_is_worth_more(seed, share, price, floor, pruned) -> None:
    generator = torch.Generator().manual_seed(seed)
    worth = {"heads": torch.rand(2, 3, generator=generator) ** 3, "ffn": torch.rand(2, 4, generator=generator) ** 3}
    worth["heads"] = (8 * worth["heads"]).round() if seed % 2 else worth["heads"]  # ties
    alive = {name: torch.ones_like(x) for name, x in worth.items()}
    if pruned:
        alive["heads"][0, 1] = alive["ffn"][1, 2] = 0
    prices, floors = {"heads": price, "ffn": 1.0}, {"heads": floor, "ffn": floor}
    budget = share * (6 * price + 8)
    best = by_enumeration(worth, alive, prices, budget, floors)
    if best == -torch.inf:
        with pytest.raises(ValueError, match="is below the .* of the floors"):
            kwon.knapsack(worth, alive, prices=prices, budget=budget, floors=floors)
        return
    masks = kwon.knapsack(worth, alive, prices=prices, budget=budget, floors=floors)
    assert sum(masks[k].sum().item() * prices[k] for k in masks) <= budget + 1e-6
    assert all((masks[k] <= alive[k]).all() for k in masks)
    assert all((masks[k].sum(1) >= alive[k].sum(1).clamp(max=floor)).all() for k in masks)
    assert sum((masks[k] * worth[k]).sum().item() for k in masks) == pytest.approx(best, rel=1e-5)


def test_the_search_by_hand() -> None:
    worth = {"heads": torch.tensor([[5.0, 4.0], [1.0, 0.0]]), "ffn": torch.tensor([[3.0, 3.0], [2.5, 0.0]])}
    alive = {name: torch.ones_like(x) for name, x in worth.items()}

    def found(budget, floor=0):
        floors = {"heads": floor, "ffn": floor}
        masks = kwon.knapsack(worth, alive, prices={"heads": 2.0, "ffn": 1.0}, budget=budget, floors=floors)
        return [masks[k].int().tolist() for k in kwon.KINDS]

    assert found(3) == [[[0, 0], [0, 0]], [[1, 1], [1, 0]]]  # 3 + 3 + 2.5, where a head and a neuron are 5 + 3
    assert found(4) == [[[1, 0], [0, 0]], [[1, 1], [0, 0]]]  # 5 + 6
    assert found(12) == [[[1, 1], [1, 1]], [[1, 1], [1, 1]]]
    assert found(7, 1) == [[[1, 0], [1, 0]], [[1, 1], [1, 0]]]  # a head and a neuron of each layer are 6 of it
    with pytest.raises(ValueError, match="a budget of 5 is below the 6 of the floors"):
        found(5, 1)


@pytest.fixture(scope="module")
def student():
    net = make()
    net.heads[0, 1] = 0
    net.ffn[1, 3:9] = 0
    return net


def test_blocks_hold_each_samples_own_gradients(student) -> None:
    data = batches()
    blocks, stats = kwon.fisher_blocks(student, data, loss_of), collect(student, data, loss_of)
    torch.testing.assert_close(blocks["heads"].diagonal(dim1=1, dim2=2), stats.head_fisher)
    torch.testing.assert_close(blocks["ffn"].diagonal(dim1=1, dim2=2), stats.ffn_fisher)
    whole = kwon.fisher_blocks(student, [{k: torch.cat([b[k] for b in data]) for k in data[0]}], loss_of)
    for name, block in blocks.items():
        assert torch.equal(block, block.transpose(1, 2)) and torch.linalg.eigvalsh(block).min() > -1e-12
        torch.testing.assert_close(block, whole[name])
    one, rank = batches((1,)), torch.linalg.matrix_rank
    assert rank(kwon.fisher_blocks(student, one, loss_of)["ffn"][0]) == 1  # one sample, one gradient
    assert student.training and all(p.grad is None for p in student.parameters())


@pytest.mark.parametrize("coding", ["accumulate", "running_mean", "per_step"])
def test_prices_are_what_removing_a_unit_saves(coding) -> None:
    student, data = make(coding=coding).eval(), batches((3,))
    prices, lengths = kwon.unit_prices(student, data, SHAPE), data[0]["attention_mask"].sum(1)
    with torch.no_grad():
        counts = student(**inputs(data[0]), mode="spiking", count=True).counts

    def operations(**masks) -> float:
        both = {"heads": student.heads, "ffn": student.ffn, **masks}
        cost = count(counts, lengths, shape=SHAPE, t_steps=student.steps, coding=coding, **both).per_sample()
        return cost["ac"] + cost["mac"]

    for name, units in (("heads", ((0, 0), (1, 2))), ("ffn", ((0, 5), (1, 36)))):
        for layer, unit in units:
            without = getattr(student, name).clone()
            without[layer, unit] = 0
            assert prices[name][layer, unit].item() == pytest.approx(operations() - operations(**{name: without}))
    assert all((price > 0).all() for price in prices.values())


# ------------------------------------------------------------------------------------------------- 2: the rearrangement


def fisher(seed: int, size: int, samples: int = 5) -> torch.Tensor:
    g = torch.randn(samples, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return g.T @ g / samples


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("gone", [1, 3, 6])
def test_the_best_choice_of_a_layer_is_found(seed, gone) -> None:
    block, mask, alive = fisher(seed, 8), torch.ones(8), torch.ones(8)
    alive[2] = mask[2] = 0
    mask[[i for i in range(8) if i != 2][:gone]] = 0
    found = kwon.rearrange(block, mask, alive)
    assert found[2] == 0 and found.sum() == mask.sum()
    choices = itertools.combinations([i for i in range(8) if i != 2], gone)
    losses = [kwon.removal_loss(block, torch.zeros(8).index_fill(0, torch.tensor(c), 1.0)) for c in choices]
    assert len(losses) == comb(7, gone)
    assert kwon.removal_loss(block, alive - found) == pytest.approx(min(losses), rel=1e-9)


def test_correlated_units_by_hand() -> None:
    """Two that say the same are dear together, two that cancel out are free together: a diagonal sees neither."""
    g = torch.tensor([[1.0, 1.0, 1.1, -1.1]]).double()
    block, ones = g.T @ g, torch.ones(4)
    mask = torch.tensor([0.0, 0.0, 1.0, 1.0])  # the cheapest two by the diagonal
    assert kwon.removal_loss(block, 1 - mask) == pytest.approx(2.0)
    found = kwon.rearrange(block, mask, ones)
    assert found.tolist() == [1, 1, 0, 0] and kwon.removal_loss(block, 1 - found) == pytest.approx(0)


@pytest.mark.parametrize("seed", range(5))
def test_no_exchange_of_two_units_saves_anything_more(seed) -> None:
    block, gone = fisher(seed, 40, 12), 17
    assert comb(40, gone) > kwon.CHOICES
    mask = torch.ones(40).index_fill(0, block.diagonal().argsort()[:gone], 0.0)
    found = kwon.rearrange(block, mask, torch.ones(40))
    loss = kwon.removal_loss(block, 1 - found)
    assert found.sum() == mask.sum() and loss < kwon.removal_loss(block, 1 - mask)
    for i, j in itertools.product(range(40), range(40)):
        if found[i] < found[j]:
            other = found.clone()
            other[i], other[j] = 1, 0
            assert kwon.removal_loss(block, 1 - other) >= loss - 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_exchanges_come_near_the_best_where_it_is_known(seed) -> None:
    """A stated bound for these cases, not a theorem: at most 1.5 times the best of 924 choices."""
    block = fisher(seed, 12, 30)
    pruned = torch.zeros(12).double().index_fill(0, block.diagonal().argsort()[:6], 1.0)
    losses = [kwon.removal_loss(block, z) for z in (kwon.exchange(block, pruned), kwon.try_all(block, 6), pruned)]
    assert losses[1] <= losses[0] <= min(losses[2], 1.5 * losses[1])


def test_masks_within_the_share_and_the_floors(student) -> None:
    net, data = copy.deepcopy(student), batches()
    facts = kwon.search(net, data, loss_of, shape=SHAPE, operations=0.4, floors=FLOORS)
    assert facts["block"] <= facts["diagonal"] and 0.3 < facts["operations"] < 0.5
    assert net.heads[0, 1] == 0 and net.ffn[1, 3:9].sum() == 0  # what is pruned stays pruned
    assert net.heads.sum(1).min() >= 1 and net.ffn.sum(1).min() >= 4
    assert set(net.heads.unique().tolist()) | set(net.ffn.unique().tolist()) == {0, 1}
    before = {name: x.clone() for name, x in student.state_dict().items() if name not in kwon.KINDS}
    assert all(torch.equal(net.state_dict()[name], x) for name, x in before.items())
    with pytest.raises(InputError, match=r"operations = 0.01: the floors .* keep a share of 0\.\d+; ask for at least"):
        kwon.search(net, data, loss_of, shape=SHAPE, operations=0.01, floors=FLOORS)


# -------------------------------------------------------------------------------------------------------- 3: the tuning


def pruned_pair(coding: str = "accumulate"):
    whole = make(coding=coding).eval()
    student = copy.deepcopy(whole)
    student.heads[0, 0] = student.heads[1, 2] = 0
    student.ffn[:, ::2] = 0
    return student, whole


@pytest.mark.parametrize(("layer", "kind"), list(itertools.product(range(L), kwon.KINDS)))
def test_the_fit_is_the_least_squares_solution(layer, kind) -> None:
    """Against torch's solver on the tall system itself, real tokens only."""
    (student, whole), data = pruned_pair(), batches((3, 2))
    fit = tuning.normal_equations(student, whole, data, layer, kind)
    name, site, size = ("out", "attention_site", D // H) if kind == "heads" else ("down", "output_site", 1)
    rows, targets = [], []
    for batch in data:
        real = batch["attention_mask"].bool()
        seen = []
        with torch.no_grad():
            for net in (student, whole):
                found = tuning.inputs_of(net, getattr(net.layers[layer], site), batch)
                seen.append([x[real] for x in found])
        linear = getattr(whole.layers[layer], name)
        (x, residual), (x0, residual0) = seen
        targets.append(x0 @ linear.weight.T + residual0 - residual)  # biases cancel out
        per_unit = torch.stack(
            [part @ w.T for part, w in zip(x.split(size, 1), linear.weight.split(size, 1), strict=True)]
        )
        rows.append(per_unit)  # [K, M, D]
    x, y = torch.cat(rows, 1).detach(), torch.cat(targets).detach()
    tokens = len(y)
    torch.testing.assert_close(fit.a, torch.einsum("imd,jmd->ij", x, x) / tokens)
    torch.testing.assert_close(fit.b, torch.einsum("imd,md->i", x, y) / tokens)
    torch.testing.assert_close(fit.c, y.square().sum() / tokens)
    kept = getattr(student, kind)[layer].bool()
    best = torch.linalg.lstsq(x[kept].flatten(1).T, y.flatten()[:, None]).solution[:, 0]
    a, b = fit.a[kept][:, kept], fit.b[kept]
    assert tuning.squares(a, b, fit.c, best) <= tuning.squares(a, b, fit.c, torch.ones_like(best))
    torch.testing.assert_close(a @ best, b, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("coding", ["accumulate", "running_mean", "per_step"])
def test_real_masks_folded_into_weights_answer_as_real_masks(coding) -> None:
    student, _ = pruned_pair(coding)
    factor = {name: torch.rand_like(mask) * 2 * mask for name, mask in kwon.masks_of(student)}
    batch = inputs(batches((3,))[0])
    lent = {name: x.expand(3, -1, -1) for name, x in factor.items()}
    folded = copy.deepcopy(student)
    with torch.no_grad():
        for i, layer in enumerate(folded.layers):
            layer.out.weight *= factor["heads"][i].repeat_interleave(D // H)
            layer.down.weight *= factor["ffn"][i]
        for mode in ("equilibrium", "spiking"):
            wanted = student(**batch, mode=mode, **lent).logits
            torch.testing.assert_close(folded(**batch, mode=mode).logits, wanted)


def indifferent(batch, outputs) -> torch.Tensor:
    return torch.zeros(len(outputs.logits))


def test_what_the_measured_loss_rises_with_is_left_out() -> None:
    """A loss that wants the answers to stay as they are lets nothing pass."""
    (student, whole), data = pruned_pair(), batches((3,))
    with torch.no_grad():
        answers = student(**inputs(data[0])).logits

    def stay(batch, outputs) -> torch.Tensor:
        return (outputs.logits - answers).square().sum(1)

    before = {name: x.clone() for name, x in student.state_dict().items()}
    errors = tuning.tune(student, whole, data, stay)
    assert all(was == after for was, after in errors)
    blocks, alive = kwon.fisher_blocks(student, data, loss_of), dict(kwon.masks_of(whole))
    kwon.rearrange_measured(student, blocks, alive, lambda: kwon.loss_of(student, data, stay).item())
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())
    kwon.rearrange_measured(student, blocks, alive, lambda: 0.0)  # it would have changed something
    assert not torch.equal(student.ffn, before["ffn"]) and torch.equal(student.ffn.sum(1), before["ffn"].sum(1))


def test_tuning_brings_the_sums_nearer_and_leaves_the_rest_alone() -> None:
    (student, whole), data = pruned_pair(), batches((3, 2))
    before = {name: x.clone() for name, x in student.state_dict().items()}
    errors = tuning.tune(student, whole, data, indifferent)
    assert len(errors) == 2 * L and all(after <= was for was, after in errors)
    assert sum(after for _, after in errors) < 0.9 * sum(was for was, _ in errors)
    for name, x in student.state_dict().items():
        assert torch.equal(x, before[name]) is not name.endswith((".out.weight", ".down.weight")), name
    dead = student.layers[0].out.weight[:, : D // H], before["layers.0.out.weight"][:, : D // H]
    assert torch.equal(*dead)
    ratio = student.layers[0].down.weight[:, 1::2] / before["layers.0.down.weight"][:, 1::2]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))  # one factor for a neuron


def test_nothing_pruned_needs_no_tuning() -> None:
    whole = make().eval()
    student = copy.deepcopy(whole)
    errors = tuning.tune(student, whole, batches((3,)), indifferent)
    assert max(max(pair) for pair in errors) < 1e-12
    for (name, x), y in zip(student.state_dict().items(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, msg=name)


def test_a_layer_that_lost_everything_and_quantized_weights() -> None:
    student, whole = pruned_pair()
    student.heads[1] = student.ffn[0] = 0
    tuning.tune(student, whole, batches((3,)), indifferent)
    assert all(x.isfinite().all() for x in student.state_dict().values())
    few = make(weights="ternary")
    few.set_strength(0.5)
    with pytest.raises(ValueError, match="masks are tuned into float weights; these are quantized"):
        tuning.tune(few, whole, batches((3,)), indifferent)


# ------------------------------------------------------------------------------------------------------------- a stage

KWON = ["compress.spatial.search=kwon", "compress.heads=1", "compress.ffn=1"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["compress.spatial.operations=0.5"], "compress.spatial.operations = 0.5: is for compress.spatial.search=kwon"),
        ([*KWON, "compress.heads=0.5"], "compress.heads = 0.5: compress.spatial.search = kwon chooses heads"),
        ([*KWON, "compress.spatial.criterion=rate"], "compress.spatial.criterion = rate: .*kwon is fisher"),
        ([*KWON, "compress.spatial.scope=layer"], "compress.spatial.scope = layer: .*kwon is global"),
        ([*KWON], "spatial has nothing to do; set a target in compress.spatial.operations"),
        ([*KWON, "compress.spatial.operations=0"], "must be above 0 and at most 1"),
        (
            [*KWON, "compress.spatial.operations=0.5", "compress.weights=ternary", "stages.quantize.epochs=1"]
            + ["run.stages=[teacher,prediction_kd,quantize,spatial,temporal]"],
            "compress.spatial.tune = true: spatial comes after weights were quantized",
        ),
    ],
)
def test_a_configuration_that_cannot_is_refused(given, words) -> None:
    with pytest.raises(InputError, match=words):
        load(GLUE, ["preset=tiny", *given])


def overrides(folder, *more: str) -> list[str]:
    stages = ["run.stages=[teacher,internal_kd,spatial]", "stages.internal_kd.epochs=1", "compress.t_steps=null"]
    mine = [*KWON, "compress.spatial.operations=0.4", "stages.teacher.epochs=2"]
    glue = folder.parent / "glue"
    return [*micro(folder, glue if glue.is_dir() else write_sst2(glue)), *stages, *mine, *more]


def start(folder, *more: str):
    return load(GLUE, overrides(folder, *more))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDir:
    folder = tmp_path_factory.mktemp("runs") / "sst2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.run(start(folder, "stages.spatial.epochs=0"))
    return RunDir(folder)


def test_a_stage_of_no_epochs_prunes_and_learns_nothing(run) -> None:
    record = run.record("spatial")
    assert record["steps"] == 0 and sum(record["heads"]) < 6 and sum(record["ffn"]) < 74
    assert min(record["heads"]) >= 1 and min(record["ffn"]) >= 4
    before, after = run.weights("internal_kd"), run.weights("spatial")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"heads", "ffn"} <= changed
    assert all(name in ("heads", "ffn") or name.endswith(("out.weight", "down.weight")) for name in changed)
    logged = [r for r in run.read_metrics() if "compress/operations" in r]
    assert len(logged) == 1 and logged[0]["stage"] == "spatial" and logged[0]["compress/operations"] < 0.5
    assert logged[0]["compress/block"] <= logged[0]["compress/diagonal"]
    before, after = (logged[0][f"compress/error_{key}"] for key in ("before", "after"))
    assert before > 0 and (after < before) is any(name.endswith(".weight") for name in changed)
    summary = json.loads(run.summary.read_text())
    assert summary["final"] == "spatial" and summary["uncompressed"] == "internal_kd"
    assert record["cost"]["ac"] < run.record("internal_kd")["cost"]["ac"]
    assert compaction.compact_run(run.path)["check"]["max_difference"] < 1e-9


def test_with_epochs_it_goes_on_learning_and_a_share_too_small_is_refused(run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.run(start(run.path.parent / "more", "stages.spatial.epochs=2"))
        more = RunDir(run.path.parent / "more").record("spatial")
        assert more["steps"] == 16 and sum(more["heads"]) < 6
        with pytest.raises(InputError, match="compress.spatial.operations = 0.02: the floors"):
            pipeline.run(
                start(run.path.parent / "small", "stages.spatial.epochs=0", "compress.spatial.operations=0.02")
            )


def test_killed_after_the_search_it_goes_on_as_undisturbed(run) -> None:
    """The decision is made once: a second one, on folded weights, would be another."""
    folder, log = run.path.parent, run.path.parent / "log"
    legs = [*overrides(folder / "legs", "stages.spatial.epochs=2"), "run.checkpoint_every=3"]
    assert leg_of(legs, log, ("spatial", 5)) == -signal.SIGKILL, log.read_text()
    assert leg_of(legs, log) == 0, log.read_text()
    mine, theirs = (RunDir(folder / name).weights("spatial") for name in ("legs", "more"))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert sum("compress/operations" in record for record in RunDir(folder / "legs").read_metrics()) == 1
