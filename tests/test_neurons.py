"""Spike trains by hand, the closed form against stepping, and the gradient against finite differences."""

from __future__ import annotations

import pytest
import torch

from spikeprune.snn.neurons import NEURONS, Equilibrium, asr, leak_weights, settle, steps

F64 = torch.float64


def stepped(kind: str, x: torch.Tensor, theta: torch.Tensor, leak: float) -> torch.Tensor:
    """Spikes `[T, ...]` for the currents `x [T, ...]`."""
    return torch.stack(list(steps(x, theta, NEURONS[kind], leak)))


def by_formula(kind: str, currents: list[float], theta: float, leak: float) -> tuple[list[int], float]:
    """The same with plain numbers: spikes, and the membrane that is left."""
    u, fired = (theta / 2 if kind == "binary" else 0.0), []
    for x in currents:
        u = leak * u + x
        if kind == "binary":
            s = 1 if u >= theta else 0
        else:
            s = 1 if u >= theta / 2 else -1 if u <= -theta / 2 else 0
        u -= theta * s
        fired.append(s)
    return fired, u


# Dyadic numbers, so that every sum is exact and a membrane may land on the threshold itself. Theta is 1.
TRAINS = [
    # u: .875, 1.25 → .25, .625, 1 (equal fires) → 0, .375
    ("binary", 1.0, [0.375] * 5, [0, 1, 0, 1, 0]),
    # a debt is paid back first; u: .25, 0, .5, 1 → 0, .5
    ("binary", 1.0, [-0.25, -0.25, 0.5, 0.5, 0.5], [0, 0, 0, 1, 0]),
    # soft reset keeps what is above theta; u: 2 → 1, 2.5 → 1.5, 1.5 → .5, .5
    ("binary", 1.0, [1.5, 1.5, 0, 0], [1, 1, 1, 0]),
    # u: .25 + .75 → 0, 0 + .75, .375 + .75 → .125, .0625 + .75
    ("binary", 0.5, [0.75] * 4, [1, 0, 1, 0]),
    # u: -.375, -.75 → .25, -.125, -.5 (equal fires) → .5, .125
    ("ternary", 1.0, [-0.375] * 5, [0, -1, 0, -1, 0]),
    # u: .75 → -.25, -.75 → .25, .5 → -.5, -.25
    ("ternary", 1.0, [0.75, -0.5, 0.25, 0.25], [1, -1, 1, 0]),
    # u: .375, .1875 + .375 → -.4375, -.21875 + .375, .078125 + .375
    ("ternary", 0.5, [0.375] * 4, [0, 1, 0, 0]),
]


@pytest.mark.parametrize(("kind", "leak", "currents", "spikes"), TRAINS)
@pytest.mark.parametrize("theta", [1.0, 4.0])
def test_spike_trains_by_hand(kind, leak, currents, spikes, theta) -> None:
    x = theta * torch.tensor(currents, dtype=F64)[:, None]
    assert stepped(kind, x, torch.tensor([theta], dtype=F64), leak).flatten().tolist() == spikes
    assert by_formula(kind, (theta * torch.tensor(currents)).tolist(), theta, leak)[0] == spikes


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("leak", [1.0, 0.75])
def test_contract(kind, leak) -> None:
    """What every neuron of the registry promises, also one that somebody adds."""
    neuron, generator = NEURONS[kind], torch.Generator().manual_seed(1)
    x = 3 * torch.randn(9, 4, 7, generator=generator, dtype=F64)
    theta = 0.5 + torch.rand(7, generator=generator, dtype=F64)
    spikes = stepped(kind, x, theta, leak)
    allowed = {0.0, 1.0} if neuron.low == 0 else {-1.0, 0.0, 1.0}
    assert spikes.shape == x.shape and spikes.dtype == F64
    assert set(spikes.unique().tolist()) == allowed  # each of them occurs
    rates = asr(spikes, leak)
    assert rates.shape == (4, 7) and neuron.low <= rates.min() and rates.max() <= 1
    s, u = neuron.step(x[0], torch.zeros_like(x[0]), theta, leak)
    assert s.shape == u.shape == x[0].shape
    torch.testing.assert_close(u, x[0] - theta * s)  # what is not sent stays
    assert settle(-5 * theta, theta, 6, neuron, leak).eq(neuron.low).all()
    assert settle(5 * theta, theta, 6, neuron, leak).eq(1).all()


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("leak", [1.0, 0.5])
def test_all_shapes_of_theta_give_the_same_train(kind, leak) -> None:
    x = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(2))
    tensor, channel = torch.tensor([0.75]), torch.full((7,), 0.75)
    assert torch.equal(stepped(kind, x, tensor, leak), stepped(kind, x, channel, leak))


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("t_steps", range(1, 18))
def test_the_closed_form_equals_stepping(kind, t_steps) -> None:
    generator = torch.Generator().manual_seed(t_steps)
    n = (4 * torch.rand(500, generator=generator, dtype=F64) - 2) * t_steps  # T x / theta, in and out of range
    n = n.where(((n + 0.5) % 1 - 0.5).abs() < 0.499, n + 0.1)  # no ties: there rounding errors decide
    theta = 0.5 + torch.rand(500, generator=generator, dtype=F64)
    x = n * theta / t_steps
    wanted = asr(stepped(kind, x.expand(t_steps, -1), theta, 1.0))
    found = settle(x, theta, t_steps, NEURONS[kind], 1.0)
    assert torch.equal((found * t_steps).round(), (wanted * t_steps).round())
    torch.testing.assert_close(found, wanted)
    without = NEURONS[kind]._replace(settled=None)
    torch.testing.assert_close(settle(x, theta, t_steps, without, 1.0), wanted)
    assert found.abs().max() == 1 and (found == NEURONS[kind].low).any()


