"""`python -m faults [CAMPAIGN …]`: runs campaigns, prints a row of each, and exits with 1 where anything was lost."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> int:
    import warnings

    from faults.campaign import hostile
    from faults.hostile_input import CAMPAIGNS

    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("campaigns", nargs="*", help=f"by default all: {', '.join(CAMPAIGNS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000, help="attempts of each")
    parser.add_argument("--seconds", type=float, default=120, help="of each, at most")
    args = parser.parse_args()
    lost = 0
    for name in args.campaigns or CAMPAIGNS:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            attempt = CAMPAIGNS[name](Path(folder))
            row = hostile(name, attempt, Path(folder), args.seed, args.count, args.seconds)
        counts = f"tried {row.tried}, refused {row.refused}, accepted {row.accepted}, lost {len(row.lost)}"
        print(f"{row.campaign}: {counts}, {row.seconds:.0f} s", flush=True)
        for line in row.lost[:40]:
            print(f"  {line}", flush=True)
        lost += len(row.lost)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
