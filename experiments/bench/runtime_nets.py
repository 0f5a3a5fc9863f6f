"""Networks of the C runtime's benchmark: random weights, with as many units, synapses and additions as trained students
of the budgets have."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from experiments.bench import nets
from spikeprune.cost.dense import dense
from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.cost.network import dense_network
from spikeprune.models.compaction import compact
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.quantization import MATRICES
from spikeprune.models.shape import dense_shape, student_network, student_operations

LANES = 16  # outputs of a block of synapses
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Units:
    """What a student keeps; thresholds do the rest of the way to its budget."""

    t_steps: int
    heads: int
    ffn: int
    share: float = 1.0  # of the synapses


# the dense teacher's energy over the student's -> its units, with all synapses between them, and with some
WHOLE = {
    4: Units(4, 12, 1536),
    10: Units(3, 9, 912),
    30: Units(3, 6, 464),
    75: Units(3, 3, 240),
    120: Units(2, 3, 192),
    200: Units(2, 2, 128),
}
SPARSE = {
    4: Units(4, 12, 1536, 0.75),
    10: Units(3, 12, 1536, 0.5),
    30: Units(3, 9, 912, 0.25),
    75: Units(3, 6, 464, 0.25),
    120: Units(3, 6, 464, 0.25),
    200: Units(2, 6, 464, 0.25),
}


@dataclass(frozen=True)
class Form:
    units: dict[int, Units]
    weights: str = "float"
    words: str = "float"  # their embeddings, beside few-bit weights
    masks: str = "all"  # synapses: all, single or blocks
    form: str = "auto"  # of the file's rows
    loop: str = "events"


FORMS = {
    "float rows, events": Form(WHOLE),
    "float rows, counts": Form(WHOLE, loop="counts"),
    "ternary rows, events": Form(WHOLE, weights="ternary"),
    "single synapses, as rows": Form(SPARSE, masks="single", form="rows"),
    "single synapses, as lists": Form(SPARSE, masks="single", form="lists"),
    "synapses in blocks of 16, as blocks": Form(SPARSE, masks="blocks", form="blocks"),
}


def student(size: nets.Size, units: Units, form: Form) -> SpikingBert:
    """Random weights of a dense BERT, thresholds calibrated; as many units and synapses as `units` say."""
    options = {"t_steps": units.t_steps, "residual": "membrane", "pooling": "cls", "sparse": form.masks != "all"}
    quantized = {} if form.weights == "float" else {"weights": form.weights, "fold": True, "word_table": form.words}
    made = nets.student(size, CPU, **options, **quantized)
    if form.masks != "all":
        thin_out(made, units.share, LANES if form.masks == "blocks" else 1)
    made.heads[:, min(units.heads, size.heads) :] = 0
    made.ffn[:, min(units.ffn, size.ffn) :] = 0
    if quantized:
        made.set_strength(1.0)
    return compact(made)


@torch.no_grad()
def thin_out(made: SpikingBert, share: float, lanes: int) -> None:
    """Keep this share of the synapses, drawn in blocks of so many outputs of one input."""
    generator = torch.Generator().manual_seed(0)
    for layer in made.layers:
        for weight in (getattr(layer, name).weight for name in MATRICES):
            rows, columns = weight.shape
            kept = torch.rand(-(-rows // lanes), columns, generator=generator) < share
            weight.mul_(kept.repeat_interleave(lanes, 0)[:rows])
    made.refresh_synapses()


def energy_share(made: SpikingBert, batch: dict) -> tuple[float, int]:
    """The dense teacher's energy over the student's, and its additions."""
    lengths = batch["attention_mask"].sum(1)
    outputs = infer(made, **batch)
    operations = student_operations(made, outputs.counts, lengths)
    shape = dense_shape(made)
    energy = ENERGY_MODELS["convention"].per_sample
    ratio = energy(dense_network(dense(lengths, shape=shape), shape=shape)) / energy(student_network(made, operations))
    return ratio, int(operations.ac.sum())


def at_budget(made: SpikingBert, batch: dict, budget: float) -> SpikingBert:
    """The student with thresholds raised or lowered by one factor until its energy is the budget's; a float file's
    weights have them folded in afterwards, a few-bit one keeps its codes and scales."""
    low, high = -3.0, 4.0
    for _ in range(14):
        factor = (low + high) / 2
        if energy_share(with_thresholds(made, factor), batch)[0] < budget:
            low = factor
        else:
            high = factor
    return with_thresholds(made, (low + high) / 2)


@torch.no_grad()
def with_thresholds(made: SpikingBert, factor: float) -> SpikingBert:
    changed = copy.deepcopy(made)
    for layer in changed.spiking_layers().values():
        layer.log_theta.add_(factor)
    return changed
