"""A distillation step of a spiking student beside that of a dense BERT: same teacher, losses, optimizer and batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from experiments.bench.clock import Timing, Work, peak_bytes, timings
from experiments.bench.nets import Size
from experiments.bench.rows import Row, Setting
from spikeprune.kernels.cuda_graphs import GraphedTerms
from spikeprune.models.outputs import INPUTS
from spikeprune.models.teacher import Teacher
from spikeprune.training import losses


def distillation(
    at: Setting,
    size: Size,
    *,
    spiking: bool,
    t_steps: int = 4,
    graphs: bool = False,
    scores: bool = True,
    half: bool = False,
) -> Work:
    """One step: teacher, learner, losses of hidden states, attention scores and logits, backward, AdamW. `graphs`:
    forward and backward replayed from CUDA graphs, as training on a GPU does. Without `scores` attention is fused on
    both sides; `half`: products in bfloat16."""
    teacher = Teacher(size.bert()).to(at.device).freeze()
    learner = at.student(size, t_steps=t_steps) if spiking else Teacher(size.bert()).to(at.device)
    learner.train()
    wanted = {"hidden": True, "scores": scores}
    own = {"scores": scores} if spiking else wanted
    batch, layer_map = at.batch(size), list(range(size.layers))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-5, fused=at.device.type == "cuda")

    def learn(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs, tokens = [batch[name] for name in INPUTS], batch["attention_mask"].bool()
        with torch.no_grad():
            teacher_outputs = teacher(*inputs, **wanted)
        outputs = learner(*inputs, **own)
        loss = losses.hidden_loss(outputs.hidden, teacher_outputs.hidden, tokens, layer_map)
        if scores:
            loss = loss + losses.scores_loss(outputs.scores, teacher_outputs.scores, tokens, layer_map)
        loss = loss + losses.soft_loss(outputs.logits, teacher_outputs.logits, temperature=2.0, regression=False).mean()
        return {"loss": loss}

    graphed = GraphedTerms(learn, lambda: [learner, teacher])

    def step() -> None:
        with torch.autocast(at.device.type, torch.bfloat16, enabled=half):
            terms = graphed(batch, None) if graphs else learn(batch)
        graphed.backward(terms["loss"])
        optimizer.step()
        optimizer.zero_grad()

    return step


def training(at: Setting) -> Iterator[Row]:
    """Time of a step at T = 4, with and without CUDA graphs on both sides, and its peak memory at the longest T; then
    of a step without attention scores in bfloat16, the preset base's, with samples per second."""
    on_gpu, longest = at.device.type == "cuda", at.growth[-1]
    for size in at.sizes:
        common = {"group": "training step", "network": size.name, "setting": f"B {at.sentences}, N {at.tokens}"}
        for graphs in (False, True) if on_gpu else (False,):
            comparison = "times the time of a dense HF BERT distillation step, teacher in both"
            row = Row(**common, comparison=comparison + ", CUDA graphs" * graphs, goal=at.goal("at most", 1.3))
            yield row.timed(*steps(at, size, graphs=graphs))
        works = {t: distillation(at, size, spiking=True, t_steps=t) for t in (4, longest)}
        peaks = {t: peak_bytes(work, at.device) for t, work in works.items()}
        row = Row(**common, comparison=f"times the peak memory at T 4, at T {longest}", goal=("at most", 1.001))
        row.ratio, row.more = peaks[longest] / peaks[4], {f"bytes at T {t}": float(n) for t, n in peaks.items()}
        yield row
        comparison = "times the time of a dense step, bfloat16, without attention scores, CUDA graphs"
        ours, dense = steps(at, size, graphs=on_gpu, scores=False, half=True)
        row = Row(**common, comparison=comparison, goal=at.goal("at most", 1.5)).timed(ours, dense)
        rates = {"ours": ours, "dense": dense}
        row.more = {f"samples per second, {name}": at.sentences / timing.median for name, timing in rates.items()}
        yield row


def steps(at: Setting, size: Size, **how: bool) -> tuple[Timing, Timing]:
    """Seconds of our step and of the dense one; `how`: as of `distillation`."""
    works = {name: distillation(at, size, spiking=name == "ours", **how) for name in ("ours", "dense")}
    for work in works.values():  # a shape is captured as a CUDA graph at its third appearance
        for _ in range(3):
            work()
    found = timings(works, at.device, budget=at.budget)
    return found["ours"], found["dense"]
