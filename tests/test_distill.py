"""Distillation losses on examples of two tokens, counted by hand, and layer maps."""

from __future__ import annotations

import math

import pytest
import torch
from micro import GLUE, micro
from torch.utils._python_dispatch import TorchDispatchMode

from spikeprune.config.load import load
from spikeprune.cost import operations
from spikeprune.cost.shapes import Shape
from spikeprune.experiment.context import prepare
from spikeprune.models.architecture import RESIDUALS
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.shape import student_shape
from spikeprune.training.losses import (
    falling,
    hard_loss,
    hidden_loss,
    scores_loss,
    soft_loss,
    uniform_layer_map,
)
from spikeprune.training.objective import AdditionsTerm

BOTH = torch.tensor([[True, True]])
FIRST = torch.tensor([[True, False]])  # the second token is padding


def tokens(*rows: list[float]) -> torch.Tensor:
    """One sentence: `[1, N, D]`."""
    return torch.tensor([rows])


def test_hidden_loss_by_hand() -> None:
    student = [tokens([1.0, 2.0], [0.0, 0.0]), tokens([3.0, 0.0], [1.0, 1.0])]
    teacher = [tokens([0.0, 2.0], [0.0, 2.0]), tokens([9.0, 9.0], [9.0, 9.0]), tokens([3.0, 2.0], [0.0, 1.0])]
    # errors: embedding 1 0 | 0 4, the student's layer 0 against the teacher's layer 1: 0 4 | 1 0;
    # squared norms: embedding 4 | 4, layer 13 | 1
    assert hidden_loss(student, teacher, BOTH, [1]).item() == pytest.approx((5 / 17 + 5 / 5) / 2)
    assert hidden_loss(student, teacher, FIRST, [1]).item() == pytest.approx(5 / 17)
    assert hidden_loss(student, student, FIRST, [0]).item() == 0


def test_hidden_loss_has_no_scale_and_no_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (list(torch.randn(3, 4, 5, 6, generator=generator)) for _ in range(2))
    real = torch.arange(5) < torch.tensor([5, 3, 1, 3])[:, None]
    loss = hidden_loss(student, teacher, real, [0, 1])
    torch.testing.assert_close(hidden_loss([s / 4 for s in student], [t / 4 for t in teacher], real, [0, 1]), loss)
    parts = [
        hidden_loss([s[i] for s in student], [t[i] for t in teacher], real[i], [0, 1]) for i in (slice(1), slice(1, 4))
    ]
    torch.testing.assert_close((5 * parts[0] + 7 * parts[1]) / 12, loss)


def test_scores_loss_by_hand() -> None:
    student = [torch.tensor([[[[1.0, 0.0], [2.0, 2.0]]]])]  # one layer, sentence and head
    teacher = [torch.full((1, 1, 2, 2), 7.0), torch.tensor([[[[0.0, 3.0], [1.0, 0.0]]]])]
    # gaps 1 -3 | 1 2, centred by rows: 2 -2 | -1/2 1/2
    assert scores_loss(student, teacher, BOTH, [1]).item() == pytest.approx((4 + 4 + 1 / 4 + 1 / 4) / 4)
    assert scores_loss(student, teacher, FIRST, [1]).item() == 0  # one key: nothing to weigh


def test_scores_loss_does_not_see_what_softmax_does_not_see() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 5, 5, generator=generator) for _ in range(2))
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    loss = scores_loss([student], [teacher], real, [0])
    shifted = student + 10 * torch.randn(2, 3, 5, 1, generator=generator)
    torch.testing.assert_close(scores_loss([shifted], [teacher], real, [0]), loss)
    torch.testing.assert_close(scores_loss([teacher + 3], [teacher], real, [0]), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert loss > 0.1


def test_padding_is_ignored() -> None:
    generator = torch.Generator().manual_seed(1)
    real = torch.tensor([[True, True, True, False], [True, True, False, False]])
    pair = (real[:, :, None] & real[:, None, :])[:, None]

    def losses(noise: float) -> list[torch.Tensor]:
        hidden, scores = (torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(2)) for shape in SHAPES)
        hidden = hidden + noise * ~real[..., None] * torch.randn(hidden.shape, generator=generator)
        scores = scores + noise * ~pair * torch.randn(scores.shape, generator=generator)
        return [
            hidden_loss([hidden[0]] * 2, [hidden[1]] * 2, real, [0]),
            scores_loss([scores[0]], [scores[1]], real, [0]),
        ]

    for plain, noisy in zip(losses(0.0), losses(100.0), strict=True):
        torch.testing.assert_close(noisy, plain)


SHAPES = ((4, 3), (2, 4, 4))  # [N, D] and [H, N, N]


def test_soft_loss_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * math.log(3), 0.0]])
    # at temperature 2 the teacher says 3/4 and 1/4, the student halves; 4 KL
    wanted = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert soft_loss(student, teacher, temperature=2.0, regression=False).tolist() == pytest.approx([wanted])
    assert soft_loss(torch.tensor([[1.0]]), torch.tensor([[3.5]]), temperature=2.0, regression=True).item() == 6.25


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_loss_is_zero_only_for_equal_outputs(temperature) -> None:
    teacher = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    options = {"temperature": temperature, "regression": False}
    torch.testing.assert_close(soft_loss(teacher + 5, teacher, **options), torch.zeros(6), atol=1e-5, rtol=0)
    assert (soft_loss(teacher.flip(1), teacher, **options) > 1e-3).all()


