"""What a budget may remove, at equal energy, epochs and seeds: python experiments/compare_budgets.py preset=tiny …

--tasks "sst2 mrpc cola"   tasks (default: mrpc)
--budgets "0.04 0.01"      shares of the dense teacher's energy; lowest: what time steps alone can reach, and 5 %
--seeds "0 1"              seeds (default: 0)
--ways "all spatial"       of WAYS below (default: each); steps alone at `lowest` only, heads and neurons elsewhere
--jobs 4                   runs side by side
--tag NAME                 a folder of its own, where the other has a table with other settings
key=value                  any key of the configuration; a stage's own only where that stage runs

Writes runs/budgets/<preset>/: for each task and seed the run `shared` (teacher and distilled student) and one for each
budget and way that starts from it; budgets.csv with a row for each run, and budgets.md with means over the seeds, and
the mean of all tasks. Started again it runs only what is missing; a run that fails is named at the end (exit code 2).
`make results RUNS=runs/budgets/<preset>` keeps the table in docs/results.md.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ablation import GLUE, SHARED, SHARED_STAGES, fitting, seeds_of, tagged
from kept_results import COMPARED

from spikeprune.config import scalars
from spikeprune.config.tasks import SELECT
from spikeprune.errors import InputError, nearest
from spikeprune.experiment import streams
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_atomic
from spikeprune.pruning.budget import TOLERANCE
from spikeprune.report.ablation import paired, to_csv
from spikeprune.report.markdown import table
from spikeprune.report.numbers import spread

STAGES = [*SHARED_STAGES, "budget", "finetune"]
WAYS = {"all": "[heads,ffn,steps]", "spatial": "[heads,ffn]", "steps": "[steps]"}  # what may be removed
REFUSED, LOWEST = "still has ", "lowest"  # the words of a refusal before the lowest share; the budget of that share
AGAIN = "remove it, and the same command makes it again"
FAR_BELOW = 1e-6  # a share that no student reaches by its time steps
ROOM = 1.05  # over the lowest share, since firing rates change while the student trains
Key = tuple[str, str, int, str]  # task, budget, seed, way


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="mrpc")
    parser.add_argument("--budgets", default="0.04 0.01 lowest")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--ways", default=" ".join(WAYS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--tag", default="")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(arguments)
    return streams.exit_code(lambda: run(args), f"; {streams.RESUMES}")


def run(args: argparse.Namespace) -> int:
    tasks, budgets, ways, seeds = args.tasks.split(), args.budgets.split(), args.ways.split(), seeds_of(args.seeds)
    if wrong := [way for way in ways if way not in WAYS]:
        raise InputError(f"--ways: unknown {wrong[0]}; choose from {nearest(wrong[0], WAYS)}")
    if any(item.startswith("stages.budget.epochs=") for item in args.overrides):
        raise InputError("stages.budget.epochs: spatial and temporal would run before it; use stages.budget.steps")
    preset = next((v for k, _, v in (item.partition("=") for item in args.overrides) if k == "preset"), "tiny")
    root = Path("runs") / "budgets" / f"{preset}{tagged(args.tag)}"
    keys = [(t, b, s, w) for t in tasks for b in budgets for s in seeds for w in ways if belongs(w, b)]

    def shared(pair: tuple[str, int]) -> str:
        task, seed = pair
        return train(folder(root, task, seed) / "shared", args.overrides, [f"task={task}", f"seed={seed}", *SHARED])

    def compressed(key: Key) -> str:
        task, budget, seed, way = key
        here = folder(root, task, seed)
        share = lowest_share(here, args.overrides, task, seed) if budget == LOWEST else budget
        own = [f"task={task}", f"seed={seed}", *of_way(way, share), scalars.of_path("run.start_from", here / "shared")]
        return train(here / f"{budget}-{way}", args.overrides, own)

    pairs = [(task, seed) for task in tasks for seed in seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        failed = {pair: text for pair, text in zip(pairs, pool.map(shared, pairs), strict=True) if text}
        if LOWEST in budgets:  # before the runs that need it side by side
            list(pool.map(lambda p: lowest_share(folder(root, *p), args.overrides, *p), set(pairs) - set(failed)))
        keys = [key for key in keys if (key[0], key[2]) not in failed]
        failed |= {key: text for key, text in zip(keys, pool.map(compressed, keys), strict=True) if text}
    found = {key: row(root, key) for key in keys if key not in failed}
    if found:
        text = to_markdown(found)
        write_atomic(root / COMPARED, to_csv(list(found.values())))
        write_atomic(root / "budgets.md", text)
        print(f"{text}\nwritten to {root}/budgets.md and {COMPARED}")
    for name, text in failed.items():
        print(f"error: {' '.join(map(str, name))}: {text}", file=sys.stderr)
    return 2 if failed else 0


def belongs(way: str, budget: str) -> bool:
    return way != ("spatial" if budget == LOWEST else "steps")


def folder(root: Path, task: str, seed: int) -> Path:
    return root / f"{task}-s{seed}"


def of_way(way: str, share: str | float) -> list[str]:
    return [f"stages.budget.candidates={WAYS[way]}", f"stages.budget.value={share}"]


def train(directory: Path, overrides: Sequence[str], own: Sequence[str]) -> str:
    """Run what is missing of one run in a process of its own; its error, or nothing."""
    if (directory / "summary.json").is_file():
        return ""
    stages = SHARED_STAGES if directory.name == "shared" else STAGES
    words = [*fitting(list(overrides), stages), *own, scalars.of_path("run.dir", directory)]
    directory.parent.mkdir(parents=True, exist_ok=True)
    log = directory.with_name(f"{directory.name}.log")
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "spikeprune", "train", str(GLUE), *words]
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    print(f"{directory}: {'done' if code == 0 else f'exit code {code}, see {log}'}", flush=True)
    return "" if code == 0 else log.read_text(encoding="utf-8").strip().rpartition("\n")[2]


def lowest_share(here: Path, overrides: Sequence[str], task: str, seed: int) -> float:
    """The lowest share of the energy that time steps alone can reach, as the refusal of a lower one names it."""
    known_share = here / "lowest.json"
    if not known_share.is_file():
        own = [f"task={task}", f"seed={seed}", *of_way("steps", FAR_BELOW)]
        said = train(here / "refused", overrides, [*own, scalars.of_path("run.start_from", here / "shared")])
        if REFUSED not in said:
            raise InputError(f"{here / 'refused.log'}: names no lowest share: {said}")
        share = round(ROOM * float(said.partition(REFUSED)[2].split()[0]), 4)
        write_atomic(known_share, jsonfile.dumps({"share": share}))
    return jsonfile.read(known_share, AGAIN)["share"]


def finished(root: Path) -> dict[Key, dict[str, Any]]:
    """The rows of all runs of a comparison that have ended."""
    keys = []
    for summary in sorted(root.glob("*-s*/*-*/summary.json")):
        (task, _, seed), (budget, _, way) = (name.rpartition("-") for name in summary.parts[-3:-1])
        keys.append((task, budget, int(seed[1:]), way))
    return {key: row(root, key) for key in keys}


def row(root: Path, key: Key) -> dict[str, Any]:
    """Score and energy of a run, and those of what it began with."""
    task, budget, seed, way = key
    summary = jsonfile.read_sealed(folder(root, task, seed) / f"{budget}-{way}" / "summary.json", AGAIN)
    last, teacher = summary["stages"][summary["final"]], summary["teacher"]
    return {
        "task": task,
        "budget": budget,
        "seed": seed,
        "way": way,
        "score": 100 * last["main"],
        "below teacher": 100 * (teacher["main"] - last["main"]),
        "energy": last["budget"]["reported"],
        "target": last["budget"]["share"],
        "heads": sum(last["heads"]),
        "ffn": sum(last["ffn"]),
        "t_steps": sum(last["t_steps"]),
        "seconds": sum(stage["seconds"] for name, stage in summary["stages"].items() if name in ("budget", "finetune")),
        "why_not": last["budget"]["why_not"],
        "scored": " ".join(summary["data"]["scored"]),
        "settings": summary["settings"],
        "hardware": summary["hardware"],
        "commit": summary["commit"],
    }


def comparable(found: Mapping[Key, Mapping[str, Any]]) -> None:
    """Raises InputError where some runs were scored on held-out examples and others not, and where the seeds of one
    way had different settings (at the lowest energy each seed has a share of its own)."""
    remedy = "a comparison with other settings needs a --tag"
    if len({value["scored"] == SELECT for value in found.values()}) > 1:
        raise InputError(f"some runs were scored with data.select and others without; {remedy}")
    settings: dict[tuple[str, str, str], set[str]] = {}
    for (task, budget, _, way), value in found.items():
        if budget != LOWEST:
            settings.setdefault((task, budget, way), set()).add(value["settings"])
    if apart := [" ".join(key) for key, own in settings.items() if len(own) > 1]:
        raise InputError(f"{apart[0]}: the seeds were run with different settings and have no mean; {remedy}")


def to_markdown(found: Mapping[Key, Mapping[str, Any]]) -> str:
    """For each budget a line for each way: the mean score of each task, and of all tasks with its spread over seeds;
    then, seed by seed, what is between the ways. Raises InputError for runs that are not to be compared."""
    comparable(found)
    tasks = list(dict.fromkeys(key[0] for key in found))
    head = ["budget", "way", *tasks, "mean", "below the teacher", "energy over target", "seconds", "seeds"]
    lines, means = [], {}
    for budget, way in dict.fromkeys((key[1], key[3]) for key in found):
        group = [(key, value) for key, value in found.items() if (key[1], key[3]) == (budget, way)]
        by_task = [[v["score"] for key, v in group if key[0] == task] for task in tasks]
        seeds = [s for s in sorted({key[2] for key, _ in group}) if all((t, budget, s, way) in found for t in tasks)]
        scores, gaps = (
            [statistics.fmean(found[t, budget, s, way][name] for t in tasks) for s in seeds]
            for name in ("score", "below teacher")
        )
        means.setdefault(budget, {})[way] = [
            {"seed": seed, "mean": score / 100}
            for seed, score in zip(seeds, scores, strict=True)  # as `paired` has it
        ]
        rows = [value for _, value in group]
        lines.append([budget, way, *map(spread, by_task), spread(scores), spread(gaps)])
        lines[-1].append(spread([v["energy"] / v["target"] for v in rows], "{:.3f}".format))
        lines[-1].append(spread([v["seconds"] for v in rows], "{:.0f}".format))
        lines[-1].append(" ".join(map(str, seeds)))
    selected = any(value["scored"] == SELECT for value in found.values())
    where = "Training examples held out by data.select" if selected else "Dev split"
    notes = [
        "",
        f"{where}, × 100; ± is the standard deviation over seeds, of `mean` that of the mean of all tasks, of",
        "energy and seconds over all runs of the line.",
    ]
    for budget, ways in means.items():
        notes += [line.replace("- ", f"- {budget}: ", 1) for line in paired(ways, {"mean": "mean"})]
    shares = [value["energy"] / value["target"] for value in found.values()]
    if shares := [share for share in shares if not 1 - TOLERANCE <= share <= 1]:
        farthest = max(shares, key=lambda share: abs(share - 1))
        many = f"{len(shares)} of {len(found)} runs are more than {TOLERANCE:.0%} below their target, or above it"
        notes += ["", f"{many}, the farthest with {farthest:.3f} of it; their own reports say why."]
    return "\n".join([table(head, lines), *notes]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
