"""Operations of a student on real batches: a torchmetrics metric, and a function for one batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from spikeprune.cost.dense import dense
from spikeprune.models.inference import infer
from spikeprune.models.outputs import inputs_of
from spikeprune.models.shape import dense_shape, spiking_bert, student_operations

KINDS = ("ac", "mac", "elementwise")


class SynapticOperations(Metric):
    """Mean operations of a sentence, padding left out, over any number of batches and processes.

    `ac`: additions of a weight, one for each spike and synapse; `mac`: multiply-accumulates; `elementwise`: elements
    through a layer norm, softmax, gelu or tanh. Counted as `cost/operations.py` says. `dense_mac`: the
    multiply-accumulates of the dense BERT classifier of the same sizes on the same sentences.

    Example: `metric = SynapticOperations(); metric.update(student, batch); metric.compute()["ac"]`
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    def __init__(self, **options):
        super().__init__(**options)
        for name in (*KINDS, "dense_mac", "sentences"):  # the first update makes them [L+2]
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, student: nn.Module, batch: Mapping[str, Tensor], lengths: Tensor | None = None) -> None:
        """`student`: a SpikingBert, or a module that contains one. `batch`: its inputs, whose forward is then run; or,
        with the `lengths [B]` of the sentences, the spike counts of a forward (`Outputs.counts`)."""
        network = spiking_bert(student)
        counts = batch
        if lengths is None:
            counts, lengths = infer(network, **inputs_of(batch)).counts, batch["attention_mask"].sum(1)
        found = student_operations(network, counts, lengths)
        for name in KINDS:
            setattr(self, name, getattr(self, name) + getattr(found, name))
        self.dense_mac = self.dense_mac + dense(lengths, shape=dense_shape(network)).mac.sum()
        self.sentences = self.sentences + found.samples

    def compute(self) -> dict[str, Tensor]:
        """`ac`, `mac`, `elementwise` and `dense_mac` of a sentence, scalars; `ac_per_layer`, `mac_per_layer` and
        `elementwise_per_layer` `[L+2]`: the embedding, each encoder layer, pooling with the classifier."""
        layers = {name: getattr(self, name) / self.sentences for name in KINDS}
        totals = {name: values.sum() for name, values in layers.items()}
        per_layer = {f"{name}_per_layer": values for name, values in layers.items()}
        return {**totals, "dense_mac": self.dense_mac / self.sentences, **per_layer}


def count_operations(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`SynapticOperations.compute()` of one batch. `model`: a SpikingBert, or a module that contains
    one, which is run without gradients."""
    metric = SynapticOperations().to(inputs_of(batch)["input_ids"].device)
    metric.update(model, batch)
    return metric.compute()
