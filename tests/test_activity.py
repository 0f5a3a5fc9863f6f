"""Firing rates counted by hand."""

import pytest
import torch

from spikeprune.cost.activity import activity


def test_firing_rates():
    names = ("query", "key", "value", "context", "attention", "output")
    counts = {"embedding": torch.ones(2, 2, 2)}  # two samples, two channels
    counts |= {f"layers.0.{name}": torch.zeros(3, 2, 2) for name in names}
    counts["layers.0.intermediate"] = torch.ones(3, 2, 3)
    counts["layers.0.key"][:, :, 1] = 3
    counts["pooled"] = torch.ones(3, 2, 2)
    masks = {"heads": torch.tensor([[0.0, 1.0]]), "ffn": torch.zeros(1, 3)}
    found = activity(counts, torch.tensor([3, 5]), **masks, t_steps=[2, 3])
    rates = (found + found).rates()
    assert rates["embedding"] == 8 / 32
    assert rates["layers.0.key"] == 18 / 24
    assert rates["layers.0.query"] == 0
    assert "layers.0.intermediate" not in rates and "pooled" not in rates
    # Pruned neurons are no places. Others: embedding 32; query, key, value, context 24; attention, output 48.
    assert found.rate() == pytest.approx(26 / 224)


def test_steps_after_a_layer_fell_silent_are_no_places():
    counts = {"embedding": torch.ones(4, 1, 2)}
    found = activity(counts, torch.tensor([2]), heads=torch.ones(0, 1), ffn=torch.ones(0, 1), t_steps=[3])
    assert found.rates() == {"embedding": 6 / 12}
