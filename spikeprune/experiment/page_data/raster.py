"""The spikes of a student on single sentences, simulated step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spikeprune.cost.activity import kept_channels
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.snn.context import SpikeTrain
from spikeprune.snn.spiking_layer import SpikingLayer

CHANNELS = 32  # of a spiking layer that are shown, evenly spread
LONGEST = 48  # tokens that are shown of a sentence


@torch.no_grad()
def spike_trains(student: SpikingBert, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Spikes -1, 0 or 1 of each spiking layer, int8 `[T, B, N, D]`, without what a mask silences."""
    found: dict[str, Tensor] = {}

    def keep(layer: SpikingLayer, _: Any, train: SpikeTrain) -> None:
        found[layer.name] = train.pulses.sign().to(torch.int8)

    hooks = [layer.register_forward_hook(keep) for layer in student.spiking_layers().values()]
    try:
        student(**inputs, mode="spiking", trace=True, scores=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def raster(student: SpikingBert, tokenizer: Any, texts: Sequence[str], max_length: int) -> dict[str, Any]:
    """Of one sentence or pair: its `tokens`, logits, and of each spiking layer that ends the embedding or a layer the
    `spikes` (row, token, step, sign) of `rows` channels over `t_steps`; `rates`: of every spiking layer by token."""
    row = tokenizer(*texts, truncation=True, max_length=max_length, return_token_type_ids=True, return_tensors="pt")
    inputs = {name: row[name].to(student.classifier.weight.device) for name in INPUTS}
    logits = student(*inputs.values(), mode="spiking", scores=False).logits[0]
    trains = spike_trains(student, inputs)
    words = [tokenizer.decode([token]).strip() or "␣" for token in row["input_ids"][0].tolist()]
    widths = {name: train.shape[-1] for name, train in trains.items()}
    kept = kept_channels(widths, heads=student.heads, ffn=student.ffn)
    shown = [name for name in trains if name == "embedding" or name.endswith(".output")]
    return {
        "text": list(texts),
        "tokens": words[:LONGEST],
        "cut": len(words) > LONGEST,
        "logits": logits.tolist(),
        "rates": {name: token_rates(train, kept[name]) for name, train in trains.items()},
        "trains": {name: dots(trains[name][:, 0, :LONGEST]) for name in shown},
    }


def token_rates(train: Tensor, kept: Tensor) -> list[float]:
    """Mean |s| of each token `[N]` over steps and the channels `kept [D]`, of `train [T, B, N, D]`."""
    spikes = train[:, 0, :LONGEST].abs().float() @ kept.float()  # [T, N]
    return (spikes.mean(0) / kept.sum().clamp(min=1)).tolist()


def dots(train: Tensor) -> dict[str, Any]:
    """`[T, N, D]` -> spikes of evenly spread channels."""
    steps, _, width = train.shape
    rows = torch.linspace(0, width - 1, min(CHANNELS, width)).round().long()
    shown = train[:, :, rows.to(train.device)]  # [T, N, rows]
    places = shown.nonzero()
    signs = shown[tuple(places.T)]
    found = zip(places.tolist(), signs.tolist(), strict=True)
    spikes = [(row, token, step, sign) for (step, token, row), sign in found]
    return {"t_steps": steps, "rows": len(rows), "of": width, "spikes": spikes}
