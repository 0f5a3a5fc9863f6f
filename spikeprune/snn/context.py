"""What a network of spiking layers hands around: spike trains, the settings of one forward, and what it records."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from spikeprune.errors import known
from spikeprune.snn.coding import Coding, extended

# equilibrium: closed form | spiking: step by step | calibrate: sets theta, then clips | clip: as for T -> infinity
MODES = ("equilibrium", "spiking", "calibrate", "clip")


@dataclass
class SpikeTrain:
    """The output of a spiking layer.

    `value [B, N, D]` is `theta * ASR` and carries the gradient. `pulses [T, B, N, D]` are `theta * s[t]`; they are kept
    only where a synchronous coding reads them. A backend may give their running `means [T, B, N, D]` instead.
    """

    value: Tensor
    pulses: Tensor | None = None
    gain: Tensor | None = None  # [B, N, D] by which an adaptive threshold multiplied theta
    means: Tensor | None = None
    driven_by: SpikeTrain | None = None  # the layer's input current, which a membrane shortcut reads instead of spikes
    seen: dict[int, Tensor] = field(default_factory=dict)  # cache of `read`

    def read(self, coding: Coding, t_steps: int, leak: float) -> Tensor:
        """What a reader that runs for `t_steps` sees of the train, `[t_steps, B, N, D]`. All readers share it."""
        if t_steps not in self.seen:
            means = self.means
            self.seen[t_steps] = (
                coding.read(self.pulses, t_steps, leak)
                if means is None
                else extended(means, lambda: means[-1], t_steps)
            )
        return self.seen[t_steps]

    def asr(self, theta: Tensor) -> Tensor:
        """`value` in spikes per step, of neurons with this theta."""
        return self.value / theta if self.gain is None else self.value / (theta * self.gain)


@dataclass
class Recorder:
    """What the spiking layers of one forward measure, under their names."""

    counts: dict[str, Tensor] = field(default_factory=dict)  # spikes on real tokens, [T, B, D] or [1, B, D]
    rates: dict[str, Tensor] = field(default_factory=dict)  # mean |ASR| over real tokens, differentiable [D]
    traces: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # see `simulation.settling`

    def add(
        self,
        name: str,
        *,
        counts: Tensor | None = None,
        first_counts: Tensor | None = None,
        rates: Tensor | None = None,
        trace: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Record the measurements of layer `name`; None is no measurement. The spikes of the first token, [CLS], go
        under the name `pooled`: only the last layer counts them."""
        if counts is not None:
            self.counts[name] = counts
        if first_counts is not None:
            self.counts["pooled"] = first_counts
        if rates is not None:
            self.rates[name] = rates
        if trace is not None:
            self.traces[name] = trace


@dataclass
class ForwardContext:
    """The settings of one forward, shared by all layers, and the recorder of what they measure."""

    mode: str  # one of MODES
    tokens: Tensor  # [B, N] bool, False on padding
    count: bool = False  # record spike counts (spiking mode; equilibrium mode: of each whole train)
    rate: bool = False  # record differentiable mean rates
    trace: bool = False  # record how fast each ASR settles (spiking mode)
    scores: bool = True  # return attention scores; without them attention may be fused
    pulses: bool = False  # return the last layer's spike train
    percentile: float = 99.0  # calibrate: theta is this percentile of a channel's activation
    dead_zone_percentile: float | None = None  # spiking: each dead zone ends at this percentile of its layer's currents
    record: Recorder = field(default_factory=Recorder)

    def __post_init__(self):
        known("mode", self.mode, MODES)

    @cached_property
    def padding(self) -> Tensor:
        """What is added to attention scores, `[B, 1, 1, N]`: 0 for a real token as a key, -inf for padding."""
        return torch.zeros_like(self.tokens, dtype=torch.float32).masked_fill(~self.tokens, -torch.inf)[:, None, None]

    @cached_property
    def n_tokens(self) -> Tensor:
        """Real tokens of the batch, scalar."""
        return self.tokens.sum()

    @cached_property
    def shares(self) -> Tensor:
        """Weights of a mean over the batch's real tokens, `[B, N]`; 0 on padding."""
        return self.tokens / self.n_tokens
