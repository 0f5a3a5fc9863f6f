"""Scaling over the devices of one machine: python experiments/bench_ddp.py --devices "1 2 4 8" --json scaling.json

Weak scaling (a fixed number of sentences a device and step) and strong scaling (a fixed number in all) of the steps of
distillation and of whole epochs with their data, in sentences per second; the shares of communication and of waiting
for data; the seconds of a pruning decision. Random weights and sentences: nothing is downloaded. For `--devices "1 2"`
and both sizes about 4 minutes on H200s; `--sizes tiny --accelerator cpu` runs anywhere, over gloo.

--check [key=value …]   instead short runs on each number of devices, undisturbed and killed: scores, masks, steps
--keep FILE …           take results of --json into docs/distributed.md; `make results` makes its tables again
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from scaling_check import check, title
from scaling_results import keep, tables, unequal

from spikeprune.errors import InputError, nearest
from spikeprune.experiment import streams
from spikeprune.experiment.summary import commit, hardware
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("tiny", "minilm", "base")
HOW = ("sentences", "whole_batch", "steps", "rounds")  # options that every number of devices shares


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="1 2", help="numbers of devices, the first one 1")
    parser.add_argument("--sizes", default="minilm base", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="gpu")
    parser.add_argument("--sentences", type=int, default=128, help="of a device and step, weak scaling")
    parser.add_argument("--whole-batch", type=int, default=256, help="sentences of a step, strong scaling")
    parser.add_argument("--steps", type=int, default=50, help="of an epoch; at most 50 have the same lengths each time")
    parser.add_argument("--rounds", type=int, default=6, help="epochs of each kind that are measured")
    parser.add_argument("--json", type=Path, help="write all that was found there")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--keep", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="of the configuration, with --check")
    args = parser.parse_intermixed_args(arguments)
    if args.overrides and not args.check:
        parser.error(f"{args.overrides[0]}: only --check reads the configuration")
    return streams.exit_code(lambda: act(args))


def act(args: argparse.Namespace) -> int:
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)  # before anything is measured in vain
    return (take if args.keep else compare_runs if args.check else compare)(args)


def take(args: argparse.Namespace) -> int:
    for file in args.keep:
        print(f"kept in {keep(file)}; make results puts it into docs/distributed.md")
    return 0


def compare_runs(args: argparse.Namespace) -> int:
    """Exit code 1 where a run does not equal that of one device."""
    devices, begin, runs = counts(args), time.time(), []
    device = torch.device("cuda" if args.accelerator == "gpu" else "cpu")
    made = {"hardware": hardware(device), "device": device.type, "torch": torch.__version__, "commit": commit()}
    with tempfile.TemporaryDirectory(prefix="scaling-") as work:
        for run in check(devices, args.accelerator, args.overrides, Path(work)):
            runs.append(run)
            written({"made": made | {"devices": devices, "seconds": time.time() - begin}, "runs": runs}, args.json)
    apart = [f"{', '.join(names)} of {title(run)}" for run in runs if (names := unequal(run, runs[0]))]
    print(f"not as on one device: {'; '.join(apart) or 'nothing'}")
    return int(bool(apart))


def written(found: dict[str, Any], file: Path | None) -> None:
    """Into `--json`, and as tables; after each part, so that an interrupted one loses no other."""
    if file:
        write_json(file, found)
    print(f"\n{tables([found])}\n", flush=True)


def compare(args: argparse.Namespace) -> int:
    """One process group for each number of devices, in turn. Exit code 1 where decisions differ between processes."""
    devices, begin = counts(args), time.time()
    found: dict[str, Any] = {"made": {name: getattr(args, name) for name in HOW} | {"devices": devices}, "rows": []}
    with tempfile.TemporaryDirectory(prefix="scaling-") as work:
        for count in devices:
            code, one = measured(args, count, Path(work) / f"{count}.json")
            if one:
                found["rows"] += one["rows"]
                found["made"] |= one["made"] | {"seconds": time.time() - begin}
                written(found, args.json)
            if code:
                return code  # its message is printed
    return int(not all(row["decision"]["same"] for row in found["rows"]))


def counts(args: argparse.Namespace) -> list[int]:
    """The numbers of devices. Raises InputError for those that cannot be measured here."""
    if wrong := [name for name in args.sizes.split() or [args.sizes] if name not in SIZES]:
        raise InputError(f"--sizes: unknown size {wrong[0]!r}; known: {nearest(wrong[0], SIZES)}")
    words = args.devices.split()
    devices = [int(word) for word in words if word.isdecimal()]
    if len(devices) < len(words) or devices[:1] != [1] or devices != sorted(set(devices)):
        raise InputError(f'--devices "{args.devices}": give rising numbers that begin with 1, such as "1 2 4"')
    here = torch.cuda.device_count()
    if args.accelerator == "gpu" and here < devices[-1]:
        raise InputError(f"--devices {devices[-1]}: this machine has {here} GPUs; give fewer, or --accelerator cpu")
    if least := [name for name in HOW if getattr(args, name) < 1]:
        raise InputError(f"--{least[0].replace('_', '-')} must be at least 1")
    if args.whole_batch < devices[-1]:
        raise InputError(f"--whole-batch {args.whole_batch}: has no sentence for each of {devices[-1]} devices")
    return devices


def measured(args: argparse.Namespace, count: int, file: Path) -> tuple[int, dict[str, Any]]:
    """What `experiments/bench/scaling.py` finds with this number of devices: its exit code, and what it measured."""
    given = {name: getattr(args, name) for name in ("accelerator", "sizes", *HOW)} | {"count": count, "json": str(file)}
    done = subprocess.run([sys.executable, "-m", "experiments.bench.scaling", jsonfile.dumps(given)], cwd=ROOT)
    return done.returncode, jsonfile.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
