"""Result tables of README.md and docs/, made from what runs and measurements have left. No figure is typed by hand.

python experiments/results.py runs/mrpc-tiny-s0 …      keep these runs' summaries in experiments/results/
python experiments/results.py runs/ablation/sst2-tiny … keep an ablation's summaries, as far as its table needs them
python experiments/results.py                          make tables and figure again from the summaries kept
python experiments/results.py --check                  exit code 1 where a page differs from what they give
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev

from energy_results import RATES, detail_table, markdown, rate_tables, ratio_table
from scaling_results import kept_tables

from spikeprune.config.tasks import SELECT
from spikeprune.errors import InputError
from spikeprune.files import jsonfile

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "experiments" / "results"
ABLATIONS = KEPT / "ablation"
PUBLISHED = ROOT / "experiments" / "published.json"
README, PAGE, COST = ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "cost.md"
DEVICES = ROOT / "docs" / "distributed.md"
FIRST_RUN = "mrpc-tiny-embedded-s0.json"  # kept, its table stands at the head of the README
FIGURE = ROOT / "docs" / "figures" / "quality-energy.svg"
NOTHING = "No run of the present version has been kept yet."
TABLE = "table"  # before the bits of a word table
SCORES = ("dense teacher", "spiking student", "compressed")
MEASURED = ("McNemar p", "firing rate", "latency", "encoder bytes, × less", "whole file, × less")
SETTING = ("task", "preset, data", "seeds", "metric", *SCORES, *MEASURED)
RUN = ("task", "preset, data", "seed", "metric", *SCORES, *MEASURED)
RUN += ("T", "heads", "neurons", "synapses", "training", "hardware", "commit")
LATENCY = ("latency_steps", "latency_stages", "latency_overlapped")
TABLE_READS = ("ac", "mac", "energy_pj", "rate", *LATENCY, "bytes")  # of a cost
ROW_READS = ("metrics", "main", "energy", "fidelity", "budget")
TASKS = ("sst2", "mrpc", "rte", "stsb", "cola", "qnli", "qqp", "mnli")


def summaries() -> list[dict]:
    return [jsonfile.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))]


def published() -> list[dict]:
    return jsonfile.loads(PUBLISHED.read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------- keep summaries


def keep(run: Path) -> None:
    """Copy the summary of a finished run under its task, preset, data, kind of weights, budget and seed."""
    summary = without_place(of_a_commit(run / "summary.json"))
    named = [summary["task"], str(summary["preset"]), summary["data"]["source"], *few_bits(summary), *budget(summary)]
    name = "-".join([*named, f"s{summary['seed']}"])
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.json").write_text(jsonfile.dumps(summary, indent=1) + "\n", encoding="utf-8")


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
        refuse(f"{folder}: no finished run, summary.json or s<seed>/<ablation>/summary.json")
    for name in {key.rsplit(" ", 1)[0] for key in found}:
        have_a_mean([run for key, run in found.items() if key.rsplit(" ", 1)[0] == name], f"{folder}, {name}")
    first = next(iter(found.values()))
    ABLATIONS.mkdir(parents=True, exist_ok=True)
    name = "-".join([first["task"], str(first["preset"]), first["data"]["source"]])
    name += tag_of(folder.resolve().name, f"{first['task']}-{first['preset']}")
    (ABLATIONS / f"{name}.json").write_text(jsonfile.dumps(found, indent=1) + "\n", encoding="utf-8")


def of_a_commit(path: Path) -> dict:
    """The summary of a run whose code can be looked up again."""
    try:
        summary = jsonfile.read(path, "make the run again", ("commit", "stages"))
    except InputError as error:
        refuse(str(error))
    if SELECT in summary["data"].get("scored", ()):
        refuse(f"{path}: was scored on held-out training examples (data.select); a row is of a run with data.select=0")
    if summary["commit"] == "unknown" or summary["commit"].endswith("-dirty"):
        refuse(f"{path}: made by commit {summary['commit']}; run it again from a clean checkout")
    return summary


def have_a_mean(found: list[dict], where: str) -> None:
    """Refuse to average seeds whose runs had different settings or different data."""
    seeds: dict[str, list[str]] = {}
    for summary in found:
        seeds.setdefault(summary["settings"], []).append(str(summary["seed"]))
    if len(seeds) > 1:
        apart = " and ".join(f"seeds {', '.join(own)}" for own in seeds.values())
        refuse(f"{where}: {apart} were run with different settings and have no mean; run one of the two again")
    data = [summary["data"] for summary in found if summary["data"]["source"] != "embedded"]
    if len({own["fingerprint"] for own in data if "drawn with seed" not in own["banner"]}) > 1:
        refuse(f"{where}: the seeds were run on different data and have no mean; run them on the same")


def refuse(why: str) -> None:
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


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


# ------------------------------------------------------------------------------------------------- figures of one run


def rows(summary: dict) -> tuple[dict, dict, dict]:
    """Teacher, spiking student, compressed student."""
    return summary["teacher"], *(summary["stages"][summary[key]] for key in ("uncompressed", "final"))


def metric_of(summary: dict) -> str:
    """The metric that GLUE ranks by; accuracy where it ranks by the mean of accuracy and F1."""
    main, *more = summary["main_metric"].split("+")
    return "accuracy" if more and "accuracy" in summary["teacher"]["metrics"] else main


def scores(summary: dict) -> list[float]:
    return [100 * row["metrics"][metric_of(summary)] for row in rows(summary)]


def sure_scores(summary: dict) -> list[str]:
    """The scores, with their bootstrap intervals where the run has kept its predictions."""
    found = []
    for score, row in zip(scores(summary), rows(summary), strict=True):
        low_high = row.get("intervals", {}).get(metric_of(summary))
        interval = "" if low_high is None else " ({:.1f}–{:.1f})".format(*(100 * bound for bound in low_high))
        found.append(f"{score:.1f}{interval}")
    return found


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


def few_bits(summary: dict) -> list[str]:
    """The kind of the compressed student's weights, and `table8` for a word table of 8 bits, where they are
    quantized."""
    stored = rows(summary)[2]["encoder_weights"]
    table = stored["word_table_bits"] if "word_table_bits" in stored else 32  # older runs have none
    found = [] if stored["kind"] == "float" else [stored["kind"]]
    return found + ([f"{TABLE}{table}"] if table < 32 else [])


def budget(summary: dict) -> list[str]:
    """`budget0.02` of a run that one budget has compressed to this share of its reference."""
    final = rows(summary)[2]
    return [f"budget{final['budget']['share']:g}"] if "budget" in final else []


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
    aim = "".join(f", {name.replace('budget', 'budget ')}" for name in budget(summary))
    return f"{summary['preset']}, {data}{kind}{aim}"


# ------------------------------------------------------------------------------------------------------------ tables


def settings(found: list[dict]) -> list[list[dict]]:
    """Runs that differ in nothing but the seed, on the same hardware."""
    return [list(group) for _, group in groupby(found, lambda s: (s["task"], source(s), s["hardware"]))]


def run_cells(summary: dict) -> list[str]:
    final, shape = rows(summary)[2], summary["shape"]
    kept = [f"{100 * sum(final[part]) / (shape['layers'] * shape[part]):.0f} %" for part in ("heads", "ffn")]
    kept.append(f"{100 * final.get('synapses', 1):.0f} %")
    minutes = (summary["teacher"]["seconds"] + sum(row["seconds"] for row in summary["stages"].values())) / 60
    return [
        summary["task"],
        source(summary),
        str(summary["seed"]),
        metric_of(summary),
        *sure_scores(summary),
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
    have_a_mean(found, f"{found[0]['task']}, {source(found[0])}")
    first = found[0]
    return [
        first["task"],
        source(first),
        str(len(found)),
        metric_of(first),
        *(spread(values) for values in zip(*map(scores, found), strict=True)),
        ", ".join(chance(rows(summary)[2]) for summary in found),
        f"{mean(map(rate, found)):.1f} %",
        ", ".join(dict.fromkeys(map(latency, found))),
        f"{mean(map(byte_saving, found)):.1f}",
        f"{mean(map(file_saving, found)):.1f}",
    ]


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


def setting_name(summary: dict) -> list[str]:
    return [summary["task"], source(summary)]


def peers(summary: dict) -> str:
    """`Sorbet 90.4, …` on the same task; none for generated data, which has no published scores."""
    if summary["data"]["source"] == "embedded":
        return "-"
    return ", ".join(f"{peer['name']} {score(peer, summary['task'])}" for peer in published() if _has(peer, summary))


def _has(peer: dict, summary: dict) -> bool:
    return summary["task"] in peer["scores"]


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
    for path in sorted(ABLATIONS.glob("*.json"), key=lambda path: path.stem):
        kept = {tuple(key.rsplit(" ", 1)): run for key, run in jsonfile.loads(path.read_text(encoding="utf-8")).items()}
        found = {(name, int(seed)): run for (name, seed), run in kept.items()}
        made = sorted({f"{run['hardware']}, commit `{run['commit']}`" for run in found.values()})
        first = next(iter(found.values()))
        tag = tag_of(path.stem, "-".join([first["task"], str(first["preset"]), first["data"]["source"]]))
        table = to_markdown({key: found[key] for key in sorted(found, key=place)}, {}, tag)
        parts.append(f"{table}\nMade on {'; '.join(made)}.")
    return "\n\n".join(parts) or NOTHING


# ------------------------------------------------------------------------------------------------------------- pages


def between_marks(page: str, name: str, text: str) -> str:
    """`page` with `text` between its two marks of this name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page must have the marks {begin} and {end} once each")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page)


