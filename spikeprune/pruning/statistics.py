"""Statistics that pruning decisions are made from, collected on a few batches of training data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spikeprune.cost.activity import kept_channels
from spikeprune.errors import InputError
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import Outputs, inputs_of
from spikeprune.models.weights import acting_weight
from spikeprune.snn.coding import CODINGS

UNITS = ("heads", "ffn")  # a student's masks
Batches = Sequence[dict[str, Tensor]]
Mean = Callable[[Tensor], Tensor]  # over processes, so that all decide the same
SampleLoss = Callable[[dict[str, Tensor], Outputs], Tensor]  # (batch, outputs) -> [B]


@dataclass(frozen=True)
class Statistics:
    """Per head `[L, H]` and per feed-forward neuron `[L, F]`, means over the samples of the batches."""

    heads: Tensor  # the masks themselves
    ffn: Tensor
    head_fisher: Tensor  # mean over samples of (d loss / d mask)^2
    ffn_fisher: Tensor
    head_taylor: Tensor  # mean over samples of |d loss / d mask|
    ffn_taylor: Tensor
    head_rate: Tensor  # mean |ASR| of the context's channels
    ffn_rate: Tensor
    head_weight: Tensor  # |Wv| * |Wo|, Frobenius norms of the head's slices
    ffn_weight: Tensor  # |W1 row| * |W2 column|
    seed: int  # of a criterion that draws


def losses_of(sample_loss: SampleLoss, batch: dict[str, Tensor], outputs: Outputs) -> Tensor:
    """`sample_loss(batch, outputs)`, `[B]`. Raises InputError for a loss of another shape, such as a mean."""
    losses = sample_loss(batch, outputs)
    if losses.shape != outputs.logits.shape[:1]:
        found, wanted = list(losses.shape), list(outputs.logits.shape[:1])
        raise InputError(
            f"sample_loss returned {found} and not {wanted}, the loss of each sample: use reduction='none'"
        )
    return losses


def alone(x: Tensor) -> Tensor:
    """The `Mean` of a single process."""
    return x


def trained_mode(student: SpikingBert) -> str:
    """The default forward mode in training of a student of this coding: one that does not converge to the closed
    equilibrium is simulated."""
    return "equilibrium" if CODINGS[student.coding].converges else "spiking"


def collect(
    student: SpikingBert,
    batches: Iterable[dict[str, Tensor]],
    sample_loss: SampleLoss,
    *,
    mode: str | None = None,
    seed: int = 0,
) -> Statistics:
    """One forward and backward a batch; weights and their gradients stay untouched.

    `mode`: the forward that the student is trained with (None: `trained_mode`), since another one is another network.
    """
    squares, magnitudes, rates = ({name: torch.zeros_like(getattr(student, name)) for name in UNITS} for _ in range(3))
    samples = tokens = 0
    for batch, outputs, grads in mask_gradients(student, batches, sample_loss, mode, rate=True):
        real = batch["attention_mask"].sum()
        for name, grad in grads.items():
            squares[name] += grad.square().sum(0)
            magnitudes[name] += grad.abs().sum(0)
            rates[name] += unit_rates(student, outputs.rates, name) * real
        samples += len(batch["input_ids"])
        tokens += real
    return Statistics(
        heads=student.heads.clone(),
        ffn=student.ffn.clone(),
        head_fisher=squares["heads"] / samples,
        ffn_fisher=squares["ffn"] / samples,
        head_taylor=magnitudes["heads"] / samples,
        ffn_taylor=magnitudes["ffn"] / samples,
        head_rate=rates["heads"] / tokens,
        ffn_rate=rates["ffn"] / tokens,
        **weight_norms(student),
        seed=seed,
    )


@torch.enable_grad()
def mask_gradients(
    student: SpikingBert,
    batches: Iterable[dict[str, Tensor]],
    sample_loss: SampleLoss,
    mode: str | None,
    *,
    rate: bool = False,
) -> Iterator[tuple[dict[str, Tensor], Outputs, dict[str, Tensor]]]:
    """Each batch with the student's outputs and the gradients of its samples' losses to the masks, `heads [B, L, H]`
    and `ffn [B, L, F]`.

    The forward gets one copy of the masks for each sample, so their gradients are exactly per sample (as the diagonal
    Fisher information needs: Kwon et al. 2022, arXiv 2204.09656, eq. 8).
    """
    for batch in batches:
        size = len(batch["input_ids"])
        masks = {name: getattr(student, name).expand(size, -1, -1).clone().requires_grad_() for name in UNITS}
        outputs = student(**inputs_of(batch), **masks, mode=mode or trained_mode(student), rate=rate)
        grads = torch.autograd.grad(losses_of(sample_loss, batch, outputs).sum(), list(masks.values()))
        yield batch, outputs, dict(zip(UNITS, grads, strict=True))


@torch.no_grad()
def unit_rates(student: SpikingBert, rates: Mapping[str, Tensor], name: str) -> Tensor:
    """Mean |ASR| of each head's context channels `[L, H]`, or of each feed-forward neuron `[L, F]`, as `Outputs.rates`
    has them; 0 for what a compacted layer lacks."""
    found = torch.zeros_like(getattr(student, name))
    for i, layer in enumerate(student.layers):
        if name == "heads":
            found[i, : layer.heads] = rates[f"layers.{i}.context"].unflatten(0, (layer.heads, -1)).mean(1)
        else:
            found[i, : layer.ffn] = rates[f"layers.{i}.intermediate"]
    return found * getattr(student, name)


@torch.no_grad()
def weight_norms(student: SpikingBert) -> dict[str, Tensor]:
    """Norms of the weights that act: the quantized ones where they are."""

    heads, ffn = [], []
    for i, layer in enumerate(student.layers):
        value, out, up, down = (acting_weight(student, i, name) for name in ("value", "out", "up", "down"))
        v = value.unflatten(0, (layer.heads, -1)).flatten(1).norm(dim=1)  # [H]
        o = out.unflatten(1, (layer.heads, -1)).transpose(0, 1).flatten(1).norm(dim=1)  # [H]
        heads.append(v * o)
        ffn.append(up.norm(dim=1) * down.norm(dim=0))  # [F]
    return {"head_weight": torch.stack(heads), "ffn_weight": torch.stack(ffn)}


@torch.no_grad()
def convergence_profile(student: SpikingBert, batches: Iterable[dict[str, Tensor]]) -> list[Tensor]:
    """How far the ASR is from its final value after t steps: for the embedding and each layer a tensor `[T_l]`.

    Entry t-1 is the mean over real tokens, kept channels and the layer's spiking layers of |a[t] - a[T_l]|, relative
    to the mean |a[T_l]|; the last entry is 0. A spiking layer of pruned units only is left out.
    """
    totals: dict[str, Tensor] = {}
    for batch in batches:
        outputs = student(**inputs_of(batch), mode="spiking", trace=True)
        for name, (error, size) in outputs.traces.items():
            pair = torch.stack([error, size.expand_as(error)])
            totals[name] = totals[name] + pair if name in totals else pair
    relative = {name: error / size.clamp(min=1e-12) for name, (error, size) in totals.items()}
    widths = {name: spiking_layer.channels for name, spiking_layer in student.spiking_layers().items()}
    kept, layers = kept_channels(widths, heads=student.heads, ffn=student.ffn), [[relative["embedding"]]]
    for i in range(len(student.layers)):
        names = [name for name in relative if name.startswith(f"layers.{i}.") and kept[name].any()]
        layers.append([relative[name] for name in names])
    return [torch.stack(errors).mean(0) for errors in layers]


@dataclass(frozen=True)
class TemporalStatistics:
    """Statistics for temporal criteria of a student of `t_steps [L+1]`; each is measured when it is first used."""

    t_steps: Sequence[int]
    measure_profile: Callable[[], list[Tensor]]
    loss_of: Callable[[Sequence[int]], float]  # mean sample loss with these steps instead

    @cached_property
    def profile(self) -> list[Tensor]:
        """As `convergence_profile`."""
        return self.measure_profile()


def temporal_statistics(
    student: SpikingBert,
    batches: Sequence[dict[str, Tensor]],
    sample_loss: SampleLoss,
    *,
    mean: Mean = alone,
) -> TemporalStatistics:
    """On `batches`, with one forward of each for the profile and one for each loss. `mean`: over processes, so that all
    decide the same."""

    def profile() -> list[Tensor]:
        return [mean(layer) for layer in convergence_profile(student, batches)]

    def loss_of(t_steps: Sequence[int]) -> float:
        return mean(loss_at(student, t_steps, batches, sample_loss)).item()

    return TemporalStatistics(student.steps, profile, loss_of)


@torch.no_grad()
def loss_at(
    student: SpikingBert, t_steps: Sequence[int], batches: Iterable[dict[str, Tensor]], sample_loss: SampleLoss
) -> Tensor:
    """Mean sample loss, float64 scalar, with other time steps; the student keeps its own.

    `accumulate` is evaluated in closed form; the other codings are simulated step by step.
    """
    own = student.steps
    student.set_t_steps(t_steps)
    mode = "equilibrium" if CODINGS[student.coding].stationary else "spiking"
    losses = []
    try:
        for batch in batches:
            outputs = student(**inputs_of(batch), mode=mode, scores=False)
            losses.append(losses_of(sample_loss, batch, outputs))
    finally:
        student.set_t_steps(own)
    return torch.cat(losses).double().mean()  # float64, so that equal losses compare as equal
