"""Gates: heads, neurons and time steps that are kept or removed by the gradient of a loss under a budget.

The objective is that of CoFi (Xia et al. 2022, arXiv 2204.00408, eq. 4) as an augmented Lagrangian,

    min over weights and gates, max over m >= 0:  loss + m g + DAMPING / 2 relu(g)^2,  g = log(cost / target)

The cost is differentiable in gates and firing rates, so that one multiplier m acts on heads, neurons, steps and spikes
alike. By the logarithm it weighs relative savings, whatever the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spikeprune import distributed
from spikeprune.cost.shapes import Shape
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import Outputs
from spikeprune.pruning.gates import KINDS, open_probability, sampled, settled_gate
from spikeprune.snn.call import shorter
from spikeprune.training.objective import AdditionsTerm

OPEN = 3.0  # log_alpha at first: open in 99 % of the draws
DAMPING = 20.0  # of the multiplier: it reacts to the present excess, not to the sum of all
DISTANCE = 30.0  # distance that a gate can move while the target falls; from open to closed it is 6
STEP_GAIN = 10.0  # times an excess: by how much longer steps get, as one gate's gradient of many is mostly noise
MAX_STEP = 0.1  # longest step of a gate
MULTIPLIER_GAIN = 100.0  # times an excess: how far the multiplier rises if that stays while the target falls
MAX_EXCESS = 0.1  # largest excess that the multiplier reacts to: gates need their time whatever it is


class Gates:
    """Gates of a student's units, the multiplier of its cost, and their optimizer. A training step of a module reads

        student(…, rate=True, **gates.relaxed())   and adds   gates.penalty(outputs, tokens)

    to its loss, where tokens are the mean of a sentence. All is in tensors that keep their places, so that a replayed
    CUDA graph reads what `draw` and `aim` write.

    kinds    that are gated, of `pruning.gates.KINDS`; the others stay as the student has them
    term     additions of the student, or None where the cost is its latency
    steps    optimizer steps in which the target falls
    learning whether units are still gated; afterwards the multiplier acts on firing rates alone
    equal_bits  whether the cost is relative to a dense network of the same units
    """

    STATE = ("log_alpha", "allowed", "gated", "multiplier", "factor")  # tensors in a checkpoint

    def __init__(
        self,
        student: SpikingBert,
        *,
        kinds: Sequence[str],
        term: AdditionsTerm | None,
        steps: int,
        seed: int,
        equal_bits: bool = False,
    ):
        self.student, self.equal_bits = student, equal_bits
        self.term, self.learning = term, True
        self.sizes = [student.heads.numel(), student.ffn.numel(), len(student.t_steps)]
        self.shapes = [student.heads.shape, student.ffn.shape, student.t_steps.shape]
        like = student.heads.new_zeros(sum(self.sizes))
        generator = torch.Generator().manual_seed(seed)  # equal ranks would leave the order of units to their numbers
        start = OPEN + 0.01 * torch.randn(len(like), generator=generator)
        self.log_alpha = start.to(like).requires_grad_()
        self.allowed = torch.cat([student.heads.flatten(), student.ffn.flatten(), torch.ones(self.sizes[2]).to(like)])
        gated = [torch.full((n,), float(k in kinds)) for n, k in zip(self.sizes, KINDS, strict=True)]
        self.gated = torch.cat(gated).to(like) * self.allowed
        self.noise = torch.full_like(like, 0.5)
        self.multiplier = like.new_zeros(()).requires_grad_()
        self.target = like.new_ones(())
        self.factor = like.new_ones(())  # cost of an addition, in the unit of the target
        self.pace = min(MAX_STEP, DISTANCE / max(1, steps))
        self.optimizer = torch.optim.Adam([self.log_alpha], lr=self.pace)
        self.multiplier_lr = MULTIPLIER_GAIN / max(1, steps)

    def parameters(self) -> list[Tensor]:
        return [self.log_alpha, self.multiplier]

    def draw(self) -> None:
        """Noise for the next training step."""
        self.noise.uniform_()

    def aim(self, target: float) -> None:
        self.target.fill_(target)

    def calibrate(self, cost: float, additions: Tensor) -> None:
        """Take cost and expected additions as proportional, as they are measured of the student now."""
        share = kept_share(self.term.shape, self.student.heads, self.student.ffn) if self.equal_bits else 1.0
        self.factor.fill_(cost * share / additions)

    def parts(self, values: Tensor) -> list[Tensor]:
        """`[n]` -> heads `[L, H]`, neurons `[L, F]`, steps `[L+1]`, of gated units; 1 of others that are allowed."""
        values = values * self.gated + self.allowed - self.gated
        return [part.view(shape) for part, shape in zip(values.split(self.sizes), self.shapes, strict=True)]

    def relaxed(self) -> dict[str, Tensor]:
        """Arguments of the student's forward: one draw of the gates for the whole batch."""
        if not self.learning:
            return {}
        heads, ffn, steps = self.parts(sampled(self.log_alpha, self.noise))
        return {"heads": heads[None], "ffn": ffn[None], "steps": steps}

    def cost(self, outputs: Outputs, tokens: Tensor) -> Tensor:
        """The expected cost, scalar; `outputs` with the rates of units as they fire before their gates."""
        student = self.student
        heads, ffn, steps = student.heads, student.ffn, student.t_steps
        if self.learning:
            heads, ffn, open_steps = self.parts(open_probability(self.log_alpha))
            closed = shorter(student.t_steps)
            steps = closed + open_steps * (student.t_steps - closed)
        if self.term is None:
            return (steps.sum() if student.coding == "accumulate" else steps.max()).to(self.target)
        unit = self.factor / (kept_share(self.term.shape, heads, ffn) if self.equal_bits else 1.0)
        if not self.learning:
            return unit * self.term.expected(student, outputs, tokens)
        rates, channels = dict(outputs.rates), heads.repeat_interleave(self.term.shape.head_size, -1)
        for name, kept in (("context", channels), ("intermediate", ffn)):
            for i, own in enumerate(kept.unbind()):
                rate = rates[f"layers.{i}.{name}"]
                rates[f"layers.{i}.{name}"] = rate * own[: len(rate)]
        expected = replace(outputs, rates=rates)
        return unit * self.term.expected(student, expected, tokens, heads=heads, ffn=ffn, t_steps=steps)

    def penalty(self, outputs: Outputs, tokens: Tensor) -> Tensor:
        """The term of the excess of the expected cost over the target, scalar."""
        excess = self.cost(outputs, tokens).clamp(min=1e-12).log() - self.target.log()
        return self.multiplier * excess + DAMPING / 2 * excess.relu().square()

    @torch.no_grad()
    def step(self) -> None:
        """Move gates down and the multiplier up their gradients, which are means over the processes."""
        if self.multiplier.grad is None:
            return
        excess = distributed.mean(self.multiplier.grad)
        # it falls faster than it rises, since below the target it costs quality for nothing
        size = torch.where(excess < 0, self.multiplier.clamp(min=1), 1.0)
        self.multiplier.add_(self.multiplier_lr * excess.clamp(-MAX_EXCESS, MAX_EXCESS) * size).clamp_(min=0)
        if self.learning and self.log_alpha.grad is not None:
            self.log_alpha.grad = distributed.mean(self.log_alpha.grad)
            before = self.log_alpha.clone()
            self.optimizer.step()
            longer = (1 + STEP_GAIN * excess.relu()).clamp(max=MAX_STEP / self.pace)
            self.log_alpha.copy_(before.lerp(self.log_alpha, longer))
        self.multiplier.grad = self.log_alpha.grad = None

    def settled(self) -> list[Tensor]:
        """Gates without noise, as `parts`."""
        return self.parts(settled_gate(self.log_alpha.detach()))

    @torch.no_grad()
    def reopen(self, places: Sequence[int]) -> None:
        """Of the steps that these places have left, the next gates: open, as at first."""
        at = [sum(self.sizes[:2]) + place for place in places]
        self.log_alpha[at] = OPEN
        for name, moment in self.optimizer.state[self.log_alpha].items():
            if name != "step":
                moment[at] = 0

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the settled gates of kept units into the columns that read them, so that masks of ones compute what
        was learnt. Quantized columns have one scale for all: they stay."""
        student = self.student
        if student.weights != "float":
            return
        heads, ffn, _ = self.settled()
        for i, layer in enumerate(student.layers):
            layer.out.weight.mul_(heads[i, : layer.heads].clamp(min=0.1).repeat_interleave(layer.head_size))
            layer.down.weight.mul_(ffn[i, : layer.ffn].clamp(min=0.1))

    def state_dict(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name).detach() for name in self.STATE}
        return {**tensors, "learning": self.learning, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.STATE:
            getattr(self, name).copy_(state[name])
        self.learning = state["learning"]
        self.optimizer.load_state_dict(state["optimizer"])


def kept_share(shape: Shape, heads: Tensor, ffn: Tensor) -> Tensor:
    """Share of a dense layer stack's multiplications by weights that belongs to these heads and neurons."""
    attention, forward = 4 * shape.hidden * shape.head_size * heads.sum(), 2 * shape.hidden * ffn.sum()
    return (attention + forward) / shape.layer_products
