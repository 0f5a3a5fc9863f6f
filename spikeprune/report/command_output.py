"""What `evaluate`, `compact` and `export` print, as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spikeprune.report.energy_table import energy_lines, timing_lines
from spikeprune.report.numbers import columns, digits, energy_unit, si
from spikeprune.report.tables import LONG, banner, largest_line, score_line

Summary = Mapping[str, Any]

# What `evaluate` prints of `cost`: a name and a unit for each key.
COSTS = {
    "ac": ("additions (AC)", "per sentence"),
    "mac": ("multiply-accumulates", "per sentence"),
    "elementwise": ("element-wise ops", "per sentence"),
    "norm_ops": ("operations", "relative to the same layers, dense and unpruned"),
    "energy_pj": ("energy, cost.model", "pJ per sentence"),
    "rate": ("firing rate", "spikes per neuron and step"),
    "latency_steps": ("latency", "time steps"),
    "latency_stages": ("latency, by layer", "time steps of layers in sequence"),
    "latency_overlapped": ("latency, overlapped", "time steps at least, were layers to overlap"),
    "params": ("parameters", ""),
    "bytes": ("size", "bytes"),
}


def other_data(measured: Summary) -> str | None:
    """The warning that an evaluation's scores are on other data than the run's own; None where they are not."""
    if "run_data" not in measured:
        return None
    now, own = measured["data"], measured["run_data"]
    return (
        f"warning: these are other data than the run's own. Measured on {now['source']} ({now['origin']}), trained on "
        f"{own['source']} ({own['origin']}): the scores measure transfer, not the run's own quality"
    )


def _long(name: str) -> str:
    """`validation_mismatched/f1` → `validation_mismatched/F1`."""
    split, slash, metric = name.rpartition("/")
    return f"{split}{slash}{LONG.get(metric, metric)}"


def evaluation_lines(measured: Summary) -> str:
    """The text that `spikeprune evaluate` prints of one stage: quality, cost, architecture, each with its unit."""
    stage = measured["stage"] + (", compacted" if measured["compacted"] else "")
    changed = [f"with {' '.join(measured['changed'])}"] if "changed" in measured else []
    lines = [
        other_data(measured),
        banner(measured),
        " · ".join([measured["task"], measured["run"], stage, *changed]),
        "",
    ]
    rows = [*_quality_rows(measured), *_cost_rows(measured["cost"]), *_architecture_rows(measured)]
    lines = [line for line in lines if line is not None]
    lines += [f"{name:<24}{value:>12}  {unit}".rstrip() for name, value, unit in rows]
    lines += ["", score_line(measured) + largest_line(measured)]
    if "student" in measured.get("energy", {}).get("convention", {}):
        lines += ["", *energy_lines(measured["energy"], measured["cost"]["rate"])]
    if "measured_ms" in measured:
        lines += ["", *timing_lines(measured["measured_ms"])]
    if "dynamic" in measured:
        lines += ["", *dynamic_lines(measured["dynamic"])]
    return "\n".join(lines)


def _quality_rows(measured: Summary) -> list[tuple[str, str, str]]:
    """(name, value, unit) of the score, each metric, and the agreement with the teacher."""
    rows = [("score", f"{100 * measured['main']:.1f}", "× 100")]
    rows += [(_long(name), f"{100 * value:.1f}", "× 100") for name, value in measured["metrics"].items()]
    for name, value in measured.get("fidelity", {}).items():
        split, _, kind = name.rpartition("/")
        prefix = f"{split}/" if split else ""
        if kind == "agreement":
            rows.append((f"{prefix}agreement", f"{100 * value:.1f}", "% of labels, with the teacher"))
        else:
            regression = "agreement" not in measured["fidelity"]
            unit = "squared difference to the teacher" if regression else "nats, KL(teacher ‖ student)"
            rows.append((f"{prefix}divergence", f"{value:.3f}", unit))
    return rows


def _cost_rows(cost: Summary) -> list[tuple[str, str, str]]:
    rows = []
    for key, value in cost.items():
        if not isinstance(value, Mapping):
            name, unit = COSTS.get(key, (key, ""))
            rows.append((name, si(value), unit))
    return rows


def _architecture_rows(measured: Summary) -> list[tuple[str, str, str]]:
    lists = (("t_steps", "time steps", "embedding, then layers"), ("heads", "heads", "by layer"))
    lists += (("ffn", "neurons", "by layer"),)
    rows = [(name, " ".join(map(str, measured[key])), unit) for key, name, unit in lists if key in measured]
    if "synapses" in measured:
        rows.append(("synapses", f"{100 * measured['synapses']:.1f}", "% of those between kept units"))
    if "encoder_weights" in measured:
        rows.append(("encoder weights", measured["encoder_weights"]["kind"], ""))
    return rows


def dynamic_lines(found: Summary) -> list[str]:
    """Early exit: a row for each bound, the overhead of the exit test included, then a row for each number of steps."""
    unit, size = energy_unit([row["cost"]["energy_pj"] for row in (*found["bounds"], *found["curve"])])
    head = ["score", "steps", "latency", "early", f"E [{unit}]", "test", "× less"]

    def row(name: str, row: Summary) -> list[str]:
        pj, latency = row["cost"]["energy_pj"], digits(row["cost"]["latency_steps"])
        less = digits(found["static"]["cost"]["energy_pj"] / pj)
        early = f"{100 * row['early']:.0f}%" if "early" in row else "-"
        overhead = digits(row["overhead"]["energy_pj"] / size) if "overhead" in row else "-"
        quality = [f"{100 * row['main']:.1f}", digits(row["mean_steps"]), latency, early]
        return [name, *quality, digits(pj / size), overhead, less]

    bounds = [row(f"confidence > {r['bound']:g}", r) for r in found["bounds"]]
    curve = [row(f"at most {r['steps']} steps", r) for r in found["curve"]]
    table = columns([["stopped when", *head], ["never", *row("", found["static"])[1:]], *bounds, *curve])
    return [
        *table,
        "steps: mean over sentences and layers. test: the exit test's part of E. × less: than without exit.",
    ]


def compaction_lines(record: Summary) -> str:
    """The text that `spikeprune compact` prints: the directory, each layer's units, and the sizes before and after."""
    check, names = record["check"], {"heads": "heads", "ffn": "neurons"}
    lines = [
        f"{record['run']}/compact: stage {record['parent']['stage']} without what it pruned; its logits on "
        f"{check['sentences']} dev sentences differ by {check['max_difference']:.1g} at most"
    ]
    lines += [f"  {names[key]:<8} {' '.join(map(str, record[key]['kept']))}  of {record[key]['of']}" for key in names]
    lines += [f"  {key:<8} {si(record[f'masked_{key}'])} → {si(record[key])}" for key in ("params", "bytes")]
    return "\n".join(lines)


def export_lines(record: Summary) -> str:
    """The text that `spikeprune export` prints: the directory, its files with their sizes, and what was checked."""
    lines = [f"{record['directory']}: {record['format']}, stage {record['stage']} of {record['run']}"]
    lines += [f"  {name:<24}{si(size):>8} bytes" for name, size in record["bytes"].items()]
    return "\n".join([*lines, f"  checked: {record['check']['words']}"])
