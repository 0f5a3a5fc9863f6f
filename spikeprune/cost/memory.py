"""Energy with memory: weights, spikes, membranes and activations read and written through memories of stated sizes.

After Lemaire et al. 2022, An Analytical Estimation of Spiking Neural Networks Energy Efficiency (arXiv 2210.13107):
each layer has a memory of its own for weights, for membranes, for activations and a queue for spikes, and an access
costs more the larger its memory is. Theirs are accesses of 32 bits; here a number costs its bits' share of an access.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikeprune.cost.arithmetic import ARITHMETIC, arithmetic
from spikeprune.cost.network import FLOAT, Network

ACCESS = 64  # bits
# (bytes, pJ of an access): Horowitz 2014, figure 1.1.9, caches; in between linear, above the last constant
SIZES = ((0, 0.0), (8 * 2**10, 10.0), (32 * 2**10, 20.0), (2**20, 100.0))
QUEUE = 1000  # spikes that a layer's queue holds (Lemaire et al., section 4)


def per_bit(size: Tensor) -> Tensor:
    """pJ to read or write one bit of a memory of `size` bits, elementwise."""
    held, pj = size / 8, torch.zeros_like(size)
    for (small, low), (large, high) in zip(SIZES, SIZES[1:], strict=False):
        pj = pj + (held.clamp(small, large) - small) * (high - low) / (large - small)
    return pj / ACCESS


def memory_energy(network: Network, *, stationary: bool) -> dict[str, Tensor]:
    """pJ by kind and row. `stationary`: a dense array keeps weights, keys and values for all tokens of a sentence.

    In layers of few-bit weights integers are added in 32 bits, and multiplied in 8 where weights and activations fit,
    else in 32, as with folded thresholds; all else in floats of 32.
    """
    work, w, a = network.ops.kinds, network.weight_bits, network.activation_bits
    whole = "int8" if max(int(w.min()), int(a.max())) <= 8 else "int32"
    few = w < FLOAT
    add = torch.where(few, w.new_tensor(ARITHMETIC["int32"]["add"]), ARITHMETIC["fp32"]["add"])
    multiply = torch.where(few, w.new_tensor(ARITHMETIC[whole]["multiply"]), ARITHMETIC["fp32"]["multiply"])
    once = network.weights * network.ops.samples
    dense_weights = torch.minimum(work["dense_weights"], once) if stationary else work["dense_weights"]
    dense_operands = work["kept_operands"] if stationary else work["dense_operands"]
    read = work["weights"] + dense_weights
    place = per_bit(network.weights * (w + network.index_bits))
    queue = per_bit(torch.full_like(read, QUEUE * network.event_bits))
    keys, real = per_bit(network.operands * a), per_bit(network.operands * FLOAT)
    elements = 2 * (work["norm"] + work["softmax"] + work["activation"])
    return {
        "arithmetic": sum(arithmetic(network.ops, add=add, multiply=multiply).values()),
        "weights": read * w * place,
        "synapse places": read * network.index_bits * place,
        "spikes": (work["spikes"] + work["events"]) * network.event_bits * queue,
        "membranes": 2 * (work["ac"] + work["updates"]) * FLOAT * per_bit(network.membranes * FLOAT),
        "activations": (dense_operands + work["inputs"] + work["outputs"]) * a * keys
        + (work["operands"] + elements) * FLOAT * real,
        "addresses": ARITHMETIC["int32"]["add"] * (work["ac"] + work["inputs"] + work["outputs"]),
    }
