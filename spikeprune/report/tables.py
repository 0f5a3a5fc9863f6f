"""The table that a run ends with: dense teacher, then each stage, plain text of at most about 110 columns.

Read from `summary.json`; of it this file uses `task`, `preset`, `seed`, `data.{source,origin,banner}`, `uncompressed`
and `final` (names of stages, or None), `shape` (the student's layers, and heads and ffn a layer),
`teacher.{metrics,main,cost}`, `stages.<name>.{metrics,main,cost,t_steps,heads,ffn,encoder_weights}` and, where a stage
has them, its `budget`, `fidelity` and `synapses`. Metrics are fractions, `cost` is what `energy.summarize` returned,
`heads` and `ffn` count what each layer keeps, `encoder_weights` is `{kind,stored_bits,bytes,float32}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Summary = Mapping[str, Any]

UNITS = (("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3), ("pJ", 1.0))
SHORT = {"accuracy": "acc", "f1": "F1", "matthews": "mcc", "pearson": "pears", "spearman": "spear"}
NOT_GLUE = "Embedded data, a generated corpus: not GLUE scores."


def banner(summary: Summary) -> str | None:
    """The line that keeps scores on generated data from being taken for GLUE's; None for real data."""
    data = summary["data"]
    return data.get("banner") or (NOT_GLUE if data["source"] == "embedded" else None)


def other_data(measured: Summary) -> str | None:
    """The warning that an evaluation's scores are on other data than the run's own; None where they are not."""
    if "run_data" not in measured:
        return None
    now, own = measured["data"], measured["run_data"]
    return (
        f"warning: these are other data than the run's own. Measured on {now['source']} ({now['origin']}), trained on "
        f"{own['source']} ({own['origin']}): the scores say how the model carries over, not how well it was made"
    )


def energy_unit(picojoules: Sequence[float]) -> tuple[str, float]:
    """(name, pJ in one) of the largest unit in which the smallest of these energies is at least one."""
    least = min(picojoules)
    return next(((name, size) for name, size in UNITS if least >= size), UNITS[-1])


def si(value: float) -> str:
    """Three digits and k, M, G or T: 12345 → `12.3k`; an int below 1000 as it is."""
    if isinstance(value, int) and abs(value) < 1000:
        return str(value)
    for suffix in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{digits(value)}{suffix}"
        value /= 1000
    return f"{digits(value)}T"


def digits(value: float) -> str:
    """Three significant digits without an exponent; nothing below a hundredth."""
    places = 0 if value == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{places}f}"


def summary_table(summary: Summary) -> str:
    """The closing table as one string, the banner first where the data are embedded. A missing key is a KeyError."""
    teacher, stages = summary["teacher"], summary["stages"]
    head = [f"{summary['task']}", f"preset {summary['preset']}", f"seed {summary['seed']}", f"data {_data(summary)}"]
    unit, size = energy_unit([row["cost"]["energy_pj"] for row in (teacher, *stages.values())])
    shape = summary["shape"]
    metrics = {name: _short(name) for name in teacher["metrics"]}
    if list(teacher["metrics"].values()) == [teacher["main"]]:
        metrics = {}  # the only metric is the score itself
    rows = [["", "score", *metrics.values(), "AC", "MAC", f"E [{unit}]", "× less", "T", "heads", "ffn", "steps"]]
    rows[0] += ["params", "bytes"]
    for name, row in {"dense teacher": teacher, **stages}.items():
        rows.append([name, *_quality(row, metrics), *_work(row, teacher, size), *_form(row, shape), *_size(row)])
    lines = [banner(summary), " · ".join(head), "", *columns(rows), "", *_closing(summary, unit, size)]
    return "\n".join(line for line in lines if line is not None)


def _data(summary: Summary) -> str:
    source, origin = summary["data"]["source"], summary["data"].get("origin")
    return source if origin in (None, "", source) else f"{source} ({origin})"


