"""The networks, inputs and runs of the golden values: all that they touch of the package stands in this file, so that
this is what to edit when modules, parameters, arguments or configuration keys get new names. Not a test.

A network is filled by role, never by the package's names or by the order in which it is built: the numbers of each
tensor are drawn from a generator that is seeded by what the tensor is for. `ROLES` and `LAYER_ROLES` say which tensor
that is today; a renamed parameter changes its name there, on the right, never the role on the left, which is the seed.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spikeprune.config.load import load
from spikeprune.cost import energy_models
from spikeprune.cost.dense import dense
from spikeprune.cost.kinds import Operations
from spikeprune.cost.network import dense_network
from spikeprune.cost.operations import count
from spikeprune.cost.shapes import Shape
from spikeprune.cost.summary import summarize
from spikeprune.experiment import pipeline
from spikeprune.models.compaction import compact
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.serialization import nbytes, parameter_count, stored_tensors
from spikeprune.models.shape import student_network
from spikeprune.models.variants import deaden
from spikeprune.pruning.budget import Budget
from spikeprune.pruning.cost_meter import CostMeter
from spikeprune.pruning.criteria import CRITERIA, TEMPORAL_CRITERIA
from spikeprune.pruning.mask_search import search
from spikeprune.pruning.schedules import keep_highest
from spikeprune.pruning.statistics import collect, temporal_statistics
from spikeprune.snn.neurons import NEURONS
from spikeprune.training.losses import drawn_loss, hard_loss, soft_loss
from tests.micro import GLUE, micro, only, write_sst2

VOCABULARY, POSITIONS, SEGMENTS, CLASSES = 23, 16, 2, 2
HIDDEN, HEADS, FFN, LAYERS = 12, 3, 37, 2
STEPS = (3, 4, 2)  # of the embedding's neurons and of each layer's
LEAK = {"IF": 1.0, "LIF": 0.8}
MASKED_HEADS, MASKED_FFN = ((0, 1), (1, 0)), slice(None, None, 5)  # (layer, head); every fifth neuron of each layer
EDGE = 0.2  # of the dead zones, where asked for
SPARSE = 0.3  # weights of the encoder's matrices below this size are no synapses, where asked for

Network, Batch = SpikingBert, dict[str, Tensor]

# ------------------------------------------------------------------------------------------------- names of parameters

ROLES = {  # role: today's name
    "word embedding": "embedding.word.weight",
    "position embedding": "embedding.position.weight",
    "segment embedding": "embedding.segment.weight",
    "embedding norm weight": "embedding.norm.weight",
    "embedding norm bias": "embedding.norm.bias",
    "embedding threshold": "embedding.neurons.log_theta",
    "feedback weight": "embedding.feedback.weight",
    "pooler weight": "pooler.weight",
    "pooler bias": "pooler.bias",
    "classifier weight": "classifier.weight",
    "classifier bias": "classifier.bias",
}
LAYER_ROLES = {  # of layer {}
    **{
        f"{role} {kind}": f"layers.{{}}.{name}.{kind}"
        for role, name in (
            ("query", "query"),
            ("key", "key"),
            ("value", "value"),
            ("attention output", "out"),
            ("first feed-forward", "up"),
            ("second feed-forward", "down"),
            ("attention norm", "attention_norm"),
            ("output norm", "output_norm"),
        )
        for kind in ("weight", "bias")
    },
    "query threshold": "layers.{}.query_neurons.log_theta",
    "key threshold": "layers.{}.key_neurons.log_theta",
    "value threshold": "layers.{}.value_neurons.log_theta",
    "context threshold": "layers.{}.context_neurons.log_theta",
    "attention threshold": "layers.{}.attention_neurons.log_theta",
    "feed-forward threshold": "layers.{}.intermediate_neurons.log_theta",
    "output threshold": "layers.{}.output_neurons.log_theta",
}
STATE = ("heads", "ffn", "t_steps", "strength")  # buffers that are set by `network`, not drawn
LOUD = ("embedding threshold", "attention threshold", "output threshold")  # neurons behind a layer norm


def names_of_roles() -> dict[str, str]:
    of_layers = {f"layer {i} {role}": name.format(i) for i in range(LAYERS) for role, name in LAYER_ROLES.items()}
    return {**ROLES, **of_layers}


def drawn(role: str, shape: torch.Size) -> Tensor:
    """Numbers of a plausible size for that role; the same ones as long as role and shape stay. A threshold is its
    logarithm, as it is stored."""
    seed = zlib.crc32(role.encode())
    z = torch.from_numpy(np.asarray(np.random.RandomState(seed).standard_normal(tuple(shape))))
    if role.endswith("threshold"):
        return math.log(1.0 if role.endswith(LOUD) else 0.4) + 0.3 * z
    if role.endswith("norm weight"):
        return 1 + 0.2 * z
    if role == "feedback weight":  # small, so that there is a fixed point
        return 0.3 * z / shape[1] ** 0.5
    if role.endswith("bias"):  # small, so that tokens and sentences stay apart from each other
        return 0.2 * z
    if len(shape) == 2 and not role.endswith("embedding"):
        return 1.2 * z / shape[1] ** 0.5
    return z


@torch.no_grad()
def fill(student: Network) -> None:
    """Raises AssertionError where the network has a tensor without a role."""
    state, roles = student.state_dict(), names_of_roles()
    known = {name for name in state if name in STATE or name.endswith("dead_zone.edge")}
    assert set(state) <= known | set(roles.values()), f"without a role: {set(state) - known - set(roles.values())}"
    for role, name in roles.items():
        if name in state:
            state[name].copy_(drawn(role, state[name].shape))


# ------------------------------------------------------------------------------------------------- networks and inputs


@torch.no_grad()
def network(
    *,
    coding: str = "accumulate",
    neuron: str = "IF ternary",  # IF or LIF, and the registry's kind
    query: str = "real",
    residual: str = "spikes",
    feedback: bool = False,
    threshold: str = "channel",
    pooling: str = "mean",
    quantizer: str = "float",
    fold: bool = False,
    strength: float = 1.0,
    dead_zone: bool = False,
    sparse: bool = False,
    masked: bool = True,
    t_steps: tuple[int, ...] = STEPS,
) -> Network:
    """In float64, so that rounding hardly ever decides whether a neuron fires."""
    leak, _, kind = neuron.partition(" ")
    student = SpikingBert(
        vocab=VOCABULARY,
        positions=POSITIONS,
        segments=SEGMENTS,
        hidden=HIDDEN,
        layers=LAYERS,
        heads=HEADS,
        ffn=FFN,
        classes=CLASSES,
        t_steps=list(t_steps),
        spikes=kind,
        leak=LEAK[leak],
        theta=threshold,
        coding=coding,
        query=query,
        pooling=pooling,
        residual=residual,
        feedback=feedback,
        weights=quantizer,
        fold=fold,
        dead_zone=dead_zone,
        sparse=sparse,
    )
    student = student.double().eval()
    fill(student)
    if quantizer != "float":
        student.set_strength(strength)
    if masked:
        for layer, head in MASKED_HEADS:
            student.heads[layer, head] = 0
        student.ffn[:, MASKED_FFN] = 0
    if dead_zone:
        for name, edge in student.named_buffers():
            if name.endswith("dead_zone.edge"):
                edge.fill_(EDGE)
    if sparse:
        for layer in student.layers:
            for name in ("query", "key", "value", "out", "up", "down"):
                weight = getattr(layer, name).weight
                weight[weight.abs() < SPARSE] = 0
        student.synapses.refresh_masks(student)
    return student


def with_calibrated_dead_zones(student: Network) -> Network:
    """Which silence 40 % of the currents."""
    deaden(student, inputs(), 40.0)
    return student


def inputs(lengths: tuple[int, ...] = (8, 5, 2), seed: int = 1) -> Batch:
    """Token ids, a mask with padding, segments."""
    random, shape = np.random.RandomState(seed), (len(lengths), max(lengths))
    return {
        "input_ids": torch.from_numpy(random.randint(VOCABULARY, size=shape)).long(),
        "attention_mask": (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long(),
        "token_type_ids": torch.from_numpy(random.randint(SEGMENTS, size=shape)).long(),
    }


def labelled() -> list[Batch]:
    """Two batches of eight sentences, whose labels no network knows."""
    batches = []
    for seed in (2, 3):
        random = np.random.RandomState(100 + seed)
        lengths = tuple(random.randint(2, 9, size=8).tolist())
        labels = torch.from_numpy(random.randint(CLASSES, size=8)).long()
        batches.append({**inputs(lengths, seed), "labels": labels})
    return batches


def plain(batch: Batch) -> Batch:
    return {name: x for name, x in batch.items() if name != "labels"}


@torch.no_grad()
def logits(student: Network, mode: str) -> list[list[float]]:
    return student(**inputs(), mode=mode).logits.tolist()


compacted: Callable[[Network], Network] = compact


def size_of_compacted(student: Network) -> dict[str, int]:
    small = compact(student)
    return {"parameters": parameter_count(small), "bytes in its file": nbytes(stored_tensors(small))}


def gradients(student: Network, mode: str) -> list[float | None]:
    """Norms of the gradient of a fixed loss of logits and firing rates, in the order of `names_of_roles`; None for what
    the network lacks."""
    outputs = student(**inputs(), mode=mode, rate=True)
    weights = torch.from_numpy(np.random.RandomState(5).standard_normal(tuple(outputs.logits.shape)))
    loss = (weights * outputs.logits).sum() + 0.3 * sum(rate.mean() for rate in outputs.rates.values())
    parameters = dict(student.named_parameters())
    names = [name for name in names_of_roles().values() if name in parameters]
    grads = torch.autograd.grad(loss, [parameters[name] for name in names])
    norms = {name: grad.norm().item() for name, grad in zip(names, grads, strict=True)}
    return [norms.get(name) for name in names_of_roles().values()]


# ------------------------------------------------------------------------------------------------ operations and costs


def shape_of(student: Network) -> Shape:
    values = student.values
    names = ("hidden", "heads", "ffn", "layers", "classes", "pooling", "query", "theta", "feedback")
    return Shape(
        **{name: values[name] for name in names},
        vocab_size=VOCABULARY,
        positions=POSITIONS,
        types=SEGMENTS,
        gain=NEURONS[values["spikes"]].gain is not None,
        membrane=values["residual"] == "membrane",
    )


def dense_shape() -> Shape:
    """The teacher's."""
    sizes = {"hidden": HIDDEN, "heads": HEADS, "ffn": FFN, "layers": LAYERS, "classes": CLASSES, "pooling": "cls"}
    return Shape(**sizes, vocab_size=VOCABULARY, positions=POSITIONS, types=SEGMENTS)


