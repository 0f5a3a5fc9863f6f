"""The fused encoder against the torch code that it replaces: fixed-point weights, each kernel, and whole students.

Run as a script, this file makes the comparisons on the CPU; it needs TRITON_INTERPRET=1 from its first import on.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from interpreter import run_interpreted
from torch.nn.functional import gelu

from spikeprune.kernels import attach, encoder, norm_attention, split_integer
from spikeprune.kernels import firing as firing_kernels
from spikeprune.kernels.equilibrium import INSTALLED
from spikeprune.kernels.firing import CLOSED, GELU, PER_STEP, RUNNING, Firing
from spikeprune.models.compaction import compact
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.snn.coding import drive_running_mean
from spikeprune.snn.context import ForwardContext
from spikeprune.snn.equilibrium import tokens_sum
from spikeprune.snn.neurons import NEURONS, leak_weights, steps

if INSTALLED:
    import triton
    import triton.language as tl

    @triton.jit
    def gelu_of(x, y, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(y + at, firing_kernels.gelu(tl.load(x + at)))


CODINGS = ("accumulate", *encoder.MODES)
KINDS = ("binary", "ternary")
SMALL = {"hidden": 64, "layers": 2, "heads": 4, "ffn": 100, "vocab": 50, "positions": 24, "segments": 2, "classes": 3}


@pytest.mark.parametrize("most", [1, 127])
def test_split_integers_are_a_weight_to_its_rows_24_bits(most) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(70, 300, generator=generator) * torch.logspace(-6, 3, 70)[:, None]
    w[3], w[4, :5] = 0, 0
    made = split_integer.split(w, None, most)
    assert made.codes.shape == (3, 128, 320) and made.codes.dtype == torch.int8
    whole = (made.codes.double() * torch.tensor([65536.0, 256.0, 1.0])[:, None, None]).sum(0) * made.scale[:, None]
    error = (whole[:70, :300] - w).abs().amax(1)
    assert (error <= w.abs().amax(1) * 2**-23.9).all() and not whole[70:].any() and not whole[:, 300:].any()
    upper = made.codes[0].long() * 256 + made.codes[1].long()
    assert (upper.abs().sum(1) * most < 2**31).all()  # what the kernel adds up in int32


def test_powers_of_2_by_hand() -> None:
    """Of which the tiles of layer norm and attention are made."""
    found = {n: norm_attention.power_of_2(n) for n in (1, 2, 3, 16, 17, 384, 512, 513)}
    assert found == {1: 1, 2: 2, 3: 4, 16: 16, 17: 32, 384: 512, 512: 512, 513: 1024}


def test_split_integers_by_hand() -> None:
    """The largest weight of a row is 127 * 65536."""
    made = split_integer.split(torch.tensor([[127.0, 1.0, -1 / 128, 2.0**-16]]), torch.tensor([0.5]), 1)
    assert made.scale[0] == 2.0**-16 and made.bias[0] == 0.5
    assert made.codes[:, 0, :4].tolist() == [[127, 1, 0, 0], [0, 0, -2, 0], [0, 0, 0, 1]]


def test_a_product_is_nearly_as_exact_as_float32s() -> None:
    generator = torch.Generator().manual_seed(0)
    for width, most in itertools.product((64, 384, 3072), (1, 127)):
        w = torch.randn(64, width, generator=generator)
        n = torch.randint(0, most + 1, (1, 50, width), generator=generator)
        n = n * (torch.rand(n.shape, generator=generator) < 0.2)
        exact = n.double() @ w.double().t()
        made = split_integer.reference(n, split_integer.split(w, None, most), torch.ones(1))
        own, other = ((x.double() - exact).square().mean() for x in (made, n.float() @ w.t()))
        assert own < (2.5 * 2.5) * other, (width, most)


def fired(y: torch.Tensor, spiking_layer: Firing) -> torch.Tensor:
    """What a spiking layer's train holds, of the currents `[S, rows, D]`."""
    neuron = NEURONS["ternary" if spiking_layer.ternary else "binary"]
    if spiking_layer.mode == CLOSED:
        return neuron.settled(y / spiking_layer.theta, int(spiking_layer.total)) * spiking_layer.kept
    x = drive_running_mean(y, len(y), 1.0) if spiking_layer.mode == RUNNING else y
    s = torch.stack(list(steps(x, spiking_layer.theta, neuron, spiking_layer.leak))) * spiking_layer.kept
    return s.cumsum(0) if spiking_layer.mode == RUNNING else s


def firing(width: int, mode: int, kind: str, leak: float, t: int, device: str) -> Firing:
    theta = torch.rand(width, device=device) + 0.3
    kept = (torch.arange(width, device=device) % 3 > 0).float()
    return Firing(theta, kept, mode, kind == "ternary", leak, NEURONS[kind].start, float(t))


