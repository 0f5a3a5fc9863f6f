"""The kernels of a simulation against the torch code they stand for: on CUDA, and without one through Triton's
interpreter; then whole students on every backend and device.

Run as a script, this file makes the comparisons on the CPU; it needs TRITON_INTERPRET=1 from its first import on.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from interpreter import run_interpreted

from spikeprune.kernels import BACKENDS, attach, scan
from spikeprune.kernels.scan import fused_totals
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.snn.coding import CODINGS
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.equilibrium import settled_value
from spikeprune.snn.neurons import NEURONS
from spikeprune.snn.spiking_layer import SpikingLayer

KINDS = ("binary", "ternary")
LEAKS = (1.0, 0.7)
SIZES = ((2, 5, 37), (2, 16, 128), (1, 19, 140))  # B, N, D on and off the tiles
SMALL = {"hidden": 32, "layers": 2, "heads": 4, "ffn": 37, "vocab": 50, "positions": 24, "segments": 2, "classes": 3}


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def answers_of(made: SpikingLayer, way: str, size, t_steps: int, masked: bool, grad: bool, constant: bool) -> tuple:
    """Value, gradient, what readers of the same, fewer and more steps see of the spikes and of the currents, counts,
    counts of the first token."""
    generator = torch.Generator().manual_seed(t_steps)
    device, (b, n, d) = made.log_theta.device, size
    train = torch.randint(-1, 2, (t_steps + 1, b, n, d), generator=generator).float() * 0.37
    y = torch.randn(b, n, d, generator=generator)
    y, train = y.to(device).requires_grad_(grad), train.to(device)
    ctx = ForwardContext("spiking", torch.rand(b, n, generator=generator).to(device) < 0.7, count=True)
    mask = (torch.arange(d, device=device) % 3 > 0).float() if masked else None
    inputs = () if constant else (SpikeTrain(y, train),)
    with torch.set_grad_enabled(grad):
        signal = made(lambda a=y: 1.5 * a + 0.1, *inputs, t_steps=t_steps, ctx=ctx, mask=mask)
    slopes = torch.autograd.grad(signal.value.sum(), (y, made.log_theta), retain_graph=True) if grad else ()
    slopes += torch.autograd.grad(signal.driven_by.value.sum(), y) if grad else ()
    coding, shown = CODINGS[way], (signal, signal.driven_by)
    reads = [signal.driven_by.value.detach()] if grad else []
    if not coding.stationary:
        reads += [one.read(coding, t, made.leak) for one in shown for t in (t_steps, 1, t_steps + 2)]
    return signal.value.detach(), slopes, reads, ctx.record.counts["x"], ctx.record.counts["pooled"]


def compare_sites(device: str, sizes=SIZES, steps=(1, 2, 5, 16)) -> None:
    """A spiking layer under both backends: the same spikes, bit for bit; sums in another order to a few ulp."""
    flags = ((False, False, False), (True, True, False), (True, False, True))
    cases = itertools.product(CODINGS, KINDS, LEAKS, flags)
    silent = 0
    for i, (way, kind, leak, (masked, grad, constant)) in enumerate(cases):
        theta = ("channel", "tensor")[i // 2 % 2]
        size, t_steps = sizes[i % len(sizes)], steps[i % len(steps)]
        made = SpikingLayer("x", size[2], neuron=kind, leak=leak, coding=way, theta=theta).to(device)
        made.count_first = made.shows_current = True
        torch.nn.init.normal_(made.log_theta, std=0.3)
        found = []
        for made.backend in (None, BACKENDS["triton"].layers):
            found.append(answers_of(made, way, size, t_steps, masked, grad, constant))
        (value, slopes, reads, *counts), (value_, slopes_, reads_, *counts_) = found
        case = f"{way}, {kind}, leak {leak}, {theta}, {size}, T {t_steps}, {masked}, {grad}, {constant}"
        assert torch.equal(value, value_), case
        assert all(map(torch.equal, counts, counts_)), case
        silent += counts[0].sum().item() == 0  # one step, binary, threshold out of reach
        for one, other in zip((*slopes, *reads), (*slopes_, *reads_), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=lambda text, case=case: f"{case}: {text}")
    assert silent <= 3


def compare_totals(device: str) -> None:
    """The closed form with its counts: bit for bit, ties and odd values included."""
    for size, kind, t_steps, masked in itertools.product(SIZES, KINDS, (1, 3, 4, 125), (False, True)):
        x = 1.5 * torch.randn(size, device=device)
        theta = torch.rand(size[2], device=device) + 0.3
        x[0, 0] = theta * torch.linspace(-1, 1, size[2], device=device).mul(2 * t_steps).round() / (2 * t_steps)
        x[0, 1, 0] = float("inf")
        tokens = torch.rand(size[:2], device=device) < 0.7
        mask = (torch.arange(size[2], device=device) % 3 > 0).float() if masked else None
        value, counts = fused_totals(x, theta, t_steps, kind, mask, tokens)
        neuron = NEURONS[kind]
        expected, counts_ = settled_value(x, theta, t_steps, neuron, 1.0, mask, tokens)
        assert torch.equal(value, expected) and torch.equal(counts, counts_), (size, kind, t_steps, masked)
        assert fused_totals(x, theta, t_steps, kind, mask, None)[1] is None


def student_and_batch(
    coding: str, spikes: str, dtype=torch.float32, residual: str = "spikes"
) -> tuple[SpikingBert, dict[str, torch.Tensor]]:
    """A student that fires at all rates, some of it pruned, and sentences of several lengths."""
    torch.manual_seed(0)
    student = SpikingBert(**SMALL, t_steps=[2, 3, 4], coding=coding, spikes=spikes, pooling="cls", residual=residual)
    student = student.eval()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.dim() == 2 and not name.startswith("embedding"):
                parameter.mul_(2)
        student.heads[0, 1] = 0
        student.ffn[:, ::5] = 0
        mask = (torch.arange(20) < torch.tensor([20, 13, 4])[:, None]).long()
        batch = {"input_ids": torch.randint(0, 50, (3, 20)), "attention_mask": mask}
        student(**batch, mode="calibrate", percentile=90.0)
    return student.to(dtype), batch


def compare_students(devices: tuple[str, ...]) -> None:
    """One checkpoint, every backend and device: the same logits and spike counts.

    In float64 logits agree to 1e-9 and no spike differs. In float32 a current within rounding of a threshold may fire
    on one of the two only: at most one spike in 2,000, and logits within 0.05 of one another; mostly far nearer.
    """
    ways = [("accumulate", False), *((coding, True) for coding in CODINGS)]
    kinds = [*((spikes, "spikes") for spikes in KINDS), (KINDS[-1], "membrane")]
    for (coding, stepwise), (spikes, residual) in itertools.product(ways, kinds):
        student, batch = student_and_batch(coding, spikes, residual=residual)
        exact = infer(copy.deepcopy(student).double(), **batch, stepwise=stepwise)
        plain = infer(student, **batch, stepwise=stepwise)
        for device in devices:
            inputs = {name: x.to(device) for name, x in batch.items()}
            double = infer(copy.deepcopy(student).to(device, torch.float64), **inputs, stepwise=stepwise)
            torch.testing.assert_close(double.logits.cpu(), exact.logits, rtol=0, atol=1e-9)
            assert all(torch.equal(double.counts[name].cpu(), counts) for name, counts in exact.counts.items())
            for backend in ("torch", "triton"):
                other = copy.deepcopy(student).to(device)
                attach(other, backend)
                found = infer(other, **inputs, stepwise=stepwise)
                case = f"{coding}, {spikes}, residual {residual}, {backend} on {device}"
                torch.testing.assert_close(found.logits.cpu(), plain.logits, rtol=0, atol=0.05, msg=case)
                spikes_, differing = 0.0, 0.0
                for name, counts in plain.counts.items():
                    spikes_ += counts.sum().item()
                    differing += (found.counts[name].cpu() - counts).abs().sum().item()
                assert spikes_ > 100 and differing <= spikes_ / 2000, (case, differing, spikes_)


def in_the_interpreter() -> None:
    """On the CPU, where the only thing replaced is that a backend asks for CUDA."""
    torch.manual_seed(0)
    fits = scan.covers
    used = []

    def covers(like, kind, coding, mask):
        class OnCuda:
            is_cuda, dtype, numel = True, like.dtype, like.numel

        used.append(fits(OnCuda, kind, coding, mask))
        return used[-1]

    scan.covers = covers
    compare_totals("cpu")
    compare_sites("cpu")
    assert all(used)
    compare_students(("cpu",))


def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


@pytest.mark.gpu
def test_spiking_layers_on_cuda() -> None:
    torch.manual_seed(0)
    compare_totals("cuda")
    compare_sites("cuda", sizes=(*SIZES, (8, 128, 384)), steps=(1, 2, 5, 16, 64))


@pytest.mark.gpu
def test_a_checkpoint_gives_the_same_logits_everywhere() -> None:
    compare_students(("cuda",))


def test_what_is_not_covered_is_torchs() -> None:
    on_cpu = torch.ones(3)
    assert not scan.covers(on_cpu, "ternary", "accumulate", None)

    class OnCuda:
        is_cuda, dtype, numel = True, torch.float32, on_cpu.numel

    assert scan.covers(OnCuda, "ternary", "accumulate", None) and scan.covers(OnCuda, "binary", "per_step", on_cpu)
    assert not scan.covers(OnCuda, "another", "accumulate", None)
    assert not scan.covers(OnCuda, "binary", "another", None)
    assert not scan.covers(OnCuda, "binary", "per_step", on_cpu.expand(2, 1, 3))  # masks lent sample by sample
    OnCuda.dtype = torch.float64
    assert not scan.covers(OnCuda, "ternary", "accumulate", None)


if __name__ == "__main__":
    in_the_interpreter()
