"""The loss term `additions`, and its limit, which a schedule moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from spikeprune.cost import synapses
from spikeprune.cost.activity import place
from spikeprune.cost.shapes import Shape
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import Outputs
from spikeprune.pruning.statistics import given
from spikeprune.training import losses


class AdditionsTerm(nn.Module):
    """A token's expected additions, in multiplications of its dense forward, as far as they are above `limit`.

    The limit is a tensor, so that a replayed CUDA graph reads its new value; it is in no checkpoint. It falls from
    `begin` to `end` over the share `fall` of all steps, or is `end` throughout where `begin` is 0.
    """

    def __init__(self, shape: Shape, *, begin: float, end: float, fall: float):
        super().__init__()
        self.shape, self.begin, self.end, self.share = shape, begin, end, fall
        self.register_buffer("limit", torch.tensor(end), persistent=False)

    def forward(self, student: SpikingBert, outputs: Outputs, tokens: Tensor) -> Tensor:
        """Scalar; `tokens`: mean of a sentence."""
        return self.expected(student, outputs, tokens, self.limit)

    def expected(
        self,
        student: SpikingBert,
        outputs: Outputs,
        tokens: Tensor,
        limit: Tensor | float = 0.0,
        *,
        heads: Tensor | None = None,
        ffn: Tensor | None = None,
        t_steps: Tensor | None = None,
    ) -> Tensor:
        """`heads [L, H]`, `ffn [L, F]` and `t_steps [L+1]`: expected ones in place of the student's."""
        shape, t_steps = self.shape, student.steps if t_steps is None else t_steps
        heads, ffn = student.heads if heads is None else heads, student.ffn if ffn is None else ffn
        steps = {name: t_steps[place(name)[0] + 1] for name in outputs.rates}
        fan_out = synapses.fan_out(shape=shape, heads=heads, ffn=ffn, tokens=tokens, links=student.links())
        for name, rate in outputs.rates.items():  # a compacted student's heads come first
            if isinstance(fan_out.get(name), Tensor) and fan_out[name].dim():
                fan_out[name] = fan_out[name][: len(rate)]
        dense = shape.layers * shape.hidden * (4 * shape.hidden + 2 * shape.ffn)
        unfired = sum(synapses.unfired(shape=shape, t_steps=t_steps, coding=student.coding))
        return losses.additions_loss(
            outputs.rates, fan_out=fan_out, t_steps=steps, unfired=unfired, dense=dense, limit=limit
        )

    def fall(self, progress: float) -> None:
        """Set the limit for this share of all steps, where it falls at all."""
        if self.begin:
            self.limit.fill_(losses.falling(progress / self.share, begin=self.begin, end=self.end))

    @torch.no_grad()
    def mean(self, student: SpikingBert, batches: Sequence[Mapping[str, Tensor]], mode: str) -> Tensor:
        """The mean of the term over `batches`, without limit, scalar; `mode`: of the student's forward."""
        was_training = student.training
        student.eval()
        terms = []
        for batch in batches:
            outputs = student(**given(batch), mode=mode, rate=True)
            terms.append(self.expected(student, outputs, batch["attention_mask"].sum(1).float().mean()))
        student.train(was_training)
        return torch.stack(terms).mean()
