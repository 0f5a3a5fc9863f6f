"""A student's second look at a batch whose words were moved against it; the teacher's is in test_teacher.py."""

from __future__ import annotations

import pytest
import torch

from spikeprune.models.outputs import INPUTS
from spikeprune.models.teacher import Teacher, scratch_config
from spikeprune.modules.adversarial import moved
from spikeprune.modules.objective import LossWeights
from spikeprune.modules.optimizer import Optimization
from spikeprune.modules.student import StudentModule
from spikeprune.size import Shape
from spikeprune.tasks import get_task
from tests.students import FFN, C, D, H, L, make, sentences

SIZES = {"hidden": D, "layers": L, "heads": H, "ffn": FFN, "classes": C}


def module(**losses: float) -> StudentModule:
    task, how = get_task("mnli"), Optimization(1e-3, 1e-2, 0.1, 0)
    shape = Shape(pooling="mean", query="real", theta="channel", vocab_size=23, positions=16, types=2, **SIZES)
    student = make()
    teacher = Teacher.scratch(scratch_config(vocab=23, positions=16, dropout=0.0, **SIZES)).double()
    common = {"task": task, "dev_splits": task.dev_splits, "optimization": how, "shape": shape, "layer_map": [0, 1]}
    return StudentModule(student, teacher, losses=LossWeights(**losses), **common).train()


def batch() -> dict[str, torch.Tensor]:
    return {**sentences(), "labels": torch.tensor([0, 2, 1])}


def gradients(made: StudentModule, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = dict(made.student.named_parameters())
    found = torch.autograd.grad(loss, parameters.values(), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), found, strict=True)
    }


@pytest.mark.parametrize("answers", [{"soft": 1.0}, {"hard": 0.5}, {"soft": 2.0, "hard": 0.5}], ids=str)
def test_the_second_look_is_at_words_moved_against_the_answer(answers) -> None:
    """Half the gradient is that of the answer's losses at the table, half that at the table moved by hand; the teacher
    is not asked again, the other terms count as without it, and the table stays."""
    others = {"hidden": 0.3, "additions": 0.2}
    made, here = module(**answers, **others, adversarial=0.7), batch()
    words = made.student.embedding.word.weight
    before = words.detach().clone()
    terms = made.learn(here)
    assert torch.equal(words, before)
    plain = module(**answers)
    slope = gradients(plain, plain.learn(here)["loss"])
    lesson = plain.lesson(here)
    with torch.no_grad():
        plain.student.embedding.word.weight += (
            0.7 * slope["embedding.word.weight"] / slope["embedding.word.weight"].norm()
        )
    outputs = plain.student(*(here[name] for name in INPUTS))
    there = plain.objective.answered(plain.objective.answers(here, outputs, lesson))
    assert terms["adversarial"].item() == pytest.approx(there.item(), rel=1e-9)
    assert terms["adversarial"] != plain.objective.answered(terms)
    rest = module(**others)
    expected = [slope, gradients(plain, there), gradients(rest, rest.learn(here)["loss"])]
    for name, found in gradients(made, terms["loss"]).items():
        first, second, unmoved = (part[name] for part in expected)
        torch.testing.assert_close(found, (first + second) / 2 + unmoved, rtol=1e-6, atol=1e-9)


def test_a_look_at_words_that_stay_changes_nothing() -> None:
    """A length of almost nothing moves no spike: the loss is the one without."""
    once, twice = module(soft=1.0).learn(batch()), module(soft=1.0, adversarial=1e-300).learn(batch())
    assert set(twice) - set(once) == {"adversarial"}
    assert twice["loss"] == once["loss"] == twice["adversarial"]


def test_a_table_moved_in_an_error_comes_back() -> None:
    weight = torch.nn.Parameter(torch.rand(3, 2))
    before = weight.detach().clone()
    with pytest.raises(KeyError), moved(weight, torch.full((3, 2), 0.1)):
        raise KeyError
    assert torch.equal(weight, before)
