"""The C program as a shared library: compiled where it is first used, once for each source and processor."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from ctypes import POINTER, c_int, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path

from spikeprune.errors import InputError

SOURCES = Path(__file__).parent
PARTS = ("spikerun.c", "model.c")  # what is compiled
FILES = ("spikerun.h", "model.h", *PARTS, "main.c", "Makefile")
FLAGS = ("-std=c99", "-O3", "-ffp-contract=off")
NATIVE = "-march=native"
SPIKING_LAYERS = ("key", "value", "context", "attention", "intermediate", "output")  # of a layer, in C's order


class Shape(ctypes.Structure):
    _fields_ = [
        (name, c_uint32) for name in ("vocab", "positions", "segments", "hidden", "layers", "classes", "max_tokens")
    ]


class Operations(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("additions", "multiplications", "elementwise")]


# context, layer, spiking layer, step, spikes, tokens, channels, stride
Observer = ctypes.CFUNCTYPE(None, c_void_p, *(c_int,) * 3, POINTER(ctypes.c_int8), *(c_int,) * 2, c_size_t)

SIGNATURES = {  # result and arguments, as in spikerun.h
    "spikerun_message": (ctypes.c_char_p, [c_int]),
    "spikerun_arena": (c_int, [c_void_p, c_size_t, c_uint32, POINTER(c_size_t)]),
    "spikerun_open": (c_int, [POINTER(c_void_p), c_void_p, c_size_t, c_uint32, c_void_p, c_size_t]),
    "spikerun_run": (c_int, [c_void_p, c_void_p, c_void_p, c_uint32, c_void_p]),
    "spikerun_set_loop": (c_int, [c_void_p, c_int]),
    "spikerun_observe": (None, [c_void_p, Observer, c_void_p]),
    "spikerun_shape_of": (Shape, [c_void_p]),
    "spikerun_operations_of": (POINTER(Operations), [c_void_p]),
    "spikerun_used": (c_size_t, [c_void_p]),
}


def compiler() -> list[str]:
    """The command in $CC, or cc. Raises InputError where there is none."""
    command = shlex.split(os.environ.get("CC", "cc"))
    if not command or shutil.which(command[0]) is None:
        raise InputError(
            f"the C runtime needs a C compiler, and {' '.join(command) or 'CC'} is not on PATH: install gcc or clang, "
            "or set CC"
        )
    return command


def compile_library(target: Path, flags: tuple[str, ...] = ()) -> None:
    """Raises InputError with the compiler's first complaint."""
    sources = [str(SOURCES / name) for name in PARTS]
    command = [*compiler(), *FLAGS, *flags, "-shared", "-fPIC", *sources, "-o", str(target), "-lm"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()]
        raise InputError(f"{command[0]} does not compile the C runtime: {lines[0]}")


def cache_directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "spikeprune" / "runtime"


def processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def built() -> Path:
    """The library of this source, compiler and processor; compiled if it is not in the cache."""
    native = platform.machine() in ("x86_64", "AMD64")  # elsewhere compilers do not all know the flag
    flags = (NATIVE,) if native else ()
    parts = [(SOURCES / name).read_bytes() for name in FILES if name.endswith((".c", ".h"))]
    parts += [" ".join([*compiler(), *FLAGS, *flags]).encode(), processor().encode()]
    path = cache_directory() / f"libspikerun-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.so"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            compile_library(made, flags)
            os.replace(made, path)
    except OSError as error:
        raise InputError(
            f"{path.parent}: the C runtime cannot be written there ({error}); set XDG_CACHE_HOME"
        ) from None
    return path


@cache
def library() -> ctypes.CDLL:
    """Raises InputError where there is no compiler."""
    return declared(ctypes.CDLL(str(built())))


def declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
