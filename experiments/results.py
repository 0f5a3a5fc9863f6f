"""The README's result tables and pictures, made from the summaries of finished runs; no figure is typed by hand.

python experiments/results.py runs/mrpc-tiny-s0 …    keep these runs' summaries in experiments/results/
python experiments/results.py runs/ablation/sst2-tiny … keep what of an ablation's summaries its table reads
python experiments/results.py                         make table and pictures again from the summaries kept
python experiments/results.py --check                 exit code 1 where the README is not what they give
"""

from __future__ import annotations

import argparse
import re
import sys
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev

from spikeprune.errors import InputError
from spikeprune.files import jsonfile

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "experiments" / "results"
README = ROOT / "README.md"
ABLATIONS = KEPT / "ablation"
TABLE_READS = ("ac", "mac", "energy_pj", "latency_steps", "bytes")  # of a cost
COLUMNS = (
    "task",
    "preset, data, seed",
    "metric",
    "dense teacher",
    "spiking student",
    "compressed",
    "energy, × less",
    "encoder bytes, × less",
    "T",
    "heads",
    "neurons",
    "synapses",
    "training",
    "hardware",
    "commit",
)


def summaries() -> list[dict]:
    return [jsonfile.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))]


def keep(run: Path) -> None:
    """Copy the summary of a finished run under its task, preset, data, kind of weights and seed."""
    summary = of_a_commit(run / "summary.json")
    named = [summary["task"], str(summary["preset"]), summary["data"]["source"], *few_bits(summary)]
    name = "-".join([*named, f"s{summary['seed']}"])
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.json").write_text(jsonfile.dumps(summary, indent=1) + "\n", encoding="utf-8")


def keep_ablation(folder: Path) -> None:
    """Of the runs `s<seed>/<ablation>` what the ablation's table reads, under task, preset, data and folder's tag."""
    found = {}
    for path in sorted(folder.glob("s*/*/summary.json")):
        if path.parent.name != "shared":
            found[f"{path.parent.name} {path.parents[1].name[1:]}"] = table_part(of_a_commit(path))
    if not found:
        refuse(f"{folder}: no finished run, summary.json or s<seed>/<ablation>/summary.json")
    for name in {key.rsplit(" ", 1)[0] for key in found}:
        agree([run for key, run in found.items() if key.rsplit(" ", 1)[0] == name], f"{folder}, {name}")
    first = next(iter(found.values()))
    ABLATIONS.mkdir(parents=True, exist_ok=True)
    name = "-".join([first["task"], str(first["preset"]), first["data"]["source"]])
    name += tag_of(folder.resolve().name, f"{first['task']}-{first['preset']}")
    (ABLATIONS / f"{name}.json").write_text(jsonfile.dumps(found, indent=1) + "\n", encoding="utf-8")


def of_a_commit(path: Path) -> dict:
    """A run's summary, if what made it can be looked up again."""
    try:
        summary = jsonfile.read(path, "make the run again", ("commit", "stages"))
    except InputError as error:
        refuse(str(error))
    if summary["commit"] == "unknown" or summary["commit"].endswith("-dirty"):
        refuse(f"{path}: made by commit {summary['commit']}; run it again from a clean checkout")
    return summary


def agree(found: list[dict], where: str) -> None:
    """A mean over seeds is one of runs that differ in nothing else, as far as their summaries say."""
    seeds = {}
    for summary in found:
        if "settings" in summary:  # older ones have none
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
    """`-at-0.07` of `sst2-tiny-at-0.07` and `sst2-tiny`; nothing where it does not begin so."""
    return name.removeprefix(rest) if name.startswith(f"{rest}-") else ""


def table_part(summary: dict) -> dict:
    def part(row: dict) -> dict:
        cost = {key: row["cost"][key] for key in TABLE_READS if key in row["cost"]}
        return {key: row[key] for key in ("metrics", "main", "fidelity", "budget") if key in row} | {"cost": cost}

    named = {summary["final"], summary["uncompressed"]} - {None}
    stages = {name: part(row) for name, row in summary["stages"].items() if name in named}
    own = ("task", "preset", "seed", "data", "main_metric", "uncompressed", "final", "commit", "hardware", "versions")
    return {key: summary[key] for key in (*own, "settings") if key in summary} | {
        "teacher": part(summary["teacher"]),
        "stages": stages,
    }


def ablation_tables() -> str:
    """Each kept ablation's table, in the order in which they run, with what made it."""
    from ablation import ABLATIONS as RUN

    from spikeprune.report.ablation import to_markdown

    def place(key: tuple[str, int]) -> tuple[int, str, int]:
        return RUN.index(key[0]) if key[0] in RUN else len(RUN), *key

    parts = []
    for path in sorted(ABLATIONS.glob("*.json"), key=lambda path: path.stem):
        kept = {tuple(key.rsplit(" ", 1)): run for key, run in jsonfile.loads(path.read_text(encoding="utf-8")).items()}
        found = {(name, int(seed)): run for (name, seed), run in kept.items()}
        made = sorted({f"{run['hardware']}, commit `{run['commit']}`" for run in found.values()})
        first = next(iter(found.values()))
        tag = tag_of(path.stem, "-".join([first["task"], str(first["preset"]), first["data"]["source"]]))
        table = to_markdown({key: found[key] for key in sorted(found, key=place)}, {}, tag)
        parts.append(f"{table}\nMade on {'; '.join(made)}.")
    return "\n\n".join(parts)


