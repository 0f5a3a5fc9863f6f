"""What may compute a whole network in place of its layers: see `snn.call.LayerBackend` for one layer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from spikeprune.snn.call import LayerBackend
from spikeprune.snn.context import ForwardContext, SpikeTrain

# the last layer's spike train, the values [B, N, D] of the embedding and each layer, attention scores of each layer
Encoded = tuple[SpikeTrain, list[Tensor], list[Tensor | None]]


class Backend(Protocol):
    """Attached to a network by `SpikingBert.attach`. It gives what `SpikingBert.encode` gives, up to rounding."""

    layers: LayerBackend  # for each spiking layer of a forward that is not covered as a whole

    def covers(self, network: nn.Module, ctx: ForwardContext) -> bool:
        """Whether `run` computes this forward of `network`, a SpikingBert."""

    def run(self, network: nn.Module, input_ids: Tensor, token_type_ids: Tensor, *, ctx: ForwardContext) -> Encoded:
        """Embedding and layers of a forward that is covered; spike counts go to `ctx.record`."""
