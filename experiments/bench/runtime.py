"""The C runtime beside onnxruntime: one thread, one sentence at a time, warm; time against additions.

python -m experiments.bench.runtime               measure; about four minutes
python -m experiments.bench.runtime --keep FILE   take the results into docs/runtime.md and its figure
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from experiments.bench import nets
from experiments.bench.agreement import compare
from experiments.bench.clock import Work, seconds
from experiments.bench.runtime_nets import (
    CPU,
    FORMS,
    WHOLE,
    Form,
    Units,
    at_budget,
    energy_share,
    student,
    with_thresholds,
)
from experiments.bench.runtime_report import GOALS, keep, markdown
from spikeprune.experiment import streams, timing
from spikeprune.experiment.summary import commit, hardware
from spikeprune.files.atomic import write_json
from spikeprune.models.outputs import INPUTS
from spikeprune.runtime import Session, onnx_graph, to_bytes
from spikeprune.runtime.library import PARTS, SOURCES

TOKENS = 25
EXPORTED = "student of float rows, onnxruntime"
SILENT = "no spike"  # thresholds out of reach: what is left is the fixed part


def measured(size: nets.Size, budgets: list[int], budget_seconds: float) -> Iterator[dict[str, Any]]:
    """For each budget what each form and each other takes, measured in turns."""
    batch = nets.batch(size, sentences=1, tokens=TOKENS, device=CPU)
    ids = batch["input_ids"][0].numpy()
    others = {} if onnx_graph.missing() else in_onnxruntime(size, batch)
    for budget in budgets:
        works, facts = dict(others), {}
        for name, form in FORMS.items():
            made = at_budget(student(size, form.units[budget], form), batch, budget)
            energy, additions = energy_share(made, batch)
            works[name] = running(to_bytes(made, form.form), form.loop, ids)
            facts[name] = {"additions": additions, "energy": energy}
            if name == next(iter(FORMS)):
                works[SILENT] = running(to_bytes(with_thresholds(made, 30.0)), form.loop, ids)
                if others:
                    works[EXPORTED] = of_file(onnx_graph.logits_alone(made, two_of(batch)), batch)
        yield {"budget": budget, "facts": facts, "seconds": warm_seconds(works, budget_seconds)}


def in_onnxruntime(size: nets.Size, batch: dict) -> dict[str, Work]:
    """The dense teacher in float32, and with weights and activations of 8 bits."""
    dense = onnx_graph.dense(size.bert(), two_of(batch))
    files = (dense, onnx_graph.in_int8(dense))
    return {name: of_file(file, batch) for name, file in zip(GOALS, files, strict=True)}


def of_file(file: bytes, batch: dict) -> Work:
    return partial(timing.in_onnxruntime(file), batch)


def two_of(batch: dict) -> tuple[torch.Tensor, ...]:
    return tuple(batch[name].expand(2, -1).contiguous() for name in INPUTS)


def warm_seconds(works: dict[str, Work], budget: float, least: int = 15) -> dict[str, float]:
    """The shortest of at least so many calls, in turns, each behind one that fetches into the caches what the others
    have driven out: what the machine takes while nothing else disturbs it."""
    found = dict.fromkeys(works, float("inf"))
    start, rounds = time.perf_counter(), 0
    while rounds < least or time.perf_counter() - start < budget:
        for name, work in works.items():
            work()
            found[name] = min(found[name], seconds(work, CPU))
        rounds += 1
    return found


def differences(size: nets.Size, sentences: int = 6) -> list[dict[str, Any]]:
    """Spikes that differ from the Python network's, see `agreement.compare`."""
    batch, found = nets.batch(size, sentences=sentences, tokens=TOKENS, device=CPU), []
    for name in ("float rows, events", "ternary rows, events"):
        made = student(size, FORMS[name].units[30], FORMS[name])
        session = Session(to_bytes(made), max_tokens=TOKENS)
        batches = ({key: x[i : i + 1] for key, x in batch.items()} for i in range(sentences))
        found += [{"form": name, **row, "places": len(row["places"])} for row in compare(session, made, batches)]
    return found