@torch.no_grad()
def operations(student: Network, mode: str = "spiking") -> Operations:
    batch = inputs()
    return count(
        student(**batch, mode=mode, count=True).counts,
        batch["attention_mask"].sum(1),
        shape=shape_of(student),
        heads=student.heads,
        ffn=student.ffn,
        t_steps=student.steps,
        coding=student.coding,
        links=student.links(),
    )


def dense_operations() -> Operations:
    return dense(inputs()["attention_mask"].sum(1), shape=dense_shape())


def by_kind(ops: Operations) -> list[list[float]]:
    """AC, MAC and element-wise, summed over the sentences: of the embedding, each layer and the head."""
    return [ops.ac.tolist(), ops.mac.tolist(), ops.elementwise.tolist()]


def additions_by_step(ops: Operations) -> list[list[float]]:
    return ops.ac_per_step.tolist()


ENERGY_MODELS = tuple(energy_models.ENERGY_MODELS)
COSTS = {  # in the field's words: today's name
    "energy, pJ": "energy_pj",
    "normalized operations": "norm_ops",
    "parameters": "params",
    "bytes": "bytes",
    "latency, steps": "latency_steps",
    "latency, populations in turn": "latency_stages",
}


def costs(student: Network | None, energy: str, bits: int = 32) -> dict[str, float]:
    """Of a student, or of the dense teacher."""
    common = {"dense_ops": dense_operations(), "model": energy_models.ENERGY_MODELS[energy], "bits": bits}
    if student is None:
        found = summarize(dense_network(dense_operations(), shape=dense_shape()), shape=dense_shape(), **common)
    else:
        masks = {"heads": student.heads, "ffn": student.ffn, "t_steps": student.steps, "coding": student.coding}
        found = summarize(student_network(student, operations(student)), shape=shape_of(student), **masks, **common)
    return {words: found[name] for words, name in COSTS.items() if name in found}


