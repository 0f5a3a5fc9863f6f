"""WeightQuantization: the encoder's weights move to their quantized values between epochs."""

from __future__ import annotations

from typing import Any

import lightning as L

from spikeprune.errors import known
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.quantization import QUANTIZERS
from spikeprune.models.variants import add_quantizer
from spikeprune.training.callbacks.schedule import EpochSchedule
from spikeprune.training.protocol import student_of


class WeightQuantization(EpochSchedule):
    """Raises the student's `strength` from its value at the first decision to exactly 1, linearly between `begin` and
    `end`. Its full-precision weights are trained throughout.

    `weights`: a name in `models.quantization.QUANTIZERS`, given to a float student before training begins (InputError
    if it already has another quantizer); None: the student's own. Raises ValueError for an unknown name.

    Progressive, since a network quantized at once loses what it had learnt (Zhou et al. 2017, arXiv 1702.03044,
    quantize a growing share of the weights; here all of them move together).
    Example: `Trainer(callbacks=[WeightQuantization("ternary")])`
    """

    def __init__(self, weights: str | None = None, *, begin: int = 0, end: int | None = None):
        super().__init__(begin=begin, end=end)
        if weights is not None:
            known("weights", weights, QUANTIZERS)
        self.weights = weights
        self.start: float | None = None  # strength before the first decision

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.weights is not None:
            add_quantizer(student_of(pl_module), self.weights)

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student = student_of(module)
        self.start = strength_of(student) if self.start is None else self.start
        student.set_strength(1 - (1 - self.start) * (1 - progress))  # in this order exactly 1 at progress 1

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As in SpatialPruning."""
        pl_module.log("compress/strength", strength_of(student_of(pl_module)))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.start = state["start"]


def strength_of(student: SpikingBert) -> float:
    """Of the encoder's matrices and of the word table, of which one may be float."""
    return max(student.quantized, student.embedding.word.quantized)
