"""A benchmark's results as markdown, and docs/performance.md's section made from the results kept; nothing by hand."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from spikeprune.files import jsonfile

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).parent / "kept"
PAGE = ROOT / "docs" / "performance.md"
PARTS = ("simulation", "evaluation", "training", "profiles", "growth")
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
    return "\n\n".join(parts)


def with_results(page: str, kept: list[dict]) -> str:
    text = "\n\n".join(map(markdown, kept))
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", page)


def kept_results() -> list[dict]:
    return [jsonfile.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))]


def keep(path: Path, parts: Collection[str]) -> None:
    """Take a benchmark's JSON into the page, under its device; of `parts` only, and under their names, where it has
    others as well or lacks some."""
    results = jsonfile.loads(path.read_text(encoding="utf-8"))
    results["rows"] = [row for row in results["rows"] if row["group"].split()[0].rstrip(",") in parts]
    for part in ("profiles", "growth"):
        results[part] = results[part] if part in parts else []
    found = {row["group"].split()[0].rstrip(",") for row in results["rows"]}
    found |= {part for part in ("profiles", "growth") if results[part]}
    name = "-".join([results["made"]["device"], *([] if len(found) == len(PARTS) else sorted(found))])
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.json").write_text(jsonfile.dumps(results, indent=1) + "\n", encoding="utf-8")
