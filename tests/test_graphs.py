"""CUDA graphs change no step: losses, gradients and random draws are those of the same steps without them."""

from __future__ import annotations

import math

import pytest
import torch

from spikeprune.config.tasks import TASKS
from spikeprune.kernels import attach
from spikeprune.kernels.cuda_graphs import CAPTURE_AFTER, GraphedNorms, GraphedTerms
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.shape import student_shape
from spikeprune.models.teacher import Teacher, scratch_config
from spikeprune.models.tensors import norms
from spikeprune.training.callbacks.synapses import SynapsePruning
from spikeprune.training.gates import Gates
from spikeprune.training.losses import uniform_layer_map
from spikeprune.training.modules.student import DistillationModule
from spikeprune.training.modules.task import TeacherModule
from spikeprune.training.objective import AdditionsTerm, LossWeights
from spikeprune.training.optimizer import Optimization

pytestmark = pytest.mark.gpu
SIZES = {"hidden": 48, "layers": 2, "heads": 3, "ffn": 64, "classes": 2}
LOSSES = LossWeights(hidden=1.0, scores=1.0, soft=1.0, additions=0.1)


def common(graphs: bool) -> dict:
    task = TASKS["sst2"]
    how = Optimization(lr=1e-3, theta_lr=1e-3, warmup=0.0, weight_decay=0.0)
    return {
        "task": task,
        "dev_splits": task.dev_splits,
        "optimization": how,
        "graphs": GraphedTerms if graphs else None,
    }


def module(
    graphs: bool, losses: LossWeights = LOSSES, forward_mode: str = "equilibrium", **student
) -> DistillationModule:
    torch.manual_seed(0)
    teacher = Teacher.scratch(scratch_config(vocab=60, positions=32, dropout=0.1, **SIZES))
    values = {"vocab": 60, "positions": 32, "segments": 2, "t_steps": 3, **SIZES, **student}
    made = DistillationModule(
        SpikingBert(**values),
        teacher,
        losses=losses,
        layer_map=uniform_layer_map(2, 2),
        forward_mode=forward_mode,
        **common(graphs),
    )
    return made.cuda().train()


def batch(width: int, seed: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(2, 60, (8, width), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(width) < torch.linspace(3, width, 8).long()[:, None]).long()
    made = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: tensor.cuda() for name, tensor in {**made, "labels": ids[:, 0] % 2}.items()}


def evaluate(made: DistillationModule) -> None:
    """As in a run, between two epochs: by the engine, which holds what it has worked out."""
    before = made.student.backend
    attach(made.student, "triton")
    made.eval()
    with torch.inference_mode():
        made.infer(batch(16, 0))
    made.train()
    made.student.attach(before)


