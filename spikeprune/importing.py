"""Imports of large libraries without Python's collector of cycles, which is a fifth of their time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def large() -> Iterator[None]:
    """Around the first import of torch and what stands on it; nothing later.

    An import makes hundreds of thousands of objects that stay, and the collector goes through all of them again and
    again as they grow in number. Frozen, they are not looked at during training either.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
