"""A benchmark's results as markdown, and docs/performance.md's section made from the results kept; nothing by hand."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json
from spikeprune.report.markdown import between, table
from spikeprune.report.numbers import digits

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).parent / "kept"
PAGE = ROOT / "docs" / "performance.md"
TABLES = ("profiles", "growth", "deployed")  # parts with a table of their own
PARTS = ("simulation", "evaluation", "training", *TABLES)
DENSE, DENSE_INT8 = "dense, onnxruntime float32", "dense, onnxruntime int8"
GOALS = {DENSE: 3.0, DENSE_INT8: 1.0}  # an exported student is at least so many times as fast


def ratios(results: dict) -> str:
    """A line for each comparison, a column for each network; a skipped one has its reason."""
    networks = list(dict.fromkeys(row["network"] for row in results["rows"]))
    found: dict[tuple[str, ...], dict[str, dict]] = {}
    for row in results["rows"]:
        what = (f"{row['group']}: {row['comparison']}", row["setting"])
        found.setdefault(what, {})[row["network"]] = row
    lines = [
        [*what, goal_of(next(iter(rows.values()))), *(ratio_of(rows.get(name)) for name in networks)]
        for what, rows in found.items()
    ]
    return table(["ratio", "batch", "goal", *networks], lines)


def goal_of(row: dict) -> str:
    return "" if row["goal"] is None else f"{row['goal'][0]} {row['goal'][1]:g}"


def ratio_of(row: dict | None) -> str:
    """`5.58 (7.72 against 43.0 ms)`: the ratio, whether it misses its goal, and what it is of."""
    if row is None:
        return ""
    if row["skipped"]:
        return row["skipped"]
    aside = [f"{milliseconds(row['ours'])} against {milliseconds(row['other'])} ms"] if row["ours"] else []
    aside += [f"{value:,.0f} {name}" for name, value in row["more"].items() if name.startswith("samples")]
    aside += [f"{row['more'][key] / 1e9:,.0f} · 10⁹ {key}" for key in ("operations", "bytes") if key in row["more"]]
    aside += [f"logits {row['difference']:.1g} apart"] if row["difference"] is not None else []
    missed = ", **missed**" if row["met"] is False else ""
    return f"{digits(row['ratio'])}{missed}" + (f" ({'; '.join(aside)})" if aside else "")


def milliseconds(found: dict) -> str:
    return digits(1e3 * found["median"])


def size_of(row: dict | None) -> str:
    return "" if row is None else f"{digits(1e3 * row['seconds'])} ms, {digits(row['bytes'] / 2**20)} MiB"


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
    t_steps = sorted({row["T"] for row in found})
    cells = {(row["what"], row["T"]): " / ".join(f"{100 * row[group]:.0f}" for group in groups) for row in found}
    ways = dict.fromkeys(row["what"] for row in found)
    lines = [[way, *(cells.get((way, t), "") for t in t_steps)] for way in ways]
    head = [f"where the time goes, %: {' / '.join(groups)}", *(f"T {t}" for t in t_steps)]
    return table(head, lines)


def of_a_call(found: list[dict]) -> str:
    """A line for each way, a column for each batch and number of threads: milliseconds of the whole call, and how much
    faster than the two dense networks."""
    places = list(dict.fromkeys((row["B"], row["threads"]) for row in found))
    lines = []
    for way in dict.fromkeys(row["way"] for row in found):
        rows = {(row["B"], row["threads"]): row for row in found if row["way"] == way}
        sizes = [f"{next(iter(rows.values()))[key] / 1e6:.0f}" for key in ("memory", "file")]
        lines.append([way, *(call_of(rows.get(place)) for place in places), *sizes])
    columns = [f"{sentences} sentence{'s' * (sentences > 1)}, {n} thread{'s' * (n > 1)}" for sentences, n in places]
    named = " / ".join(f"{other} (goal: at least {least:g})" for other, least in GOALS.items())
    legend = f"Milliseconds of a whole call, {found[0]['N']} tokens; in brackets times as fast as {named}."
    return f"{legend}\n\n{table([found[0]['network'], *columns, 'memory, MB', 'file, MB'], lines)}"


def call_of(row: dict | None) -> str:
    """`1.89 (4.77 / 2.14)`, and whether an exported student misses a goal; nothing of what is not measured yet."""
    if row is None:
        return ""
    found = [row[f"ratio {other}"] for other in GOALS]
    below = any(ratio < least for ratio, least in zip(found, GOALS.values(), strict=True))
    missed = ", **missed**" if below and row["way"].endswith("exported") else ""
    return f"{digits(1e3 * row['seconds'])} ({' / '.join(map(digits, found))}{missed})"


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
    return between(page, "bench", "\n\n".join(map(markdown, kept)))


def kept_results() -> list[dict]:
    return [jsonfile.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))]


def keep(path: Path, parts: Collection[str]) -> None:
    """Take a benchmark's JSON into the page, under its device; of `parts` only, and under their names, where it has
    others as well or lacks some. Raises InputError for results whose code cannot be looked up again."""
    results = jsonfile.read(path, "measure again", ["made"])
    jsonfile.refuse_changed_tree(results["made"]["commit"], str(path))
    results["rows"] = [row for row in results["rows"] if row["group"].split()[0].rstrip(",") in parts]
    for part in TABLES:
        results[part] = results[part] if part in parts and part in results else []
    found = {row["group"].split()[0].rstrip(",") for row in results["rows"]}
    found |= {part for part in TABLES if results[part]}
    whole = set(PARTS) - ({"deployed"} if results["made"]["device"] == "cuda" else set())  # a matter of CPUs
    name = "-".join([results["made"]["device"], *([] if found == whole else sorted(found))])
    KEPT.mkdir(exist_ok=True)
    write_json(KEPT / f"{name}.json", results)
