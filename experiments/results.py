"""Result tables of README.md and docs/, made from what runs and measurements have left. No figure is typed by hand.

python experiments/results.py runs/mrpc-tiny-s0 …      keep these runs' summaries in experiments/results/
python experiments/results.py runs/ablation/sst2-tiny … keep an ablation's summaries, as far as its table needs them
python experiments/results.py                          make tables and figure again from the summaries kept
python experiments/results.py --check                  exit code 1 where a page differs from what they give
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from energy_results import RATES, detail_table, rate_tables, ratio_table
from kept_results import KEPT, keep, keep_ablation, summaries
from result_tables import (
    NOTHING,
    ablation_tables,
    brief_table,
    markdown,
    on_glue,
    published_table,
    run_table,
    setting_table,
    settings,
)
from scaling_results import kept_tables

from spikeprune.files import jsonfile

ROOT = Path(__file__).resolve().parents[1]
README, PAGE, COST = ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "cost.md"
DEVICES = ROOT / "docs" / "distributed.md"
FIRST_RUN = "mrpc-tiny-embedded-s0.json"  # kept, its table stands at the head of the README
LEADING = ("convention", "int8", "memory", "stationary")  # energy models of the README
FIGURE = ROOT / "docs" / "figures" / "quality-energy.svg"


def between_marks(page: str, name: str, text: str) -> str:
    """`page` with `text` between its two marks of this name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page must have the marks {begin} and {end} once each")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page)


def pages() -> dict[Path, str]:
    """The complete text of each page that has tables of results."""
    found = summaries()
    figure = f"![Quality against energy](figures/{FIGURE.name})\n\n" if found else ""
    ratios = ratio_table(settings(found))
    page = between_marks(PAGE.read_text(encoding="utf-8"), "settings", f"{ratios}\n\n{figure}{setting_table(found)}")
    tables = {"runs": run_table(found), "ablation": ablation_tables(), "published": published_table()}
    tables["rates"] = firing_rates()
    tables["energy"] = detail_table(settings(found))
    for name, table in tables.items():
        page = between_marks(page, name, table)
    smaller = settings([summary for summary in on_glue(found) if summary["final"] != summary["uncompressed"]])
    brief = f"{ratio_table(smaller, LEADING)}\n\n{brief_table(found)}"
    readme = between_marks(README.read_text(encoding="utf-8"), "results", brief)
    if (KEPT / FIRST_RUN).is_file():
        kept = jsonfile.loads((KEPT / FIRST_RUN).read_text(encoding="utf-8"))
        readme = between_marks(readme, "first run", terminal(kept))
    cost = between_marks(COST.read_text(encoding="utf-8"), "models", model_table())
    devices = between_marks(DEVICES.read_text(encoding="utf-8"), "scaling", kept_tables())
    return {PAGE: page, README: readme, COST: cost, DEVICES: devices}


def firing_rates() -> str:
    """What `rate_sweep.py` has kept, with its figure."""
    kept = [jsonfile.loads(path.read_text(encoding="utf-8")) for path in sorted(RATES.glob("*.json"))]
    text = "\n\n".join(rate_tables(found) for found in kept)
    return f"![Firing rate, score and energy](figures/firing-rates.svg)\n\n{text}" if kept else NOTHING


def model_table() -> str:
    """The registry of energy models: constants, what is counted and left out, and the source of each."""
    from spikeprune.cost.energy_models import ENERGY_MODELS

    lines = [
        [f"`{model.name}`", constants(model), model.counted, model.left_out, model.source]
        for model in ENERGY_MODELS.values()
    ]
    return markdown(["`cost.model`", "pJ", "counted", "left out", "source"], lines)


def constants(model) -> str:
    return ", ".join(f"{name} {pj:g}" for name, pj in model.constants.items())


def terminal(summary: dict) -> str:
    """The README's block of the first run: the command, and the table that it ends with."""
    from spikeprune.report.tables import summary_table

    run = f"runs/{summary['task']}-{summary['preset']}-s{summary['seed']}"
    lines = [f"$ make glue TASK={summary['task']}", "…", summary_table(summary), "", f"report: {run}/report.html"]
    return "\n".join(["```console", *lines, "```"])


def draw(found: list[dict]) -> None:
    """Quality against energy, of GLUE's tasks where there are any."""
    if not found:
        FIGURE.unlink(missing_ok=True)
        return
    from spikeprune.report.figures import results_figure

    glue = [summary for summary in found if summary["data"]["source"] != "embedded"]
    results_figure(glue or found, FIGURE)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs or of ablations")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(arguments)
    if given.check and given.runs:
        parser.error("--check keeps no runs; leave it out, or them")
    for run in given.runs:
        (keep if (run / "summary.json").is_file() else keep_ablation)(run)
    made = pages()
    if given.check:
        stale = [page.name for page, text in made.items() if page.read_text(encoding="utf-8") != text]
        print(f"{' and '.join(stale)}: run make results" if stale else "the pages are what the summaries give")
        return int(bool(stale))
    for page, text in made.items():
        page.write_text(text, encoding="utf-8")
    draw(summaries())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
