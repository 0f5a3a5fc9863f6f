"""The README's figures are those of the summaries that stand beside the script that makes them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_is_what_the_summaries_give() -> None:
    script = [sys.executable, str(ROOT / "experiments" / "results.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
