"""The sizes of a student and of its dense counterpart, as operations are counted with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from spikeprune.cost.dense import dense
from spikeprune.cost.kinds import Operations
from spikeprune.cost.network import Network, dense_network, spiking_network
from spikeprune.cost.operations import count
from spikeprune.cost.shapes import Shape, SynapseCounts
from spikeprune.errors import InputError
from spikeprune.models.modeling import SpikingBert
from spikeprune.snn.neurons import ACTIVATIONS, DENSE


def spiking_bert(model: nn.Module) -> SpikingBert:
    """The one `SpikingBert` in `model`, which may be it. Raises InputError unless there is exactly one."""
    if isinstance(model, SpikingBert):
        return model
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise InputError(f"a {kind} is no network: give a SpikingBert, or a module that contains one (spikeprune.load)")
    found = [module for module in model.modules() if isinstance(module, SpikingBert)]
    if len(found) != 1:
        raise InputError(f"{type(model).__name__} holds {len(found)} SpikingBert networks, and exactly one is needed")
    return found[0]


def student_shape(student: SpikingBert) -> Shape:
    """Of the uncompressed architecture: masks, time steps and a compacted student's layers leave it as it is."""
    values = student.values
    return Shape(
        **sizes(values),
        pooling=values["pooling"],
        query=values["query"],
        theta=values["theta"],
        gain=ACTIVATIONS[values["spikes"]].gain is not None,
        edges=values["dead_zone"],
        membrane=values["residual"] == "membrane",
        feedback=values["feedback"],
        signed=ACTIVATIONS[values["spikes"]].low < 0,
        table_bits=student.embedding.word.stored_bits,
    )


def dense_shape(student: SpikingBert) -> Shape:
    """Of the dense BERT classifier with as many layers, of the same sizes."""
    return Shape(**sizes(student.values), pooling="cls")


def sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a Shape, from a student's `values`, where some are called otherwise."""
    names = {"vocab_size": "vocab", "types": "segments", "buckets": "relative_buckets"}
    kept = ("hidden", "heads", "ffn", "layers", "classes", "vocab_size", "positions", "types", "embedding", "buckets")
    return {name: values[names.get(name, name)] for name in kept}


def student_operations(
    student: SpikingBert,
    counts: Mapping[str, Tensor],
    lengths: Tensor,
    *,
    shape: Shape | None = None,
    heads: Tensor | None = None,
    ffn: Tensor | None = None,
    t_steps: Sequence[int] | None = None,
) -> Operations:
    """`cost.operations.count` of the spikes `counts` on sentences of `lengths [B]`, with the student's masks, time
    steps, coding and synapses; of a dense one `cost.dense.dense`. `heads [L, H]` and `ffn [L, F]` replace its masks,
    where their gradient is wanted, `t_steps [L+1]` its steps, where fewer were made."""
    shape = student_shape(student) if shape is None else shape
    heads, ffn = student.heads if heads is None else heads, student.ffn if ffn is None else ffn
    if not sends_spikes(student):
        return dense(lengths, shape=shape, heads=heads, ffn=ffn, links=student.links())
    return count(
        counts,
        lengths,
        shape=shape,
        heads=heads,
        ffn=ffn,
        t_steps=student.steps if t_steps is None else t_steps,
        coding=student.coding,
        links=student.links(),
        leak=student.values["leak"],
    )


def sends_spikes(student: SpikingBert) -> bool:
    """False for the dense opponent, whose neurons send real activations."""
    return student.values["spikes"] not in DENSE


def student_network(
    student: SpikingBert,
    ops: Operations,
    *,
    shape: Shape | None = None,
    heads: Tensor | None = None,
    ffn: Tensor | None = None,
) -> Network:
    """The student that did the work `ops`, as energy models read it; arguments as in `student_operations`."""
    made: dict[str, Any] = {
        "shape": student_shape(student) if shape is None else shape,
        "heads": student.heads if heads is None else heads,
        "ffn": student.ffn if ffn is None else ffn,
        "bits": student.stored_bits,
        "links": missing_synapses(student),
    }
    return spiking_network(ops, coding=student.coding, **made) if sends_spikes(student) else dense_network(ops, **made)


def missing_synapses(student: SpikingBert) -> list[SynapseCounts] | None:
    """`SpikingBert.links` where a synapse is missing, so that hardware must store a list of them; else None."""
    return None if student.synapse_count() is None else student.links()