@pytest.mark.parametrize("kind", NEURONS)
def test_ties_of_the_closed_form(kind) -> None:
    """At half a spike the neuron still fires, and it counts halves away from zero."""
    x = torch.tensor([0.125, 0.375, -0.125, 2.0], dtype=F64)  # 1/2, 3/2, -1/2 spikes in 4 steps
    one = torch.ones(1, dtype=F64)
    assert torch.equal(settle(x, one, 4, NEURONS[kind], 1.0), asr(stepped(kind, x.expand(4, -1), one, 1.0)))


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("leak", [0.5, 0.9])
@pytest.mark.parametrize("t_steps", [1, 2, 7])
def test_a_leaky_neuron_settles_at_its_formula(kind, leak, t_steps) -> None:
    x = (4 * torch.rand(60, generator=torch.Generator().manual_seed(3), dtype=F64) - 2).tolist()
    weights = [leak ** (t_steps - t) for t in range(1, t_steps + 1)]
    wanted = []
    for value in x:
        fired, _ = by_formula(kind, [value] * t_steps, 0.8, leak)
        wanted.append(sum(w * s for w, s in zip(weights, fired, strict=True)) / sum(weights))
    found = settle(torch.tensor(x, dtype=F64), torch.tensor([0.8], dtype=F64), t_steps, NEURONS[kind], leak)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=F64))


def test_asr_by_hand() -> None:
    spikes = torch.tensor([[1.0, 0.0], [0.0, -1.0], [1.0, 1.0]])
    assert leak_weights(3, 0.5).tolist() == [0.25, 0.5, 1.0]
    assert asr(spikes).tolist() == pytest.approx([2 / 3, 0.0])
    assert asr(spikes, 0.5).tolist() == pytest.approx([1.25 / 1.75, 0.5 / 1.75])


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("leak", [1.0, 0.8])
def test_what_a_neuron_sends_is_its_mean_input_but_for_the_membrane(kind, leak) -> None:
    """theta * asr = mean input + (leak^T u[0] - u[T]) / sum of weights: no current is lost or made."""
    t_steps, theta = 11, 0.7
    x = (2 * torch.rand(t_steps, generator=torch.Generator().manual_seed(4), dtype=F64) - 0.7).tolist()
    fired, left = by_formula(kind, x, theta, leak)
    weights = leak_weights(t_steps, leak)
    spikes = stepped(kind, torch.tensor(x, dtype=F64)[:, None], torch.tensor([theta], dtype=F64), leak)
    assert spikes.flatten().tolist() == fired
    start = NEURONS[kind].start * theta
    mean = (weights * torch.tensor(x, dtype=F64)).sum() / weights.sum()
    wanted = mean + (leak**t_steps * start - left) / weights.sum()
    torch.testing.assert_close(theta * asr(spikes, leak)[0], wanted)


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_gradient_is_that_of_the_clip(kind, per_channel) -> None:
    low, generator = NEURONS[kind].low, torch.Generator().manual_seed(5)
    x = (4 * torch.rand(3, 5, generator=generator, dtype=F64) - 2).requires_grad_()
    theta = (0.5 + torch.rand(5 if per_channel else 1, generator=generator, dtype=F64)).requires_grad_()
    rate = (x / theta).detach()
    assert (rate < low).any() and (rate > 1).any() and ((rate > low) & (rate < 1)).any()

    def spike(x, theta):
        return Equilibrium.apply(x, theta, (x / theta).detach().clamp(low, 1), low)

    assert torch.autograd.gradcheck(spike, (x, theta))


@pytest.mark.parametrize(
    ("x", "a", "low", "to_x", "to_theta"),
    [
        (1.2, 0.5, 0.0, 3.0, 3 * (0.5 - 0.6)),  # inside: the rounding error, as in LSQ
        (-0.8, -0.5, -1.0, 3.0, 3 * (-0.5 + 0.4)),
        (2.6, 1.0, 0.0, 0.0, 3.0),  # above: theta is the output itself
        (-0.8, 0.0, 0.0, 0.0, 0.0),  # below a binary neuron's range: silent
        (-2.6, -1.0, -1.0, 0.0, -3.0),
    ],
)
def test_the_gradient_of_theta_by_hand(x, a, low, to_x, to_theta) -> None:
    x, theta = (torch.tensor([value], dtype=F64, requires_grad=True) for value in (x, 2.0))
    y = Equilibrium.apply(x, theta, torch.tensor([a], dtype=F64), low)
    assert y.item() == 2 * a
    (3 * y).backward()
    assert (x.grad.item(), theta.grad.item()) == pytest.approx((to_x, to_theta))
