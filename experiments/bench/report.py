"""A benchmark's results as markdown, and docs/performance.md's section made from the results kept; nothing by hand."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from spikeprune.errors import InputError
from spikeprune.files import jsonfile

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).parent / "kept"
PAGE = ROOT / "docs" / "performance.md"
TABLES = ("profiles", "growth", "deployed")  # parts with a table of their own
PARTS = ("simulation", "evaluation", "training", *TABLES)
DENSE, DENSE_INT8 = "dense, onnxruntime float32", "dense, onnxruntime int8"
GOALS = {DENSE: 3.0, DENSE_INT8: 1.0}  # an exported student is at least so many times as fast
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def table(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows))


def time_of(found: dict | None) -> str:
    """Median milliseconds and the quartiles."""
    if found is None:
        return ""
    low, middle, high = (1e3 * found[key] for key in ("low", "median", "high"))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def ratios(results: dict) -> str:
    """One line for each comparison; a skipped one has its reason."""
    lines = []
    for row in results["rows"]:
        goal = "" if row["goal"] is None else f"{row['goal'][0]} {row['goal'][1]:g}"
        if row["met"] is not None:
            goal += ": met" if row["met"] else ": missed"
        value = row["skipped"] or f"{row['ratio']:.3g}"
        difference = "" if row["difference"] is None else f"{row['difference']:.1g}"
        rates = [f"; {value:,.0f} {name}" for name, value in row["more"].items() if name.startswith("samples")]
        what = f"{row['group']}: {row['comparison']}{''.join(rates)}"
        times = [time_of(row["ours"]), time_of(row["other"])]
        lines.append([what, f"{row['network']}, {row['setting']}", *times, value, goal, difference])
    return table(
        ["comparison", "network and batch", "ours, ms", "other, ms", "ratio", "goal", "logits differ by"], lines
    )


def size_of(row: dict | None) -> str:
    return "" if row is None else f"{1e3 * row['seconds']:.4g} ms, {row['bytes'] / 2**20:.4g} MiB"


def against_t(results: dict) -> str:
    """Seconds and peak memory against T, and then against B and N at one T."""
    found = results["growth"]
    base = results["base"]
    parts = []
    for key, others in (("T", ("B", "N")), ("B", ("T", "N")), ("N", ("T", "B"))):
        rows = [row for row in found if all(row[other] == base[other] for other in others)]
        values = sorted({row[key] for row in rows})
        lines = []
        for way in dict.fromkeys(row["way"] for row in rows):
            cells = {row[key]: row for row in rows if row["way"] == way}
            lines.append([way, *(size_of(cells.get(value)) for value in values)])
        parts.append(table([f"time and peak memory of a batch at {key} =", *map(str, values)], lines))
    return "\n\n".join(parts)


def where_time_goes(results: dict) -> str:
    found = results["profiles"]
    groups = [key for key in found[0] if key not in ("what", "T")]
    lines = [[row["what"], str(row["T"]), *(f"{100 * row[group]:.0f} %" for group in groups)] for row in found]
    return table(["where the time goes", "T", *groups], lines)


def of_a_call(found: list[dict]) -> str:
    """A line for each way, batch and number of threads: the whole call, and how much faster than the dense network."""
    lines = []
    for row in found:
        middle, low, high = (1e3 * row[key] for key in ("seconds", "low", "high"))
        ratios = [goal_of(row, other, least) for other, least in GOALS.items()]
        apart = f"{row['difference']:.1g}" if "difference" in row else ""
        sizes = [f"{row[key] / 1e6:.0f}" for key in ("memory", "file")]
        place = [row["way"], str(row["B"]), str(row["threads"])]
        lines.append([*place, f"{middle:.2f} ({low:.2f}–{high:.2f})", *ratios, *sizes, apart])
    network, tokens = found[0]["network"], found[0]["N"]
    heads = [f"× as fast as {other}" for other in GOALS]
    columns = [f"whole call, {network}, {tokens} tokens", "batch", "threads", "ms", *heads, "memory, MB", "file, MB"]
    return table([*columns, "logits differ by"], lines)


def goal_of(row: dict, other: str, least: float) -> str:
    """The ratio, and for an exported student whether it reaches the goal."""
    ratio = row[f"ratio {other}"]
    if not row["way"].endswith("exported"):
        return f"{ratio:.2f}"
    return f"{ratio:.2f} (at least {least:g}: {'met' if ratio >= least else 'missed'})"


def heading(results: dict) -> str:
    made = results["made"]
    limits = ", ".join(f"{value / 1e9:,.0f} · 10⁹ {name}" for name, value in results["ceilings"].items())
    load = f", load average {made['load']:.1f} when it began" if "load" in made else ""
    return (
        f"{made['hardware']}{load}, torch {made['torch']}, kernels {made['kernels']}, commit `{made['commit']}`; "
        f"{made['seconds']:.0f} s in all. Measured ceilings: {limits}."
    )


def markdown(results: dict) -> str:
    parts = [heading(results), *([ratios(results)] if results["rows"] else [])]
    parts += [where_time_goes(results)] if results["profiles"] else []
    parts += [against_t(results)] if results["growth"] else []
    parts += [of_a_call(results["deployed"])] if "deployed" in results and results["deployed"] else []
    return "\n\n".join(parts)


def with_results(page: str, kept: list[dict]) -> str:
    return between(page, BEGIN, END, "\n\n".join(map(markdown, kept)))


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with the text in place of what stands between these two marks."""
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page)


def kept_results() -> list[dict]:
    return [jsonfile.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))]


def of_a_commit(path: Path) -> Path:
    """Raises InputError for results whose code cannot be looked up again."""
    refuse_changed_tree(jsonfile.read(path, "measure again", ["made"])["made"]["commit"], str(path))
    return path


def refuse_changed_tree(commit: str, what: str) -> None:
    if commit == "unknown" or commit.endswith("-dirty"):
        raise InputError(f"{what}: made by commit {commit}; measure again from a clean checkout")


def keep(path: Path, parts: Collection[str]) -> None:
    """Take a benchmark's JSON into the page, under its device; of `parts` only, and under their names, where it has
    others as well or lacks some."""
    results = jsonfile.loads(path.read_text(encoding="utf-8"))
    results["rows"] = [row for row in results["rows"] if row["group"].split()[0].rstrip(",") in parts]
    for part in TABLES:
        results[part] = results[part] if part in parts and part in results else []
    found = {row["group"].split()[0].rstrip(",") for row in results["rows"]}
    found |= {part for part in TABLES if results[part]}
    whole = set(PARTS) - ({"deployed"} if results["made"]["device"] == "cuda" else set())  # a matter of CPUs
    name = "-".join([results["made"]["device"], *([] if found == whole else sorted(found))])
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.json").write_text(jsonfile.dumps(results, indent=1) + "\n", encoding="utf-8")
