"""Result tables of README.md and docs/, made from what runs and measurements have left. No figure is typed by hand.

python experiments/results.py runs/mrpc-tiny-s0 …      keep these runs' summaries in experiments/results/
python experiments/results.py runs/ablation/sst2-tiny … keep an ablation's summaries, as far as its table needs them
python experiments/results.py runs/budgets/minilm …     keep a comparison of what a budget may remove
python experiments/results.py runs/rates/sst2-tiny …    keep a sweep of firing rates
python experiments/results.py                          make tables and figure again from the summaries kept
python experiments/results.py --check                  exit code 1 where a page differs from what they give
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from energy_results import energy_table, pays_table, rate_figure, rate_tables, ratio_table
from kept_results import COMPARED, KEPT, RATES, SWEPT, keep, keep_ablation, keep_budgets, keep_rates, kept_in, summaries
from result_tables import (
    NOTHING,
    ablation_tables,
    budget_tables,
    compressed,
    compressed_table,
    on_glue,
    published_table,
    run_table,
    score_table,
    settings,
)
from scaling_results import kept_tables

from spikeprune.experiment import streams
from spikeprune.report.markdown import between, table

ROOT = Path(__file__).resolve().parents[1]
README, PAGE, COST = ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "cost.md"
DEVICES = ROOT / "docs" / "distributed.md"
FIRST_RUN = "mrpc-tiny-embedded-s0"  # kept, its table stands at the head of the README
LEADING = ("convention", "int8", "memory", "stationary")  # energy models of the README
TASK = "sst2"  # of its ratios: each preset has been run on it
FIGURE = ROOT / "docs" / "figures" / "quality-energy.svg"


def pages() -> dict[Path, str]:
    """The complete text of each page that has tables of results."""
    found = summaries()
    groups = settings(found)
    smaller = settings([summary for summary in found if on_glue(summary) and compressed(summary)])
    tables = {
        "scores": score_table(found),
        "compressed": compressed_table(found),
        "ratios": ratio_table(groups),
        "energy": energy_table(groups),
        "pays": pays_table(groups),
        "rates": "\n\n".join(map(rate_tables, kept_in(RATES).values())) or NOTHING,
        "runs": run_table(found),
        "ablation": ablation_tables(),
        "budgets": budget_tables(),
        "published": published_table(),
    }
    brief = {
        "first run": terminal(kept_in(KEPT)[FIRST_RUN]),
        "scores": score_table(found, every=False),
        "ratios": ratio_table(
            [group for group in smaller if group[0]["task"] == TASK], LEADING, ("teacher", "equal_bits")
        ),
    }
    sections = {PAGE: tables, README: brief, COST: {"models": model_table()}, DEVICES: {"scaling": kept_tables()}}
    return {page: filled(page.read_text(encoding="utf-8"), own) for page, own in sections.items()}


def filled(page: str, tables: dict[str, str]) -> str:
    for name, text in tables.items():
        page = between(page, name, text)
    return page


def model_table() -> str:
    """The registry of energy models: constants, what is counted and left out; then the source of each."""
    from spikeprune.cost.energy_models import ENERGY_MODELS

    lines, sources = [], {}
    for model in ENERGY_MODELS.values():
        constants = ", ".join(f"{name} {pj:g}" for name, pj in model.constants.items())
        lines.append([f"`{model.name}`", constants, model.counted, model.left_out])
        sources.setdefault(model.source, []).append(f"`{model.name}`")
    cited = "\n".join(f"- {', '.join(names)}: {source}." for source, names in sources.items())
    return f"{table(['`cost.model`', 'pJ', 'counted', 'left out'], lines)}\n\nSources:\n\n{cited}"


def terminal(summary: dict) -> str:
    """The README's block of the first run: the command, and the table that it ends with."""
    from spikeprune.report.tables import summary_table

    run = f"runs/{summary['task']}-{summary['preset']}-s{summary['seed']}"
    lines = [f"$ make glue TASK={summary['task']}", "…", summary_table(summary), "", f"report: {run}/report.html"]
    return "\n".join(["```console", *lines, "```"])


def draw(found: list[dict]) -> None:
    """Quality against energy of GLUE's tasks, and the firing rates of the sweeps of several limits."""
    from spikeprune.report.figures import results_figure

    results_figure([summary for summary in found if on_glue(summary)], FIGURE)
    for sweep in kept_in(RATES).values():
        if len(sweep["limits"]) > 1:
            rate_figure(sweep)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs, ablations, comparisons or sweeps")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(arguments)
    if given.check and given.runs:
        parser.error("--check keeps no runs; leave it out, or them")
    return streams.exit_code(lambda: check() if given.check else make(given.runs))


def check() -> int:
    stale = [page.name for page, text in pages().items() if page.read_text(encoding="utf-8") != text]
    print(f"{' and '.join(stale)}: run make results" if stale else "the pages are what the summaries give")
    return int(bool(stale))


def make(runs: list[Path]) -> int:
    for run in runs:
        kinds = {"summary.json": keep, SWEPT: keep_rates, COMPARED: keep_budgets}
        next((own for file, own in kinds.items() if (run / file).is_file()), keep_ablation)(run)
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
    draw(summaries())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
