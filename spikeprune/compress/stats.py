"""Statistics that pruning decisions are made from, collected on a few batches of training data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spikeprune.models.outputs import INPUTS, Outputs
from spikeprune.models.student import Student

SampleLoss = Callable[[dict[str, Tensor], Outputs], Tensor]  # (batch, outputs) -> [B]


@dataclass(frozen=True)
class Statistics:
    """Per head `[L, H]` and per feed-forward neuron `[L, F]`, for masks that are all ones where a unit is alive."""

    heads: Tensor  # the masks themselves
    ffn: Tensor
    head_fisher: Tensor  # mean over samples of (d loss / d mask)^2
    ffn_fisher: Tensor
    head_taylor: Tensor  # mean over samples of |d loss / d mask|
    ffn_taylor: Tensor
    head_slope: Tensor  # mean over samples of d loss / d mask, of pruned units too: below 0 where a return would help
    ffn_slope: Tensor
    head_rate: Tensor  # mean |ASR| of the context's channels
    ffn_rate: Tensor
    head_weight: Tensor  # |Wv| * |Wo|, Frobenius norms of the head's slices
    ffn_weight: Tensor  # |W1 row| * |W2 column|
    seed: int  # of a criterion that draws


def collect(
    student: Student, batches: Iterable[dict[str, Tensor]], sample_loss: SampleLoss, *, seed: int = 0
) -> Statistics:
    """One equilibrium forward and backward a batch, in evaluation mode; weights and their gradients stay untouched.

    The masks are lent to the forward sample by sample, so their gradients are exactly per sample (as the diagonal
    Fisher information needs: Kwon et al. 2022, arXiv 2204.09656, eq. 8).
    """
    was_training = student.training
    student.eval()
    squares = {name: torch.zeros_like(mask) for name, mask in (("heads", student.heads), ("ffn", student.ffn))}
    sizes = {name: torch.zeros_like(mask) for name, mask in squares.items()}
    slopes = {name: torch.zeros_like(mask) for name, mask in squares.items()}
    rates = {name: torch.zeros_like(mask) for name, mask in squares.items()}
    samples = tokens = 0
    with torch.enable_grad():
        for batch in batches:
            size = len(batch["input_ids"])
            masks = {
                "heads": student.heads.expand(size, -1, -1).clone().requires_grad_(),
                "ffn": student.ffn.expand(size, -1, -1).clone().requires_grad_(),
            }
            with Probe(student, batch["attention_mask"]) as probe:
                outputs = student(**{key: batch[key] for key in INPUTS if key in batch}, **masks)
                loss = sample_loss(batch, outputs).sum()
                grads = torch.autograd.grad(loss, list(masks.values()))
            for name, grad in zip(masks, grads, strict=True):
                squares[name] += grad.square().sum(0)
                sizes[name] += grad.abs().sum(0)
                slopes[name] += grad.sum(0)
                rates[name] += probe.activity[name]
            samples += size
            tokens += batch["attention_mask"].sum()
    student.train(was_training)
    return Statistics(
        heads=student.heads.clone(),
        ffn=student.ffn.clone(),
        head_fisher=squares["heads"] / samples,
        ffn_fisher=squares["ffn"] / samples,
        head_taylor=sizes["heads"] / samples,
        ffn_taylor=sizes["ffn"] / samples,
        head_slope=slopes["heads"] / samples,
        ffn_slope=slopes["ffn"] / samples,
        head_rate=rates["heads"] / tokens,
        ffn_rate=rates["ffn"] / tokens,
        **weight_norms(student),
        seed=seed,
    )


class Probe:
    """Sums |ASR| over real tokens while open: `activity["heads"] [L, H]` (mean over channels), `["ffn"] [L, F]`."""

    def __init__(self, student: Student, attention_mask: Tensor):
        self.student, self.tokens = student, attention_mask[..., None]
        self.activity = {"heads": torch.zeros_like(student.heads), "ffn": torch.zeros_like(student.ffn)}

    def __enter__(self) -> Probe:
        self.hooks = []
        for i, layer in enumerate(self.student.layers):
            for site, hook in (
                (layer.context_site, self.add("heads", i, layer.heads)),
                (layer.intermediate_site, self.add("ffn", i, None)),
            ):
                self.hooks.append(site.register_forward_hook(hook, with_kwargs=True))
        return self

    def add(self, name: str, layer: int, groups: int | None):
        def hook(site, _, kwargs, signal):
            if kwargs["run"].mode == "clip":  # on the way to a fixed point
                return
            rate = (signal.asr(site.theta).detach().abs() * self.tokens).sum((0, 1))
            self.activity[name][layer] += rate if groups is None else rate.unflatten(0, (groups, -1)).mean(1)

        return hook

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()


@torch.no_grad()
def weight_norms(student: Student) -> dict[str, Tensor]:
    """Norms of the weights that act: the quantized ones where they are."""

    heads, ffn = [], []
    for i, layer in enumerate(student.layers):
        value, out, up, down = (student.acting_weight(i, name) for name in ("value", "out", "up", "down"))
        v = value.unflatten(0, (layer.heads, -1)).flatten(1).norm(dim=1)  # [H]
        o = out.unflatten(1, (layer.heads, -1)).transpose(0, 1).flatten(1).norm(dim=1)  # [H]
        heads.append(v * o)
        ffn.append(up.norm(dim=1) * down.norm(dim=0))  # [F]
    return {"head_weight": torch.stack(heads), "ffn_weight": torch.stack(ffn)}


@torch.no_grad()
def convergence_profile(student: Student, batches: Iterable[dict[str, Tensor]]) -> list[Tensor]:
    """How far the ASR is from its final value after t steps: for the embedding's site and each layer a tensor `[T_l]`.

    Entry t-1 is the mean over real tokens, channels and the layer's sites of |a[t] - a[T_l]|, relative to the mean
    |a[T_l]|; the last entry is 0.
    """
    was_training = student.training
    student.eval()
    totals: dict[str, Tensor] = {}
    for batch in batches:
        outputs = student(**{key: batch[key] for key in INPUTS if key in batch}, mode="spiking", trace=True)
        for name, (error, size) in outputs.traces.items():
            pair = torch.stack([error, size.expand_as(error)])
            totals[name] = totals[name] + pair if name in totals else pair
    student.train(was_training)
    relative = {name: error / size.clamp(min=1e-12) for name, (error, size) in totals.items()}
    layers = [[error for name, error in relative.items() if name == "embedding"]]
    for i in range(len(student.layers)):
        layers.append([error for name, error in relative.items() if name.startswith(f"layers.{i}.")])
    return [torch.stack(errors).mean(0) for errors in layers]


@dataclass(frozen=True)
class TemporalStatistics:
    """What a rule for time steps may ask about a student of `t_steps [L+1]`; measured only when it does ask."""

    t_steps: Sequence[int]
    measure_profile: Callable[[], list[Tensor]]
    loss_of: Callable[[Sequence[int]], float]  # mean sample loss with these steps instead

    @cached_property
    def profile(self) -> list[Tensor]:
        """As `convergence_profile`."""
        return self.measure_profile()


def temporal_statistics(
    student: Student,
    batches: Sequence[dict[str, Tensor]],
    sample_loss: SampleLoss,
    *,
    mean: Callable[[Tensor], Tensor] = lambda x: x,
) -> TemporalStatistics:
    """On `batches`, which are gone through once for the profile and once for each loss. `mean` is taken over processes,
    so that all decide the same."""

    def profile() -> list[Tensor]:
        return [mean(layer) for layer in convergence_profile(student, batches)]

    def loss_of(t_steps: Sequence[int]) -> float:
        return mean(loss_at(student, t_steps, batches, sample_loss)).item()

    return TemporalStatistics(student.steps, profile, loss_of)


@torch.no_grad()
def loss_at(
    student: Student, t_steps: Sequence[int], batches: Iterable[dict[str, Tensor]], sample_loss: SampleLoss
) -> Tensor:
    """Mean sample loss with other time steps, in evaluation mode; the student keeps its own. A scalar.

    `accumulate` is what its closed form says; the other codings are simulated step by step.
    """
    was_training, own = student.training, student.steps
    student.eval()
    student.set_t_steps(t_steps)
    mode = "equilibrium" if student.coding == "accumulate" else "spiking"
    losses = []
    try:
        for batch in batches:
            outputs = student(**{key: batch[key] for key in INPUTS if key in batch}, mode=mode, scores=False)
            losses.append(sample_loss(batch, outputs))
    finally:
        student.set_t_steps(own)
        student.train(was_training)
    return torch.cat(losses).mean()
