"""Costs that a person can count: tiny nets by hand, random nets by a naive counter, the dense net by a profiler."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from spikeprune.cost import operations, summary
from spikeprune.cost.dense import dense
from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.cost.network import dense_network, spiking_network
from spikeprune.cost.shapes import Shape
from spikeprune.cost.summary import norm_ops, summarize

# One layer of two heads of one channel, three neurons: D=2, H=2, d=1, F=3, C=2.
TINY = Shape(hidden=2, heads=2, ffn=3, layers=1, classes=2)
SPIKING_LAYERS = ("query", "key", "value", "context", "attention", "intermediate", "output")


def silent(shape, steps):
    """Counts of one sentence without a single spike, {spiking layer: [T_l, 1, channels]}."""
    counts = {"embedding": torch.zeros(steps[0], 1, shape.hidden)}
    for layer, t in enumerate(steps[1:]):
        for name in SPIKING_LAYERS[shape.query == "real" :]:
            width = shape.ffn if name == "intermediate" else shape.hidden
            counts[f"layers.{layer}.{name}"] = torch.zeros(t, 1, width)
    return counts


def run(counts, *, shape=TINY, n=(4,), heads=None, ffn=None, steps=(1, 1), coding="accumulate"):
    heads = torch.ones(shape.layers, shape.heads) if heads is None else torch.tensor(heads)
    ffn = torch.ones(shape.layers, shape.ffn) if ffn is None else torch.tensor(ffn)
    return operations.count(counts, torch.tensor(n), shape=shape, heads=heads, ffn=ffn, t_steps=steps, coding=coding)


# One spike in channel 1 of a layer: additions in a sentence of 4 tokens; whole, without head 1, without neuron 1.
FAN_OUT = [
    ("embedding", 7, 4, 7),  # 3·1·2 into q, k, v and the residual; one head left: 3·1·1 + 1
    ("layers.0.key", 4, 0, 4),  # one for each query
    ("layers.0.value", 4, 0, 4),
    ("layers.0.context", 2, 0, 2),
    ("layers.0.attention", 4, 4, 3),  # 3 neurons and the residual
    ("layers.0.intermediate", 2, 2, 0),
    ("layers.0.output", 1, 1, 1),  # the mean over tokens
]


@pytest.mark.parametrize(("spiking_layer", "whole", "head_pruned", "neuron_pruned"), FAN_OUT)
@pytest.mark.parametrize("coding", ["accumulate", "per_step"])
def test_one_spike_costs_its_fan_out(spiking_layer, whole, head_pruned, neuron_pruned, coding):
    counts = silent(TINY, (1, 1))
    counts[spiking_layer][0, 0, 1] = 1
    assert run(counts, coding=coding).ac.sum() == whole
    assert run(counts, coding=coding, heads=[[1, 0]]).ac.sum() == head_pruned
    assert run(counts, coding=coding, ffn=[[1, 0, 1]]).ac.sum() == neuron_pruned


def test_operations_belong_to_the_layer_whose_weights_they_use():
    shape = Shape(hidden=2, heads=1, ffn=3, layers=2, classes=5)
    counts = silent(shape, (1, 1, 1))
    counts["embedding"][0, 0, 0] = 1  # 3·2·1 + 1
    counts["layers.0.output"][0, 0, 0] = 2
    counts["layers.1.output"][0, 0, 0] = 3
    ops = run(counts, shape=shape, steps=(1, 1, 1))
    assert ops.ac.tolist() == [0, 7, 14, 3]
    assert ops.mac.tolist() == [0, 0, 0, 10]
    assert ops.elementwise.tolist() == [8, 44, 44, 0]  # 4·2; 2·4·2 + 4² + 4·3


def test_currents_that_go_past_a_layer_cost_an_addition_a_channel_at_each_step():
    """Four tokens of two channels, two residuals: 16 a step of the layer; spikes then pay for no residual."""
    shape = Shape(hidden=2, heads=2, ffn=3, layers=1, classes=2, membrane=True)
    counts = silent(shape, (3, 2))
    counts["embedding"][0, 0, 0] = counts["layers.0.attention"][1, 0, 0] = 1
    once = run(counts, shape=shape, steps=(3, 2))
    assert once.ac_per_step.tolist() == [[0, 0, 0], [6 + 16, 3, 0], [0, 0, 0]]
    for coding in ("per_step", "running_mean"):
        assert run(counts, shape=shape, steps=(3, 2), coding=coding).ac_per_step[1].tolist() == [6 + 16, 3 + 16]
    assert once.elementwise.tolist() == run(counts, steps=(3, 2)).elementwise.tolist()


def test_cls_pooling_pays_for_the_spikes_of_cls_alone():
    shape = Shape(hidden=2, heads=2, ffn=3, layers=1, classes=2, pooling="cls")
    counts = silent(shape, (1, 1))
    counts["layers.0.output"][0, 0, 0] = 4
    counts["pooled"] = torch.tensor([[[1.0, 0.0]]])
    ops = run(counts, shape=shape)
    assert ops.ac.tolist() == [0, 0, 2]
    assert ops.mac.tolist() == [0, 0, 4]
    assert ops.elementwise.tolist() == [8, 60, 2]  # 4·2; 2·4·2 + 2·4² + 4·3; tanh
    assert ops.kinds["spikes"].tolist() == [0, 4, 0]  # that of [CLS] is one of these


def test_a_layer_without_heads_pays_nothing_for_attention():
    counts = {spiking_layer: torch.ones_like(c) for spiking_layer, c in silent(TINY, (1, 1)).items()}
    ops = run(counts, heads=[[0, 0]])
    # Residual of 2 embedding spikes, 2 attention spikes · 4, 3 neurons · 2; 2 outputs to the mean.
    assert ops.ac.tolist() == [0, 2 + 8 + 6, 2]
    assert ops.elementwise.tolist() == [8, 16 + 12, 0]  # no softmax
    assert run(counts, heads=[[0, 0]], coding="running_mean").mac.tolist() == [0, 0, 4]


def test_running_mean_pays_macs_for_attention_and_nothing_for_its_spikes():
    counts = silent(TINY, (3, 3))
    counts["layers.0.key"] += 1
    counts["layers.0.value"] += 1
    ops = run(counts, steps=(3, 3), coding="running_mean")
    assert ops.ac.sum() == 0
    assert ops.mac.tolist() == [0, 3 * 2 * 4 * 4 * 2, 4]  # steps · products · n² · heads of one channel; classifier
    assert ops.elementwise.tolist() == [8, 3 * 60, 0]
    assert run(counts, steps=(3, 3), coding="running_mean", heads=[[0, 1]]).mac.tolist() == [0, 96, 4]


def test_spiking_query_counts_pairs_that_fire_together():
    shape = Shape(hidden=2, heads=2, ffn=3, layers=1, classes=2, query="spiking")
    counts = silent(shape, (1, 1))
    counts["layers.0.query"][0, 0] = torch.tensor([2.0, 0.0])
    counts["layers.0.key"][0, 0] = torch.tensor([3.0, 4.0])
    assert run(counts, shape=shape, coding="per_step").ac.sum() == 6
    assert run(counts, shape=shape, coding="accumulate").ac.sum() == 28  # the bound: 7 key spikes · 4 queries


def test_unequal_steps():
    steps = (3, 1)
    counts = silent(TINY, steps)
    counts["embedding"][:, 0, 0] = torch.tensor([1.0, 1.0, 2.0])
    waiting = run(counts, steps=steps)
    assert waiting.ac_per_step.tolist() == [[0, 0, 0], [7, 7, 14], [0, 0, 0]]
    assert waiting.per_sample() == {"ac": 28, "mac": 4, "elementwise": 68}
    # A synchronous layer of one step no longer listens to what comes later.
    assert run(counts, steps=steps, coding="per_step").ac.sum() == 7
    # One that outlives the train below evaluates its functions all the same.
    late = silent(TINY, (1, 3))
    assert run(late, steps=(1, 3), coding="per_step").elementwise.tolist() == [8, 180, 0]
    assert run(late, steps=(1, 3), coding="accumulate").elementwise.tolist() == [8, 60, 0]


def test_batches_add_up():
    short, long = silent(TINY, (1, 1)), silent(TINY, (2, 1))
    short["layers.0.key"] += 1
    long["embedding"] += 1
    total = run(short, n=(3,)) + run(long, n=(5,), steps=(2, 1))
    assert total.samples == 2
    assert total.ac.tolist() == [0, 6 + 28, 0]
    assert (total.ac_per_step / total.samples).tolist() == [[0, 0], [10, 7], [0, 0]]
    assert total.work()["mac"] == [0, 0, 4]


# ------------------------------------------------------------------------------------------- against a naive counter


def spike_trains(shape, steps, lengths, seed, ternary=True):
    """Random spikes of every layer, {layer: [T_l, B, N, channels]}; padding fires too, and must not count."""
    rng = torch.Generator().manual_seed(seed)
    size = len(lengths), max(lengths) + 2
    return {
        spiking_layer: torch.randint(-int(ternary), 2, (len(c), *size, c.shape[-1]), generator=rng).float()
        for spiking_layer, c in silent(shape, steps).items()
    }


def as_counts(trains, lengths):
    real = torch.arange(next(iter(trains.values())).shape[2]) < torch.tensor(lengths)[:, None]  # [B,N]
    return {spiking_layer: (s.abs() * real[..., None]).sum(2) for spiking_layer, s in trains.items()}


def products(weight, spikes):
    """Non-zero products W[i,j]·s[j], one by one: NeuroBench's effective additions."""
    return sum(1 for row in weight.tolist() for w, s in zip(row, spikes.tolist(), strict=True) if w * s != 0)