# ----------------------------------------------------------------------------------------------------------- decisions

SPATIAL, TEMPORAL = tuple(CRITERIA), tuple(TEMPORAL_CRITERIA)


def sample_loss(batch: Batch, outputs: Any) -> Tensor:
    return hard_loss(outputs.logits, batch["labels"], regression=False)


def as_text(mask: Tensor) -> list[str]:
    """A row of 0 and 1 for each layer."""
    return ["".join(str(int(x)) for x in row) for row in mask.tolist()]


def masks_of(student: Network) -> dict[str, list[str]]:
    return {"heads": as_text(student.heads), "feed-forward": as_text(student.ffn)}


def spatial_masks(criterion: str, scope: str, **options: Any) -> dict[str, list[str]]:
    """Half of the heads and 40 % of the neurons, by that criterion."""
    student = network(masked=False, **options)
    scores = CRITERIA[criterion](collect(student, labelled(), sample_loss))
    heads = keep_highest(scores[0], student.heads, 3, floor=1, scope=scope)
    ffn = keep_highest(scores[1], student.ffn, 30, floor=4, scope=scope)
    return {"heads": as_text(heads), "feed-forward": as_text(ffn)}


def searched_masks(operations: float, rearranged: bool, **options: Any) -> dict[str, Any]:
    """Kwon's search for a share of the operations."""
    student = network(masked=False, **options)
    floors = {"heads": 1, "ffn": 4}
    found = search(
        student,
        labelled(),
        sample_loss,
        shape=shape_of(student),
        operations=operations,
        floors=floors,
        rearranged=rearranged,
    )
    return {**masks_of(student), "share of operations": found["operations"]}


