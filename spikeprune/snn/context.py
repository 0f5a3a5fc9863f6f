"""What flows through a network of spiking sites: the signals that they send on, and the pass that asks for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from spikeprune.errors import known
from spikeprune.snn.coding import Coding, hold

# equilibrium: closed form | spiking: step by step | calibrate: sets theta, then clips | clip: as for T -> infinity
MODES = ("equilibrium", "spiking", "calibrate", "clip")


@dataclass
class SpikeTrain:
    """What a site sends on. `value [B, N, D]` is `theta * ASR` and carries the gradient; `pulses [T, B, N, D]` are
    `theta * s[t]`, kept only where a synchronous coding reads them, and not where a kernel made the running `means` of
    them at once."""

    value: Tensor
    pulses: Tensor | None = None
    gain: Tensor | None = None  # [B, N, D] by which a neuron with a gain has multiplied theta
    means: Tensor | None = None
    driven_by: SpikeTrain | None = (
        None  # what f gave its neurons, read in place of their spikes (see `SpikingLayer.shows_current`)
    )
    seen: dict[int, Tensor] = field(default_factory=dict)

    def read(self, coding: Coding, t_steps: int, leak: float) -> Tensor:
        """What a reader of `t_steps` sees of the train. The readers of a signal share it."""
        if t_steps not in self.seen:
            means = self.means
            self.seen[t_steps] = (
                coding.read(self.pulses, t_steps, leak) if means is None else hold(means, lambda: means[-1], t_steps)
            )
        return self.seen[t_steps]

    def asr(self, theta: Tensor) -> Tensor:
        """`value` in spikes a step, of neurons with this theta."""
        return self.value / theta if self.gain is None else self.value / (theta * self.gain)


@dataclass
class ForwardContext:
    """One forward pass: how the sites answer, and what they leave behind under their names."""

    mode: str  # one of MODES
    tokens: Tensor  # [B, N] bool, True where a token is no padding
    count: bool = False  # leave spike counts (spiking mode; equilibrium mode: of each train in all)
    rate: bool = False  # leave differentiable mean rates
    trace: bool = False  # leave how fast each ASR settles (spiking mode)
    scores: bool = True  # attention scores are wanted; without them attention need not write them
    pulses: bool = False  # the last layer's train is wanted
    percentile: float = 99.0  # calibrate: of a channel's activation, where theta is put
    deaden: float | None = None  # spiking: percentile of each site's currents at which its dead zone is put to end
    settled: float | None = None  # spiking, accumulate: a sample's train ends once its ASR changes by less than this
    counts: dict[str, Tensor] = field(default_factory=dict)  # site -> spikes on real tokens [T, B, D] or [1, B, D]
    rates: dict[str, Tensor] = field(default_factory=dict)  # site -> mean |ASR| over real tokens [D]
    traces: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # see `simulation.settling`
    stops: dict[str, Tensor] = field(default_factory=dict)  # with `settled`: site -> steps that each sample took [B]

    def __post_init__(self):
        known("mode", self.mode, MODES)

    @cached_property
    def n_tokens(self) -> Tensor:
        """Real tokens of the batch, scalar."""
        return self.tokens.sum()

    @cached_property
    def shares(self) -> Tensor:
        """Each real token's share of the batch `[B, N]`, 0 for padding: what a mean over tokens weights it with."""
        return self.tokens / self.n_tokens
