"""The C runtime beside the Python network on a trained student's dev split: labels, spikes and additions.

python -m experiments.bench.agreement runs/sst2-minilm-s0
python -m experiments.bench.agreement exported/sst2 task=sst2 preset=minilm data.source=dir data.dir=glue

A directory as `spikeprune.load` takes it. The data are the run's own, or those that key=value name. A student of
few-bit weights is also compared with its weights as floats. With --keep the table goes into docs/runtime.md.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.bench.report import ROOT
from spikeprune.config.load import load, read_resolved
from spikeprune.config.resources import experiment_file
from spikeprune.config.schema import Config
from spikeprune.data.batching import Encoded, encode
from spikeprune.data.tokenizer import load_tokenizer
from spikeprune.errors import InputError
from spikeprune.experiment import checkpoints, streams
from spikeprune.experiment.context import read_data
from spikeprune.experiment.summary import commit
from spikeprune.files import jsonfile
from spikeprune.files.atomic import write_json
from spikeprune.models.compaction import as_float, compact
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import Outputs, inputs_of
from spikeprune.models.shape import student_operations
from spikeprune.report.markdown import between, table
from spikeprune.runtime import Session, to_bytes
from spikeprune.runtime.session import SessionOutput

KEPT, PAGE = Path(__file__).with_name("agreement.json"), ROOT / "docs" / "runtime.md"
PARTS = ("whole", "each")  # the network on its own; each spiking layer given the Python network's spikes below


def compare(session: Session, student: SpikingBert, batches: Iterable[dict[str, Tensor]]) -> list[dict[str, Any]]:
    """The program beside the student in single and in double precision, over batches of one sentence each: sentences,
    those of the same label, those of the same additions in every layer on the same spikes, the largest difference of a
    logit, spikes, and how many of them differ in each of PARTS, and between the student's two precisions; the places of
    those that differ given the same spikes below are listed. For students that `settled` accepts."""
    networks = {"single": student, "double": copy.deepcopy(student).double()}
    zeros = dict.fromkeys(("sentences", "labels", "additions", "spikes", *PARTS, "own"), 0)
    rows = {precision: {"precision": precision, **zeros, "apart": 0.0, "places": []} for precision in networks}
    for batch in batches:
        found = {precision: spikes_of(network, batch) for precision, network in networks.items()}
        one, other = (trains for trains, _ in found.values())
        own = sum(int(np.abs(one[name].astype(np.int16) - other[name]).sum()) for name in one)
        for precision, (trains, outputs) in found.items():
            row, logits = rows[precision], outputs.logits[0].numpy()
            whole, each = (answered(session, batch, trains, part, row) for part in PARTS)
            counted = student_operations(student, outputs.counts, batch["attention_mask"].sum(1)).ac.numpy()
            row["labels"] += int(whole.logits.argmax() == logits.argmax())
            row["apart"] = max(row["apart"], float(np.abs(whole.logits - logits).max()))
            row["additions"] += int(np.array_equal(each.additions, counted))
            row["spikes"] += sum(int(np.abs(train).sum()) for train in trains.values())
            row["own"] += own
            row["sentences"] += 1
    session.observe(None)
    return list(rows.values())


def answered(
    session: Session, batch: dict[str, Tensor], trains: dict[str, np.ndarray], part: str, row: dict[str, Any]
) -> SessionOutput:
    """The program's answer to a sentence. Counts in `row` the spikes that differ from `trains`; in the part `each` all
    spiking layers then go on with those."""

    def note(layer: str, step: int, spikes: np.ndarray) -> None:
        differ = spikes.astype(np.int16) - trains[layer]
        row[part] += int(np.abs(differ).sum())
        if part == "each":
            for token, channel in np.argwhere(differ).tolist():
                row["places"].append([row["sentences"], layer, token, channel, int(differ[token, channel])])
            spikes[:] = trains[layer]

    session.observe(note)
    return session.run(batch["input_ids"][0].numpy(), batch["token_type_ids"][0].numpy())


def spikes_of(network: SpikingBert, batch: dict[str, Tensor]) -> tuple[dict[str, np.ndarray], Outputs]:
    """Signed numbers of spikes int8 `[N, channels]` of each spiking layer, and the outputs."""
    trains, handles = {}, []
    for name, layer in network.spiking_layers().items():

        def note(module, inputs, train, name=name):
            steps = network.steps[0 if name == "embedding" else 1 + int(name.split(".")[1])]
            trains[name] = (train.value[0] / module.theta * steps).round().to(torch.int8).numpy()

        handles.append(layer.register_forward_hook(note))
    outputs = infer(network, **inputs_of(batch))
    for handle in handles:
        handle.remove()
    return trains, outputs


def settled(student: SpikingBert) -> SpikingBert:
    """Raises InputError for a student whose trains are not determined by their numbers of spikes."""
    if student.coding != "accumulate" or student.values["leak"] != 1:
        raise InputError("only students of the coding accumulate whose neurons do not leak are compared")
    return student


def dev_split(folder: Path, words: list[str]) -> tuple[Config, Encoded]:
    """The dev split of the run in `folder`, or of the configuration that `words` make, as the model's tokens."""
    config = load(experiment_file(), words) if words else read_resolved(folder / "config.yaml")
    raw = read_data(config)
    split = raw.splits[next(iter(raw.task.dev))]
    tokenizer = load_tokenizer(str(checkpoints.model_folder(folder)))
    limits = {"max_length": config.data.max_length, "regression": raw.task.regression}
    return config, encode(tokenizer, split.first, split.second, split.labels, **limits)


