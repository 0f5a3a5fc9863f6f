"""`python -m faults [CAMPAIGN …]`: runs campaigns, prints a row of each, and exits with 1 where anything was lost.

With --write the rows go into the table of a page, in place of the campaigns' older ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.dont_write_bytecode = True
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

HEAD = ("campaign", "seed", "tried", "refused", "accepted", "lost", "note")
BEGIN, END = "<!-- campaigns -->\n", "<!-- end of campaigns -->\n"


def campaigns() -> dict[str, tuple[Callable, int]]:
    """Name -> campaign `(folder, seed, count, seconds) -> Row`, and how many it tries by default."""
    from faults import hostile_input, hostile_models, kills, soak, storage, whole_commands
    from faults.campaign import hostile

    def of(name: str, make: Callable, folder: Path, seed: int, count: int, seconds: float):
        return hostile(name, make(folder), folder, seed, count, seconds)

    inputs = {**hostile_input.CAMPAIGNS, **hostile_models.CAMPAIGNS}
    found = {name: (partial(of, name, make), 10_000) for name, make in inputs.items()}
    found["resumed stages"] = (found["resumed stages"][0], 1000)  # each trains
    found |= {"kills": (kills.training, 100), "kills of two processes": (kills.two_processes, 10)}
    found |= {"kills of a sweep": (kills.sweep, 10), "kills of outputs": (kills.outputs, 50)}
    found |= {"full disk": (storage.full_disk, 20), "full disk of outputs": (storage.full_outputs, 20)}
    found |= {"files": (storage.vanished, 1000), "files of a finished run": (storage.finished, 1000)}
    found |= {"read-only": (storage.read_only, 1), "whole commands": (whole_commands.whole_commands, 400)}
    found |= {"epochs": (soak.epochs, 2000), "lines": (soak.lines, 100_000), "trials": (soak.trials, 200)}
    return found


def main() -> int:
    warnings.filterwarnings("ignore")
    known = campaigns()
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("campaigns", nargs="*", metavar="CAMPAIGN", help=f"by default all: {', '.join(known)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="attempts of each; by default 10,000 inputs, 100 kills, …")
    parser.add_argument("--seconds", type=float, default=600, help="of each, at most")
    parser.add_argument("--write", metavar="PAGE", help="a page with a table of the campaigns, such as reliability.md")
    args = parser.parse_args()
    lost = 0
    for name in args.campaigns or known:
        run, count = known[name]
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            row = run(Path(folder), args.seed, args.count or count, args.seconds)
        counts = f"tried {row.tried}, refused {row.refused}, accepted {row.accepted}, lost {len(row.lost)}"
        print(f"{row.campaign}: {counts}, {row.seconds:.0f} s; {row.note}", flush=True)
        for line in row.lost[:40]:
            print(f"  {line}", flush=True)
        lost += len(row.lost)
        if args.write and row.tried:
            write(Path(args.write), row)
    return 1 if lost else 0


def write(page: Path, row) -> None:
    """Put the row into the page's table, which is kept in the order of the campaigns' names."""
    before, _, rest = page.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()[2:]}
    cells = [row.campaign, row.seed, row.tried, row.refused, row.accepted, len(row.lost), row.note]
    lines[row.campaign] = f"| {' | '.join(map(str, cells))} |"
    head = [f"| {' | '.join(HEAD)} |", "| --- " * len(HEAD) + "|"]
    page.write_text(before + BEGIN + "\n".join([*head, *(lines[name] for name in sorted(lines))]) + "\n" + END + after)


if __name__ == "__main__":
    sys.exit(main())