def pages() -> dict[Path, str]:
    """The complete text of each page that has tables of results."""
    found = summaries()
    figure = f"![Quality against energy](figures/{FIGURE.name})\n\n" if found else ""
    ratios = ratio_table(settings(found), setting_name)
    page = between_marks(PAGE.read_text(encoding="utf-8"), "settings", f"{ratios}\n\n{figure}{setting_table(found)}")
    tables = {"runs": run_table(found), "ablation": ablation_tables(), "published": published_table()}
    tables["rates"] = firing_rates()
    tables["energy"] = detail_table(settings(found), setting_name)
    for name, table in tables.items():
        page = between_marks(page, name, table)
    readme = between_marks(README.read_text(encoding="utf-8"), "results", f"{ratios}\n\n{setting_table(found)}")
    if (KEPT / FIRST_RUN).is_file():
        kept = jsonfile.loads((KEPT / FIRST_RUN).read_text(encoding="utf-8"))
        readme = between_marks(readme, "first run", terminal(kept))
    cost = between_marks(COST.read_text(encoding="utf-8"), "models", model_table())
    devices = between_marks(DEVICES.read_text(encoding="utf-8"), "scaling", kept_tables())
    return {PAGE: page, README: readme, COST: cost, DEVICES: devices}


def firing_rates() -> str:
    """What `rate_sweep.py` has kept, with its figure."""
    kept = [jsonfile.loads(path.read_text(encoding="utf-8")) for path in sorted(RATES.glob("*.json"))]
    text = "\n\n".join(rate_tables(found) for found in kept)
    return f"![Firing rate, score and energy](figures/firing-rates.svg)\n\n{text}" if kept else NOTHING


