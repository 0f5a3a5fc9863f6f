"""The tables of runs, settings, published models and ablations, from the summaries kept; part of `results.py`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev

from kept_results import LATENCY, TABLE, ablations, aim, few_bits, have_a_mean, rows, size, steps_of, tag_of

from spikeprune.files import jsonfile

PUBLISHED = Path(__file__).resolve().parent / "published.json"
NOTHING = "No run of the present version has been kept yet."
SCORES = ("dense teacher", "spiking student", "compressed")
MEASURED = ("McNemar p", "firing rate", "latency", "encoder bytes, × less", "whole file, × less")
NAMED = ("task", "preset, data", "student", "seeds", "metric", *SCORES)
SETTING = (*NAMED, *MEASURED)
BRIEF = (*NAMED, "firing rate")
RUN = ("task", "preset, data", "seed", "metric", *SCORES, *MEASURED)
RUN += ("T", "heads", "neurons", "synapses", "training", "hardware", "commit")
TASKS = ("sst2", "mrpc", "rte", "stsb", "cola", "qnli", "qqp", "mnli")


def metrics_of(summary: dict) -> list[str]:
    """The metrics that GLUE ranks by, of numbers both; accuracy where it ranks by the mean of accuracy and F1."""
    names = summary["main_metric"].split("+")
    return ["accuracy"] if len(names) > 1 and "accuracy" in names else names


def scores(summary: dict) -> list[list[float]]:
    """Of teacher, spiking student and compressed student: each metric in percent."""
    return [[100 * row["metrics"][name] for name in metrics_of(summary)] for row in rows(summary)]


def sure_scores(summary: dict) -> list[str]:
    """The scores, with their bootstrap intervals where the run has kept its predictions."""
    found = []
    for values, row in zip(scores(summary), rows(summary), strict=True):
        bounds = [row.get("intervals", {}).get(name) for name in metrics_of(summary)]
        found.append(" / ".join(f"{value:.1f}{interval(pair)}" for value, pair in zip(values, bounds, strict=True)))
    return found


def interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else " ({:.1f}–{:.1f})".format(*(100 * bound for bound in bounds))


def chance(row: dict) -> str:
    """The p of McNemar's test of a student against its teacher; of numbers, and without predictions, none."""
    if "mcnemar" not in row:
        return "-"
    p = row["mcnemar"]["p"]
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def rate(summary: dict) -> float:
    """Spikes of the compressed student for each neuron and step, in percent."""
    return 100 * rows(summary)[2]["cost"]["rate"]


def latency(summary: dict) -> str:
    """Time steps of the compressed student: layers in turn, populations in turn, at least were these to overlap."""
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


def source(summary: dict) -> str:
    found = summary["data"]["source"]
    kind = "".join(f", {kind}{'' if kind.startswith(TABLE) else ' weights'}" for kind in few_bits(summary))
    data = "generated data (not GLUE)" if found == "embedded" else "GLUE dev"
    goal = "".join(f", {name.replace('budget', 'budget ')}" for name in aim(summary))
    return f"{summary['preset']}, {data}{kind}{goal}"


def form(summary: dict) -> str:
    """What the student is made of: layers and channels, spikes and coding, T before and after, weights."""
    shape, (_, before, after) = summary["shape"], rows(summary)
    made = summary["student"] if "student" in summary else None  # older runs do not say
    steps = dict.fromkeys(steps_of(row["t_steps"]) for row in (before, after))
    parts = [f"{shape['layers']} × {shape['hidden']}", *([f"{made['spikes']} spikes", made["coding"]] if made else [])]
    return ", ".join([*parts, f"T {' → '.join(steps)}", f"{after['encoder_weights']['kind']} weights"])


# ------------------------------------------------------------------------------------------------------------ tables


def published() -> list[dict]:
    return jsonfile.loads(PUBLISHED.read_text(encoding="utf-8"))


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *lines))


def settings(found: list[dict]) -> list[list[dict]]:
    """Runs that differ in nothing but the seed, on the same hardware."""
    return [list(group) for _, group in groupby(found, lambda s: (s["task"], source(s), size(s), s["hardware"]))]


def run_cells(summary: dict) -> list[str]:
    final, shape = rows(summary)[2], summary["shape"]
    kept = [f"{100 * sum(final[part]) / (shape['layers'] * shape[part]):.0f} %" for part in ("heads", "ffn")]
    kept.append(f"{100 * final.get('synapses', 1):.0f} %")
    minutes = (summary["teacher"]["seconds"] + sum(row["seconds"] for row in summary["stages"].values())) / 60
    return [
        summary["task"],
        source(summary),
        str(summary["seed"]),
        " / ".join(metrics_of(summary)),
        *removed(summary, sure_scores(summary)),
        " → ".join(map(chance, rows(summary)[1:])),
        f"{rate(summary):.1f} %",
        latency(summary),
        f"{byte_saving(summary):.1f}",
        f"{file_saving(summary):.1f}",
        " ".join(map(str, final["t_steps"])),
        *kept,
        f"{minutes:.1f} min",
        summary["hardware"],
        f"`{summary['commit']}`",
    ]


