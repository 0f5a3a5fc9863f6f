"""The Triton kernels against their torch references: on CUDA, and without one through Triton's interpreter.

Run as a script, this file makes the comparisons on the CPU; it needs TRITON_INTERPRET=1 from its first import on.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from interpreter import run_interpreted

from spikeprune.config.schema import Config, Run
from spikeprune.config.schema import Student as StudentConfig
from spikeprune.config.validation import problems
from spikeprune.errors import InputError
from spikeprune.experiment.build import arithmetic
from spikeprune.kernels import BACKENDS, attach, equilibrium
from spikeprune.kernels.equilibrium import KINDS, fused_equilibrium
from spikeprune.models.compaction import compact
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.variants import variant
from spikeprune.snn.call import LayerCall, LayerOutput
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.neurons import NEURONS, Equilibrium, settle
from spikeprune.snn.spiking_layer import SpikingLayer

STEPS = (1, 2, 3, 4, 7, 16, 125)
SIZES = ((1, 37), (16, 128), (17, 384), (33, 1536), (700, 37), (257, 384))  # rows and channels, on and off the tiles
SMALL = {"hidden": 32, "layers": 2, "heads": 4, "ffn": 37, "vocab": 50, "positions": 16, "segments": 2, "classes": 2}


def reference(x: torch.Tensor, theta: torch.Tensor, t_steps: int, kind: str) -> torch.Tensor:
    a = settle(x.detach(), theta.detach(), t_steps, NEURONS[kind], 1.0)
    return Equilibrium.apply(x, theta, a, NEURONS[kind].low)


def inputs(rows: int, channels: int, per_channel: bool, t_steps: int, device: str) -> tuple[torch.Tensor, ...]:
    """x in and out of range with a row that lies on the quantizer's edges, theta, and a gradient."""
    x = 1.5 * torch.randn(rows, channels, device=device)
    theta = torch.rand(channels if per_channel else 1, device=device) + 0.3
    edges = torch.linspace(-1, 1, channels, device=device).mul(2 * t_steps).round() / (2 * t_steps)
    x[0] = theta * edges
    return x, theta, torch.randn(rows, channels, device=device)


def results(function, x, theta, grad, t_steps: int, kind: str) -> tuple[torch.Tensor, ...]:
    """The answer, and the gradients to x and theta."""
    x, theta = x.clone().requires_grad_(), theta.clone().requires_grad_()
    out = function(x, theta, t_steps, kind)
    out = out[0] if isinstance(out, tuple) else out
    return (out.detach(), *torch.autograd.grad(out, (x, theta), grad))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Tells 0 from -0, unlike torch.equal."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def compare(size: tuple[int, int], kind: str, t_steps: int, per_channel: bool, device: str) -> None:
    case = f"{size}, {kind}, T = {t_steps}, {'channel' if per_channel else 'tensor'}"
    x, theta, grad = inputs(*size, per_channel, t_steps, device)
    mine = results(fused_equilibrium, x, theta, grad, t_steps, kind)
    theirs = results(reference, x, theta, grad, t_steps, kind)
    assert same_bits(mine[0], theirs[0]), f"{case}: answer"
    assert same_bits(mine[1], theirs[1]), f"{case}: gradient to x"
    r = x / theta
    terms = grad * (theirs[0] / theta - r * ((r > NEURONS[kind].low) & (r < 1)))
    bound = 1e-5 * terms.abs().sum_to_size(theta.shape) + 1e-7  # of what is summed: the sum itself may cancel
    assert ((mine[2] - theirs[2]).abs() <= bound).all(), f"{case}: gradient to theta"
    again = results(fused_equilibrium, x, theta, grad, t_steps, kind)
    assert all(same_bits(a, b) for a, b in zip(mine, again, strict=True)), f"{case}: not the same twice"


def compare_rates(size: tuple[int, int], kind: str, t_steps: int, per_channel: bool, masked: bool, device: str) -> None:
    """Values, rates and gradients of a sum of both, float32's beside float64's."""
    case = f"{size}, {kind}, T = {t_steps}, {'channel' if per_channel else 'tensor'}, {'masked' if masked else 'whole'}"
    x, theta, grad = inputs(*size, per_channel, t_steps, device)
    shares, slope = torch.rand(size[0], device=device) / size[0], torch.randn(size[1], device=device)
    shares[::3] = 0  # padding
    mask = (torch.arange(size[1], device=device) % 3 > 0).float() if masked else None
    a, b = (tensor.clone().requires_grad_() for tensor in (x, theta))
    value, rate = fused_equilibrium(a, b, t_steps, kind, mask, shares)
    mine = torch.autograd.grad((value * grad).sum() + (rate * slope).sum(), (a, b))
    settled = settle(x, theta, t_steps, NEURONS[kind], 1.0).double()
    a, b = (tensor.double().requires_grad_() for tensor in (x, theta))
    wanted = Equilibrium.apply(a, b, settled, NEURONS[kind].low) * (1 if mask is None else mask)
    rates = (wanted.abs() * shares[:, None]).sum(0) / b
    theirs = torch.autograd.grad((wanted * grad).sum() + (rates * slope).sum(), (a, b))
    assert same_bits(value, fused_equilibrium(x, theta, t_steps, kind)[0] * (1 if mask is None else mask)), case
    close = {"rtol": 1e-4, "atol": 1e-5 * size[0] ** 0.5}
    for found, exact in zip((rate, *mine), (rates, *theirs), strict=True):
        torch.testing.assert_close(found.double(), exact, **close, msg=lambda text: f"{case}: {text}")
    assert not masked or (rate[mask == 0] == 0).all() and (mine[0][:, mask == 0] == 0).all(), case


