"""Inference as it is measured: in closed form where that equals the simulation, else simulated a few sentences at a
time, so that spike trains fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import Outputs
from spikeprune.snn.context import ForwardContext

CHUNK = 2**25  # most numbers in one tensor of a simulation: 128 MiB of float32


def infer(
    student: SpikingBert,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_type_ids: Tensor | None = None,
    *,
    stepwise: bool = False,
    chunk: int = CHUNK,
) -> Outputs:
    """Logits, hidden states and spike counts of one batch, without gradient; no attention scores.

    `accumulate` is evaluated in closed form: each train under its constant current, so neither time nor memory grows
    with T, and counts are `[1, B, D]`, sums over the train. In exact arithmetic that is the simulation itself; in
    floating point a membrane that is added up step by step can land on the other side of its threshold by rounding.

    `stepwise`, the codings that tick together and students with feedback are simulated. So many sentences then go
    together that the largest tensor, `[T, b, N, widest layer]`, has at most `chunk` numbers, or one sentence. Sentences
    do not see each other, so only the rounding of a product's sums can depend on it.
    """
    parts = [input_ids, attention_mask, *([] if token_type_ids is None else [token_type_ids])]
    with torch.no_grad():
        if in_closed_form(student, stepwise):
            return student(*parts, mode="equilibrium", count=True, scores=False)
        ctx = ForwardContext("spiking", attention_mask, count=True, scores=False)
        size = max(1, chunk // sentence_numbers(student, input_ids.shape[1], student.covered(ctx)))
        chunks = zip(*(part.split(size) for part in parts), strict=True)
        return joined([student(*rows, mode="spiking", count=True, scores=False) for rows in chunks])


def in_closed_form(student: SpikingBert, stepwise: bool) -> bool:
    return student.coding == "accumulate" and student.embedding.feedback is None and not stepwise


def sentence_numbers(student: SpikingBert, tokens: int, in_bytes: bool = False) -> int:
    """Numbers that one sentence of `tokens` takes in the widest spike train, four bytes each. `in_bytes`: trains
    are bytes, and the only floats currents as wide as the layers' outputs."""
    widest = max(layer.ffn for layer in student.layers)
    widest = max(student.values["hidden"], -(-widest // 4) if in_bytes else widest)
    return max(student.steps) * tokens * widest


def joined(outputs: Sequence[Outputs]) -> Outputs:
    """Outputs of parts of a batch, in order, as the whole batch's: logits, hidden states and counts."""
    if len(outputs) == 1:
        return outputs[0]
    hidden = zip(*(output.hidden for output in outputs), strict=True)
    return Outputs(
        logits=torch.cat([output.logits for output in outputs]),
        hidden=tuple(torch.cat(layer) for layer in hidden),
        counts={name: torch.cat([o.counts[name] for o in outputs], dim=1) for name in outputs[0].counts},
    )
