"""One call of a spiking layer as plain values, what comes back, and who may compute it, or a whole network.

A call names its operation:

| operation | when | torch reference |
|---|---|---|
| clip | modes clip and calibrate | `equilibrium.clip` |
| equilibrium | mode equilibrium, with gradient: training | `equilibrium.equilibrium` |
| closed_form | mode equilibrium, without gradient; counts spikes | `equilibrium.closed_form` |
| simulation | mode spiking, step by step | `simulation.simulate` |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from spikeprune.snn.coding import Coding
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.neurons import Neuron


class StepGate(NamedTuple):
    """Mixes a train with its beginning, to learn whether its last steps are needed: 1 all steps, 0 `shorter` ones."""

    open: Tensor  # scalar in 0..1
    shut: Tensor  # open - 1
    shorter: int

    def mix(self, value: Tensor, short: Tensor) -> Tensor:
        """`value` of the whole train and `short` of its beginning; the gradient to what fired is the whole train's."""
        return value + self.shut * (value - short).detach()


def shorter(t_steps: int | Tensor) -> int | Tensor:
    """Steps that a closed gate leaves of a train: a quarter less, at least one step less, never none."""
    return t_steps - t_steps // 4 - 1 * ((t_steps > 1) & (t_steps < 4))


@dataclass(frozen=True)
class Drive:
    """The input current of a layer: f of its inputs."""

    mean: Tensor | None  # [B, N, D] f of the inputs' mean values; None: not evaluated, only `steps` are needed
    steps: Tensor | None  # [T, B, N, D] f of what is read at each step, no gradient; None: the current is constant


@dataclass(frozen=True)
class LayerCall:
    """What a spiking layer computes from: its neurons, its input current, and the settings of the forward."""

    kind: str  # of neuron, a key of NEURONS
    neuron: Neuron
    leak: float
    coding_name: str  # a key of CODINGS
    coding: Coding
    log_theta: Tensor  # [D], or [1] per tensor
    t_steps: int
    drive: Drive
    mask: Tensor | None  # [D] or [B, 1, D]: 0 silences a pruned channel
    alive: Tensor | None  # [D] or [B, 1, D]: 1 for the channels that are read
    gate: StepGate | None  # of the train's last steps, in training
    count_first: bool  # count the first token's spikes separately too
    sends_pulses: bool  # the train itself is read, whatever the coding reads
    ctx: ForwardContext

    @cached_property
    def theta(self) -> Tensor:
        return self.log_theta.exp()

    @property
    def operation(self) -> str:
        """See the table above."""
        if self.ctx.mode == "equilibrium":
            return "equilibrium" if torch.is_grad_enabled() else "closed_form"
        return "simulation" if self.ctx.mode == "spiking" else "clip"


@dataclass(frozen=True)
class LayerOutput:
    """A layer's spike train and measurements, the latter before the mask."""

    train: SpikeTrain
    masked: bool = False  # whether the train's value (and `rates`) have the mask in them
    counts: Tensor | None = None  # spikes on real tokens [T, B, D], or of the whole train [1, B, D]
    first_counts: Tensor | None = None  # of the first token [T, B, D] or [1, B, D]
    rates: Tensor | None = None  # [D], where the implementation computes them together with the value
    trace: tuple[Tensor, Tensor] | None = None


class LayerBackend(Protocol):
    """Another implementation of some operations, such as GPU kernels. It gives what the torch reference gives, up to
    the rounding that it documents."""

    def covers(self, call: LayerCall) -> bool:
        """Whether `run` computes this call; else the torch reference does."""

    def run(self, call: LayerCall) -> LayerOutput:
        """The layer's output for a call that is covered."""


# the last layer's spike train, the values [B, N, D] of the embedding and each layer, attention scores of each layer
Encoded = tuple[SpikeTrain, list[Tensor], list[Tensor | None]]


class Backend(Protocol):
    """Attached to a network by `SpikingBert.attach`. It gives what `SpikingBert.encode` gives, up to rounding."""

    layers: LayerBackend  # for each spiking layer of a forward that is not covered as a whole

    def covers(self, network: nn.Module, ctx: ForwardContext) -> bool:
        """Whether `run` computes this forward of `network`, a SpikingBert."""

    def run(self, network: nn.Module, input_ids: Tensor, token_type_ids: Tensor, *, ctx: ForwardContext) -> Encoded:
        """Embedding and layers of a forward that is covered; spike counts go to `ctx.record`."""
