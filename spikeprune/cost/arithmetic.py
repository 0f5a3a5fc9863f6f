"""Energies of additions and multiplications, and how many of them an operation of each kind takes."""

from __future__ import annotations

from torch import Tensor

from spikeprune.cost.kinds import Operations

HOROWITZ = "Horowitz, Computing's Energy Problem, ISSCC 2014, figure 1.1.9 (45 nm, 0.9 V)"
I_BERT = "operations of each element: the integer functions of I-BERT (Kim et al. 2021, arXiv 2101.01321)"
ARITHMETIC = {
    "fp32": {"add": 0.9, "multiply": 3.7},
    "fp16": {"add": 0.4, "multiply": 1.1},
    "int32": {"add": 0.1, "multiply": 3.1},
    "int8": {"add": 0.03, "multiply": 0.2},
}
WIDEST = {
    "fp32": 25,
    "fp16": 12,
    "int32": 32,
    "int8": 8,
}  # bits of a whole number and its sign; of floats, their significand
# (additions, multiplications) of one of a kind. Divisions and roots, one a row, are left out.
STEPS_OF: dict[str, tuple[int, int]] = {
    "ac": (1, 0),
    "mac": (1, 1),
    "norm": (4, 3),  # mean; difference, its square, their mean; times 1/deviation, weight, bias
    "softmax": (7, 4),  # maximum, difference, bound; x = q ln 2 + r; a polynomial of r; sum; times 1/sum
    "activation": (4, 2),  # bound, a polynomial of degree 2; times x
    "updates": (2, 0),  # plus the current; comparison with the threshold
    "spikes": (1, 0),  # reset
    "leaks": (0, 1),
}


def arithmetic(ops: Operations, *, add: float | Tensor, multiply: float | Tensor) -> dict[str, Tensor]:
    """Energy of every operation: additions and multiplications of one element of each kind times their energies."""
    return {
        kind: (adds * add + multiplications * multiply) * ops.kinds[kind]
        for kind, (adds, multiplications) in STEPS_OF.items()
    }