def model_table() -> str:
    """The registry of energy models: constants, what is counted and left out, and the source of each."""
    from spikeprune.cost.energy_models import ENERGY_MODELS

    lines = [
        [f"`{model.name}`", constants(model), model.counted, model.left_out, model.source]
        for model in ENERGY_MODELS.values()
    ]
    return markdown(["`cost.model`", "pJ", "counted", "left out", "source"], lines)


def constants(model) -> str:
    return ", ".join(f"{name} {pj:g}" for name, pj in model.constants.items())


def terminal(summary: dict) -> str:
    """The README's block of the first run: the command, and the table that it ends with."""
    from spikeprune.report.tables import summary_table

    run = f"runs/{summary['task']}-{summary['preset']}-s{summary['seed']}"
    lines = [f"$ make glue TASK={summary['task']}", "…", summary_table(summary), "", f"report: {run}/report.html"]
    return "\n".join(["```console", *lines, "```"])


def draw(found: list[dict]) -> None:
    """Quality against energy, of GLUE's tasks where there are any."""
    if not found:
        FIGURE.unlink(missing_ok=True)
        return
    from spikeprune.report.figures import results_figure

    glue = [summary for summary in found if summary["data"]["source"] != "embedded"]
    results_figure(glue or found, FIGURE)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs or of ablations")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(arguments)
    if given.check and given.runs:
        parser.error("--check keeps no runs; leave it out, or them")
    for run in given.runs:
        (keep if (run / "summary.json").is_file() else keep_ablation)(run)
    made = pages()
    if given.check:
        stale = [page.name for page, text in made.items() if page.read_text(encoding="utf-8") != text]
        print(f"{' and '.join(stale)}: run make results" if stale else "the pages are what the summaries give")
        return int(bool(stale))
    for page, text in made.items():
        page.write_text(text, encoding="utf-8")
    draw(summaries())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