def naive_additions(trains, lengths, *, shape, heads, ffn, pairs, evaluations=0):
    """Walks through the graph of the network: each sample, token, layer, step and weight; masked weights are zero. With
    currents as residuals these join all channels, two times at each of so many `evaluations` of a layer."""
    channels = heads.repeat_interleave(shape.head_size, dim=1)
    total = 0
    for b, n in enumerate(lengths):
        for layer in range(shape.layers):
            at = {name: trains.get(f"layers.{layer}.{name}") for name in SPIKING_LAYERS}
            below = trains["embedding"] if layer == 0 else trains[f"layers.{layer - 1}.output"]
            project = channels[layer][:, None].expand(-1, shape.hidden)  # output × input
            identity = torch.zeros(1, shape.hidden) if shape.membrane else torch.eye(shape.hidden)
            total += sum(2 for _ in itertools.product(range(evaluations), range(n), range(shape.hidden)))
            linear = [
                *[(below, project)] * 3,
                (below, identity),
                (at["context"], project.T),
                (at["attention"], identity),
                (at["attention"], ffn[layer][:, None].expand(-1, shape.hidden)),
                (at["intermediate"], ffn[layer].expand(shape.hidden, -1)),
            ]
            for spikes, weight in linear:
                total += sum(products(weight, s[b, token]) for s in spikes for token in range(n))
            queries = at["query"] if pairs else torch.ones_like(at["key"])
            for t, i, j, c in itertools.product(range(len(at["key"])), range(n), range(n), range(shape.hidden)):
                kept = channels[layer, c] != 0
                total += int(kept and queries[t, b, i, c] * at["key"][t, b, j, c] != 0)
                total += int(kept and at["value"][t, b, j, c] != 0)
        pooled = trains[f"layers.{shape.layers - 1}.output"][:, b, :n]
        total += sum(int(spike != 0) for spike in pooled.flatten().tolist())
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("coding", "query", "steps"),
    [("accumulate", "real", (2, 1, 3)), ("per_step", "real", (2, 2, 2)), ("per_step", "spiking", (2, 2, 2))],
)
@pytest.mark.parametrize("membrane", [False, True])
def test_equals_a_naive_counter(coding, query, steps, seed, membrane):
    shape = Shape(hidden=6, heads=3, ffn=5, layers=2, classes=2, query=query, membrane=membrane)
    rng = torch.Generator().manual_seed(seed)
    heads = (torch.rand(2, 3, generator=rng) < 0.6).float()
    ffn = (torch.rand(2, 5, generator=rng) < 0.6).float()
    lengths = [3, 1, 4]
    trains = spike_trains(shape, steps, lengths, seed, ternary=seed % 2 == 0)
    kept = {"shape": shape, "heads": heads, "ffn": ffn}
    ops = operations.count(as_counts(trains, lengths), torch.tensor(lengths), **kept, t_steps=steps, coding=coding)
    pairs = query == "spiking"
    evaluations = 0 if not membrane else 1 if coding == "accumulate" else steps[1]
    assert ops.ac.sum() == naive_additions(trains, lengths, **kept, pairs=pairs, evaluations=evaluations)
    assert torch.equal(ops.ac, ops.ac_per_step.sum(1))


