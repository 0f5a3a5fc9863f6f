"""Operations and costs of the golden values' networks."""

from __future__ import annotations

import torch

from spikeprune.cost import energy_models
from spikeprune.cost.dense import dense
from spikeprune.cost.kinds import Operations
from spikeprune.cost.network import dense_network
from spikeprune.cost.operations import count
from spikeprune.cost.shapes import Shape
from spikeprune.cost.summary import summarize
from spikeprune.models.shape import student_network
from spikeprune.snn.neurons import NEURONS
from tests.golden.networks import CLASSES, FFN, HEADS, HIDDEN, LAYERS, POSITIONS, SEGMENTS, VOCABULARY, Network, inputs


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