def temporal_steps(criterion: str, total: int, **options: Any) -> list[int]:
    student = network(t_steps=(4, 6, 5), **options)
    return list(TEMPORAL_CRITERIA[criterion](temporal_statistics(student, labelled(), sample_loss), total))


def joint_plan(target: str, share: float, **options: Any) -> dict[str, Any]:
    """Down to a share of what the whole network costs, then up again to it; taught by the whole network."""
    student, batches = network(masked=False, **options), labelled()
    teacher = copy.deepcopy(student)
    mode = "equilibrium" if student.coding == "accumulate" else "spiking"
    with torch.no_grad():
        answers = {id(batch): teacher(**plain(batch), mode=mode).logits for batch in batches}

    def taught(batch: Batch, outputs: Any) -> Tensor:
        return soft_loss(outputs.logits, answers[id(batch)], temperature=1.0, regression=False)

    def of_drawn_answers(_: Batch, outputs: Any) -> Tensor:
        return drawn_loss(outputs.logits, regression=False)

    torch.manual_seed(0)
    distance = partial(soft_loss, temperature=1.0, regression=False)
    shapes = {"shape": shape_of(student), "dense_shape": dense_shape()}
    meter = CostMeter(batches, target=target, model=energy_models.ENERGY_MODELS["convention"], **shapes)
    floors = {"min_heads": 1, "min_ffn": 4, "most_steps": student.steps, "block": 4}
    budget = Budget(student, batches, taught, of_drawn_answers, distance, meter, **floors)
    whole = budget.value
    goal = share * whole
    budget.lower_to(goal)
    return {"goal": goal, "cost": budget.raise_to(goal), **masks_of(student), "t_steps": student.steps}


# ---------------------------------------------------------------------------------------------------------- whole runs

MICRO_RUNS = {
    "mrpc": (  # generated pairs, of which a network of this size learns nothing in so few steps
        "data.embedded=[120,40]",
        *only("teacher", "internal_kd", "prediction_kd", "quantize", "budget", "finetune"),
        "stages.budget.target=energy",
        "stages.budget.value=0.06",
        "stages.quantize.weights=ternary",
        "stages.teacher.lr=1.0e-3",
        "stages.budget.epochs=3",
        "stages.quantize.epochs=2",
    ),
    "sst2": (),  # sentences that one word decides: teacher and student learn them
}


def micro_run(task: str, folder: Path) -> dict[str, Any]:
    """The summary of a whole run: what is left of network, steps and costs after each stage."""
    data = write_sst2(folder / "glue") if task == "sst2" else None
    overrides = [*micro(folder / "run", data), f"task={task}", *MICRO_RUNS[task]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of a sum decides on single spikes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spikeprune.experiment.stage.check_teacher", lambda *_: None)  # chance is enough here
        summary = pipeline.run(load(GLUE, overrides))
    torch.set_num_threads(threads)
    stages = {"teacher": summary["teacher"], **summary["stages"]}
    return {name: stage_facts(row) for name, row in stages.items()}


def stage_facts(row: dict[str, Any]) -> dict[str, Any]:
    facts = {"accuracy": row["metrics"]["accuracy"], "optimizer steps": row["steps"]}
    named = {"AC": "ac", "MAC": "mac", "elementwise": "elementwise", **COSTS}
    facts |= {words: row["cost"][name] for words, name in named.items() if name in row["cost"]}
    masks = {"heads kept": "heads", "neurons kept": "ffn", "t_steps": "t_steps"}
    return {**facts, **{words: row[name] for words, name in masks.items() if name in row}}