def learnt(made: DistillationModule, here: dict, terms, precision: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Each term of a step, and its gradients."""
    with torch.autocast("cuda", precision or torch.bfloat16, enabled=precision is not None):
        out = terms(here)
    made.zero_grad()
    made.backward(out["loss"])
    gradients = {name: p.grad.clone() for name, p in made.student.named_parameters() if p.grad is not None}
    return {**{name: term.detach().clone() for name, term in out.items()}, **gradients}


@pytest.mark.parametrize("kind", [{}, {"weights": "ternary"}, {"residual": "membrane"}, {"sparse": True}], ids=str)
@pytest.mark.parametrize("coding", ["accumulate", "running_mean", "per_step"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_graphed_steps_equal_plain_ones(coding: str, precision: torch.dtype | None, kind: dict) -> None:
    """Two shapes; masks and synapses change before step 7, time steps, after an evaluation, before step
    10, the limit on additions at each."""
    made = module(True, forward_mode="spiking" if coding == "per_step" else "equilibrium", coding=coding, **kind)
    if made.student.weights == "ternary":
        made.student.set_strength(0.5)
    optimizer = torch.optim.SGD(made.student.parameters(), lr=0.05)
    replayed = []
    for step in range(18):
        if step == 7:
            made.student.heads[0, 1] = 0
            made.student.ffn[1, ::2] = 0
            if made.student.synapses is not None:
                SynapsePruning(kept=0.5, begin=0, end=0).decide(None, made, 1.0)
        if step == 10:
            evaluate(made)
            made.student.set_t_steps([2, 1, 3])  # a reader outlives its source
        made.objective.additions.limit.fill_(0.5 - 0.02 * step)
        here = batch((16, 24)[step % 2], step)
        plain = learnt(made, here, made.loss_terms, precision)
        graphed = learnt(made, here, lambda b: made.graphed(b, made.python_state()), precision)
        assert list(plain) == list(graphed)
        for name, expected in plain.items():
            gap = (graphed[name] - expected).norm() / expected.norm().clamp(min=1e-6)
            assert gap < (2e-2 if precision else 1e-4), f"step {step}, {name}: {gap:.2e}"
        optimizer.step()
        if made.student.synapses is not None:
            made.student.synapses.apply_masks(made.student)
        replayed.append(bool(made.graphed.captured))
    assert replayed == [False] * 4 + [True] * 6 + [False] * 4 + [True] * 4


def test_dropped_graphs_give_their_memory_back() -> None:
    """Each change of state has a new pool of memory; the device holds one at a time."""
    made, held = module(True), []
    for t_steps in (3, 2, 3, 2):
        made.student.set_t_steps(t_steps)
        for step in range(CAPTURE_AFTER + 1):
            learnt(made, batch(24, step), lambda b: made.graphed(b, made.python_state()), None)
        assert made.graphed.captured
        held.append(torch.cuda.memory_reserved())
    assert held[-1] == held[1], held


@pytest.mark.parametrize("coding", ["accumulate", "running_mean"])
def test_graphed_steps_learn_gates_as_plain_ones(coding: str) -> None:
    """Noise and target change at each step, which units are learnt before step 6."""
    made = module(True, coding=coding, t_steps=4)
    attach(made.student, "triton")
    term = AdditionsTerm(student_shape(made.student))
    made.gates = Gates(made.student, kinds=("heads", "ffn", "steps"), term=term, steps=10, seed=0)
    for step in range(12):
        made.gates.learning = step < 6
        made.gates.draw()
        made.gates.aim(0.5 - 0.02 * step)
        here, found = batch(16, step), []
        for terms in (made.loss_terms, lambda b: made.graphed(b, made.python_state())):
            made.gates.multiplier.grad = made.gates.log_alpha.grad = None
            here_found = learnt(made, here, terms, None)
            gates = {name: getattr(made.gates, name).grad for name in ("multiplier", "log_alpha")}
            found.append({**here_found, **{name: g.clone() for name, g in gates.items() if g is not None}})
        assert list(found[0]) == list(found[1]) and ("log_alpha" in found[0]) == made.gates.learning
        for name, expected in found[0].items():
            gap = (found[1][name] - expected).norm() / expected.norm().clamp(min=1e-6)
            assert gap < 1e-4, f"step {step}, {name}: {gap:.2e}"
        made.gates.step()
    assert made.graphed.captured


def test_a_capture_leaves_the_random_state() -> None:
    teacher = Teacher.scratch(scratch_config(vocab=60, positions=32, dropout=0.3, **SIZES))
    made, here = TeacherModule(teacher, **common(True)).cuda().train(), batch(16, 0)
    for _ in range(CAPTURE_AFTER):
        made.graphed(here, None)
    before = torch.cuda.get_rng_state()
    made.graphed.capture(here)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_dropout_draws_anew_at_each_replay() -> None:
    torch.manual_seed(0)
    made = TeacherModule(Teacher.scratch(scratch_config(vocab=60, positions=32, dropout=0.3, **SIZES)), **common(True))
    made, here = made.cuda().train(), batch(16, 0)
    losses = [made.graphed(here, None)["loss"].item() for _ in range(CAPTURE_AFTER + 4)]
    assert len(set(losses[CAPTURE_AFTER:])) == 4


@pytest.mark.parametrize("order", [2, math.inf])
def test_graphed_norms_are_those_of_the_tensors_as_they_are_now(order: float) -> None:
    tensors = [torch.randn(shape, device="cuda", requires_grad=True) for shape in ((3, 4), (5,), (2, 7))]
    found = GraphedNorms(order)
    for _ in range(6):
        with torch.no_grad():
            torch._foreach_mul_(tensors, 1.5)
        before = found(tensors)
        assert torch.equal(before, norms([tensor.detach() for tensor in tensors], order))
    assert len(found.captured) == 1
    with torch.no_grad():
        tensors[1][2] = math.nan
    assert found(tensors).isfinite().tolist() == [True, False, True]
    assert before.isfinite().all()  # a new tensor each time
