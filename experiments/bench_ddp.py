"""Several GPUs against one: throughput of sst2's internal_kd at a fixed batch per GPU, and the students' quality.

python experiments/bench_ddp.py --data path/to/glue --teacher path/to/minilm-l6-h384 [--devices 2] [key=value …]
python experiments/bench_ddp.py … --speed-only      # throughput alone: no prediction_kd, no setting `same`

Hardware: one machine with two NVIDIA GPUs. Each measurement is a run in its own process, as `spikeprune train` makes
it, from the same teacher; settings of one device and of several take turns. A block is 25 optimizer steps, timed
between two synchronizations, after the first 100, in which shapes of batches are captured as CUDA graphs. The setting
`same` shares one device's batch among all of them: its steps are those of one device, and the metrics may differ by
chance alone; at a fixed batch per device, setting `many`, there are fewer steps. The seconds of each phase are
printed: start (imports, processes meeting), data (`--train-limit` sentences drawn, then tokenized), teacher (trained
once, then copied), and each stage with its measurement. `--json` keeps all of it with hardware, torch, commit, data,
batch and overrides.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from spikeprune.config.derived import stage_rows
from spikeprune.config.load import Config, load, read_resolved
from spikeprune.errors import InputError
from spikeprune.experiment import opening, pipeline, streams
from spikeprune.experiment.build import trainers
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json
from spikeprune.training import distributed

GLUE = Path(__file__).resolve().parent / "glue.yaml"
STAGES = ("teacher", "internal_kd", "prediction_kd")


class Clock(L.Callback):
    """Sentences a second of all processes, block by block, into a file."""

    def __init__(self, path: Path, warm: int, block: int):
        self.path, self.warm, self.block = path, warm, block
        self.sentences, self.since, self.rates = 0, 0.0, []

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.sentences += len(batch["input_ids"])
        step = index + 1 - self.warm
        if step < 0 or step % self.block:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if step:
            self.rates.append((self.sentences, now - self.since))
        self.sentences, self.since = 0, now

    def on_train_end(self, trainer, module) -> None:
        every = distributed.gather(self.rates)
        if distributed.rank() == 0:
            rates = [
                sum(n for n, _ in block) / max(seconds for _, seconds in block) for block in zip(*every, strict=True)
            ]
            write_json(self.path, rates)


class Stopwatch:
    """Seconds of a run's phases in rank 0; `since`: the `time.time` at which its process was started."""

    def __init__(self, since: float):
        self.since, self.seconds = since, {}

    def timed(self, work: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        """`work`, whose seconds are added to those of `name(arguments)`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.time()
            self.seconds.setdefault("start", begin - self.since)  # ends where the first phase begins
            try:
                return work(*args, **kwargs)
            finally:
                phase = name(*args, **kwargs)
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.time() - begin

        return run


def timed_run(folder: Path, warm: int, block: int, since: float, overrides: list[str]) -> None:
    """One run, with a clock in its internal_kd, and one for each of its phases."""
    plain, watch = trainers.stage_callbacks, Stopwatch(since)

    def with_clock(context, name, run):
        clock = [Clock(folder / "blocks.json", warm, block)] if name == "internal_kd" else []
        return [*clock, *plain(context, name, run)]

    trainers.stage_callbacks = with_clock
    opening.prepare = watch.timed(opening.prepare, lambda *_: "data")
    pipeline.train_teacher = watch.timed(pipeline.train_teacher, lambda *_: "teacher")
    pipeline.train_student = watch.timed(pipeline.train_student, lambda context, directory, name, parent: name)
    pipeline.run(load(GLUE, [*overrides, f"run.dir={folder}"]))  # only rank 0 returns
    write_json(folder / "phases.json", watch.seconds)


def lengths(stages: tuple[str, ...]) -> dict[str, int]:
    """Epochs of each stage of the preset: one of those that are measured, none of the others."""
    return {name: int(name in stages) for name, _ in stage_rows(Config()) if name != "general_kd"}


def measure(args: argparse.Namespace, folder: Path, devices: int, batch: int, stages: tuple[str, ...]) -> dict:
    """Blocks and metrics of a run on `devices` with `batch` sentences a step over all of them."""
    teacher = args.work / "teacher"
    if teacher.is_dir():
        (folder / "stages").mkdir(parents=True)
        shutil.copytree(teacher, folder / "stages" / "teacher")
    overrides = [
        *("task=sst2", "preset=minilm"),
        *("data.source=dir", f"data.dir={args.data}", f"teacher.checkpoint={args.teacher}"),
        *(f"data.train_limit={args.train_limit}", "data.replace_words=0"),
        *(
            f"stages.{name}.{key}"
            for name, epochs in lengths(stages).items()
            for key in (f"epochs={epochs}", "steps=0")
        ),
        *(["stages.teacher.batch_size=256"] if args.speed_only else []),  # throughput does not depend on its quality
        *("run.checkpoint_every=1000000", *args.overrides, f"run.devices={devices}"),
        *(f"stages.{name}.batch_size={batch}" for name in STAGES[1:]),
    ]
    options = ["--run-dir", str(folder), "--warm", str(args.warm), "--block", str(args.block)]
    begin = time.time()
    done = subprocess.run([sys.executable, __file__, *options, "--since", str(begin), *overrides])
    if done.returncode:
        sys.exit(done.returncode)  # its message is printed
    whole, run = time.time() - begin, RunDirectory(folder)
    if not teacher.is_dir():
        shutil.copytree(run.stage("teacher"), teacher)
    measured = {name: run.record(name) for name in stages}
    phases = jsonfile.loads((folder / "phases.json").read_text(encoding="utf-8"))
    phases["rest"] = whole - sum(phases.values())
    print(f"   {whole:.1f} s: {', '.join(f'{phase} {seconds:.1f}' for phase, seconds in phases.items())}", flush=True)
    return {
        "blocks": jsonfile.loads((folder / "blocks.json").read_text(encoding="utf-8")),
        "main": {name: record["main"] for name, record in measured.items()},
        "steps": measured["internal_kd"]["steps"],
        "phases": phases,
        "ac": measured[stages[-1]]["cost"]["ac"],
        "made": made_on(run),
    }


def made_on(run: RunDirectory) -> dict[str, Any]:
    """Hardware, versions and data of a run; all but its threads is the same in every setting."""
    summary, config = run.read_summary(), read_resolved(run.config)
    facts = {key: summary[key] for key in ("hardware", "commit", "preset")}
    data = {"data": summary["data"]["banner"], "train_limit": config.data.train_limit}
    return {**facts, "torch": summary["versions"]["torch"], **data}


def spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:9.1f} ({low:.1f} to {high:.1f}, {len(values)} blocks)"


def check_blocks(name: str, result: dict, warm: int, block: int) -> None:
    """Raises InputError where a run was too short for a spread."""
    if (blocks := len(result["blocks"])) < 2:
        raise InputError(
            f"setting {name}: {blocks} of the 2 blocks that are needed: its internal_kd has {result['steps']} steps, "
            f"and 2 blocks end at step {warm + 2 * block}; raise --train-limit, or lower --batch, --warm or --block"
        )


def compare(args: argparse.Namespace) -> None:
    n, b = args.devices, args.batch
    one, many, same = f"1 × {b}", f"{n} × {b}", f"{n} × {b // n}"
    settings = [(one, 1, b), (many, n, n * b), *([(same, n, b)] if args.same and not args.speed_only else [])]
    found: dict[str, dict] = {}
    for turn in range(args.rounds):
        for name, devices, batch in settings[: 3 if turn == 0 else 2]:
            print(f"-- {name}, round {turn + 1} of {args.rounds}", flush=True)
            folder = args.work / f"{devices}x{batch}-{turn}"
            result = measure(args, folder, devices, batch, STAGES if turn == 0 and not args.speed_only else STAGES[:2])
            check_blocks(name, result, args.warm, args.block)
            found.setdefault(name, result | {"blocks": []})["blocks"] += result["blocks"]
    write(args, found, speed_ups(found, one))


def speed_ups(found: dict[str, dict], one: str) -> dict[str, float]:
    """Median throughput of each other setting over that of `one`."""
    medians = {name: statistics.median(result["blocks"]) for name, result in found.items()}
    return {name: median / medians[one] for name, median in medians.items() if name != one}


def write(args: argparse.Namespace, found: dict[str, dict], speed_up: dict[str, float]) -> None:
    """Print throughput and metrics of every setting; all of it into `--json`. The first one has one device."""
    made = [result.pop("made") for result in found.values()][0]
    print(f"\n{made['hardware']}, torch {made['torch']}, commit {made['commit']}, {made['data']}")
    print("sst2 internal_kd, devices × sentences each")
    main = next(iter(found.values()))["main"]
    distilled = [stage for stage in STAGES[1:] if stage in main]
    print(f"{'':10} {'sentences/s: median (quartiles)':40} {'steps':>8}  {'  '.join(distilled)}  additions/sentence")
    for name, r in found.items():
        scores = "  ".join(f"{100 * r['main'][stage]:{len(stage)}.2f}" for stage in distilled)
        print(f"{name:10} {spread(r['blocks']):40} {r['steps']:8}  {scores}  {r['ac']:18.0f}")
    print(f"teacher {100 * main['teacher']:.2f}")
    for name, factor in speed_up.items():
        print(f"speed-up of {name}: {factor:.2f} ×")
    if args.json:
        made |= {name: getattr(args, name) for name in ("devices", "batch", "warm", "block", "rounds", "overrides")}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, {"made": made, "speed_up": speed_up, "settings": found})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a GLUE directory with SST-2/train.tsv")
    parser.add_argument("--teacher", help="a BERT checkpoint to start the teacher from")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="sentences a device and step")
    parser.add_argument("--train-limit", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warm", type=int, default=100, help="steps before the first block")
    parser.add_argument("--block", type=int, default=25, help="steps")
    parser.add_argument("--same", action=argparse.BooleanOptionalAction, default=True, help="the third setting too")
    parser.add_argument("--speed-only", action="store_true", help="no prediction_kd and no third setting")
    parser.add_argument("--json", type=Path, help="write every block and metric there")
    parser.add_argument("--run-dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--since", type=float, help=argparse.SUPPRESS)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="of the configuration, for every setting")
    args = parser.parse_intermixed_args()
    if not args.run_dir and not (args.data and args.teacher):
        parser.error("--data and --teacher are needed")
    if args.run_dir:
        timed_run(args.run_dir, args.warm, args.block, args.since, args.overrides)
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-ddp-") as work:
        args.work = Path(work)
        compare(args)
    return 0


if __name__ == "__main__":
    sys.exit(streams.exit_code(main))