def run(folder: Path, words: list[str]) -> dict[str, Any]:
    torch.set_num_threads(1)
    student = settled(compact(checkpoints.load(folder).spiking_bert).float())
    config, data = dev_split(folder, words)
    forms = {student.weights: student}
    if student.weights != "float":
        forms[f"{student.weights}, as floats"] = as_float(student)
    rows = []
    for name, network in forms.items():
        session = Session(to_bytes(network), max_tokens=data.max_length)
        batches = (data.batch([i], pad_to=1) for i in range(len(data)))
        rows += [{"weights": name, **row} for row in compare(session, network, batches)]
    return {"task": config.task, "model": folder.name, "commit": commit(), "rows": rows}


def markdown(results: dict[str, Any]) -> str:
    columns = ["weights", "Python network in", "labels agree", "logits apart", "additions equal", "spikes"]
    lines = [
        [
            row["weights"],
            f"{row['precision']} precision",
            f"{row['labels']} of {row['sentences']}",
            f"{row['apart']:.1g}",
            f"{row['additions']} of {row['sentences']}",
            f"{row['spikes']:,}",
            *(f"{1e5 * row[part] / row['spikes']:.3g}" for part in (*PARTS, "own")),
        ]
        for row in results["rows"]
    ]
    heads = [*columns, "differ per 100,000, whole network", "given the same spikes below"]
    heads.append("Python's single and double precision from each other")
    return f"{results['task']}, `{results['model']}`, commit `{results['commit']}`:\n\n{table(heads, lines)}"


def places(results: dict[str, Any], most: int = 10) -> Iterator[str]:
    """Of each comparison the first spikes that differ given the same spikes below."""
    for row in results["rows"]:
        for sentence, layer, token, channel, more in row["places"][:most]:
            where = f"sentence {sentence}, {layer}, token {token}, channel {channel}"
            yield f"{row['weights']}, {row['precision']} precision: {where}: {more:+d}"
        if len(row["places"]) > most:
            yield f"… {len(row['places']) - most} more"


def page_with(page: str, results: dict[str, Any]) -> str:
    return between(page, "agreement", markdown(results))


def keep(results: dict[str, Any]) -> None:
    jsonfile.refuse_changed_tree(results["commit"], "the comparison")
    write_json(KEPT, {**results, "rows": [{**row, "places": len(row["places"])} for row in results["rows"]]})
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.agreement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--keep", action="store_true", help="take the table into docs/runtime.md")
    args = parser.parse_args(argv)
    results = run(args.model, args.overrides)
    print(markdown(results), *places(results), sep="\n")
    if args.keep:
        keep(results)
    return 0


if __name__ == "__main__":
    sys.exit(streams.exit_code(lambda: main(sys.argv[1:])))
