"""Each way of compressing, from one distilled student a seed: python experiments/ablation.py task=sst2 preset=tiny …

--seeds "0 1 2"      seeds; each has its own teacher and student (default: 0)
--only "none joint"  ablations (default: those in ABLATIONS below)
--tag at-0.07        a folder of its own, <task>-<preset>-at-0.07, where the other has a table with other settings
key=value            any key of the configuration; a stage's own, or one of its compression, only where that stage runs

Writes runs/ablation/<task>-<preset>/: a folder for each seed with the run `shared` (teacher and distilled student) and
one for each ablation, and ablation.md and ablation.csv over all of them. Started again it runs only the missing runs.
An ablation that is refused, such as a target out of reach, is reported at the end (exit code 2); the others still run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from spikeprune.config import scalars
from spikeprune.config.derived import active_stages, data_name
from spikeprune.config.load import load
from spikeprune.errors import InputError
from spikeprune.experiment import streams
from spikeprune.files.atomic import write_atomic
from spikeprune.report.ablation import rows, to_csv, to_markdown

HERE = Path(__file__).resolve().parent
GLUE = HERE / "glue.yaml"
ABLATIONS = ("none", "spatial", "temporal", "quantize", "spatial+temporal", "all", "joint")
SHARED_STAGES = ["teacher", "general_kd", "internal_kd", "prediction_kd"]
SHARED = ("ablation=none", "stages.finetune.epochs=0")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default=" ".join(ABLATIONS))
    parser.add_argument("--tag", default="")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(arguments)  # make's options stand among the keys
    return streams.exit_code(
        lambda: run(seeds_of(args.seeds), args.only.split(), args.overrides, tagged(args.tag)), f"; {streams.RESUMES}"
    )


def seeds_of(text: str) -> list[int]:
    try:
        found = [scalars.read(word, int) for word in text.split()]
    except scalars.Unreadable:
        found = []
    if not found:
        raise InputError(f'seeds = {text}: must be whole numbers in plain digits, such as "0 1 2"')
    return list(dict.fromkeys(found))


def tagged(text: str) -> str:
    if not all(char.isalnum() or char in "-_." for char in text):
        raise InputError(f"--tag = {text}: becomes part of a folder's name; use letters, digits, -, _ and .")
    return text and f"-{text}"


def fitting(overrides: list[str], stages: list[str]) -> list[str]:
    """The overrides that mean something where these stages run."""

    def stage_of(key: str) -> str | None:
        section, _, rest = key.partition(".")
        return rest.partition(".")[0] if section == "stages" else None

    found = [(item, stage_of(item.partition("=")[0])) for item in overrides]
    return [item for item, stage in found if stage is None or stage in stages]


def run(seeds: list[int], names: list[str], overrides: list[str], tag: str = "") -> int:
    for item in overrides:
        if item.partition("=")[0] in ("seed", "ablation", "run.dir", "run.start_from"):
            raise InputError(f"{item}: the ablation sets this itself; seeds are given by --seeds, names by --only")
    which = [item for item in overrides if item.partition("=")[0] in ("task", "preset") or item.startswith("data.")]
    plain = load(GLUE, which)
    stages = {name: active_stages(load(GLUE, [*which, f"ablation={name}"])) for name in names}
    root = Path("runs") / "ablation" / f"{data_name(plain)}-{plain.preset}{tag}"
    plans = {}
    for seed in seeds:
        shared = root / f"s{seed}" / "shared"
        own = [*SHARED, f"seed={seed}", scalars.of_path("run.dir", shared)]
        plans["shared", seed] = load(GLUE, [*fitting(overrides, SHARED_STAGES), *own])
        for name in names:
            own = [f"ablation={name}", f"seed={seed}", scalars.of_path("run.dir", root / f"s{seed}" / name)]
            own.append(scalars.of_path("run.start_from", shared))
            plans[name, seed] = load(GLUE, [*fitting(overrides, stages[name]), *own])  # all before the first one runs

    from spikeprune.experiment import pipeline

    found, failed = {}, {}
    for (name, seed), config in plans.items():
        print(f"\n=== {name}, seed {seed}", flush=True)
        try:
            summary = pipeline.run(config)
        except InputError as error:
            if name == "shared":
                raise
            print(f"error: {error}", file=sys.stderr)
            failed[name, seed] = str(error)
            continue
        if name != "shared":
            found[name, seed] = summary
    if found:
        ordered = {key: found[key] for name in names for key in found if key[0] == name}
        write_atomic(root / "ablation.csv", to_csv(rows(ordered)))
        write_atomic(root / "ablation.md", to_markdown(ordered, failed, tag))
        print(
            "\n"
            + (root / "ablation.md").read_text(encoding="utf-8")
            + f"\nwritten to {root}/ablation.md and ablation.csv"
        )
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
