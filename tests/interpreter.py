"""A test file run as a program in Triton's interpreter, which a process has to choose before it imports Triton; not a
test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spikeprune.kernels import equilibrium


def run_interpreted(file: str) -> None:
    if not equilibrium.INSTALLED:
        pytest.skip("triton is not installed")
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