def _short(name: str) -> str:
    """`validation_mismatched/accuracy` → `acc-mm`: MNLI has two dev sets, and a column is five wide."""
    metric = next((short for long, short in SHORT.items() if long in name), name)
    return metric + ("-mm" if "mismatched" in name else "-m" if "matched" in name else "")


def _quality(row: Summary, metrics: Mapping[str, str]) -> list[str]:
    return [f"{100 * row['main']:.1f}", *(f"{100 * row['metrics'][name]:.1f}" for name in metrics)]


def _work(row: Summary, teacher: Summary, size: float) -> list[str]:
    cost = row["cost"]
    less = teacher["cost"]["energy_pj"] / cost["energy_pj"]
    return [si(cost["ac"]), si(cost["mac"]), digits(cost["energy_pj"] / size), digits(less)]


def _form(row: Summary, shape: Summary) -> list[str]:
    """Mean T, heads and neurons kept in percent of all that the architecture has, latency in steps."""
    if "t_steps" not in row:
        return ["-"] * 4  # dense
    mean = sum(row["t_steps"]) / len(row["t_steps"])
    kept = [f"{100 * sum(row[part]) / (shape['layers'] * shape[part]):.0f}%" for part in ("heads", "ffn")]
    return [f"{mean:.3g}", *kept, si(row["cost"]["latency_steps"])]


def _size(row: Summary) -> list[str]:
    return [si(row["cost"]["params"]), si(row["cost"]["bytes"])]


def columns(rows: list[list[str]]) -> list[str]:
    """Lines of equal width, a rule below the first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _closing(summary: Summary, unit: str, size: float) -> list[str]:
    """The result in a sentence, what each layer kept, and what the columns mean."""
    if summary["final"] is None:
        return ["Only the teacher was trained."]
    teacher, final = summary["teacher"], summary["stages"][summary["final"]]
    gap = round(100 * (teacher["main"] - final["main"]), 1)
    place = f"{abs(gap)} {'below' if gap > 0 else 'above'}" if gap else "level with"
    before, after = (row["cost"]["energy_pj"] for row in (teacher, final))
    energy = f"{digits(before / size)} → {digits(after / size)} {unit} (÷ {digits(before / after)})"
    full = f"Uncompressed student: {summary['uncompressed']}. " if summary["uncompressed"] else ""
    return [
        f"{summary['final']}: {100 * final['main']:.1f}, {place} the dense teacher; energy {energy}",
        *_fidelity(final.get("fidelity", {})),
        f"  t_steps  {' '.join(map(str, final['t_steps']))}  (embedding first)",
        f"  heads    {' '.join(map(str, final['heads']))}",
        f"  neurons  {' '.join(map(str, final['ffn']))}",
        *([f"  synapses {100 * final['synapses']:.0f} % of those between kept units"] if "synapses" in final else []),
        *_weights(final["encoder_weights"]),
        *[f"  {budget_line(row['budget'], name)}" for name, row in summary["stages"].items() if "budget" in row],
        "",
        f"{full}AC, MAC, energy E: mean of one sentence, padding left out.",
        "E leaves out element-wise work (energy_full_pj has it). T: mean time steps; steps: until the answer.",
    ]


def _fidelity(found: Summary) -> list[str]:
    """How near the answers are to the teacher's, on the first dev split; nothing of an older run."""
    if "agreement" in found:
        return [f"same answer as the teacher: {100 * found['agreement']:.1f} % (KL {found['divergence']:.3f})"]
    return [f"mean squared difference to the teacher: {found['divergence']:.3f}"] if found else []


def _weights(found: Summary) -> list[str]:
    """What is quantized and what is not; nothing for float weights."""
    if found["kind"] == "float":
        return []
    bits = f"{found['stored_bits']} bit{'s' * (found['stored_bits'] > 1)}"
    packed = f"{found['kind']}, packed in {bits}: the encoder's matrices take {si(found['bytes'])} bytes"
    return [f"  weights  {packed}", f"           float32: {found['float32']}"]


