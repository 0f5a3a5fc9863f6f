"""The tables of scores, runs, published models and ablations, from the summaries kept; part of `results.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import kept_results
from kept_results import (
    LATENCY,
    TABLE,
    aim,
    few_bits,
    have_a_mean,
    kept_in,
    other_residuals,
    rows,
    size,
    steps_of,
    tag_of,
)

from spikeprune.files import jsonfile
from spikeprune.report.markdown import table
from spikeprune.report.numbers import spread

PUBLISHED = Path(__file__).resolve().parent / "published.json"
NOTHING = "No run of the present version has been kept yet."
SCORES = ("dense teacher", "spiking student", "compressed")
TASKS = ("sst2", "mrpc", "rte", "stsb", "cola", "qnli", "qqp", "mnli")
Group = Sequence[dict]  # summaries that differ in nothing but the seed, on the same hardware


def metrics_of(summary: dict) -> list[str]:
    """The metrics that GLUE ranks by, of numbers both; accuracy where it ranks by the mean of accuracy and F1."""
    names = summary["main_metric"].split("+")
    return ["accuracy"] if len(names) > 1 and "accuracy" in names else names


def scores(summary: dict) -> list[list[float]]:
    """Of teacher, spiking student and compressed student: each metric in percent."""
    return [[100 * row["metrics"][name] for name in metrics_of(summary)] for row in rows(summary)]


def mean_scores(group: Group) -> list[str]:
    """The three scores: means over the seeds, ± the standard deviation where there are several."""
    first = group[0]
    have_a_mean(group, ", ".join(setting_name(first)))
    return [" / ".join(map(spread, zip(*seeds, strict=True))) for seeds in zip(*map(scores, group), strict=True)]


def sure_scores(summary: dict) -> list[str]:
    """The three scores, with their bootstrap intervals where the run has kept its predictions."""
    found = []
    for values, row in zip(scores(summary), rows(summary), strict=True):
        bounds = [row.get("intervals", {}).get(name) for name in metrics_of(summary)]
        found.append(" / ".join(f"{value:.1f}{interval(pair)}" for value, pair in zip(values, bounds, strict=True)))
    return found if compressed(summary) else [*found[:2], "-"]


def interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else " ({:.1f}–{:.1f})".format(*(100 * bound for bound in bounds))


def chance(summary: dict) -> str:
    """The p of McNemar's test of the last student against its teacher; of numbers, and without predictions, none."""
    row = rows(summary)[2]
    if "mcnemar" not in row:
        return "-"
    p = row["mcnemar"]["p"]
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def rate(summary: dict) -> float:
    """Spikes of the last student for each neuron and step, in percent."""
    return 100 * rows(summary)[2]["cost"]["rate"]


def latency(summary: dict) -> str:
    """Time steps of the last student: layers in turn, populations in turn, at least were these to overlap."""
    cost = rows(summary)[2]["cost"]
    return " / ".join(str(cost[key]) if key in cost else "-" for key in LATENCY)


def byte_saving(summary: dict) -> float:
    """The uncompressed student's encoder matrices in float32 over the compressed ones, as stored."""
    from spikeprune.cost.shapes import Shape, matrix_bytes

    whole = matrix_bytes(shape=Shape(**summary["shape"], classes=0))  # the encoder has no matrix of classes
    return whole / rows(summary)[2]["encoder_weights"]["bytes"]


def file_saving(summary: dict) -> float:
    """The teacher's float32 file over the compacted student's, word table and all."""
    teacher, _, final = rows(summary)
    return teacher["cost"]["bytes"] / final["cost"]["bytes"]


def kept(group: Group) -> str:
    """Shares of heads, neurons and the synapses between them that the last student has kept, in percent."""
    shape, finals = group[0]["shape"], [rows(summary)[2] for summary in group]
    shares = [[sum(row[part]) / (shape["layers"] * shape[part]) for row in finals] for part in ("heads", "ffn")]
    return " / ".join(f"{100 * fmean(share):.0f}" for share in (*shares, [row.get("synapses", 1) for row in finals]))


# ---------------------------------------------------------------------------------------------------------- settings