def rows(summary: dict) -> tuple[dict, dict, dict]:
    """Teacher, spiking student, compressed student."""
    return summary["teacher"], *(summary["stages"][summary[key]] for key in ("uncompressed", "final"))


def metric_of(summary: dict) -> str:
    """The score that GLUE ranks by; accuracy where it ranks by the mean of accuracy and F1."""
    main, *more = summary["main_metric"].split("+")
    return "accuracy" if more and "accuracy" in summary["teacher"]["metrics"] else main


def scores(summary: dict) -> list[float]:
    return [100 * row["metrics"][metric_of(summary)] for row in rows(summary)]


def savings(summary: dict) -> list[float]:
    return [row["energy_saving"] for row in rows(summary)[1:]]


def few_bits(summary: dict) -> list[str]:
    """The kind of the compressed student's weights, where they are not floats."""
    kind = rows(summary)[2]["encoder_weights"]["kind"]
    return [] if kind == "float" else [kind]


def byte_saving(summary: dict) -> float:
    """The uncompressed student's encoder matrices in float32 over what is left of them, as stored."""
    from spikeprune.cost.shapes import Shape, matrix_bytes

    whole = matrix_bytes(shape=Shape(**summary["shape"], classes=0))  # classes: of no matrix of the encoder
    return whole / rows(summary)[2]["encoder_weights"]["bytes"]


def source(summary: dict) -> str:
    found, kind = summary["data"]["source"], "".join(f", {kind} weights" for kind in few_bits(summary))
    return f"{summary['preset']}, {'embedded (not GLUE)' if found == 'embedded' else f'GLUE {found}'}{kind}"


def cells(summary: dict) -> list[str]:
    """The row of one run."""
    final, shape = rows(summary)[2], summary["shape"]
    kept = [f"{100 * sum(final[part]) / (shape['layers'] * shape[part]):.0f} %" for part in ("heads", "ffn")]
    kept.append(f"{100 * final.get('synapses', 1):.0f} %")
    minutes = (summary["teacher"]["seconds"] + sum(row["seconds"] for row in summary["stages"].values())) / 60
    return [
        summary["task"],
        f"{source(summary)}, {summary['seed']}",
        metric_of(summary),
        *(f"{score:.1f}" for score in scores(summary)),
        " → ".join(f"{saving:.1f}" for saving in savings(summary)),
        f"{byte_saving(summary):.1f}",
        " ".join(map(str, final["t_steps"])),
        *kept,
        f"{minutes:.1f} min",
        summary["hardware"],
        f"`{summary['commit']}`",
    ]


def mean_cells(found: list[dict]) -> list[str]:
    """The row of several seeds' runs: means ± standard deviations; of the energy the means."""
    agree(found, f"{found[0]['task']}, {source(found[0])}")
    score = [f"{mean(values):.1f} ± {stdev(values):.1f}" for values in zip(*map(scores, found), strict=True)]
    saving = " → ".join(f"{mean(values):.1f}" for values in zip(*map(savings, found), strict=True))
    first, seeds = found[0], f"mean of {len(found)} seeds"
    size = f"{mean(map(byte_saving, found)):.1f}"
    known = [first["task"], f"{source(first)}, {seeds}", metric_of(first), *score, saving, size]
    commits = ", ".join(dict.fromkeys(f"`{summary['commit']}`" for summary in found))
    return [*known, *[""] * (len(COLUMNS) - len(known) - 2), first["hardware"], commits]


def table(found: list[dict]) -> str:
    """A row for each run, and behind several seeds on the same hardware one for all, which names every commit."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for _, group in groupby(found, lambda s: (s["task"], source(s), s["hardware"])):
        same = list(group)
        lines += [*map(cells, same), *([mean_cells(same)] if len(same) > 1 else [])]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def with_table(readme: str, name: str, text: str) -> str:
    """`text` between the README's two marks of this name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", readme)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs or of ablations")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(arguments)
    if given.check and given.runs:
        parser.error("--check keeps no runs; leave it out, or them")
    for run in given.runs:
        (keep if (run / "summary.json").is_file() else keep_ablation)(run)
    readme = README.read_text(encoding="utf-8")
    made = with_table(with_table(readme, "results", table(summaries())), "ablation", ablation_tables())
    if given.check:
        print("README.md is what the summaries give" if made == readme else "README.md differs: run make results")
        return int(made != readme)
    README.write_text(made, encoding="utf-8")
    from spikeprune.report.figures import pipeline_figure, results_figure

    glue = [summary for summary in summaries() if summary["data"]["source"] != "embedded"]
    results_figure(glue or summaries(), KEPT / "quality-energy.svg")
    pipeline_figure(KEPT / "stages.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
