"""Inference by the C program with the results of `models.inference.infer`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spikeprune.models.outputs import Outputs
from spikeprune.runtime.session import Session


def infer(session: Session, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Outputs:
    """Logits [B, C] and spike counts of one batch `[B, N]`, a sentence after the other: by the name of a spiking layer
    `[T, B, channels]`, or of whole trains `[1, B, channels]`; those of the last layer's [CLS] under `pooled`."""
    logits, counts = [], []
    last = f"layers.{session.shape.layers - 1}.output"
    rows = zip(input_ids.numpy(), token_type_ids.numpy(), attention_mask.sum(1).tolist(), strict=True)
    for ids, segments, n in rows:
        found: dict[str, list[np.ndarray]] = {}

        def count(name, step, spikes, found=found):
            found.setdefault(name, []).append(np.abs(spikes).sum(0, dtype=np.int64))
            if name == last:
                found.setdefault("pooled", []).append(np.abs(spikes[0]))

        session.observe(count)
        logits.append(session.run(ids[:n], segments[:n]).logits)
        counts.append({name: np.stack(steps) for name, steps in found.items()})
    session.observe(None)
    together = {name: np.stack([one[name] for one in counts], axis=1) for name in counts[0]}
    return Outputs(
        torch.from_numpy(np.stack(logits)),
        counts={name: torch.from_numpy(spikes).float() for name, spikes in together.items()},
    )
