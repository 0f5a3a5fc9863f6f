"""AdamW and its schedule, the same for every stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Optimization:
    """AdamW with a linear warm-up and a linear fall to zero. `theta_lr` is the rate of log(theta)."""

    lr: float
    theta_lr: float
    warmup: float = 0.1  # share of all steps
    weight_decay: float = 0.01


def adamw(module: nn.Module, optimization: Optimization, total_steps: int) -> dict:
    """Matrices decay; biases, norms and thresholds do not."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    thetas = [p for name, p in named if name.endswith("log_theta")]
    plain = [p for name, p in named if p.dim() < 2 and not name.endswith("log_theta")]
    groups = [
        {
            "params": [p for _, p in named if p.dim() >= 2],
            "lr": optimization.lr,
            "weight_decay": optimization.weight_decay,
        },
        {"params": plain, "lr": optimization.lr, "weight_decay": 0.0},
        {"params": thetas, "lr": optimization.theta_lr, "weight_decay": 0.0},
    ]
    fused = next(module.parameters()).is_cuda
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], fused=fused)
    # The fused one offers to unscale gradients in its step, and Lightning then refuses to clip them under mixed
    # precision. Declined, they are unscaled before they are clipped, or were never scaled.
    optimizer._step_supports_amp_scaling = False
    warm = max(1, round(optimization.warmup * total_steps))

    def share(step: int) -> float:
        return min((step + 1) / warm, max(0.0, (total_steps - step) / max(1, total_steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
