"""The benchmark: ratios of our time to others', measured in one run.

python -m experiments.bench                        on the CPU, scaled down, about two minutes (or: make bench)
python -m experiments.bench --device cuda          on one GPU, under 150 s
python -m experiments.bench --keep FILE.json …     take results into docs/performance.md
python -m experiments.bench --check                exit code 1 where docs/performance.md differs from the kept results

Writes bench-DEVICE.json and bench-DEVICE.md into --out, after each comparison, so that an interrupted run leaves
its finished ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments.bench import report
from experiments.bench.deployed import deployed
from experiments.bench.growth import growth, profiles
from experiments.bench.nets import BASE, MINILM, SMALL
from experiments.bench.rooflines import ceilings
from experiments.bench.rows import Row, Setting, evaluation, simulation
from experiments.bench.training import training
from spikeprune.experiment import streams
from spikeprune.experiment.summary import commit, hardware
from spikeprune.files.atomic import write_json
from spikeprune.kernels import lacking


def settings(device: torch.device, backend: str) -> dict[str, Setting]:
    """Sizes and batches of each part: on a GPU MiniLM and BERT-base at B 32, N 128; on a CPU less of it."""
    common: dict[str, Any] = {"device": device, "kernels": backend}
    if device.type == "cuda":
        whole = Setting(**common, sizes=(MINILM, BASE), sentences=32, tokens=128, t_steps=16, budget=4.0)
        less = Setting(**common, sizes=(MINILM,), sentences=32, tokens=128, t_steps=16, budget=2.0)
        parts = {"simulation": whole, "evaluation": whole, "training": whole, "profiles": less, "growth": less}
        return {**parts, "deployed": less}
    small = Setting(**common, sizes=(SMALL,), sentences=4, tokens=32, t_steps=16, budget=5.0)
    short = Setting(**common, sizes=(SMALL,), sentences=4, tokens=16, t_steps=16, budget=5.0)
    full = Setting(**common, sizes=(MINILM,), sentences=16, tokens=64, t_steps=4, budget=15.0)
    middle = Setting(**common, sizes=(SMALL,), sentences=16, tokens=64, t_steps=4, budget=10.0)
    parts = {"simulation": small, "evaluation": full, "training": middle, "profiles": small, "growth": short}
    return {**parts, "deployed": full}


WORK: dict[str, Callable[[Setting], Iterable[Row | dict]]] = {
    "simulation": simulation,
    "evaluation": evaluation,
    "training": training,
    "profiles": profiles,
    "growth": growth,
    "deployed": deployed,
}


def run(device: torch.device, backend: str, out: Path, parts: list[str]) -> dict[str, Any]:
    at, start = settings(device, backend), time.perf_counter()
    base = at["growth"]
    results: dict[str, Any] = {
        "made": {"device": device.type, "hardware": hardware(device), "kernels": backend, "commit": commit()},
        "base": {"T": base.t_steps, "B": base.sentences, "N": base.tokens},
        "ceilings": ceilings(device, budget=1.0),
        **{place: [] for place in ("rows", *report.TABLES)},
    }
    results["made"] |= {"torch": torch.__version__, "load": os.getloadavg()[0]}  # before it adds its own
    for part in parts:
        for found in WORK[part](at[part]):
            row = {**asdict(found), "met": found.met} if isinstance(found, Row) else found
            results["rows" if isinstance(found, Row) else part].append(row)
            results["made"]["seconds"] = time.perf_counter() - start
            write(results, out)
            print(in_words(found), flush=True)
    return results


def in_words(found: Row | dict) -> str:
    if isinstance(found, dict):
        return ", ".join(f"{key} {v:.4g}" if isinstance(v, float) else f"{key} {v}" for key, v in found.items())
    value = found.skipped or f"{found.ratio:.3g}"
    return f"{found.network}, {found.setting}: {found.comparison}: {value}"


def write(results: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    name = f"bench-{results['made']['device']}"
    write_json(out / f"{name}.json", results)
    (out / f"{name}.md").write_text(report.markdown(results) + "\n", encoding="utf-8")


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--kernels", choices=("auto", "torch", "triton"), default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--out", type=Path, default=Path(".bench"))
    parser.add_argument("--parts", nargs="+", choices=report.PARTS, default=list(report.PARTS))
    parser.add_argument("--keep", nargs="+", type=Path, metavar="FILE", help="take these into docs/performance.md")
    parser.add_argument("--check", action="store_true", help="does docs/performance.md match the kept results?")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    args = arguments(argv)
    if args.keep or args.check:
        for path in args.keep or []:
            report.keep(path, args.parts)
        page = report.PAGE.read_text(encoding="utf-8")
        made = report.with_results(page, report.kept_results())
        if args.check:
            verdict = "matches the kept results" if made == page else "differs: --keep its results"
            print(f"docs/performance.md {verdict}")
            return int(made != page)
        report.PAGE.write_text(made, encoding="utf-8")
        return 0
    missing = lacking()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: needs a CUDA device, which is not here", file=sys.stderr)
        return 2
    if args.kernels == "triton" and (missing or args.device == "cpu"):
        print(f"error: --kernels triton: needs {missing or '--device cuda'}", file=sys.stderr)
        return 2
    backend = args.kernels
    if backend == "auto":
        backend = "triton" if args.device == "cuda" and not missing else "torch"
    if args.threads:
        torch.set_num_threads(args.threads)
    run(torch.device(args.device), backend, args.out, args.parts)
    print(f"\n{(args.out / f'bench-{args.device}.md').read_text(encoding='utf-8')}")
    return 0


if __name__ == "__main__":
    sys.exit(streams.exit_code(lambda: main(sys.argv[1:])))
