"""Quantizers by hand and under one contract, and their bytes both ways."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import matrix

from spikeprune.cost.shapes import BITS
from spikeprune.models.packing import pack, unpack
from spikeprune.models.quantization import QUANTIZERS, TABLES, acting_weight

every = pytest.mark.parametrize("name", QUANTIZERS)

# ------------------------------------------------------------------------------------------------- quantizers, by hand

W = [[0.5, -1.5, 0.0, 2.0], [0.75, -0.25, 0.25, -0.75]]


@pytest.mark.parametrize(
    ("name", "codes", "scale"),
    [
        ("binary", [[1, -1, 1, 1], [1, -1, 1, -1]], [1.0, 0.5]),
        ("ternary", [[0, -1, 0, 1], [1, 0, 0, -1]], [1.0, 0.5]),  # halves round to even, to 0 here
        ("int8", [[32, -95, 0, 127], [127, -42, 42, -127]], [2 / 127, 0.75 / 127]),
        ("int4", [[2, -5, 0, 7], [7, -2, 2, -7]], [2 / 7, 0.75 / 7]),  # of word tables
    ],
)
def test_by_hand(name, codes, scale) -> None:
    found = (QUANTIZERS | TABLES)[name].codes(torch.tensor(W))
    assert found[0].tolist() == codes
    torch.testing.assert_close(found[1], torch.tensor(scale)[:, None])


# ------------------------------------------------------------------------------------------------------- their contract


@every
def test_levels_and_a_scale_per_output_channel(name) -> None:
    quantizer = QUANTIZERS[name]
    for dtype in (torch.float32, torch.float64):
        w = matrix(dtype=dtype)
        before = w.clone()
        codes, scale = quantizer.codes(w)
        assert torch.equal(w, before) and codes.dtype == scale.dtype == dtype
        assert codes.shape == w.shape and scale.shape == (len(w), 1) and (scale >= 0).all()
        levels = set(codes[:-1].unique().tolist())
        assert {quantizer.low, quantizer.high} <= levels <= set(range(quantizer.low, quantizer.high + 1))
        assert (0 in levels) is (name != "binary")
        assert scale[-1] == 0 and (codes * scale)[-1].eq(0).all() and codes.isfinite().all()
        for row in range(len(w)):  # no channel looks at another
            alone = quantizer.codes(w[row : row + 1])
            assert torch.equal(alone[0], codes[row : row + 1])
            torch.testing.assert_close(alone[1], scale[row : row + 1], rtol=1e-6, atol=0)
    assert quantizer.stored in BITS and quantizer.bits <= quantizer.stored


@every
def test_what_is_quantized_keeps_its_codes(name) -> None:
    """And its scale, but for ternary, whose scale is the mean over zeros too."""
    codes, scale = QUANTIZERS[name].codes(matrix()[:-1])
    again, smaller = QUANTIZERS[name].codes(codes * scale)
    assert torch.equal(codes.abs(), again.abs()) and torch.equal(codes.sign(), again.sign())
    nonzero = (codes != 0).float().mean(1, keepdim=True) if name == "ternary" else 1.0
    torch.testing.assert_close(smaller, scale * nonzero)


@every
def test_scaling_a_channel_scales_its_scale(name) -> None:
    w, factor = matrix(dtype=torch.float64)[:-1], torch.tensor([[4.0], [0.5], [1.0], [64.0]]).double()
    codes, scale = QUANTIZERS[name].codes(w)
    more = QUANTIZERS[name].codes(w * factor)
    assert torch.equal(codes, more[0]) and torch.equal(scale * factor, more[1])


def test_more_bits_are_nearer() -> None:
    w, errors = matrix(8, 300)[:-1], {}
    for name, quantizer in QUANTIZERS.items():
        codes, scale = quantizer.codes(w)
        errors[name] = ((codes * scale - w).square().sum(1) / w.square().sum(1)).mean().item()
    assert errors["int8"] < 1e-4 < errors["ternary"] < errors["binary"] < 0.5, errors


@every
def test_strength(name) -> None:
    w = matrix()
    codes, scale = QUANTIZERS[name].codes(w)
    assert acting_weight(w, name, 0.0) is w
    assert torch.equal(acting_weight(w, name, 1.0), codes * scale)
    for strength in (1e-3, 0.3, 0.5, 0.9):
        torch.testing.assert_close(acting_weight(w, name, strength), w + strength * (codes * scale - w))
    assert acting_weight(w, "float", 1.0) is w


@every
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_the_gradient_passes_straight_through(name, strength) -> None:
    w = matrix().requires_grad_()
    slope = torch.randn_like(w)
    (acting_weight(w, name, strength) * slope).sum().backward()
    assert torch.equal(w.grad, slope)


# --------------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    ("name", "codes", "data"),
    [
        ("binary", [[1, -1, 1], [1, 1, 1], [-1, -1, -1]], [0b00111101, 0]),  # first code in the lowest bit
        ("ternary", [[1, -1, 0], [0, 1, -1]], [0b01010010, 0b0010]),  # code + 1, and nothing behind the last
        ("int8", [[1, -127, 0]], [1, 129, 0]),
    ],
)
def test_bytes_by_hand(name, codes, data) -> None:
    codes = torch.tensor(codes)
    assert pack(codes, name).tolist() == data
    assert torch.equal(unpack(torch.tensor(data, dtype=torch.uint8), tuple(codes.shape), name).long(), codes)


@every
@given(rows=st.integers(0, 9), columns=st.integers(0, 13), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_bytes_and_back(name, rows, columns, seed) -> None:
    quantizer = QUANTIZERS[name]
    step = 2 if name == "binary" else 1
    levels = torch.arange(quantizer.low, quantizer.high + 1, step)
    generator = torch.Generator().manual_seed(seed)
    codes = levels[torch.randint(len(levels), (rows, columns), generator=generator)].float()
    data = pack(codes, name)
    assert data.dtype == torch.uint8 and len(data) == -(-rows * columns * quantizer.stored // 8)
    assert torch.equal(unpack(data, (rows, columns), name), codes.to(torch.int8))


def test_bytes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="codes of binary weights must be -1 and 1"):
        pack(torch.tensor([[1.0, 0.0]]), "binary")
    with pytest.raises(ValueError, match="codes of ternary weights must be -1 to 1"):
        pack(torch.tensor([[2.0, 0.0]]), "ternary")
    with pytest.raises(ValueError, match="codes of ternary weights must be"):
        pack(torch.tensor([[0.5]]), "ternary")
    with pytest.raises(ValueError, match=r"3 bytes for ternary weights of shape \(5, 3\), expected 4"):
        unpack(torch.zeros(3, dtype=torch.uint8), (5, 3), "ternary")
    with pytest.raises(ValueError, match=r"unknown weights 'float'; known: binary, ternary, int8"):
        pack(torch.ones(1, 1), "float")