def compare_odd_values(device: str) -> None:
    """Infinities, NaN and the smallest numbers; a view that is not contiguous; three axes."""
    tiny = torch.finfo(torch.float32).smallest_normal / 4
    x = torch.tensor([0.0, -0.0, tiny, -tiny, float("inf"), -float("inf"), float("nan"), 1e30], device=device)
    for kind in KINDS:
        theta, grad = torch.full((1,), 0.7, device=device), torch.ones(1, 8, device=device)
        mine = results(fused_equilibrium, x[None], theta, grad, 3, kind)
        theirs = results(reference, x[None], theta, grad, 3, kind)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        y, theta = torch.randn(37, 3, 5, device=device).permute(1, 2, 0), torch.rand(37, device=device) + 0.3
        grad = torch.ones(1, device=device).expand(3, 5, 37)
        mine, theirs = (results(f, y, theta, grad, 4, kind) for f in (fused_equilibrium, reference))
        assert mine[0].shape == y.shape and same_bits(mine[0], theirs[0]) and same_bits(mine[1], theirs[1])


def compare_site(device: str) -> None:
    """A spiking layer and a student agree under both, gradients of log(theta) included."""
    made = SpikingLayer("x", 37, neuron="ternary", leak=1.0, coding="accumulate", theta="channel").to(device)
    x = torch.randn(2, 5, 37, device=device)
    tokens = torch.tensor([[True] * 5, [True] * 2 + [False] * 3], device=device)
    mask = (torch.arange(37, device=device) % 4 > 0).float()
    for rate, kept in itertools.product((False, True), (None, mask, mask.expand(2, 1, 37))):
        answers, slopes = [], []
        for made.backend in (None, BACKENDS["triton"].layers):
            made.zero_grad()
            ctx = ForwardContext("equilibrium", tokens, rate=rate)
            answers.append(made(lambda: x, t_steps=4, ctx=ctx, mask=kept).value)
            (answers[-1].square().sum() + sum((rate**2).sum() for rate in ctx.record.rates.values())).backward()
            slopes.append((made.log_theta.grad.clone(), *ctx.record.rates.values()))
        fused = kept is None or kept.dim() == 1  # a mask for each sample is torch's
        assert (type(answers[1].grad_fn).__name__ == "FusedEquilibriumBackward") == fused
        assert same_bits(*answers)
        torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-5)
    student = SpikingBert(**SMALL, t_steps=3).to(device).eval()
    ids, mask = torch.randint(0, 50, (2, 9), device=device), torch.ones(2, 9, dtype=torch.long, device=device)
    plain = student(ids, mask).logits
    attach(student, "triton")
    assert same_bits(student(ids, mask).logits, plain)


def in_the_interpreter() -> None:
    """On the CPU, where the only thing replaced is that the backend asks for CUDA."""
    torch.manual_seed(0)
    for kind, t_steps, per_channel in itertools.product(KINDS, STEPS, (True, False)):
        compare((1 + 7 * t_steps % 40, 37), kind, t_steps, per_channel, "cpu")
    for size, kind in itertools.product(SIZES, KINDS):
        compare(size, kind, 3, True, "cpu")
    for size, kind, per_channel, masked in itertools.product(SIZES[:3], KINDS, (True, False), (True, False)):
        compare_rates(size, kind, 3, per_channel, masked, "cpu")
    compare_odd_values("cpu")
    equilibrium.covers = lambda x, kind, leak: leak == 1.0
    compare_site("cpu")
    equilibrium.divides = lambda device: False  # as on CUDA: times the reciprocal
    x, theta, _ = inputs(5, 37, True, 41, "cpu")
    for kind in KINDS:
        expected = theta * (NEURONS[kind].settled(x / theta, 41) * torch.tensor(1 / 41, dtype=torch.float32))
        assert same_bits(fused_equilibrium(x, theta, 41, kind)[0], expected)


def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


