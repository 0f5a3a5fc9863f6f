"""Thresholds that follow the input: theta times a gain, which neurons of some kinds take from their current
(`Neuron.gain`, such as `neurons.rms_gain`).

Firing on a current x with threshold `g theta` is firing on `x / g` with threshold theta, and sending g times as much:
so a layer divides its current by the gain, fires, and multiplies its spike train by it. The synchronous codings take
the gain of each step.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from spikeprune.snn.call import Drive
from spikeprune.snn.coding import Coding
from spikeprune.snn.context import SpikeTrain
from spikeprune.snn.neurons import asr


def gains_of(drive: Drive, gain: Callable[..., Tensor], groups: int, alive: Tensor | None) -> Drive:
    """The gain of each current, shaped as the currents are. It is taken over each of `groups` parts of the channels;
    over one part, only of the `alive` ones (a head is pruned with all of its group)."""
    alive = alive if groups == 1 else None
    mean = None if drive.mean is None else gain(drive.mean, groups, alive)
    return Drive(mean, None if drive.steps is None else gain(drive.steps, groups, alive))


def in_units_of(drive: Drive, gains: Drive) -> Drive:
    """The current divided by its gain."""
    mean = None if drive.mean is None else drive.mean / gains.mean
    return Drive(mean, None if drive.steps is None else drive.steps / gains.steps)


def times_gain(train: SpikeTrain, gains: Drive, coding: Coding, leak: float) -> SpikeTrain:
    """The spike train in the units of the current again. Of pulses the value is their mean, with the value's gradient:
    a mean of products is not the product of the means."""
    if train.pulses is None or coding.stationary:
        return SpikeTrain(train.value * gains.mean, train.pulses, gains.mean)
    at_steps = gains.mean if gains.steps is None else gains.steps
    pulses = train.pulses * at_steps.detach()
    mean = asr(pulses, leak)
    if gains.mean is None:
        return SpikeTrain(mean, pulses, at_steps[-1])
    value = train.value * gains.mean
    return SpikeTrain(value + (mean - value).detach(), pulses, gains.mean)
