"""A `model.spk` opened by the C program: one sentence at a time, on one thread."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spikeprune.errors import InputError, known
from spikeprune.runtime.library import SPIKING_LAYERS, Observer, library

LOOPS = ("events", "counts")


@dataclass(frozen=True)
class SessionOutput:
    """Logits [C], and the operations of embedding, layers and head, int64 [L+2] each."""

    logits: np.ndarray
    additions: np.ndarray
    multiplications: np.ndarray
    elementwise: np.ndarray


class Session:
    """A model in memory. Not for several threads at a time.

    Args:
        model: path of a `model.spk`, or its bytes
        max_tokens: of a sentence; at most the model's positions
        loop: `events`, a spike adds a row of weights, or `counts`, a number of spikes times a row is added
        lib: a library compiled in another way

    Raises InputError for a file that is missing or damaged, and where there is no C compiler.

    Example: `Session("exported/model.spk").run([101, 1037, 2986, 2143, 102]).logits`
    """

    def __init__(self, model: str | Path | bytes, *, max_tokens: int = 512, loop: str = "events"):
        known("loop", loop, LOOPS)
        self.lib = library()
        self.name = "model.spk" if isinstance(model, bytes) else str(model)
        self.file = content(model)
        size = ctypes.c_size_t()
        self._check(self.lib.spikerun_arena(self.file.ctypes.data, self.file.size, max_tokens, ctypes.byref(size)))
        self.arena = np.zeros(size.value + 64, np.uint8)
        start = self.arena.ctypes.data + -self.arena.ctypes.data % 64
        self._model = ctypes.c_void_p()
        self._check(
            self.lib.spikerun_open(
                ctypes.byref(self._model), self.file.ctypes.data, self.file.size, max_tokens, start, size.value
            )
        )
        self._check(self.lib.spikerun_set_loop(self._model, LOOPS.index(loop)))
        self.shape = self.lib.spikerun_shape_of(self._model)
        self.arena_bytes, self.used = size.value, self.lib.spikerun_used(self._model)
        self._observer = None

    def run(self, input_ids: Sequence[int], segments: Sequence[int] | None = None) -> SessionOutput:
        """One sentence without padding. Raises InputError for ids that are not the model's, and for its length."""
        ids = np.ascontiguousarray(input_ids, np.int32)
        types = None if segments is None else np.ascontiguousarray(segments, np.int32)
        if ids.ndim != 1 or (types is not None and types.shape != ids.shape):
            raise InputError("ids and segments of one sentence must be two lists of one length")
        logits = np.zeros(self.shape.classes, np.float32)
        places = [ids.ctypes.data, None if types is None else types.ctypes.data, len(ids), logits.ctypes.data]
        self._check(self.lib.spikerun_run(self._model, *places))
        found = self.lib.spikerun_operations_of(self._model)
        rows = [found[i] for i in range(self.shape.layers + 2)]
        kinds = ([getattr(row, name) for row in rows] for name, _ in type(rows[0])._fields_)
        return SessionOutput(logits, *(np.array(kind, np.int64) for kind in kinds))

    def observe(self, function: Callable[[str, int, np.ndarray], None] | None) -> None:
        """Have `function(name, step, spikes)` called after each spiking layer has fired: its name in the Python
        network, and int8 `[N, channels]`, which it may write to. These are numbers of spikes of the whole train at step
        0, or spikes of one step (see `spikerun_observer` in spikerun.h)."""

        def call(_, layer, spiking_layer, step, spikes, tokens, channels, stride):
            rows = np.ctypeslib.as_array(spikes, (tokens, stride))[:, :channels] if channels else np.zeros((tokens, 0))
            function("embedding" if layer < 0 else f"layers.{layer}.{SPIKING_LAYERS[spiking_layer]}", step, rows)

        self._observer = Observer() if function is None else Observer(call)
        self.lib.spikerun_observe(self._model, self._observer, None)

    def _check(self, code: int) -> None:
        if code:
            raise InputError(f"{self.name}: {self.lib.spikerun_message(code).decode()}")


def content(model: str | Path | bytes) -> np.ndarray:
    """The file's bytes, uint8; those of a path stay on the disk until they are read."""
    if isinstance(model, bytes):
        data = np.zeros(len(model) + 64, np.uint8)
        start = -data.ctypes.data % 64
        data[start : start + len(model)] = np.frombuffer(model, np.uint8)
        return data[start : start + len(model)]
    try:
        with Path(model).open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (OSError, ValueError) as error:
        raise InputError(f"{model}: cannot be read ({error}); give a model.spk of `spikeprune export`") from None
