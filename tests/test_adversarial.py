"""A student's second look at a batch whose words were moved against it; the teacher's is in test_teacher.py."""

from __future__ import annotations

import pytest
import torch

from spikeprune.models.outputs import INPUTS
from spikeprune.models.teacher import Teacher, scratch_config
from spikeprune.modules.adversarial import added, against, still
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
    """No word twice, so that a sentence's words can be moved in the table itself."""
    made = sentences()
    words = torch.randperm(23, generator=torch.Generator().manual_seed(2))[: made["attention_mask"].sum()]
    made["input_ids"] = torch.zeros_like(made["input_ids"]).masked_scatter(made["attention_mask"].bool(), words)
    return {**made, "labels": torch.tensor([0, 2, 1])}


def move_table(table: torch.nn.Parameter, slope: torch.Tensor, here: dict[str, torch.Tensor], length: float) -> None:
    """By hand, sentence by sentence: a root mean square of `length` over its words, along their rows' slope."""
    for ids, mask in zip(here["input_ids"], here["attention_mask"], strict=True):
        rows = ids[mask.bool()]
        with torch.no_grad():
            table[rows] += length * len(rows) ** 0.5 * slope[rows] / slope[rows].norm()


def gradients(made: StudentModule, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = dict(made.student.named_parameters())
    found = torch.autograd.grad(loss, parameters.values(), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), found, strict=True)
    }


@pytest.mark.parametrize("answers", [{"soft": 1.0}, {"hard": 0.5}, {"soft": 2.0, "hard": 0.5}], ids=str)
def test_the_second_look_is_at_words_moved_against_the_answer(answers) -> None:
    """Half the gradient is that of the answer's losses at the words, half that at the words moved by hand; the teacher
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
    move_table(plain.student.embedding.word.weight, slope["embedding.word.weight"], here, 0.7)
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


def slope_of(vectors: torch.Tensor, weights: torch.Tensor, here: dict[str, torch.Tensor], length: float):
    """The move against the sum of `weights * vectors`, whose slope is `weights`."""
    words = torch.nn.Embedding.from_pretrained(vectors)
    unmoved = still(words, here)
    with added(words, unmoved):
        loss = (weights * words(here["input_ids"])).sum()
    return against(loss, unmoved, here, length)


def test_a_move_counted_by_hand() -> None:
    """Two words and a padding: (3, 0) and (0, 4) are five long, so at a length of 2 the move is 2 sqrt(2) / 5 of them.
    One word: two long, whatever its slope. A sentence without slope stays. The padding moves nowhere."""
    here = {"input_ids": torch.tensor([[0, 1, 2], [1, 2, 2], [0, 0, 2]])}
    here["attention_mask"] = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0]])
    weights = torch.tensor([[[3.0, 0], [0, 4], [9, 9]], [[-1e-3, 0], [5, 5], [5, 5]], [[0, 0], [0, 0], [1, 1]]])
    move = slope_of(torch.rand(3, 2), weights, here, 2.0)
    share = 2 * 2**0.5 / 5
    expected = torch.zeros(3, 3, 2)
    expected[0, :2] = share * weights[0, :2]
    expected[1, 0, 0] = -2
    torch.testing.assert_close(move, expected)


def test_the_same_word_moves_for_each_sentence_by_itself() -> None:
    here = {"input_ids": torch.tensor([[0], [0]]), "attention_mask": torch.ones(2, 1)}
    move = slope_of(torch.rand(1, 2), torch.tensor([[[1.0, 0]], [[0, -100]]]), here, 0.5)
    torch.testing.assert_close(move, torch.tensor([[[0.5, 0]], [[0, -0.5]]]))


def test_words_moved_in_an_error_are_moved_no_more() -> None:
    words, ids = torch.nn.Embedding(3, 2), torch.tensor([[0, 2]])
    with pytest.raises(KeyError), added(words, torch.ones(1, 2, 2)):
        assert torch.equal(words(ids), words.weight[ids] + 1)
        raise KeyError
    assert torch.equal(words(ids), words.weight[ids])
