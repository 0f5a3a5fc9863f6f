"""What runs only on a GPU: Triton and Gluon kernels, the fused encoder, CUDA graphs. Other packages attach a backend to
a network or hand on a class of `cuda_graphs`; none knows an implementation."""

from __future__ import annotations

from spikeprune.errors import known
from spikeprune.kernels.backend import TritonBackend
from spikeprune.kernels.equilibrium import lacking
from spikeprune.models.modeling import SpikingBert
from spikeprune.snn.call import Backend

__all__ = ["BACKENDS", "attach", "lacking"]

BACKENDS: dict[str, Backend | None] = {"torch": None, "triton": TritonBackend()}  # None: the reference itself


def attach(student: SpikingBert, name: str) -> None:
    """Compute `student` with the backend of this name: `torch`, the reference, or `triton`, GPU kernels for what they
    cover (IF and LIF neurons in float32 on CUDA, see `backend.py`) and the reference for the rest.

    A backend is no part of the architecture: it may be attached at any time, and is not saved. Raises ValueError for
    an unknown name. Example: `attach(student.cuda(), "triton")`.
    """
    known("kernels", name, tuple(BACKENDS))
    student.attach(BACKENDS[name])
