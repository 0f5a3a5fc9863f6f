"""What firing less costs and saves under every energy model: python experiments/rate_sweep.py task=sst2 preset=minilm

--limits "0.2 0.1 …"   limits of the additions in fine-tuning, from weak to strong (default: LIMITS)
--budgets 0.02         also prune by a budget of this share under `convention`, then once more under `memory` to the
                       same energy under `memory`: how masks, rates and time steps move with the model
--start RUN            begin with this run's stages, as far as they have the same settings
--tag NAME             a folder of its own
key=value              any key of the configuration

One seed, one teacher, one pruned student (`base`); each limit fine-tunes it anew, each budget starts from its distilled
student. Writes runs/rates/<task>-<preset>/: the runs, rates.json and rates.md. Started again it runs what is missing.
`make results RUNS=runs/rates/<task>-<preset>` takes it into docs/results.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ablation import GLUE, fitting, tagged
from energy_results import rate_tables
from kept_results import without_place

from spikeprune.config import scalars
from spikeprune.config.derived import active_stages
from spikeprune.config.load import load
from spikeprune.errors import InputError
from spikeprune.experiment import streams
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_atomic, write_json

LIMITS = "0.2 0.1 0.05 0.03 0.02 0.01"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", default=LIMITS)
    parser.add_argument("--budgets", type=float, default=None)
    parser.add_argument("--start", type=Path, default=None)
    parser.add_argument("--tag", default="")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(arguments)
    return streams.exit_code(lambda: run(args), f"; {streams.RESUMES}")


def run(args: argparse.Namespace) -> int:
    for item in args.overrides:
        if item.partition("=")[0] in ("ablation", "run.dir", "run.start_from", "cost.model"):
            raise InputError(f"{item}: the sweep sets this itself")
    which = [item for item in args.overrides if item.partition("=")[0] in ("task", "preset")]
    plain = load(GLUE, which)
    root = Path("runs") / "rates" / f"{plain.task}-{plain.preset}{tagged(args.tag)}"
    base = trained(root / "base", args.overrides, [], args.start)
    rows = [row_of(base, "base")]
    for limit in args.limits.split():
        own = [f"stages.finetune.losses.additions_limit={limit}"]
        rows.append(row_of(trained(root / f"limit-{limit}", args.overrides, own, root / "base"), f"limit {limit}"))
    budgets = [] if args.budgets is None else of_budgets(root, args.overrides, args.budgets)
    found = {"task": plain.task, "preset": plain.preset, "limits": rows, "budgets": budgets}
    found |= {key: base[key] for key in ("commit", "hardware", "seed")}
    found["data"] = without_place(base)["data"]["banner"].removeprefix("data: ")
    write_json(root / "rates.json", found)
    write_atomic(root / "rates.md", rate_tables(found) + "\n")
    print(f"\n{rate_tables(found)}\nwritten to {root}/rates.md and rates.json")
    return 0


def trained(folder: Path, overrides: list[str], own: list[str], start: Path | None = None) -> dict[str, Any]:
    """The summary of a run, resumed or finished before."""
    if (folder / "summary.json").is_file():
        return jsonfile.read_sealed(folder / "summary.json", f"remove {folder}, and the same command makes it again")
    from spikeprune.experiment import pipeline

    own = [*own, scalars.of_path("run.dir", folder)]
    if start is not None:
        own.append(scalars.of_path("run.start_from", start))
    named = [item for item in (*overrides, *own) if item.partition("=")[0] in ("task", "preset", "ablation")]
    stages = [*active_stages(load(GLUE, named)), "finetune"]
    print(f"\n=== {folder.name}", flush=True)
    return pipeline.run(load(GLUE, [*fitting(overrides, stages), *own]))


def of_budgets(root: Path, overrides: list[str], share: float) -> list[dict[str, Any]]:
    """One budget under `convention`, and one under `memory` at the energy that the first has there."""
    rows = []
    for model in ("convention", "memory"):
        own = ["ablation=joint", f"cost.model={model}", f"stages.budget.value={share:.4g}"]
        found = trained(root / f"budget-{model}", overrides, own, root / "base")
        rows.append(row_of(found, f"budget, {model}"))
        energies = found["stages"][found["final"]]["energy"]["memory"]
        share = energies["student"] / energies["teacher"]
    return rows


def row_of(summary: dict[str, Any], name: str) -> dict[str, Any]:
    final = summary["stages"][summary["final"]]
    kept = {key: final[key] for key in ("main", "metrics", "energy", "heads", "ffn", "t_steps")}
    return {"name": name, **kept, "rate": final["cost"]["rate"], "teacher": summary["teacher"]["main"]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
