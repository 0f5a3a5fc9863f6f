"""WeightQuantization: the encoder's weights move to their quantized values between epochs."""

from __future__ import annotations

import lightning as L

from spikeprune.training.callbacks.schedule import EpochSchedule


class WeightQuantization(EpochSchedule):
    """Raises the student's `strength` from what it is at the first decision to exactly 1, linearly between `begin` and
    `end`. Which quantizer, the student knows; its full-precision weights are trained throughout.

    Progressive, since a network quantized at once has to learn again what it knew (Zhou et al. 2017, arXiv 1702.03044,
    quantize a growing share of the weights; here all of them move together).
    """

    def __init__(self, *, begin: int, end: int):
        super().__init__(begin=begin, end=end)
        self.start: float | None = None  # strength before the first decision

    def decide(self, trainer: L.Trainer, module: L.LightningModule, progress: float) -> None:
        student = module.student
        self.start = student.quantized if self.start is None else self.start
        student.set_strength(1 - (1 - self.start) * (1 - progress))  # in this order exactly 1 at progress 1

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As in SpatialPruning."""
        pl_module.log("compress/strength", pl_module.student.quantized)

    def state_dict(self) -> dict:
        return {**super().state_dict(), "start": self.start}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.start = state["start"]
