"""The whole page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikeprune import __version__
from spikeprune.report.page.comparison import comparison
from spikeprune.report.page.curves import curves
from spikeprune.report.page.energy import energy
from spikeprune.report.page.layers import layer_maps
from spikeprune.report.page.markup import Markup, joined, tag
from spikeprune.report.page.predictions import predictions
from spikeprune.report.page.spikes import spikes
from spikeprune.report.page.stages import head, stage_table, title
from spikeprune.report.page.style import CSS, SCRIPT, policy

SECTIONS = (stage_table, curves, layer_maps, energy, predictions, spikes)


def page(found: Mapping[str, Any]) -> str:
    """One HTML file. `found`: `{"runs": […]}`, as `experiment.report` gathers them."""
    runs = found["runs"]
    name = title(runs[0]) if len(runs) == 1 else f"{len(runs)} runs"
    parts = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=policy()),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", f"SpikePrune: {name}"),
            tag("style", Markup(CSS)),
        ),
        tag("body", _body(runs, name), tag("div", id="tip", role="tooltip", hidden=""), tag("script", Markup(SCRIPT))),
        lang="en",
    )
    return f"<!doctype html>\n{parts}\n"


def _body(runs: Sequence[Mapping[str, Any]], name: str) -> Markup:
    if len(runs) == 1:
        parts = [tag("h1", name), head(runs[0]), *(draw(runs[0]) for draw in SECTIONS)]
    else:
        parts = [tag("h1", name), comparison(runs)]
        for number, run in enumerate(runs, 1):
            parts += [tag("h2", f"{number} · {title(run)}"), head(run), *(draw(run) for draw in SECTIONS)]
    return joined([tag("main", *parts), tag("footer", f"SpikePrune {__version__}{_origin(runs)}")])


def _origin(runs: Sequence[Mapping[str, Any]]) -> str:
    """Commits and machines of the finished runs."""
    made = [run["summary"] for run in runs if run["summary"]]
    commits = dict.fromkeys(f"commit {one['commit']} on {one['hardware']}" for one in made)
    return "".join(f" · {commit}" for commit in commits)
