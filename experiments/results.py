"""The README's result table and pictures, made from the summaries of finished runs; no figure is typed by hand.

python experiments/results.py runs/mrpc-tiny-s0 …    keep these runs' summaries in experiments/results/
python experiments/results.py                         make table and pictures again from the summaries kept
python experiments/results.py --check                 exit code 1 where the README is not what they give
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "experiments" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
COLUMNS = (
    "task",
    "preset, data, seed",
    "metric",
    "dense teacher",
    "spiking student",
    "compressed",
    "energy, × less",
    "T",
    "heads",
    "neurons",
    "training",
    "hardware",
    "commit",
)


def summaries() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))]


def keep(run: Path) -> None:
    """Copy the summary of a finished run under its task, preset, data and seed."""
    summary = json.loads((run / "summary.json").read_text())
    name = "-".join([summary["task"], str(summary["preset"]), summary["data"]["source"], f"s{summary['seed']}"])
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")


def cells(summary: dict) -> list[str]:
    """One row: the score that GLUE ranks by, except accuracy where the task has it beside F1."""
    names = list(summary["teacher"]["metrics"])
    metric = "accuracy" if "accuracy" in names and summary["task"] != "cola" else names[0]
    full, final = (summary["stages"][summary[key]] for key in ("uncompressed", "final"))
    rows = (summary["teacher"], full, final)
    score = [f"{100 * row['metrics'][metric]:.1f}" for row in rows]
    saving = [f"{row['energy_saving']:.1f}" for row in (full, final)]
    shape, data = summary["shape"], summary["data"]["source"]
    kept = [f"{100 * sum(final[part]) / (shape['layers'] * shape[part]):.0f} %" for part in ("heads", "ffn")]
    minutes = (summary["teacher"]["seconds"] + sum(row["seconds"] for row in summary["stages"].values())) / 60
    data = "embedded (not GLUE)" if data == "embedded" else f"GLUE {data}"
    return [
        summary["task"],
        f"{summary['preset']}, {data}, {summary['seed']}",
        metric,
        *score,
        f"{saving[0]} → {saving[1]}",
        " ".join(map(str, final["t_steps"])),
        *kept,
        f"{minutes:.1f} min",
        summary["hardware"],
        f"`{summary['commit']}`",
    ]


def table(found: list[dict]) -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, found)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def with_table(readme: str, text: str) -> str:
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", readme)


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    for run in [] if check else arguments:
        keep(Path(run))
    readme = README.read_text()
    made = with_table(readme, table(summaries()))
    if check:
        print("README.md is what the summaries give" if made == readme else "README.md differs: run make results")
        return int(made != readme)
    README.write_text(made)
    from spikeprune.report.figure import pipeline_figure, results_figure

    glue = [summary for summary in summaries() if summary["data"]["source"] != "embedded"]
    results_figure(glue or summaries(), KEPT / "quality-energy.svg")
    pipeline_figure(KEPT / "stages.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