def settings(found: Sequence[dict]) -> list[Group]:
    """By preset and task, seeds together."""

    def key(summary: dict) -> tuple[Any, ...]:
        return (
            summary["preset"],
            TASKS.index(summary["task"]),
            *setting_name(summary),
            size(summary),
            summary["hardware"],
        )

    return [list(group) for _, group in groupby(sorted(found, key=key), key)]


def setting_name(summary: dict) -> list[str]:
    """Preset, residuals where the preset has others, kind of weights and what the run aims at; the task."""
    kinds = [name.replace("-", "=") for name in other_residuals(summary)]
    kinds += [kind if kind.startswith(TABLE) else f"{kind} weights" for kind in few_bits(summary)]
    goal = [name.replace("budget", "budget ") for name in aim(summary)]
    generated = [] if on_glue(summary) else ["generated data (not GLUE)"]
    return [", ".join([summary["preset"], *kinds, *generated, *goal]), summary["task"]]


def on_glue(summary: dict) -> bool:
    return summary["data"]["source"] != "embedded"


def compressed(summary: dict) -> bool:
    return summary["final"] != summary["uncompressed"]


def form(found: Sequence[dict], place: int) -> str:
    """What the student of `rows` at this place is made of: layers and channels, spikes and what goes past them, coding,
    T, weights."""
    shape, students = found[0]["shape"], [rows(summary)[place] for summary in found]
    made = [summary["student"] for summary in found if "student" in summary]  # older runs do not say
    past = {"spikes": "", "membrane": " and membrane residuals"}
    parts = dict.fromkeys(f"{s['spikes']} spikes{past[s['residual']]}, {s['coding']}" for s in made)
    weights = dict.fromkeys(student["encoder_weights"]["kind"] for student in students)
    steps = steps_of([t for student in students for t in student["t_steps"]])
    return ", ".join([f"{shape['layers']} × {shape['hidden']}", *parts, f"T {steps}", f"{'/'.join(weights)} weights"])


def commits(found: Sequence[dict]) -> str:
    return ", ".join(dict.fromkeys(f"`{summary['commit']}`" for summary in found))


# ------------------------------------------------------------------------------------------------------------ tables


def score_table(found: Sequence[dict], every: bool = True) -> str:
    """Our networks on GLUE, of each the dense teacher, the spiking student and the compressed ones, then the published
    ones; a column for each task, or for each of ours."""
    groups = [group for group in settings(found) if on_glue(group[0])]
    tasks = [task for task in TASKS if every or any(group[0]["task"] == task for group in groups)]
    lines = []
    for network in dict.fromkeys(network_of(group[0]) for group in groups):
        own = [group for group in groups if network_of(group[0]) == network]
        name = ", ".join(network[:-2]).replace("residual-", "residual=")
        largest = {group[0]["task"]: group for group in sorted(own, key=len)}  # of the most seeds
        lines.append(score_line(f"{name}, dense teacher", largest, 0, tasks))
        lines.append(score_line(f"{name}, spiking student", largest, 1, tasks))
        smaller = [group for group in own if compressed(group[0])]
        goals = sorted({setting_name(group[0])[0] for group in smaller}, reverse=True)
        for goal in sorted(goals, key=lambda goal: " weights" in goal):  # few bits after float weights
            of_goal = {group[0]["task"]: group for group in smaller if setting_name(group[0])[0] == goal}
            lines.append(score_line(goal if "budget" in goal else f"{goal}, compressed", of_goal, 2, tasks))
    lines += [
        [peer["name"], peer["student"], *(score(peer, task) for task in tasks), peer["venue"]]
        for peer in published()
        if set(tasks) & set(peer["scores"])
    ]
    return table(["", "network", *tasks, "commit or venue"], lines) if groups else NOTHING


def network_of(summary: dict) -> tuple[str, ...]:
    return summary["preset"], *other_residuals(summary), size(summary), summary["hardware"]


def score_line(name: str, groups: Mapping[str, Group], place: int, tasks: Sequence[str]) -> list[str]:
    everything = [summary for group in groups.values() for summary in group]
    cells = [mean_scores(groups[task])[place] if task in groups else "-" for task in tasks]
    return [name, form(everything, place) if place else "no spikes", *cells, commits(everything)]


