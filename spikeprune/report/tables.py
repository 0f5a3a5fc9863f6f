"""The table that a run ends with: dense teacher, then each stage, plain text of at most about 110 columns.

Read from `summary.json`; of it this file uses `task`, `main_metric`, `preset`, `seed`, `data.{source,origin,banner}`,
`uncompressed` and `final` (names of stages, or None), `shape` (the student's layers, and heads and ffn a layer),
`teacher.{metrics,main,cost}`, `stages.<name>.{metrics,main,fidelity,cost,t_steps,heads,ffn,encoder_weights}` and,
where they are there, `data.largest_class`, `teacher.note` and a stage's `energy`, `budget`, `synapses` and
`intervals`. Metrics are fractions, `cost` is what `cost.summary.summarize` returned, `heads` and `ffn` count what each
layer keeps, `encoder_weights` is `{kind,stored_bits,bytes,float32}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

from spikeprune.config.tasks import SELECT
from spikeprune.report.energy_table import energy_lines
from spikeprune.report.numbers import columns, digits, energy_unit, si

Summary = Mapping[str, Any]

SHORT = {"accuracy": "acc", "macro_f1": "mF1", "f1": "F1", "matthews": "mcc", "pearson": "pears", "spearman": "spear"}
LONG = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}
NOT_GLUE = "Embedded data, a generated corpus: not GLUE scores."


def banner(summary: Summary) -> str | None:
    """The line that keeps scores on generated data from being taken for GLUE's; None for real data."""
    data = summary["data"]
    return data.get("banner") or (NOT_GLUE if data["source"] == "embedded" else None)


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
    if "labels" in summary["data"] and (largest := _largest_class(summary)):  # of own data
        rows.append(["largest class", *_quality(largest, metrics), *["-"] * 10])
    for name, row in {"dense teacher": teacher, **stages}.items():
        rows.append([name, *_quality(row, metrics), *_work(row, teacher, size), *_form(row, shape)])
        rows[-1] += [si(row["cost"][key]) for key in ("params", "bytes")]
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


def _largest_class(found: Summary) -> Summary | None:
    """Quality of one who always answers the largest class; None for numbers, and where it is not told."""
    metrics, main = found["data"].get("largest_class"), found["main_metric"].split("+")
    return {"metrics": metrics, "main": sum(metrics[name] for name in main) / len(main)} if metrics else None


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


def _closing(summary: Summary, unit: str, size: float) -> list[str]:
    """The result in a sentence, the units of each layer, and a legend of the columns."""
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
        _fidelity(final["fidelity"]),
        *_trust(summary, final),
        f"  t_steps  {' '.join(map(str, final['t_steps']))}  (embedding first)",
        f"  heads    {' '.join(map(str, final['heads']))}",
        f"  neurons  {' '.join(map(str, final['ffn']))}",
        *([f"  synapses {100 * final['synapses']:.0f} % of those between kept units"] if "synapses" in final else []),
        *_weights(final["encoder_weights"]),
        *[f"  {budget_line(row['budget'], name)}" for name, row in summary["stages"].items() if "budget" in row],
        "",
        *([*energy_lines(final["energy"], final["cost"]["rate"]), ""] if "energy" in final else []),
        *([*wrap(teacher["note"], 108), ""] if "note" in teacher else []),
        f"{full}{score_line(summary)}",
        "AC, MAC, energy E (by cost.model): mean of one sentence, padding left out. T: mean time steps of a",
        "layer; steps: latency until the logits.",
    ]


def _trust(summary: Summary, final: Summary) -> list[str]:
    """The interval of a score that is one metric; a warning where it, or another score, is not above a constant
    answer's."""
    low, high = final.get("intervals", {}).get(summary["main_metric"], (final["main"], None))
    lines = []
    if high is not None:
        lines.append(f"95 % interval of the score: {100 * low:.1f} to {100 * high:.1f} (bootstrap over the examples)")
        if low == high == 1:
            scored = next(iter(summary["data"]["scored"].values()))
            low = max(0.0, 1 - 3 / scored)  # the rule of three
            lines[-1] += f"; without an error in {scored} examples the true score may still be {100 * low:.0f}"
    largest = _largest_class(summary)
    constant = largest["main"] if largest else 0.0  # of correlations
    if "largest_class" in summary["data"] and low <= constant:
        lines.append(f"warning: not surely better than a constant answer, which scores {100 * constant:.1f}")
    return lines


def score_line(found: Summary) -> str:
    """The definition of `score` for a task, in a sentence."""
    names = [LONG[name] for name in found["main_metric"].split("+")]
    selected = SELECT in found["data"].get("scored", ())
    split = "held-out training examples (data.select)" if selected else "the dev split"
    return f"score: {'mean of ' * (len(names) > 1)}{' and '.join(names)} on {split}, × 100."


def largest_line(found: Summary) -> str:
    """The score of one who always answers the largest class; empty where that is not told."""
    largest = _largest_class(found)
    return f" Always the largest class: {100 * largest['main']:.1f}." if largest else ""


def _fidelity(found: Summary) -> str:
    """Agreement with the teacher on the first dev split."""
    if "agreement" in found:
        return f"same label as the teacher: {100 * found['agreement']:.1f} % (KL {found['divergence']:.3f} nats)"
    return f"mean squared difference to the teacher: {found['divergence']:.3f}"


def _weights(found: Summary) -> list[str]:
    """The quantized weights, the word table's bits, and what stays float32; nothing where everything does."""
    lines = []
    if found["kind"] != "float":
        bits = f"{found['stored_bits']} bit{'s' * (found['stored_bits'] > 1)}"
        packed = f"{found['kind']}, packed in {bits}: the encoder's matrices take {si(found['bytes'])} bytes"
        lines.append(f"  weights  {packed}")
    if "word_table_bits" in found and found["word_table_bits"] < 32:  # older runs have none
        lines.append(f"  words    packed in {found['word_table_bits']} bits and a scale for each")
    return [*lines, f"           float32: {found['float32']}"] if lines else []


def budget_line(budget: Summary, stage: str = "") -> str:
    """Target and result of a budget, with the reason where the target is missed."""
    of = {"dense": "the dense teacher", "student": "the uncompressed student"}[budget["of"]]
    what = "energy" if budget["target"] == "equal_bits" else budget["target"]
    of = "the same dense network" if budget["target"] == "equal_bits" else of
    line = f"budget{' of ' + stage if stage else ''}: {what} {budget['reported']:.4g} of {of}'s"
    line += f", target {budget['share']:.4g}"
    if budget["target"] == "latency":
        line += f" (whole steps: {budget['goal']:.4g})"
    return line if budget["within"] else f"{line}: {budget['why_not']}"
