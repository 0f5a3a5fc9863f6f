"""The products in Gluon against the same in Triton, bit for bit. They need a Hopper chip: no interpreter runs Gluon."""

from __future__ import annotations

import pytest
import torch
from test_engine import firing, train_of

from spikeprune.kernels import encoder, split_integer, wgmma
from spikeprune.kernels.firing import CLOSED, GELU, PER_STEP, PLAIN, RUNNING, Firing

# mode, neuron, leak, T, activation
LAYERS = (
    (PER_STEP, "binary", 1.0, 16, GELU),
    (CLOSED, "binary", 1.0, 4, PLAIN),
    (PER_STEP, "ternary", 0.7, 3, PLAIN),
    (RUNNING, "ternary", 1.0, 5, GELU),
    (RUNNING, "binary", 1.0, 1, PLAIN),
    (CLOSED, "ternary", 1.0, 100, GELU),
)
WIDTHS = (64, 128, 320, 384, 512, 768, 1024, 1536, 3072)


def compare(width: int, rows: int, spiking_layer: tuple, tile: dict | None = None, device: str = "cuda") -> None:
    """Three stretches of the columns, the last of which fires, and the currents of the first two."""
    (mode, kind, leak, t, activation), stretches = spiking_layer, (64, 128, 192)
    most = {PER_STEP: 1, CLOSED: t, RUNNING: t}[mode]
    maps = split_integer.concatenated(
        [
            split_integer.split(torch.randn(n - 7, width, device=device), torch.randn(n - 7, device=device), most)
            for n in stretches
        ]
    )
    a, first = train_of(mode, t, rows, width, device), sum(stretches[:2])
    neurons = firing(sum(stretches), mode, kind, leak, t, device)
    neurons = neurons._replace(theta=neurons.theta * width**0.5)
    units, case = encoder.units(mode, len(a), t, a.device), f"{width} inputs, {rows} rows, {spiking_layer}, {tile}"
    steps = max(1, len(a) - 1)  # a source may fire for longer

    def same(first: int, last: int, spiking_layer: Firing | None, activation: int, tile: dict | None = None) -> None:
        task = wgmma.Columns(a, maps, units, steps, activation, first, last, spiking_layer)
        assert wgmma.applies(a, spiking_layer), case
        own, other = wgmma.product(task, tile=tile), split_integer.triton_product(task)
        assert torch.equal(own, other) and (own != 0).any(), (case, (own != other).float().mean().item())

    if wgmma.applies(a, neurons):
        same(first, sum(stretches), neurons, activation, tile)
    if tile is None:
        same(0, first, None, PLAIN)


@pytest.fixture
def hopper() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("no Hopper chip")
    assert wgmma.GLUON
    torch.manual_seed(0)


@pytest.mark.gpu
@pytest.mark.parametrize("width", WIDTHS)
def test_the_same_bits_as_tritons(hopper, width) -> None:
    at = WIDTHS.index(width)
    for i, rows in enumerate((1, 130, 300)):
        compare(width, rows, LAYERS[(at + 2 * i) % 6])
    if width in (384, 768):
        compare(width, 193, LAYERS[0])
        compare(width, 193, LAYERS[3])


@pytest.mark.gpu
@pytest.mark.parametrize("pair", [False, True])
def test_one_warpgroup_or_two(hopper, pair) -> None:
    compare(384, 700, LAYERS[0], tile={"BM": 64, "BN": 64, "PAIR": pair, "RING": 3})
    compare(256, 33, LAYERS[2], tile={"BM": 64, "BN": 32, "PAIR": pair, "RING": 2})


def test_what_goes_through_them() -> None:
    """A tile fits a Hopper SM, 227 KB of shared memory, at every width that it is chosen for; a CPU is not one."""
    for links in range(1, wgmma.RESIDENT // wgmma.CHUNK + 1):
        tile = wgmma.resident_tile(links)
        groups = 2 if tile["PAIR"] else 1
        ring = groups * tile["RING"] * tile["BM"] * wgmma.CHUNK
        assert 3 * links * tile["BN"] * wgmma.CHUNK + ring + groups * tile["BM"] * tile["BN"] + 512 <= 227 * 1024, links
    for links in (1, 3, 8, 9, 32):
        tile = wgmma.streamed_tile(links)
        assert tile["RING"] * (tile["BM"] + 3 * tile["BN"]) * wgmma.CHUNK + 512 <= 227 * 1024, links
    assert not wgmma.applies(torch.zeros(1, 1, 64, dtype=torch.int8), None)