def compressed_table(found: Sequence[dict]) -> str:
    """A line for each compressed setting: its scores beside those of the same seeds' teachers and students."""
    lines = []
    for group in (group for group in settings(found) if compressed(group[0])):
        steps = steps_of([t for summary in group for t in rows(summary)[2]["t_steps"]])
        latencies = ", ".join(dict.fromkeys(map(latency, group)))
        savings = " / ".join(f"{fmean(map(saving, group)):.1f}" for saving in (byte_saving, file_saving))
        cells = [f"{fmean(map(rate, group)):.1f} %", steps, kept(group), latencies, savings]
        lines.append([*setting_name(group[0]), str(len(group)), *mean_scores(group), *cells])
    columns = ["setting", "task", "seeds", *SCORES, "firing rate", "T", "kept, %", "latency", "bytes, × less"]
    return table(columns, lines) if lines else NOTHING


def run_table(found: Sequence[dict]) -> str:
    """A line for each run."""
    lines = []
    for summary in (summary for group in settings(found) for summary in group):
        steps = " ".join(map(str, rows(summary)[2]["t_steps"]))
        cells = [chance(summary), f"{rate(summary):.1f} %", steps, kept([summary]), f"{minutes(summary):.1f}"]
        made = [summary["hardware"], commits([summary])]
        lines.append([*setting_name(summary), str(summary["seed"]), *sure_scores(summary), *cells, *made])
    columns = ["setting", "task", "seed", *SCORES, "McNemar p", "firing rate", "T", "kept, %", "minutes", "hardware"]
    return table([*columns, "commit"], lines) if lines else NOTHING


def minutes(summary: dict) -> float:
    return (summary["teacher"]["seconds"] + sum(row["seconds"] for row in summary["stages"].values())) / 60


def published() -> list[dict]:
    return jsonfile.loads(PUBLISHED.read_text(encoding="utf-8"))


def score(peer: dict, task: str) -> str:
    if task not in peer["scores"]:
        return "-"
    return f"{peer['scores'][task]:g}{'*' if task in peer['unverified'] else ''}"


def published_table() -> str:
    """What the published models are, and their figures of energy with the energy model of each."""
    none = {"figure": "-", "model": "-"}
    lines = [
        [peer["name"], peer["source"], peer["differs"], *(peer.get("energy", none)[key] for key in ("figure", "model"))]
        for peer in published()
    ]
    return table(["model", "source", "what differs from here", "energy, as published", "under"], lines)


def ablation_tables() -> str:
    """The table of each kept ablation, in the order in which they run, with hardware and commit."""
    from ablation import ABLATIONS as RUN_ORDER

    from spikeprune.report.ablation import to_markdown

    def place(key: tuple[str, int]) -> tuple[int, str, int]:
        return RUN_ORDER.index(key[0]) if key[0] in RUN_ORDER else len(RUN_ORDER), *key

    parts = []
    for stem, of_names in kept_in(kept_results.ABLATIONS).items():
        named = {tuple(key.rsplit(" ", 1)): run for key, run in of_names.items()}
        found = {(name, int(seed)): run for (name, seed), run in named.items()}
        made = sorted({f"{run['hardware']}, commit `{run['commit']}`" for run in found.values()})
        first = next(iter(found.values()))
        tag = tag_of(stem, "-".join([first["task"], str(first["preset"]), first["data"]["source"]]))
        text = to_markdown({key: found[key] for key in sorted(found, key=place)}, {}, tag)
        parts.append(f"{text}\nMade on {'; '.join(made)}.")
    return "\n\n".join(parts) or NOTHING


def budget_tables() -> str:
    """The table of each kept comparison of what a budget may remove, with hardware and commit."""
    from compare_budgets import to_markdown

    parts = []
    for stem, kept in kept_in(kept_results.BUDGETS).items():
        found = {(row["task"], row["budget"], row["seed"], row["way"]): row for row in kept}
        made = sorted({f"{row['hardware']}, commit `{row['commit']}`" for row in kept})
        parts.append(f"preset {stem}\n\n{to_markdown(found)}\nMade on {'; '.join(made)}.")
    return "\n\n".join(parts) or NOTHING