def test_hard_loss_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    assert hard_loss(logits, torch.tensor([0, 1]), regression=False).tolist() == pytest.approx(
        [math.log(4 / 3), math.log(2)]
    )
    assert hard_loss(torch.tensor([[2.0], [0.0]]), torch.tensor([5.0, 1.0]), regression=True).tolist() == [9.0, 1.0]


def test_layer_maps_by_hand() -> None:
    assert uniform_layer_map(4, 12) == [2, 5, 8, 11]
    assert uniform_layer_map(6, 6) == [0, 1, 2, 3, 4, 5]
    assert uniform_layer_map(1, 12) == [11]
    assert uniform_layer_map(3, 4) == [0, 2, 3]


def test_layer_maps_rise_to_the_last_layer() -> None:
    for total in range(1, 25):
        for count in range(1, total + 1):
            chosen = uniform_layer_map(count, total)
            assert chosen == sorted(set(chosen)) and len(chosen) == count
            assert chosen[0] >= 0 and chosen[-1] == total - 1


@pytest.mark.parametrize("spikes", ["binary", "ternary"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_expected_additions_are_the_counted_ones(spikes, pooling, residual) -> None:
    """Rates times steps and fan-out are the additions of a token, pruned units free; sentences of one length."""
    torch.manual_seed(0)
    how = {"pooling": pooling, "membrane": residual == "membrane"}
    shape = Shape(hidden=12, heads=3, ffn=37, layers=2, classes=2, vocab_size=23, positions=8, **how)
    size = {"vocab": 23, "positions": 8, "segments": 2, "hidden": 12, "heads": 3, "ffn": 37, "layers": 2, "classes": 2}
    student = SpikingBert(**size, t_steps=[3, 4, 2], spikes=spikes, pooling=pooling, residual=residual)
    student = student.double().eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        student.heads[0, 1] = student.heads[1, 2] = student.ffn[0, 5] = student.ffn[1, 30] = 0.0
        outputs = student(torch.randint(23, (4, 7)), torch.ones(4, 7), mode="spiking", count=True, rate=True)
    masks = {"heads": student.heads, "ffn": student.ffn}
    lengths, how = torch.full((4,), 7), {"t_steps": student.steps, "coding": "accumulate"}
    counted = operations.count(outputs.counts, lengths, shape=shape, **masks, **how)
    wanted = counted.ac.sum()
    if pooling == "cls":  # the one token that the pooler reads has no share in a token's price
        wanted = wanted - counted.ac[-1]
    term, dense = AdditionsTerm(shape), 2 * 12 * (4 * 12 + 2 * 37)
    found = term.expected(student, outputs, torch.tensor(7.0))
    torch.testing.assert_close(found, wanted / (4 * 7) / dense)
    limits = {share: torch.tensor(share * found.item()) for share in (0.75, 1.25)}
    torch.testing.assert_close(term.expected(student, outputs, torch.tensor(7.0), limits[0.75]), found / 4)
    assert term.expected(student, outputs, torch.tensor(7.0), limits[1.25]) == 0


class Launches(TorchDispatchMode):
    """Counts operations that compute: on a GPU each is a kernel. Views are none."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += all(result.alias_info is None for result in func._schema.returns)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_additions_take_as_many_operations_in_a_deep_network() -> None:
    found = []
    for layers in (1, 4):
        size = {"vocab": 23, "positions": 8, "segments": 2, "hidden": 12, "heads": 3, "ffn": 37, "classes": 2}
        student = SpikingBert(**size, layers=layers, t_steps=4)
        outputs = student(torch.randint(23, (4, 7)), torch.ones(4, 7), rate=True)
        term, length = AdditionsTerm(student_shape(student)), torch.tensor(7.0)
        with Launches() as launches:
            term.expected(student, outputs, length)
        found.append(launches.number)
    assert found[0] == found[1] > 0


def test_a_limit_falls_by_equal_factors() -> None:
    assert [falling(at, begin=1.6, end=0.1) for at in (0, 0.25, 0.5, 1, 1.5)] == pytest.approx(
        [1.6, 0.8, 0.4, 0.1, 0.1]
    )


@pytest.mark.parametrize(
    ("layers", "taught_by"),
    [("[0,1,2]", [0, 1, 2]), ("[1,4]", [1, 4]), ("3", [1, 3, 5]), ("null", [0, 1, 2, 3, 4, 5])],
)
def test_a_list_of_layers_is_taught_by_those_and_a_number_by_evenly_spread_ones(layers, taught_by, tmp_path) -> None:
    given = [
        *micro(tmp_path),
        "task=mrpc",
        "teacher.size=[24,6,3,37,300]",
        f"student.layers={layers}",
        "data.embedded=[40,20]",
    ]
    assert prepare(load(GLUE, given)).layers == taught_by


def test_padding_of_zeros_has_no_part_in_the_hidden_loss() -> None:
    student, teacher = torch.rand(2, 1, 3, 4), torch.rand(2, 1, 3, 4)
    tokens = torch.tensor([[True, True, False]])
    whole = hidden_loss(list(student), list(teacher), tokens, [0])
    teacher[:, :, 2] = 0
    assert hidden_loss(list(student), list(teacher), tokens, [0]) == whole
