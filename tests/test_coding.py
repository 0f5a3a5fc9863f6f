"""What each coding lets a non-linear step see, and what it makes of the answers."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spikeprune.models.modeling import SpikingBert
from spikeprune.snn.coding import CODINGS

F64 = torch.float64
LEAKS = (1.0, 0.5)
SYNCHRONOUS = [name for name, coding in CODINGS.items() if not coding.stationary]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mean(x: torch.Tensor, leak: float) -> torch.Tensor:
    """Leak-weighted mean of `x [t, ...]`: the last entry weighs 1, the one before it `leak`, …"""
    weights = torch.tensor([leak ** (len(x) - 1 - i) for i in range(len(x))], dtype=x.dtype)
    return sum(w * row for w, row in zip(weights, x, strict=True)) / weights.sum()


@pytest.mark.parametrize("name", CODINGS)
@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("t_steps", [1, 2, 5, 8])
def test_contract(name, leak, t_steps) -> None:
    """What every coding of the registry promises, also one that somebody adds."""
    coding, pulses = CODINGS[name], random(5, 2, 7)
    level = pulses[0]
    if coding.stationary:
        current = coding.drive(level[None], t_steps, leak)
    else:
        seen = coding.read(pulses, t_steps, leak)
        assert seen.shape == (t_steps, 2, 7) and seen.dtype == F64
        assert coding.read(pulses.float(), t_steps, leak).dtype == torch.float32
        # a source that always sends the same is seen as that, however long it lasts
        torch.testing.assert_close(coding.read(level.expand(5, 2, 7), t_steps, leak), level.expand(t_steps, 2, 7))
        current = coding.drive(level.expand(t_steps, 2, 7), t_steps, leak)
    assert current.shape == (t_steps, 2, 7) and current.dtype == F64
    torch.testing.assert_close(mean(current, leak), level)  # an answer that stays is the mean current


@pytest.mark.parametrize("leak", LEAKS)
def test_running_mean_sees_the_mean_so_far(leak) -> None:
    pulses = random(6, 3)
    seen = CODINGS["running_mean"].read(pulses, 6, leak)
    for t in range(1, 7):
        torch.testing.assert_close(seen[t - 1], mean(pulses[:t], leak))


@pytest.mark.parametrize("leak", LEAKS)
def test_running_mean_has_sent_f_of_what_it_saw_at_any_time(leak) -> None:
    pulses = random(6, 3)
    seen = CODINGS["running_mean"].read(pulses, 6, leak)
    current = CODINGS["running_mean"].drive(torch.tanh(seen) + 1, 6, leak)
    for t in range(1, 7):
        torch.testing.assert_close(mean(current[:t], leak), torch.tanh(mean(pulses[:t], leak)) + 1)


def test_running_mean_by_hand() -> None:
    coding = CODINGS["running_mean"]
    pulses = torch.tensor([2.0, 0.0, 0.0, 2.0], dtype=F64)
    assert coding.read(pulses, 4, 1.0).tolist() == pytest.approx([2, 1, 2 / 3, 1])
    # squared: 4, 1, 4/9, 1; times t: 4, 2, 4/3, 4
    assert coding.drive(coding.read(pulses, 4, 1.0) ** 2, 4, 1.0).tolist() == pytest.approx([4, -2, -2 / 3, 8 / 3])
    # leak 1/2: sums 2, 1, 1/2, 9/4 over 1, 3/2, 7/4, 15/8
    assert coding.read(pulses, 4, 0.5).tolist() == pytest.approx([2, 2 / 3, 2 / 7, 6 / 5])


@pytest.mark.parametrize("name", SYNCHRONOUS)
@pytest.mark.parametrize("leak", LEAKS)
def test_the_identity_passes_every_pulse_on(name, leak) -> None:
    """Between two linear steps nothing is smeared: f(x) = x gives the pulses themselves as currents."""
    coding, pulses = CODINGS[name], random(7, 3)
    torch.testing.assert_close(coding.drive(coding.read(pulses, 7, leak), 7, leak), pulses)


@pytest.mark.parametrize("leak", LEAKS)
def test_per_step_reads_this_step_and_emits_its_current(leak) -> None:
    pulses = random(6, 3)
    assert torch.equal(CODINGS["per_step"].read(pulses, 6, leak), pulses)
    assert torch.equal(CODINGS["per_step"].drive(pulses, 6, leak), pulses)


@pytest.mark.parametrize("name", SYNCHRONOUS)
@pytest.mark.parametrize("leak", LEAKS)
def test_a_reader_that_outlives_its_source_holds_the_mean(name, leak) -> None:
    coding, pulses = CODINGS[name], random(4, 3)
    seen = coding.read(pulses, 7, leak)
    assert torch.equal(seen[:4], coding.read(pulses, 4, leak))
    torch.testing.assert_close(seen[4:], mean(pulses, leak).expand(3, 3))


@pytest.mark.parametrize("name", SYNCHRONOUS)
@pytest.mark.parametrize("leak", LEAKS)
def test_a_reader_that_ends_first_does_not_see_the_rest(name, leak) -> None:
    coding, pulses = CODINGS[name], random(7, 3)
    changed = pulses.clone()
    changed[3:] = 9.0
    assert torch.equal(coding.read(pulses, 3, leak), coding.read(changed, 3, leak))
    assert torch.equal(coding.read(pulses, 3, leak), coding.read(pulses[:3], 3, leak))


class OneDevice(TorchDispatchMode):
    """Refuses operations between devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.dim()}  # a number may come from the host
        assert len(devices) < 2, f"{func} between {devices}"
        return out


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("mode", ["spiking", "equilibrium"])
@pytest.mark.parametrize("t_steps", [[3, 3, 3], [3, 2, 1], [1, 2, 3]], ids=str)
def test_a_training_step_can_be_captured(coding, mode, t_steps, monkeypatch) -> None:
    """A CUDA graph holds no copy from the host and reads no value back. A device without data knows both."""
    sizes = {"vocab": 9, "positions": 8, "segments": 2, "hidden": 12, "layers": 2, "heads": 3, "ffn": 16, "classes": 2}
    student = SpikingBert(**sizes, t_steps=t_steps, coding=coding, leak=0.9).to("meta").train()
    monkeypatch.setattr(SpikingBert, "steps", t_steps)  # which a captured step has read before
    ids = torch.zeros(2, 5, dtype=torch.long, device="meta")
    with OneDevice():
        outputs = student(ids, torch.ones_like(ids), torch.zeros_like(ids), mode=mode, rate=True)
        (outputs.logits.sum() + sum(hidden.sum() for hidden in outputs.hidden)).backward()