@pytest.mark.gpu
@pytest.mark.parametrize("t_steps", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_on_cuda(kind: str, t_steps: int) -> None:
    torch.manual_seed(t_steps)
    for size, per_channel in itertools.product(SIZES, (True, False)):
        compare(size, kind, t_steps, per_channel, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_rates_on_cuda(kind: str, masked: bool) -> None:
    torch.manual_seed(3)
    for size, t_steps, per_channel in itertools.product(SIZES, (1, 2, 4), (True, False)):
        compare_rates(size, kind, t_steps, per_channel, masked, "cuda")


@pytest.mark.gpu
def test_odd_values_layers_and_students_on_cuda() -> None:
    torch.manual_seed(0)
    compare_odd_values("cuda")
    compare_site("cuda")


@pytest.mark.gpu
def test_half_precision_around_it_on_cuda() -> None:
    torch.manual_seed(0)
    student = SpikingBert(**SMALL, t_steps=3).cuda()
    attach(student, "triton")
    ids, mask = torch.randint(0, 50, (2, 9), device="cuda"), torch.ones(2, 9, dtype=torch.long, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        outputs = student(ids, mask)
    outputs.logits.float().square().sum().backward()
    assert all(hidden.dtype == torch.float32 for hidden in outputs.hidden)
    assert all(s.log_theta.grad.isfinite().all() for s in student.spiking_layers().values())


def test_what_is_not_covered_is_torchs() -> None:
    x = torch.randn(2, 5, 3)
    ctx = ForwardContext("equilibrium", torch.ones(2, 5, dtype=torch.bool))
    made = SpikingLayer("x", 3, neuron="binary", leak=0.9, coding="accumulate", theta="channel")
    made.backend = BACKENDS["triton"].layers
    expected = made.theta * settle(x, made.theta, 4, NEURONS["binary"], 0.9)
    assert torch.equal(made(lambda: x, t_steps=4, ctx=ctx).value, expected)
    assert not equilibrium.covers(x, "ternary", 1.0)  # the CPU


def test_a_backend_is_attached_copied_and_not_saved() -> None:
    student = SpikingBert(**SMALL, t_steps=3)
    before = student.state_dict()
    assert student.backend is None
    attach(student, "triton")
    triton, layers = BACKENDS["triton"], BACKENDS["triton"].layers
    for made in (student, compact(student), variant(student, dead_zone=True), copy.deepcopy(student)):
        assert made.backend == triton and all(layer.backend == layers for layer in made.spiking_layers().values())
    assert student.state_dict().keys() == before.keys() and SpikingBert(**student.values).backend is None
    attach(student, "torch")
    assert student.backend is None and all(layer.backend is None for layer in student.spiking_layers().values())


class Halved:
    """A backend of one operation, which is no kernel."""

    def covers(self, call: LayerCall) -> bool:
        return call.operation == "clip"

    def run(self, call: LayerCall) -> LayerOutput:
        return LayerOutput(SpikeTrain(call.drive.mean / 2), rates=torch.full_like(call.theta, 0.3))


@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_computes_with_what_its_backend_covers(masked: bool) -> None:
    """The interface that is promised: values are masked and rates recorded by the layer; the rest is the reference."""
    made = SpikingLayer("x", 3, neuron="ternary", leak=1.0, coding="accumulate", theta="channel")
    made.backend, y, mask = Halved(), torch.randn(2, 5, 3), torch.tensor([1.0, 0.0, 1.0])
    clipped, settled = (ForwardContext(mode, torch.ones(2, 5).bool(), rate=True) for mode in ("clip", "equilibrium"))
    options = {"t_steps": 4, "mask": mask if masked else None}
    kept = mask if masked else torch.ones(3)
    assert torch.equal(made(lambda: y, ctx=clipped, **options).value, y / 2 * kept)
    assert torch.equal(clipped.record.rates["x"], 0.3 * kept)
    wanted = made.theta * settle(y, made.theta, 4, NEURONS["ternary"], 1.0) * kept
    assert torch.equal(made(lambda: y, ctx=settled, **options).value, wanted)


def test_the_configuration_decides(monkeypatch) -> None:
    def resolved(**keys) -> str:
        leak = keys.pop("leak", 1.0)
        return arithmetic.kernels(Config(run=Run(**keys), student=StudentConfig(leak=leak)))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(equilibrium, "INSTALLED", True)
    assert resolved() == resolved(kernels="triton") == "triton"
    assert resolved(kernels="torch") == resolved(accelerator="cpu") == "torch"
    assert resolved(leak=0.9) == resolved(precision="64-true") == "torch"
    monkeypatch.setattr(equilibrium, "INSTALLED", False)
    assert resolved() == "torch"
    with pytest.raises(InputError, match="run.kernels = triton: needs the package triton, which"):
        resolved(kernels="triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolved() == "torch"
    with pytest.raises(InputError, match="run.kernels = triton: needs a CUDA device, which"):
        resolved(kernels="triton")
    found = problems(Config(run=Run(kernels="triton", accelerator="cpu")))
    assert any(text.startswith("run.kernels = triton: needs a GPU") for _, text in found)


if __name__ == "__main__":
    in_the_interpreter()
