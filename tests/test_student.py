"""The student against the networks of `naive.py`, which are written from the formulas, and against what must not change
it. D 12, H 3, F 37, N 8, L 2 and odd numbers of steps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from naive import Accumulate, Synchronous
from torch.utils._python_dispatch import TorchDispatchMode

from spikeprune.models.student import Student
from spikeprune.spiking.flow import Pass, Signal
from spikeprune.spiking.site import Site

F64 = torch.float64
D, H, FFN, N, L, C, VOCAB = 12, 3, 37, 8, 2, 3, 23
SYNCHRONOUS = ("running_mean", "per_step")
CODINGS = ("accumulate", *SYNCHRONOUS)


def make(seed: int = 0, t_steps=(3, 4, 2), dtype=F64, **options) -> Student:
    """A student with random weights and thresholds that make its neurons fire at all rates, some out of range."""
    torch.manual_seed(seed)
    values = {"vocab": VOCAB, "positions": 2 * N, "segments": 2, "hidden": D, "layers": len(t_steps) - 1, "heads": H}
    student = Student(**values, ffn=FFN, classes=C, t_steps=list(t_steps), **options).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.endswith("log_theta"):
                scale = (
                    1.0 if name.startswith("embedding") or "attention_site" in name or "output_site" in name else 0.4
                )
                parameter.copy_(math.log(scale) + 0.3 * torch.randn_like(parameter))
            elif "norm.weight" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif parameter.dim() == 2 and not name.startswith("embedding"):
                parameter.copy_(1.2 * torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
            else:
                parameter.normal_()
    return student


def prune(student: Student) -> Student:
    student.heads[0, 1] = 0
    student.heads[-1, 0] = 0
    student.ffn[:, ::5] = 0
    return student


def sentences(lengths=(8, 5, 2), seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    return {
        "input_ids": torch.randint(VOCAB, shape, generator=generator),
        "attention_mask": (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long(),
        "token_type_ids": torch.randint(2, shape, generator=generator),
    }


def real(x: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """`[B, N, D]` -> the rows of real tokens."""
    return x[batch["attention_mask"].bool()]


# --------------------------------------------------------------------------------------------------------- comparisons

KINDS = list(itertools.product(("binary", "ternary"), (1.0, 0.7)))
WAYS = [  # theta, query, pooling, steps, pruned
    ("channel", "real", "mean", (3, 5, 2), True),
    ("tensor", "spiking", "cls", (1, 2, 4), True),
    ("channel", "spiking", "mean", (4, 1, 3), False),
    ("tensor", "real", "cls", (5, 3, 3), False),
]


def same(outputs, logits, hidden, batch) -> None:
    torch.testing.assert_close(outputs.logits, logits)
    for found, wanted in zip(outputs.hidden, hidden, strict=True):
        torch.testing.assert_close(real(found, batch), real(wanted, batch))


@pytest.mark.parametrize(("spikes", "leak"), KINDS)
@pytest.mark.parametrize(("theta", "query", "pooling", "t_steps", "pruned"), WAYS)
def test_accumulate_is_the_quantized_network(spikes, leak, theta, query, pooling, t_steps, pruned) -> None:
    """Simulated step by step, in closed form, and written out here: three times the same."""
    options = {"spikes": spikes, "leak": leak, "theta": theta, "query": query, "pooling": pooling}
    batch = sentences()
    for seed in range(3):
        student = make(seed, t_steps, coding="accumulate", **options)
        if pruned:
            prune(student)
        with torch.no_grad():
            closed, simulated = student(**batch), student(**batch, mode="spiking")
        same(simulated, closed.logits, closed.hidden, batch)
        same(closed, *Accumulate(student, batch, spikes=spikes, leak=leak).run(), batch)
        assert 0.05 < (closed.hidden[-1] != 0).double().mean()  # the nets do fire


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
def test_accumulate_is_the_quantized_network_in_single_precision(spikes) -> None:
    student, batch = make(3, (4, 3, 5), torch.float32, spikes=spikes), sentences()
    with torch.no_grad():
        closed, simulated = student(**batch), student(**batch, mode="spiking")
    same(simulated, closed.logits, closed.hidden, batch)


@pytest.mark.parametrize("coding", SYNCHRONOUS)
@pytest.mark.parametrize(("spikes", "leak"), KINDS)
@pytest.mark.parametrize(("theta", "query", "pooling", "t_steps", "pruned"), WAYS)
def test_synchronous_codings_are_a_loop_over_time(coding, spikes, leak, theta, query, pooling, t_steps, pruned) -> None:
    student, batch = (
        make(7, t_steps, coding=coding, spikes=spikes, leak=leak, theta=theta, query=query, pooling=pooling),
        sentences(),
    )
    if pruned:
        prune(student)
    with torch.no_grad():
        simulated = student(**batch, mode="spiking")
    same(simulated, *Synchronous(student, batch, spikes=spikes, leak=leak, coding=coding).run(), batch)


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
def test_running_mean_converges_to_the_equilibrium(spikes) -> None:
    batch, curve = sentences(), []
    for t_steps in (4, 16, 64, 256):
        errors = []
        for seed in range(4):
            student = make(seed, [t_steps] * 3, coding="running_mean", spikes=spikes)
            with torch.no_grad():
                simulated = student(**batch, mode="spiking").hidden[-1]
                student.set_t_steps(2**30)
                errors.append((real(simulated - student(**batch).hidden[-1], batch)).abs().mean())
        curve.append(torch.stack(errors).mean().item())
    print(f"\n{spikes}: mean |error| at T = 4, 16, 64, 256:", ", ".join(f"{error:.4f}" for error in curve))
    assert all(later < 0.7 * earlier for earlier, later in zip(curve, curve[1:], strict=False)), curve
    assert curve[-1] < 0.05 * curve[0]


def test_per_step_settles_somewhere_else() -> None:
    """Why it needs training with the spiking forward: f of single spikes is not f of their mean."""
    batch = sentences()
    student = make(0, [256] * 3, coding="per_step")
    with torch.no_grad():
        simulated = student(**batch, mode="spiking").hidden[-1]
        student.set_t_steps(2**30)
        error = real(simulated - student(**batch).hidden[-1], batch).abs().mean()
    assert error > 0.02  # running_mean is thirty times nearer by then


# ----------------------------------------------------------------------------------------------------------- gradients


def scalar(student: Student, batch, mode="equilibrium") -> torch.Tensor:
    """A loss that depends on everything the student puts out."""
    outputs = student(**batch, mode=mode, rate=True)
    parts = [*outputs.scores, *(real(hidden, batch) for hidden in outputs.hidden), outputs.logits]
    loss = 0.0
    for i, part in enumerate(parts):
        weights = torch.randn(part.shape, generator=torch.Generator().manual_seed(i), dtype=part.dtype)
        loss = loss + (weights * part).mean()
    return loss + 0.3 * sum(rate.mean() for rate in outputs.rates.values())


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
@pytest.mark.parametrize(("theta", "query", "pooling"), [("channel", "real", "cls"), ("tensor", "spiking", "mean")])
def test_implicit_gradient_against_finite_differences(spikes, theta, query, pooling) -> None:
    """With so many steps that the quantizer is finer than the differences, the forward is the clip itself."""
    student = prune(make(5, [2**42] * 3, spikes=spikes, theta=theta, query=query, pooling=pooling))
    batch, eps = sentences((7, 4)), 1e-6
    scalar(student, batch).backward()
    random, checked, moving = torch.Generator().manual_seed(9), 0, 0
    for name, parameter in student.named_parameters():
        rows = batch["input_ids"].flatten() if name == "embedding.word.weight" else torch.arange(len(parameter))
        for _ in range(2):
            at = [int(rows[torch.randint(len(rows), (1,), generator=random)])]
            at += [int(torch.randint(size, (1,), generator=random)) for size in parameter.shape[1:]]
            with torch.no_grad():
                values = []
                for sign in (1, -1):
                    parameter[tuple(at)] += sign * eps
                    values.append(scalar(student, batch).item())
                    parameter[tuple(at)] -= sign * eps
            difference = (values[0] - values[1]) / (2 * eps)
            gradient = parameter.grad[tuple(at)].item()
            assert gradient == pytest.approx(difference, abs=2e-6, rel=1e-4), (name, at)
            checked, moving = checked + 1, moving + (abs(gradient) > 1e-5)
    assert checked > 80 and moving > checked / 3  # some are out of range, as they should


@pytest.mark.parametrize(("spikes", "leak"), KINDS)
def test_both_forward_modes_train_accumulate_alike(spikes, leak) -> None:
    """The measured ASRs are the closed form's, so the gradients are too."""
    batch, grads = sentences(), []
    for mode in ("equilibrium", "spiking"):
        student = prune(make(6, (3, 4, 2), spikes=spikes, leak=leak))
        scalar(student, batch, mode).backward()
        grads.append({name: p.grad for name, p in student.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)
    assert sum(grad.abs().max() > 0 for grad in grads[0].values()) > 0.9 * len(grads[0])


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("spikes", ["binary", "ternary"])
def test_the_spiking_forward_has_the_same_value_with_and_without_gradient(coding, spikes) -> None:
    student, batch = prune(make(6, (3, 4, 2), coding=coding, spikes=spikes)), sentences()
    outputs = student(**batch, mode="spiking", count=True)
    with torch.no_grad():
        plain = student(**batch, mode="spiking", count=True)
    torch.testing.assert_close(outputs.logits, plain.logits)
    same(outputs, plain.logits, plain.hidden, batch)
    assert all(torch.equal(outputs.counts[site], counts) for site, counts in plain.counts.items())
    assert not plain.scores or coding == "accumulate"
    outputs.logits.sum().backward()
    grads = [p.grad for name, p in student.named_parameters() if name.startswith("embedding.word")]
    assert grads[0].isfinite().all() and grads[0].abs().sum() > 0


def test_the_synchronous_gradient_is_judged_at_the_measured_input() -> None:
    """per_step: f of the mean is 0.2 and inside, the mean of f over the steps is above theta: no gradient passes."""
    site = Site("x", 1, neuron="binary", leak=1.0, coding="per_step", theta="tensor").to(F64)
    below = torch.tensor([1.0, 0.0], dtype=F64)[:, None, None, None]  # [T, B, N, D]
    x = torch.tensor([[[0.5]]], dtype=F64, requires_grad=True)
    run = Pass("spiking", torch.ones(1, 1, dtype=torch.bool))

    def peaked(a):
        return 12.0 * (a - 0.5).abs() + 0.4 * a  # 0.2 at the mean 0.5; 6.4 and 6.0 at the single spikes

    signal = site(peaked, Signal(x, below), t_steps=2, run=run)
    assert signal.value.item() == 1.0
    signal.value.backward()
    assert x.grad.item() == 0.0


# -------------------------------------------------------------------------------------------------------- invariances

MODES = [("accumulate", "equilibrium"), *((coding, "spiking") for coding in CODINGS)]


@pytest.mark.parametrize(("coding", "mode"), MODES)
@pytest.mark.parametrize("spikes", ["binary", "ternary"])
def test_masks_of_ones_change_nothing_bit_for_bit(coding, mode, spikes, monkeypatch) -> None:
    student, batch = make(2, (3, 4, 2), torch.float32, coding=coding, spikes=spikes), sentences()
    masks = {"heads": torch.ones(3, L, H), "ffn": torch.ones(3, L, FFN)}
    with torch.no_grad():
        buffers = student(**batch, mode=mode, count=True)
        lent = student(**batch, mode=mode, count=True, **masks)
        forward = Site.forward
        monkeypatch.setattr(Site, "forward", lambda self, f, *a, mask=None, **options: forward(self, f, *a, **options))
        without = student(**batch, mode=mode, count=True)
    for outputs in (buffers, lent):
        assert torch.equal(outputs.logits, without.logits)
        assert all(map(torch.equal, outputs.hidden, without.hidden))
        assert outputs.counts.keys() == without.counts.keys()
        assert all(torch.equal(outputs.counts[site], counts) for site, counts in without.counts.items())


@pytest.mark.parametrize(("coding", "mode"), MODES)
@pytest.mark.parametrize("query", ["real", "spiking"])
def test_what_is_pruned_may_hold_any_weights(coding, mode, query) -> None:
    student, batch = make(3, (3, 4, 2), coding=coding, query=query), sentences()
    head, neuron, d = 1, 11, D // H
    with torch.no_grad():
        whole = student(**batch, mode=mode).logits
        student.heads[0, head] = 0
        student.ffn[1, neuron] = 0
        before = student(**batch, mode=mode)
        channels = slice(head * d, (head + 1) * d)
        layer = student.layers[0]
        for linear in (layer.query, layer.key, layer.value):
            linear.weight[channels].normal_()
            linear.bias[channels].normal_()
        layer.out.weight[:, channels].normal_()
        for site in (layer.key_site, layer.value_site, layer.context_site, layer.query_site):
            if site is not None:
                site.log_theta[channels].normal_()
        layer = student.layers[1]
        layer.up.weight[neuron].normal_()
        layer.up.bias[neuron].normal_()
        layer.down.weight[:, neuron].normal_()
        layer.intermediate_site.log_theta[neuron].normal_()
        after = student(**batch, mode=mode)
    assert torch.equal(before.logits, after.logits)
    assert not torch.allclose(before.logits, whole)  # the pruned parts mattered


@pytest.mark.parametrize(("coding", "mode"), MODES)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(coding, mode, pooling) -> None:
    student, batch = prune(make(4, (3, 4, 2), coding=coding, pooling=pooling)), sentences()
    longer = {name: F.pad(x, (0, 3), value=0 if name == "attention_mask" else 1) for name, x in batch.items()}
    longer["input_ids"][:, -2:] = 5
    padded = batch["attention_mask"] == 0
    other = {**batch, "input_ids": batch["input_ids"].where(~padded, (batch["input_ids"] + 7) % VOCAB)}
    with torch.no_grad():
        plain, *changed = (student(**x, mode=mode, count=True, rate=True, trace=True) for x in (batch, longer, other))
    for outputs in changed:
        torch.testing.assert_close(outputs.logits, plain.logits)
        assert all(torch.equal(outputs.counts[site], counts) for site, counts in plain.counts.items())
        torch.testing.assert_close(outputs.rates, plain.rates)
        torch.testing.assert_close(outputs.traces, plain.traces)
    assert plain.counts and bool(plain.traces) == (mode == "spiking")


@pytest.mark.parametrize("coding", CODINGS)
def test_a_sentence_does_not_depend_on_its_neighbours(coding) -> None:
    student, batch = make(4, (3, 4, 2), coding=coding), sentences()
    with torch.no_grad():
        together = student(**batch, mode="spiking", count=True)
        for b in range(3):
            alone = student(**{name: x[b : b + 1] for name, x in batch.items()}, mode="spiking", count=True)
            torch.testing.assert_close(alone.logits[0], together.logits[b])
            assert all(torch.equal(alone.counts[site][:, 0], c[:, b]) for site, c in together.counts.items())


@pytest.mark.parametrize("coding", CODINGS)
def test_state_dict_is_the_whole_network(coding, tmp_path) -> None:
    options = {"coding": coding, "pooling": "cls", "query": "spiking"}
    student, batch = prune(make(0, (3, 4, 2), **options)), sentences()
    other = make(1, (1, 1, 1), **options)
    assert other.steps == [1, 1, 1]
    torch.save(student.state_dict(), tmp_path / "x.pt")
    other.load_state_dict(torch.load(tmp_path / "x.pt", weights_only=True))
    assert other.steps == [3, 4, 2]
    assert torch.equal(other.heads, student.heads) and torch.equal(other.ffn, student.ffn)
    with torch.no_grad():
        assert torch.equal(other(**batch, mode="spiking").logits, student(**batch, mode="spiking").logits)


def test_t_steps_are_numbers_of_at_least_one_for_every_layer() -> None:
    student = make()
    student.set_t_steps(5)
    assert student.steps == [5, 5, 5]
    student.set_t_steps([1, 2, 3])
    assert student.steps == student.t_steps.tolist() == [1, 2, 3]
    for wrong in ([1, 2], [1, 2, 0], 0, [1, 2, 3, 4]):
        with pytest.raises(ValueError, match="3 numbers of at least 1"):
            student.set_t_steps(wrong)
    assert student.steps == [1, 2, 3]
    student.t_steps[2] = 9  # in place: the numbers are read again
    assert student.steps == [1, 2, 9]


# --------------------------------------------------------------------------------------------------------- calibration

ACTIVATION = torch.tensor([[1.0, -8.0, 0.0], [2.0, 4.0, -0.5], [3.0, 1.0, 0.0], [4.0, -2.0, 0.0], [99.0, 99.0, 99.0]])


@pytest.mark.parametrize(
    ("spikes", "percentile", "theta"),
    [
        # sorted: 1 2 3 4 | binary 0 0 1 4, ternary 1 2 4 8 | 0 0 0 0 and 0 0 0 .5; the floor is 1 % of the largest
        ("binary", 75.0, [3.0, 1.0, 0.03]),
        ("ternary", 75.0, [3.0, 4.0, 0.04]),
        ("ternary", 60.0, [3.0, 4.0, 0.04]),  # 2.4 of the four: no less than 60 % stay below
        ("binary", 100.0, [4.0, 4.0, 0.04]),
        ("ternary", 100.0, [4.0, 8.0, 0.5]),
        ("ternary", 1.0, [1.0, 1.0, 0.01]),
    ],
)
def test_calibration_by_hand(spikes, percentile, theta) -> None:
    site = Site("x", 3, neuron=spikes, leak=1.0, coding="accumulate", theta="channel")
    run = Pass("calibrate", torch.tensor([[True] * 4 + [False]]), percentile=percentile)  # the last token is padding
    value = site(lambda: ACTIVATION[None], t_steps=2, run=run).value
    assert site.theta.tolist() == pytest.approx(theta)
    low = torch.tensor(theta) * (0 if spikes == "binary" else -1)
    torch.testing.assert_close(value[0], ACTIVATION.clamp(low, torch.tensor(theta)))


def test_calibration_of_one_theta_for_all_channels() -> None:
    site = Site("x", 3, neuron="ternary", leak=1.0, coding="accumulate", theta="tensor")
    run = Pass("calibrate", torch.tensor([[True] * 4 + [False]]), percentile=75.0)
    site(lambda: ACTIVATION[None], t_steps=2, run=run)
    assert site.theta.tolist() == pytest.approx([3.0])  # 0 0 0 .5 1 1 2 2 (3) 4 4 8


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
@pytest.mark.parametrize("theta", ["channel", "tensor"])
def test_a_calibrated_network_is_the_one_that_calibration_saw(spikes, theta) -> None:
    """Each theta is found with the ones before it in place, so with fine steps nothing moves afterwards."""
    student, batch = make(8, [2**30] * 3, spikes=spikes, theta=theta, query="spiking"), sentences()
    student.layers[0].up.bias.data[4] = -50.0  # gelu is silent there
    with torch.no_grad():
        seen = student(**batch, mode="calibrate", percentile=90.0)
        settled = student(**batch)
    assert all((site.theta > 0).all() and site.theta.isfinite().all() for site in student.sites().values())
    torch.testing.assert_close(settled.logits, seen.logits, atol=1e-6, rtol=1e-6)


# --------------------------------------------------------------------------------------------------- counts and effort


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_spikes_are_counted_where_they_are(spikes, pooling) -> None:
    """A constant current draws spikes of one sign, so T |ASR| of them: what the naive network has sent."""
    steps = (3, 5, 2)
    student, batch = prune(make(2, steps, spikes=spikes, pooling=pooling)), sentences()
    with torch.no_grad():
        counts = student(**batch, mode="spiking", count=True).counts
    naive = Accumulate(student, batch, spikes=spikes, leak=1.0)
    sent = {}
    plain_site = naive.site

    def site(name, x, t_steps, mask=1.0):
        value = plain_site(name, x, t_steps, mask)
        tokens = batch["attention_mask"][..., None]
        sent[name] = (t_steps * value.abs() / naive.theta(name) * tokens).sum(1)  # [B, channels]
        if name == f"layers.{L - 1}.output" and pooling == "cls":
            sent["pooled"] = t_steps * value[:, 0].abs() / naive.theta(name)
        return value

    naive.site = site
    naive.run()
    assert counts.keys() == sent.keys()
    for name, wanted in sent.items():
        torch.testing.assert_close(counts[name].sum(0), wanted)
        layer = 0 if name == "embedding" else L if name == "pooled" else int(name.split(".")[1]) + 1
        assert len(counts[name]) == steps[layer]
    d = D // H
    assert not counts["layers.0.context"][..., d : 2 * d].any() and counts["layers.0.context"].any()
    assert not counts["layers.0.intermediate"][..., ::5].any() and counts["layers.0.intermediate"].any()


@pytest.mark.parametrize("coding", CODINGS)
def test_rates_are_the_mean_size_of_the_asr(coding) -> None:
    student, batch = make(2, (3, 5, 2), coding=coding, spikes="binary"), sentences()
    with torch.no_grad():
        outputs = student(**batch, mode="spiking", count=True, rate=True)
    tokens = batch["attention_mask"].sum()
    assert outputs.rates.keys() == outputs.counts.keys() == student.sites().keys()
    for name, counts in outputs.counts.items():
        wanted = counts.sum((0, 1)) / (len(counts) * tokens)  # [D]
        torch.testing.assert_close(outputs.rates[name], wanted)


def test_traces_by_hand() -> None:
    """Spikes 1 1 0 1 of one neuron: ASR so far 1, 1, 2/3, 3/4; the padding beside it does not count."""
    site = Site("x", 1, neuron="binary", leak=1.0, coding="accumulate", theta="tensor").to(F64)
    run = Pass("spiking", torch.tensor([[True, False]]), trace=True)
    with torch.no_grad():
        site(lambda: torch.tensor([[[0.75], [5.0]]], dtype=F64), t_steps=4, run=run)  # u: 1.25, 1, .75, 1.5
    errors, size = run.traces["x"]
    assert errors.tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 12, 0])
    assert size.item() == pytest.approx(3 / 4)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
def test_the_equilibrium_costs_no_time_steps(spikes) -> None:
    """Forward and backward run the same operations for one step as for a thousand."""
    batch, logs = sentences(), []
    for t_steps in (1, 1000):
        student = make(0, [t_steps] * 3, spikes=spikes)
        student(**batch)  # reads t_steps once
        with Operations() as log:
            student(**batch).logits.sum().backward()
        logs.append(log.names)
    assert logs[0] == logs[1] and len(logs[0]) > 100


@pytest.mark.parametrize("coding", CODINGS)
def test_dropout_draws_in_training_only(coding) -> None:
    student, batch = make(0, (3, 4, 2), coding=coding, dropout=0.3), sentences()
    with torch.no_grad():
        once, again = (student(**batch, mode="spiking").logits for _ in range(2))
        assert torch.equal(once, again)
        student.train()
        assert not torch.equal(student(**batch, mode="spiking").logits, once)