def setting_cells(found: list[dict]) -> list[str]:
    """One setting: means over its seeds, ± the standard deviation where there are several."""
    return [
        *brief_cells(found),
        ", ".join(chance(rows(summary)[2]) for summary in found),
        f"{mean(map(rate, found)):.1f} %",
        ", ".join(dict.fromkeys(map(latency, found))),
        f"{mean(map(byte_saving, found)):.1f}",
        f"{mean(map(file_saving, found)):.1f}",
    ]


def brief_cells(found: list[dict]) -> list[str]:
    """What the runs of a setting are, and their scores."""
    have_a_mean(found, f"{found[0]['task']}, {source(found[0])}")
    first = found[0]
    means = [" / ".join(map(spread, zip(*seeds, strict=True))) for seeds in zip(*map(scores, found), strict=True)]
    made = [" or ".join(dict.fromkeys(map(form, found))), str(len(found)), " / ".join(metrics_of(first))]
    return [first["task"], source(first), *made, *removed(first, means)]


def removed(summary: dict, cells: list[str]) -> list[str]:
    """The scores of a run; where nothing was removed its last one is no other than the one before."""
    return cells if summary["final"] != summary["uncompressed"] else [*cells[:-1], "-"]


def spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def commits(found: list[dict]) -> str:
    return ", ".join(dict.fromkeys(f"`{summary['commit']}`" for summary in found))


def run_table(found: list[dict]) -> str:
    """One line for each run."""
    return markdown(RUN, [run_cells(summary) for summary in found]) if found else NOTHING


def setting_table(found: list[dict]) -> str:
    """One line for each setting, with the published scores on its task beside it."""
    lines = [[*setting_cells(own), peers(own[0]), commits(own)] for own in settings(found)]
    return markdown([*SETTING, "published", "commit"], lines) if found else NOTHING


def brief_table(found: list[dict]) -> str:
    """A line for each setting on GLUE: scores, firing rate, published scores, commit."""
    lines = [
        [*brief_cells(own), f"{mean(map(rate, own)):.1f} %", peers(own[0], differs=False), commits(own)]
        for own in settings(on_glue(found))
    ]
    return markdown([*BRIEF, "published", "commit"], lines) if lines else NOTHING


def on_glue(found: list[dict]) -> list[dict]:
    return [summary for summary in found if summary["data"]["source"] != "embedded"]


def setting_name(summary: dict) -> list[str]:
    return [summary["task"], source(summary)]


def peers(summary: dict, differs: bool = True) -> str:
    """`Sorbet 90.4 (1-bit weights), …` on the same task, with what differs or without; none for generated data, which
    has no published scores."""
    if summary["data"]["source"] == "embedded":
        return "-"
    task = summary["task"]
    found = [peer for peer in published() if task in peer["scores"]]
    what = [f" ({peer['student']})" if differs else "" for peer in found]
    return ", ".join(f"{peer['name']} {score(peer, task)}{own}" for peer, own in zip(found, what, strict=True)) or "-"


def score(peer: dict, task: str) -> str:
    if task not in peer["scores"]:
        return "-"
    return f"{peer['scores'][task]:g}{'*' if task in peer['unverified'] else ''}"


def published_table() -> str:
    lines = [
        [f"{peer['name']} ({peer['venue']})", *(score(peer, task) for task in TASKS), *energy_claim(peer)]
        + [peer["source"], peer["differs"]]
        for peer in published()
    ]
    return markdown(["model", *TASKS, "energy, as published", "under", "source", "what differs from here"], lines)


def energy_claim(peer: dict) -> tuple[str, str]:
    """A published figure of energy, and the energy model that it was counted under."""
    return (peer["energy"]["figure"], peer["energy"]["model"]) if "energy" in peer else ("-", "-")


def ablation_tables() -> str:
    """The table of each kept ablation, in the order in which they run, with hardware and commit."""
    from ablation import ABLATIONS as RUN_ORDER

    from spikeprune.report.ablation import to_markdown

    def place(key: tuple[str, int]) -> tuple[int, str, int]:
        return RUN_ORDER.index(key[0]) if key[0] in RUN_ORDER else len(RUN_ORDER), *key

    parts = []
    for stem, kept in ablations().items():
        named = {tuple(key.rsplit(" ", 1)): run for key, run in kept.items()}
        found = {(name, int(seed)): run for (name, seed), run in named.items()}
        made = sorted({f"{run['hardware']}, commit `{run['commit']}`" for run in found.values()})
        first = next(iter(found.values()))
        tag = tag_of(stem, "-".join([first["task"], str(first["preset"]), first["data"]["source"]]))
        table = to_markdown({key: found[key] for key in sorted(found, key=place)}, {}, tag)
        parts.append(f"{table}\nMade on {'; '.join(made)}.")
    return "\n\n".join(parts) or NOTHING
