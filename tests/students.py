"""A student whose neurons fire at all rates, sentences for it, and what tests ask of it; not a test.
D 12, H 3, F 37, N 8, L 2 and odd numbers of steps."""

from __future__ import annotations

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spikeprune.models.modeling import SpikingBert

F64 = torch.float64
D, H, FFN, N, L, C, VOCAB = 12, 3, 37, 8, 2, 3, 23
SYNCHRONOUS = ("running_mean", "per_step")
CODINGS = ("accumulate", *SYNCHRONOUS)


def make(seed: int = 0, t_steps=(3, 4, 2), dtype=F64, **options) -> SpikingBert:
    """A student with random weights and thresholds that make its neurons fire at all rates, some out of range."""
    torch.manual_seed(seed)
    values = {"vocab": VOCAB, "positions": 2 * N, "segments": 2, "hidden": D, "layers": len(t_steps) - 1, "heads": H}
    student = SpikingBert(**values, ffn=FFN, classes=C, t_steps=list(t_steps), **options).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.endswith("log_theta"):
                scale = (
                    1.0
                    if name.startswith("embedding") or "attention_neurons" in name or "output_neurons" in name
                    else 0.4
                )
                parameter.copy_(math.log(scale) + 0.3 * torch.randn_like(parameter))
            elif "norm.weight" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif parameter.dim() == 2 and not name.startswith("embedding"):
                parameter.copy_(1.2 * torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
            else:
                parameter.normal_()
    return student


def prune(student: SpikingBert) -> SpikingBert:
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


WAYS = [  # theta, query, pooling, steps, pruned
    ("channel", "real", "mean", (3, 5, 2), True),
    ("tensor", "spiking", "cls", (1, 2, 4), True),
    ("channel", "spiking", "mean", (4, 1, 3), False),
    ("tensor", "real", "cls", (5, 3, 3), False),
]


def scalar(student: SpikingBert, batch, mode="equilibrium") -> torch.Tensor:
    """A loss that depends on everything the student puts out."""
    outputs = student(**batch, mode=mode, rate=True)
    parts = [*outputs.scores, *(real(hidden, batch) for hidden in outputs.hidden), outputs.logits]
    loss = 0.0
    for i, part in enumerate(parts):
        weights = torch.randn(part.shape, generator=torch.Generator().manual_seed(i), dtype=part.dtype)
        loss = loss + (weights * part).mean()
    return loss + 0.3 * sum(rate.mean() for rate in outputs.rates.values())


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
