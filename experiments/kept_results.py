"""What finished runs and ablations have left in experiments/results/: kept, and read again; part of `results.py`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from spikeprune.config.load import load
from spikeprune.config.tasks import SELECT
from spikeprune.errors import InputError
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json

GLUE = Path(__file__).resolve().parent / "glue.yaml"
KEPT = GLUE.parent / "results"
ABLATIONS, BUDGETS, RATES = KEPT / "ablation", KEPT / "budgets", KEPT / "rates"
COMPARED = "budgets.csv"  # in the folder of a comparison of budgets
SWEPT = "rates.json"  # in the folder of a sweep of firing rates
TABLE = "table"  # before the bits of a word table
LATENCY = ("latency_steps", "latency_stages", "latency_overlapped")
TABLE_READS = ("ac", "mac", "energy_pj", "rate", *LATENCY, "bytes")  # of a cost
ROW_READS = ("metrics", "main", "energy", "fidelity", "budget")


def kept_in(folder: Path) -> dict[str, dict]:
    """By the names of its files, in their order: summaries; of an ablation those by `<ablation> <seed>`."""
    files = sorted(folder.glob("*.json"), key=lambda path: path.stem)
    return {path.stem: jsonfile.loads(path.read_text(encoding="utf-8")) for path in files}


def summaries() -> list[dict]:
    return list(kept_in(KEPT).values())


def keep(run: Path) -> None:
    """Copy the summary of a finished run under its task, preset, data, residuals where the preset has others, kind of
    weights, aim and seed, and its size where one of another size is there."""
    summary = without_place(of_a_commit(run / "summary.json"))
    named = [summary["task"], str(summary["preset"]), summary["data"]["source"]]
    named += [*other_residuals(summary), *few_bits(summary), *aim(summary)]
    seed = f"s{summary['seed']}.json"
    file = KEPT / "-".join([*named, seed])
    if file.is_file() and size(jsonfile.loads(file.read_text(encoding="utf-8"))) != size(summary):
        file = KEPT / "-".join([*named, size(summary), seed])
    KEPT.mkdir(exist_ok=True)
    write_json(file, summary)


def without_place(summary: dict) -> dict:
    """A summary with the name alone of the directory that its data lay in."""
    data = summary["data"]
    if data["source"] != "dir":
        return summary
    origin, name = data["origin"], Path(data["origin"]).name
    return {**summary, "data": {**data, "origin": name, "banner": data["banner"].replace(origin, name)}}


def keep_ablation(folder: Path) -> None:
    """Keep what the table of an ablation needs of the runs `s<seed>/<ablation>`, under task, preset, data and tag."""
    found = {}
    for path in sorted(folder.glob("s*/*/summary.json")):
        if path.parent.name != "shared":
            found[f"{path.parent.name} {path.parents[1].name[1:]}"] = table_part(without_place(of_a_commit(path)))
    if not found:
        raise InputError(f"{folder}: no finished run, summary.json or s<seed>/<ablation>/summary.json")
    for name in {key.rsplit(" ", 1)[0] for key in found}:
        have_a_mean([run for key, run in found.items() if key.rsplit(" ", 1)[0] == name], f"{folder}, {name}")
    first = next(iter(found.values()))
    ABLATIONS.mkdir(parents=True, exist_ok=True)
    name = "-".join([first["task"], str(first["preset"]), first["data"]["source"]])
    name += tag_of(folder.resolve().name, f"{first['task']}-{first['preset']}")
    write_json(ABLATIONS / f"{name}.json", found)


def keep_budgets(folder: Path) -> None:
    """Keep the rows of a comparison by `compare_budgets.py`, under its preset and tag."""
    from compare_budgets import comparable, finished

    found = finished(folder)
    if not found:
        raise InputError(f"{folder}: no finished run, <task>-s<seed>/<budget>-<way>/summary.json")
    comparable(found)
    for (task, budget, seed, way), row in found.items():
        jsonfile.refuse_changed_tree(row["commit"], f"{folder}: {task}, seed {seed}, {budget}-{way}")
    BUDGETS.mkdir(parents=True, exist_ok=True)
    write_json(BUDGETS / f"{folder.resolve().name}.json", list(found.values()))


def keep_rates(folder: Path) -> None:
    """Keep what `rate_sweep.py` has found, under its task and preset."""
    found = jsonfile.read(folder / SWEPT, "sweep again", ("commit", "limits"))
    jsonfile.refuse_changed_tree(found["commit"], str(folder / SWEPT))
    RATES.mkdir(parents=True, exist_ok=True)
    write_json(RATES / f"{found['task']}-{found['preset']}.json", found)


def of_a_commit(path: Path) -> dict:
    """The summary of a run whose code can be looked up again."""
    summary = jsonfile.read_sealed(path, "make the run again", ("commit", "stages"))
    if SELECT in summary["data"].get("scored", ()):
        why = "was scored on held-out training examples (data.select); a row is of a run with data.select=0"
        raise InputError(f"{path}: {why}")
    jsonfile.refuse_changed_tree(summary["commit"], str(path))
    return summary


def have_a_mean(found: list[dict], where: str) -> None:
    """Refuse to average seeds whose runs had different settings or different data."""
    seeds: dict[str, list[str]] = {}
    for summary in found:
        seeds.setdefault(summary["settings"], []).append(str(summary["seed"]))
    if len(seeds) > 1:
        apart = " and ".join(f"seeds {', '.join(own)}" for own in seeds.values())
        raise InputError(f"{where}: {apart} were run with different settings and have no mean; run one of them again")
    data = [summary["data"] for summary in found if summary["data"]["source"] != "embedded"]
    if len({own["fingerprint"] for own in data if "drawn with seed" not in own["banner"]}) > 1:
        raise InputError(f"{where}: the seeds were run on different data and have no mean; run them on the same")


def tag_of(name: str, rest: str) -> str:
    """`-at-0.07` of `sst2-tiny-at-0.07` and `sst2-tiny`; empty for a name that does not begin with `rest`."""
    return name.removeprefix(rest) if name.startswith(f"{rest}-") else ""


def table_part(summary: dict) -> dict:
    def part(row: dict) -> dict:
        cost = {key: row["cost"][key] for key in TABLE_READS if key in row["cost"]}
        return {key: row[key] for key in ROW_READS if key in row} | {"cost": cost}

    named = {summary["final"], summary["uncompressed"]} - {None}
    own = ("task", "preset", "seed", "data", "main_metric", "uncompressed", "final", "commit", "hardware", "versions")
    return {
        **{key: summary[key] for key in (*own, "settings")},
        "teacher": part(summary["teacher"]),
        "stages": {name: part(row) for name, row in summary["stages"].items() if name in named},
    }


def rows(summary: dict) -> tuple[dict, dict, dict]:
    """Teacher, spiking student, compressed student."""
    return summary["teacher"], *(summary["stages"][summary[key]] for key in ("uncompressed", "final"))


def few_bits(summary: dict) -> list[str]:
    """The kind of the compressed student's weights, and `table8` for a word table of 8 bits, where they are
    quantized."""
    stored = rows(summary)[2]["encoder_weights"]
    table = stored["word_table_bits"] if "word_table_bits" in stored else 32  # older runs have none
    found = [] if stored["kind"] == "float" else [stored["kind"]]
    return found + ([f"{TABLE}{table}"] if table < 32 else [])


def other_residuals(summary: dict) -> list[str]:
    """`residual-spikes` where the student has these, and its preset others."""
    own = summary["student"]["residual"] if "student" in summary else None  # older runs do not say
    usual = preset_residuals(str(summary["preset"]))
    return [f"residual-{own}"] if own not in (None, usual) else []


@lru_cache
def preset_residuals(preset: str) -> str:
    return load(GLUE, [f"preset={preset}"]).student.residual


def aim(summary: dict) -> list[str]:
    """`budget0.02` of a run that one budget has compressed to this share of its reference; `uncompressed`."""
    final = rows(summary)[2]
    whole = ["uncompressed"] if summary["final"] == summary["uncompressed"] else []
    return [f"budget{final['budget']['share']:g}"] if "budget" in final else whole


def size(summary: dict) -> str:
    """`12x768-T4`: layers, channels and T of the uncompressed student."""
    shape = summary["shape"]
    return f"{shape['layers']}x{shape['hidden']}-T{steps_of(rows(summary)[1]['t_steps'], to='-')}"


def steps_of(t_steps: Sequence[int], to: str = "–") -> str:
    low, high = min(t_steps), max(t_steps)
    return str(low) if low == high else f"{low}{to}{high}"