def running(data: bytes, loop: str, ids: np.ndarray) -> Callable[[], object]:
    session = Session(data, max_tokens=TOKENS, loop=loop)
    return lambda: session.run(ids)


def run(out: Path, budgets: list[int], budget_seconds: float, size: nets.Size) -> dict[str, Any]:
    torch.set_num_threads(1)
    made = {"hardware": hardware(CPU), "commit": commit(), "load": os.getloadavg()[0], "torch": torch.__version__}
    results: dict[str, Any] = {"made": made, "tokens": TOKENS, "network": size.name, "budgets": budgets, "rows": []}
    results["sizes"] = sizes()
    results["differences"] = differences(size)
    for row in measured(size, budgets, budget_seconds):
        results["rows"].append(row)
        print(f"1/{row['budget']}: " + ", ".join(f"{n} {1e3 * t:.2f} ms" for n, t in row["seconds"].items()))
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "bench-runtime.json", results)
    print(f"\n{markdown(results)}")
    return results


# -------------------------------------------------------------------------------------------------------------- sizes

TINY = nets.Size("tiny", 128, 2, 4, 512, vocab=250)  # the words of the preset's generated corpus
FEW_WORDS = replace(nets.MINILM, name="MiniLM 6 x 384, 4,000 words", vocab=4000)
STORED_FORMS = {
    "float": Form({}),
    "ternary": Form({}, weights="ternary"),
    "ternary, words of 8 bits": Form({}, weights="ternary", words="int8"),
}
STORED = {  # a network, its units, its form, and tokens of a sentence, of which each has a position embedding
    f"{network}, {form}": (size, units, form, tokens)
    for network, size, units, tokens in (
        ("the tiny preset's student", TINY, Units(2, 2, 154), 48),
        ("MiniLM 6 x 384 at 1/75", nets.MINILM, WHOLE[75], 128),
        ("the same with 4,000 words", FEW_WORDS, WHOLE[75], 128),
    )
    for form in STORED_FORMS
}
ARM = ["arm-linux-gnueabihf-gcc", "-mthumb", "-march=armv7-a", "-mfpu=vfpv3-d16", "-std=c99", "-ffp-contract=off"]


def sizes() -> dict[str, Any]:
    """Bytes of `model.spk` and arena, and of the program's text and data on Arm."""
    found: dict[str, Any] = {"networks": {}, "program": {}}
    for name, (size, units, form, tokens) in STORED.items():
        made = student(size, units, STORED_FORMS[form])
        made.embedding.position = torch.nn.Embedding(tokens, size.hidden)
        made.values["positions"] = tokens
        data = to_bytes(made)
        found["networks"][name] = {"flash": len(data), "arena": Session(data, max_tokens=tokens).used, "tokens": tokens}
    if shutil.which(ARM[0]) is None:
        return found
    with TemporaryDirectory() as folder:
        for option in ("-Os", "-O2", "-O3"):
            subprocess.run([*ARM, option, "-c", *(str(SOURCES / name) for name in PARTS)], cwd=folder, check=True)
            command = ["arm-linux-gnueabihf-size", *map(str, Path(folder).glob("*.o"))]
            lines = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.splitlines()
            rows = [[int(cell) for cell in line.split()[:3]] for line in lines[1:]]
            text, data, bss = map(sum, zip(*rows, strict=True))
            found["program"][option] = {"text": text, "data": data + bss}
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.runtime", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(".bench"))
    parser.add_argument("--budgets", type=int, nargs="+", choices=list(WHOLE), default=list(WHOLE))
    parser.add_argument("--seconds", type=float, default=8.0, help="for the timing of one budget")
    parser.add_argument("--layers", type=int, default=nets.MINILM.layers)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="take these results into docs/runtime.md")
    args = parser.parse_args(argv)
    if args.keep:
        keep(args.keep)
    else:
        size = replace(nets.MINILM, name=f"MiniLM {args.layers} x {nets.MINILM.hidden}", layers=args.layers)
        run(args.out, args.budgets, args.seconds, size)
    return 0


if __name__ == "__main__":
    sys.exit(streams.exit_code(lambda: main(sys.argv[1:])))