def train_of(mode: int, t: int, rows: int, width: int, device: str) -> torch.Tensor:
    s = torch.randint(-1, 2, (t, rows, width), device=device)
    n = s.cumsum(0) if mode == RUNNING else s.sum(0, keepdim=True) if mode == CLOSED else s
    return n.to(torch.int8)


def cases(sizes):
    """What spiking layers do, on one size each: mode, neuron, leak, T."""
    spiking_layers = [(mode, kind, 1.0, t) for mode in (CLOSED, PER_STEP, RUNNING) for kind in KINDS for t in (1, 5)]
    spiking_layers += [(PER_STEP, "ternary", 0.7, 3), (RUNNING, "binary", 1.0, 16)]
    for i, spiking_layer in enumerate(spiking_layers):
        yield spiking_layer, sizes[(i + i // 2) % len(sizes)]


def compare_products(device: str, sizes=((70, 64, 128), (130, 192, 64))) -> None:
    """Currents and trains bit for bit; behind gelu, whose function of the error is another, nearly all."""
    for (mode, kind, leak, t), (rows, width, out) in cases(sizes):
        a = train_of(mode, t, rows, width, device)
        weights = [
            split_integer.split(torch.randn(out, width, device=device), torch.randn(out, device=device), t)
            for _ in "ab"
        ]
        both, spiking_layer = split_integer.concatenated(weights), firing(2 * out, mode, kind, leak, t, device)
        units = encoder.units(mode, len(a), t, a.device)
        expected = split_integer.reference(a, both, units)
        real, train = split_integer.product(a, both, units, steps=len(a), reals=out, neurons=spiking_layer)
        case = f"{mode}, {kind}, leak {leak}, T {t}, {rows} x {width} x {out}"
        assert torch.equal(real, expected[..., :out]), case
        behind = Firing(spiking_layer.theta[out:], spiking_layer.kept[out:], *spiking_layer[2:])
        assert torch.equal(train.float(), fired(expected[..., out:], behind)), case
        assert torch.equal(split_integer.product(a, both, units, steps=len(a), reals=2 * out)[0], expected), case
        own = split_integer.product(a, both, units, steps=len(a), reals=0, neurons=spiking_layer, activation=GELU)[1]
        assert differing(own, fired(gelu(expected), spiking_layer)) < 1e-3, case


def differing(own: torch.Tensor, other: torch.Tensor) -> float:
    assert own.shape == other.shape and (other != 0).any()
    return (own.float() != other).float().mean().item()


def compare_gelu(device: str) -> None:
    x = torch.linspace(-16, 16, 2**16, device=device)
    y = torch.empty_like(x)
    gelu_of[(16,)](x, y, BLOCK=2**12)
    exact = gelu(x.double())
    assert ((y - exact).abs() <= 2e-7 * x.abs().clamp(min=1)).all()


def compare_norms(device: str, sizes=((33, 100), (5, 384))) -> None:
    for (mode, kind, leak, t), (rows, columns) in cases(sizes):
        width = split_integer.padded(columns)
        residual = train_of(mode, t, rows, width, device)
        y = torch.randn(len(residual), rows, width, device=device)
        theta, norm = torch.rand(columns, device=device) + 0.3, torch.nn.LayerNorm(columns, device=device)
        torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
        spiking_layer, units = firing(columns, mode, kind, leak, t, device), encoder.units(mode, len(y), t, y.device)
        spiking_layer = spiking_layer._replace(kept=torch.ones_like(spiking_layer.theta))
        back = residual[..., :columns] * theta * units[:, None, None]
        with torch.no_grad():
            expected = fired(norm(y[..., :columns] + back), spiking_layer)
        how = {"steps": len(y), "asr_norm": float(leak_weights(t, leak).sum())}
        train, value = norm_attention.normed(y, residual, theta, units, norm, spiking_layer, value=True, **how)
        case = f"{mode}, {kind}, leak {leak}, T {t}, {rows} x {columns}"
        assert differing(train[..., :columns], expected) < 1e-3 and not train[..., columns:].any(), case
        s = train[..., :columns].float()
        s = s.diff(dim=0, prepend=torch.zeros_like(s[:1])) if mode == RUNNING else s
        weights = torch.ones(1) if mode == CLOSED else leak_weights(t, leak)
        a = torch.einsum("t,tnd->nd", weights.to(s), s) / how["asr_norm"]
        torch.testing.assert_close(value, spiking_layer.theta * a, rtol=1e-5, atol=1e-6)
        train, value = norm_attention.constant(y[0, :, :columns].contiguous(), spiking_layer, width=width, **how)
        plain = spiking_layer._replace(mode=PER_STEP if mode == RUNNING else mode)
        expected = fired(y[:1, :, :columns].expand(len(train), -1, -1), plain)
        expected = expected.cumsum(0) if mode == RUNNING else expected
        assert torch.equal(train[..., :columns].float(), expected), case


def compare_attention(device: str, sizes=((2, 20, 3, 16), (1, 150, 2, 32))) -> None:
    for (mode, kind, leak, t), (b, n, heads, size) in cases(sizes):
        inner, width = heads * size, split_integer.padded(heads * size)
        pair = train_of(mode, t, b * n, 2 * width, device)
        q = 2 * torch.randn(len(pair), b * n, width, device=device)
        thetas = [torch.rand(width, device=device) + 0.3 for _ in range(2)]
        tokens = torch.arange(n, device=device) < torch.tensor([n, n // 2], device=device)[:b, None]
        spiking_layer, units = firing(width, mode, kind, leak, t, device), encoder.units(mode, len(q), t, q.device)
        spiking_layer = spiking_layer._replace(theta=spiking_layer.theta / 3)
        bias = torch.randn(heads, n, n, device=device) if t > 1 else None
        how = {"steps": len(q), "heads": heads, "size": size, "bias": bias}
        train = norm_attention.attended(q, pair, *thetas, units, tokens, spiking_layer, **how)
        at = units[:, None, None]
        q, k, v = (
            x[..., :inner].double().view(-1, b, n, heads, size).transpose(2, 3)
            for x in (q, pair[..., :width] * thetas[0] * at, pair[..., width:] * thetas[1] * at)
        )
        scores = q @ k.transpose(-1, -2) / size**0.5 + (0.0 if bias is None else bias.double())
        scores = scores.masked_fill(~tokens[None, :, None, None], -torch.inf)
        y = (scores.softmax(-1) @ v).transpose(2, 3).reshape(len(q), b * n, inner).float()
        expected = fired(y, Firing(spiking_layer.theta[:inner], spiking_layer.kept[:inner], *spiking_layer[2:]))
        case = f"{mode}, {kind}, leak {leak}, T {t}, {b}, {n}, {heads} x {size}"
        assert differing(train[..., :inner], expected) < 1e-3 and not train[..., inner:].any(), case


def compare_counts(device: str) -> None:
    for mode, n in itertools.product((PER_STEP, RUNNING), (7, 40)):
        train = train_of(mode, 3, 2 * n, 192, device)
        tokens = torch.rand(2, n, device=device) < 0.7
        s = train.float().diff(dim=0, prepend=torch.zeros_like(train[:1].float())) if mode == RUNNING else train.float()
        expected = torch.stack([tokens_sum(x.abs(), tokens) for x in s.view(3, 2, n, 192)])[..., :150]
        assert torch.equal(norm_attention.counted(train, tokens, 150, running=mode == RUNNING), expected)


def student_and_batch(**options) -> tuple[SpikingBert, dict[str, torch.Tensor]]:
    """A student that fires at all rates, some of it pruned, and sentences of several lengths."""
    torch.manual_seed(0)
    student = SpikingBert(**{**SMALL, "t_steps": [4, 4, 3], "pooling": "cls", **options}).eval()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.dim() == 2 and not name.startswith("embedding"):
                parameter.mul_(2)
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
        student.heads[0, 1] = 0
        student.ffn[:, ::5] = 0
        mask = (torch.arange(20) < torch.tensor([20, 13, 4])[:, None]).long()
        batch = {"input_ids": torch.randint(0, 50, (3, 20)), "attention_mask": mask}
        student(**batch, mode="calibrate", percentile=90.0)
    return student, batch


def same(student: SpikingBert, batch: dict[str, torch.Tensor], case: str) -> None:
    """With and without the fused encoder: the same counts but for one spike in 2,000, and near logits."""
    stepwise, found = student.coding != "accumulate", {}
    for backend in ("torch", "triton"):
        attach(student, backend)
        found[backend] = infer(student, **batch, stepwise=stepwise)
    plain, own = found["torch"], found["triton"]
    torch.testing.assert_close(own.logits, plain.logits, rtol=0, atol=0.05, msg=case)
    assert list(own.counts) == list(plain.counts), case
    total = sum(counts.sum().item() for counts in plain.counts.values())
    apart = sum((own.counts[name] - counts).abs().sum().item() for name, counts in plain.counts.items())
    assert total > 100 and apart <= total / 2000, (case, apart, total)
    for one, other in zip(own.hidden, plain.hidden, strict=True):
        assert one.shape == other.shape and (one - other).abs().mean() < 1e-3, case


WAYS = {
    "plain": {},
    "one theta": {"theta": "tensor", "pooling": "mean"},
    "few bits": {"weights": "ternary", "fold": True},
    "leaky": {"leak": 0.8},
    "biased": {"relative_buckets": 32, "position_offset": 2, "segments": 0, "embedding": 24},
}


def compare_students(device: str, coding: str) -> None:
    for kind, (way, options) in itertools.product(KINDS, WAYS.items()):
        if way == "leaky" and coding != "per_step":
            continue
        student, batch = student_and_batch(coding=coding, spikes=kind, **options)
        student, batch = student.to(device), {name: x.to(device) for name, x in batch.items()}
        if way == "few bits":
            student.set_strength(1.0)
        same(student, batch, f"{coding}, {kind}, {way}")
        if way == "biased":
            same(compact(student), batch, f"{coding}, {kind}, biased and compacted")
        if way != "plain" or kind == "binary":
            continue
        with torch.no_grad():  # the weight cache follows the student
            student.layers[0].up.weight.mul_(0.9)
            student.layers[1].key_neurons.log_theta.add_(0.1)
            student.heads[1, 0] = 0
        same(student, batch, f"{coding}, {kind}, changed")
        student.set_t_steps([3, 2, 2])
        same(student, batch, f"{coding}, {kind}, fewer steps")
        same(compact(student), batch, f"{coding}, {kind}, compacted")


def in_the_interpreter() -> None:
    """On the CPU, where the only thing replaced is that the encoder asks for CUDA."""
    torch.manual_seed(0)
    compare_gelu("cpu")
    compare_products("cpu")
    compare_norms("cpu")
    compare_attention("cpu")
    compare_counts("cpu")
    taken, encode = [], encoder.encode
    encoder.on_cuda = lambda like: like.dtype == torch.float32
    encoder.encode = lambda *args, **options: taken.append(True) or encode(*args, **options)
    for coding in CODINGS:
        compare_students("cpu", coding)
    assert len(taken) == 3 * (2 * 5 + 3) + 2, len(taken)


def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


@pytest.mark.gpu
def test_gelu_on_cuda() -> None:
    compare_gelu("cuda")


@pytest.mark.gpu
def test_products_on_cuda() -> None:
    torch.manual_seed(0)
    compare_products("cuda", sizes=((70, 64, 128), (130, 192, 64), (300, 384, 384), (200, 3072, 768)))


@pytest.mark.gpu
def test_norms_on_cuda() -> None:
    torch.manual_seed(0)
    compare_norms("cuda", sizes=((33, 100), (5, 384), (200, 768)))


@pytest.mark.gpu
def test_attention_on_cuda() -> None:
    torch.manual_seed(0)
    compare_attention("cuda", sizes=((2, 20, 3, 16), (1, 150, 2, 32), (2, 128, 12, 64), (2, 300, 2, 128)))


@pytest.mark.gpu
def test_counts_on_cuda() -> None:
    torch.manual_seed(0)
    compare_counts("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("coding", CODINGS)
def test_students_on_cuda(coding) -> None:
    compare_students("cuda", coding)


def test_what_is_not_covered() -> None:
    student, batch = student_and_batch(coding="per_step")
    attach(student, "triton")
    tokens = batch["attention_mask"].bool()

    class OnCuda:
        is_cuda, dtype = True, torch.float32

    assert encoder.on_cuda(OnCuda) and not encoder.on_cuda(student.classifier.weight)

    def covered(student: SpikingBert, mode: str = "spiking", **asked) -> bool:
        return student.covered(ForwardContext(mode, tokens, **{"scores": False, **asked}))

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(encoder, "on_cuda", lambda like: like.dtype == torch.float32)
        assert covered(student) and covered(student, "equilibrium")
        assert not covered(copy.deepcopy(student).double())
        for asked in ({"rate": True}, {"trace": True}, {"scores": True}, {"pulses": True}):
            assert not covered(student, **asked)
        with torch.enable_grad():
            assert not covered(student)
        for options in (
            {"query": "spiking"},
            {"dead_zone": True},
            {"residual": "membrane"},
            {"feedback": True},
            {"act": "relu"},
            {"spikes": "ternary_scaled"},
            {"t_steps": [2, 3, 3]},
            {"layer_heads": [0, 4]},
            {"heads": 2, "hidden": 12},
            {"coding": "running_mean", "t_steps": 200},
            {"coding": "running_mean", "leak": 0.9},
        ):
            other, _ = (
                student_and_batch(**{"coding": "per_step", **options})
                if "layer_heads" not in options
                else (SpikingBert(**{**SMALL, "t_steps": 2, "coding": "per_step", **options}), None)
            )
            attach(other, "triton")
            assert not covered(other), options
        attach(student, "torch")
        assert not covered(student)


if __name__ == "__main__":
    in_the_interpreter()
