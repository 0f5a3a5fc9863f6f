"""What the engine holds of a student follows whatever changes it."""

from __future__ import annotations

import copy

import pytest
import torch
from test_engine import SMALL

from spikeprune.kernels import split_integer
from spikeprune.kernels.weight_cache import held
from spikeprune.models.modeling import SpikingBert


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode])
def test_what_is_held_has_no_history(outside) -> None:
    """A training step that is captured later would wait for the stream of whatever keeps its parameters' nodes."""
    torch.manual_seed(0)
    student = SpikingBert(**SMALL, weights="ternary", t_steps=3)
    for strength in (0.5, 1.0):  # made, then brought up to date
        student.set_strength(strength)
        with outside():
            found = held(student, counts=True)
        parts = [found.embedding, *(part for layer in found.layers for part in vars(layer).values())]
        tensors = [tensor for part in parts for tensor in part]
        assert tensors and not any(tensor.requires_grad or tensor.is_inference() for tensor in tensors)


@pytest.mark.parametrize("how", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_what_is_held_follows_every_optimizer(how) -> None:
    """A fused one leaves no trace in the parameters' versions."""
    torch.manual_seed(0)
    student = SpikingBert(**SMALL, t_steps=3)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1, **how)
    for _ in range(2):
        before = [tensor.clone() for tensor in held(student, counts=True).layers[1].up]
        for parameter in student.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        after, anew = (held(x, counts=True).layers[1].up for x in (student, copy.deepcopy(student)))
        assert all(torch.equal(a, b) for a, b in zip(after, anew, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("weights", ["float", "ternary"])
def test_what_is_held_follows_masks(weights, monkeypatch) -> None:
    """Float weights are not split again for them; a quantizer's scales are over the inputs that are kept."""
    torch.manual_seed(0)
    student = SpikingBert(**SMALL, weights=weights, t_steps=3)
    if weights != "float":
        student.set_strength(1.0)
    split, calls = split_integer.split, []
    monkeypatch.setattr(split_integer, "split", lambda *args: calls.append(args) or split(*args))
    held(student, counts=True)
    first = len(calls)
    student.heads[1, 2], student.ffn[0, 7:] = 0, 0
    found = held(student, counts=True)
    assert len(calls) == (first if weights == "float" else 2 * first)
    anew = held(copy.deepcopy(student), counts=True)
    pairs = [(found.embedding, anew.embedding)]
    pairs += [(getattr(a, n), getattr(b, n)) for a, b in zip(found.layers, anew.layers, strict=True) for n in vars(a)]
    assert all(torch.equal(x, y) for a, b in pairs for x, y in zip(a, b, strict=True))
    assert (found.layers[0].intermediate[1] > 0).sum() == 7
