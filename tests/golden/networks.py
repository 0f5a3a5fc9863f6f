"""The networks and inputs of the golden values. All that the values touch of the package stands here, in counts.py,
pruning.py and runs.py, which are to edit when modules, parameters, arguments or keys get new names. Not tests.

A network is filled by role, never by the package's names or by the order in which it is built: the numbers of each
tensor are drawn from a generator that is seeded by what the tensor is for. `ROLES` and `LAYER_ROLES` say which tensor
that is today; a renamed parameter changes its name there, on the right, never the role on the left, which is the seed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from spikeprune.models.compaction import compact
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.serialization import nbytes, parameter_count, stored_tensors
from spikeprune.models.variants import calibrate_dead_zones

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
    calibrate_dead_zones(student, inputs(), 40.0)
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