def test_a_ternary_spike_is_one_addition():
    shape, lengths = Shape(hidden=6, heads=3, ffn=5, layers=2, classes=2), [3, 5]
    trains = spike_trains(shape, (2, 2, 2), lengths, seed=0)
    binary = {spiking_layer: s.abs() for spiking_layer, s in trains.items()}
    kinds = [run(as_counts(t, lengths), shape=shape, n=lengths, steps=(2, 2, 2)) for t in (trains, binary)]
    assert torch.equal(kinds[0].ac, kinds[1].ac)
    assert kinds[0].ac.sum() > 0


@pytest.mark.parametrize("coding", operations.CODINGS)
def test_padding_and_batching_change_nothing(coding):
    shape, lengths, steps = Shape(hidden=6, heads=3, ffn=5, layers=2, classes=2), [3, 7, 1], (2, 2, 2)
    trains = spike_trains(shape, steps, lengths, seed=1)
    fixed = {"shape": shape, "steps": steps, "coding": coding}
    together = run(as_counts(trains, lengths), n=lengths, **fixed)
    unpadded = [
        {spiking_layer: s[:, b : b + 1, :n] for spiking_layer, s in trains.items()} for b, n in enumerate(lengths)
    ]
    alone = [run(as_counts(s, [n]), n=[n], **fixed) for s, n in zip(unpadded, lengths, strict=True)]
    joined = alone[0] + alone[1] + alone[2]
    for kind in ("ac", "mac", "elementwise", "ac_per_step"):
        assert torch.equal(getattr(together, kind), getattr(joined, kind))
    assert together.samples == joined.samples == 3


