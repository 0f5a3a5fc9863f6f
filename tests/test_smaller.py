"""A student trained without its masked units, and what it learnt given back, against the masked one trained itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from test_compact import make, sentences

from spikeprune.config.schema import Config, Losses, Stage
from spikeprune.experiment.stage import masks_are_final
from spikeprune.models.compaction import compact, compacted, scatter_into
from spikeprune.models.modeling import SpikingBert


def train(student: SpikingBert, steps: int = 5) -> None:
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    batch = sentences()
    for _ in range(steps):
        outputs = student(**batch, rate=True)
        loss = outputs.logits.square().sum() + sum(hidden.square().mean() for hidden in outputs.hidden)
        optimizer.zero_grad()
        (loss + outputs.rates["layers.0.attention"].sum()).backward()
        optimizer.step()


TRAINED = [{}, {"theta": "tensor", "query": "spiking"}, {"dead_zone": True}, {"weights": "ternary"}]


@pytest.mark.parametrize("options", [*TRAINED, {"weights": "binary", "fold": True}])
def test_what_a_smaller_student_learns_is_given_back(options) -> None:
    """Trained without what is masked or with it, it is the same student; what is masked stays as it was."""
    masked = make(**options)
    masked.heads[1, 2], masked.ffn[2, 5:9] = 1, 1  # training needs something in every layer
    if masked.weights != "float":
        masked.set_strength(0.6)
    returned = make(**options)
    returned.load_state_dict(masked.state_dict())
    small = compacted(masked)
    train(masked), train(small)
    before = {name: tensor.clone() for name, tensor in returned.state_dict().items()}
    scatter_into(small, returned)
    kept, learnt = compacted(masked).state_dict(), small.state_dict()
    for name, tensor in compacted(returned).state_dict().items():
        assert torch.equal(tensor, learnt[name]), name
        assert torch.allclose(tensor, kept[name], rtol=1e-9, atol=1e-11), name
    gone = returned.layers[0].up.weight[3:10]
    assert torch.equal(gone, before["layers.0.up.weight"][3:10])
    assert not torch.equal(returned.layers[0].up.weight[10:], before["layers.0.up.weight"][10:])
    outputs = [student(**sentences()).logits for student in (masked, returned)]
    assert torch.allclose(*outputs, rtol=1e-9)
    small.set_t_steps([2, 3, 1, 1])
    if masked.weights != "float":
        small.set_strength(1.0)
    scatter_into(small, returned)
    assert returned.steps == [2, 3, 1, 1] and returned.quantized == (masked.weights != "float")


def test_few_bit_weights_are_not_given_back() -> None:
    student = make(weights="ternary")
    student.set_strength(1.0)
    with pytest.raises(ValueError, match="are final"):
        scatter_into(compact(student), student)


@pytest.mark.parametrize(
    ("name", "budget", "losses", "is_final"),
    [
        ("temporal", 0, {}, True),
        ("quantize", 0, {}, True),
        ("finetune", 0, {}, True),
        ("spatial", 0, {}, False),
        ("budget", 1, {}, False),
        ("finetune", 1, {}, False),  # it holds the budget
        ("quantize", 1, {}, True),
        ("finetune", 0, {"scores": 0.1}, False),
        ("finetune", 0, {"additions": 0.1}, True),
    ],
)
def test_which_stages_train_without_masked_units(name, budget, losses, is_final) -> None:
    """Those that neither take units away nor compare heads one by one; where none has left there is no need."""
    student = make()
    config = Config()
    config.stages.budget.epochs = budget
    context = SimpleNamespace(config=config, stage=lambda _: Stage(epochs=1, losses=Losses(**losses)))
    assert not masks_are_final(context, name, student)  # layers without heads, and without neurons
    student.heads[1, 2], student.ffn[2, 5:9] = 1, 1
    assert masks_are_final(context, name, student) == is_final
    student.heads.fill_(1), student.ffn.fill_(1)
    assert not masks_are_final(context, name, student)