def budget_line(budget: Summary, stage: str = "") -> str:
    """What a joint budget asked for and what it came to, and why where the two differ."""
    of = {"dense": "the dense teacher", "student": "the uncompressed student"}[budget["of"]]
    line = f"budget{' of ' + stage if stage else ''}: {budget['target']} {budget['reported']:.4g} of {of}'s"
    line += f", target {budget['share']:.4g}"
    if budget["target"] == "latency":
        line += f" (whole steps: {budget['goal']:.4g})"
    return line if budget["within"] else f"{line}: {budget['why_not']}"


def evaluation_lines(measured: Summary) -> str:
    """What `spikeprune evaluate` prints of one stage: quality, then each cost, a line each."""
    rows = [("score", f"{100 * measured['main']:.1f}")]
    rows += [(name, f"{100 * value:.1f}") for name, value in measured["metrics"].items()]
    for name, value in measured.get("fidelity", {}).items():
        rows.append((name, f"{100 * value:.1f}" if name.endswith("agreement") else f"{value:.3f}"))
    rows += [(name, si(value)) for name, value in measured["cost"].items() if not isinstance(value, Mapping)]
    rows += [(name, " ".join(map(str, measured[name]))) for name in ("t_steps", "heads", "ffn") if name in measured]
    if "synapses" in measured:
        rows.append(("synapses", f"{100 * measured['synapses']:.1f} %"))
    if "encoder_weights" in measured:
        rows.append(("weights", measured["encoder_weights"]["kind"]))
    stage = measured["stage"] + (", compacted" if measured["compacted"] else "")
    changed = [f"with {' '.join(measured['changed'])}"] if "changed" in measured else []
    lines = [
        other_data(measured),
        banner(measured),
        " · ".join([measured["task"], measured["run"], stage, *changed]),
        "",
    ]
    lines = [line for line in lines if line is not None] + [f"{name:<16}{value:>12}" for name, value in rows]
    if "dynamic" in measured:
        lines += ["", *dynamic_lines(measured["dynamic"])]
    return "\n".join(lines)


def dynamic_lines(found: Summary) -> list[str]:
    """Early answers: a row for each bound, what the asking costs included, then a row for each number of steps."""
    unit, size = energy_unit([row["cost"]["energy_pj"] for row in (*found["bounds"], *found["curve"])])
    head = ["score", "steps", "latency", "early", f"E [{unit}]", "asking", "× less"]

    def row(name: str, row: Summary) -> list[str]:
        pj, latency = row["cost"]["energy_pj"], digits(row["cost"]["latency_steps"])
        less = digits(found["static"]["cost"]["energy_pj"] / pj)
        early = f"{100 * row['early']:.0f}%" if "early" in row else "-"
        asking = digits(row["asking"]["energy_pj"] / size) if "asking" in row else "-"
        answers = [f"{100 * row['main']:.1f}", digits(row["mean_steps"]), latency, early]
        return [name, *answers, digits(pj / size), asking, less]

    sign = "<" if found["rule"] == "asr" else ">"
    bounds = [row(f"{found['rule']} {sign} {r['bound']:g}", r) for r in found["bounds"]]
    curve = [row(f"at most {r['steps']} steps", r) for r in found["curve"]]
    table = columns([["stopped when", *head], ["never", *row("", found["static"])[1:]], *bounds, *curve])
    return [*table, "steps: mean over sentences and layers. E includes the asking. × less: than never stopping."]


def compaction_lines(record: Summary) -> str:
    """What `spikeprune compact` prints: where the model lies, each layer's units, and how much smaller it is."""
    check, names = record["check"], {"heads": "heads", "ffn": "neurons"}
    lines = [
        f"{record['run']}/compact: stage {record['parent']['stage']} without what it pruned; its logits on "
        f"{check['sentences']} dev sentences differ by {check['max_difference']:.1g} at most"
    ]
    lines += [f"  {names[key]:<8} {' '.join(map(str, record[key]['kept']))}  of {record[key]['of']}" for key in names]
    lines += [f"  {key:<8} {si(record[f'masked_{key}'])} → {si(record[key])}" for key in ("params", "bytes")]
    return "\n".join(lines)
