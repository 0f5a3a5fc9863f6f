"""`spikerun`: a compressed student in C, event by event, and its use from Python.

Its sources need nothing but a C99 compiler and libm; docs/runtime.md describes them and the file `model.spk` that they
read.
"""

from spikeprune.runtime.session import Session
from spikeprune.runtime.writer import to_bytes

__all__ = ["Session", "to_bytes"]