@pytest.mark.parametrize("sizes", [(36, 3, 50, 2, 7), (10, 5, 13, 3, 11), (8, 1, 37, 1, 1)])
def test_dense_equals_a_profiler(sizes):
    hidden, heads, ffn, layers, n = sizes
    shape = Shape(hidden=hidden, heads=heads, ffn=ffn, layers=layers, classes=3, pooling="cls")
    config = BertConfig(
        hidden_size=hidden, num_attention_heads=heads, intermediate_size=ffn, num_hidden_layers=layers, num_labels=3
    )
    # Eager, because on a CPU the profiler does not see inside fused attention.
    net = BertForSequenceClassification._from_config(config, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as profiler, torch.no_grad():
        net(input_ids=torch.ones(2, n, dtype=torch.long))
    assert dense(torch.tensor([n, n]), shape=shape).mac.sum() * 2 == profiler.get_total_flops()


def test_dense_by_hand():
    ops = dense(torch.tensor([4, 1]), shape=Shape(hidden=2, heads=2, ffn=3, layers=1, classes=2, pooling="cls"))
    # 4 tokens: 4·4·4 + 2·16·2 + 2·4·2·3; 1 token: 16 + 4 + 12. Each: pooler 4, classifier 4.
    assert ops.mac.tolist() == [0, 64 + 64 + 48 + 32, 16]
    assert ops.elementwise.tolist() == [10, (16 + 32 + 12) + (4 + 2 + 3), 4]
    assert ops.per_sample()["ac"] == 0


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_every_neuron_firing_once_adds_what_the_dense_network_multiplies(pooling):
    shape, n = Shape(hidden=36, heads=3, ffn=50, layers=2, classes=3, pooling=pooling), 7
    counts = {spiking_layer: c + n for spiking_layer, c in silent(shape, (1, 1, 1)).items()}
    counts["pooled"] = torch.ones(1, 1, 36)
    ops, plain = run(counts, shape=shape, n=(n,), steps=(1, 1, 1)), dense(torch.tensor([n]), shape=shape)
    residuals = 2 * 2 * n * 36
    mean = 0 if pooling == "cls" else n * 36
    assert ops.ac.sum() + ops.mac.sum() == plain.mac.sum() + residuals + mean
    assert torch.equal(ops.elementwise, plain.elementwise)


def spiking(ops, *, shape=TINY, coding="accumulate"):
    return spiking_network(ops, shape=shape, heads=torch.ones(1, 2), ffn=torch.ones(1, 3), coding=coding)


def test_normalized_operations():
    counts = silent(TINY, (1, 1))
    counts["layers.0.output"][0, 0, 0] = 4
    assert norm_ops(run(counts), dense(torch.tensor([4]), shape=TINY)) == 8 / (64 + 64 + 48 + 4)


def test_latency():
    steps, codings = [4, 2, 3], ("accumulate", "running_mean", "per_step")
    assert [summary.latency_steps(steps, c) for c in codings] == [9, 4, 4]
    assert [summary.latency_stages(steps, c) for c in codings] == [29, 4, 4]
    assert [summary.latency_overlapped(steps, c) for c in codings] == [14, 4, 4]


def test_overlapping_is_a_bound_that_equal_trains_of_one_step_reach():
    for steps in ([1, 1], [3, 1, 4], [2, 2, 2]):
        bound, stages = summary.latency_overlapped(steps, "accumulate"), summary.latency_stages(steps, "accumulate")
        assert bound <= stages and (bound == stages) == (max(steps) == 1)


def test_summary_holds_every_cost():
    plain = dense(torch.tensor([4]), shape=TINY)
    common = {"dense_ops": plain, "model": ENERGY_MODELS["convention"], "shape": TINY}
    teacher = summarize(dense_network(plain, shape=TINY), **common)
    assert teacher["norm_ops"] == 1 and "latency_steps" not in teacher
    masks = {"heads": torch.ones(1, 2), "ffn": torch.ones(1, 3)}
    time = {"t_steps": [2, 1], "coding": "accumulate"}
    student = summarize(spiking(run(silent(TINY, (2, 1)))), **common, **masks, **time)
    assert set(student) - set(teacher) == {"latency_steps", "latency_stages", "latency_overlapped"}
    assert (student["latency_steps"], student["latency_stages"], student["params"]) == (3, 7, teacher["params"])


def test_wrong_input_is_named():
    counts = silent(TINY, (1, 1))
    with pytest.raises(ValueError, match=r"unknown coding 'acumulate'.*did you mean accumulate"):
        run(counts, coding="acumulate")
    with pytest.raises(ValueError, match="3 time steps given, expected 2"):
        run(counts, steps=(1, 1, 1))
    with pytest.raises(KeyError, match=r"layers\.0\.value"):
        run({spiking_layer: c for spiking_layer, c in counts.items() if spiking_layer != "layers.0.value"})
