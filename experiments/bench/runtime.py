"""The C runtime beside onnxruntime: one thread, one sentence at a time, warm; time against additions.

python -m experiments.bench.runtime               measure; about four minutes
python -m experiments.bench.runtime --keep FILE   take the results into docs/runtime.md and its figure
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from experiments.bench import nets
from experiments.bench.clock import Work, seconds
from experiments.bench.report import of_a_commit
from experiments.bench.runtime_report import keep, markdown
from spikeprune.cost.dense import dense
from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.cost.network import dense_network
from spikeprune.experiment import streams
from spikeprune.experiment.summary import commit, hardware
from spikeprune.export import onnx_file
from spikeprune.files.atomic import write_json
from spikeprune.models.compaction import compact
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.models.quantization import MATRICES
from spikeprune.models.shape import dense_shape, student_network, student_operations
from spikeprune.runtime import Session, to_bytes
from spikeprune.runtime.library import SOURCES

CPU = torch.device("cpu")
TOKENS, LANES = 25, 16
OTHERS = ("dense teacher, onnxruntime float32", "dense teacher, onnxruntime int8", "student of float rows, onnxruntime")
SILENT = "no spike"  # thresholds out of reach: what is left is the fixed part


@dataclass(frozen=True)
class Units:
    """What a student keeps; thresholds do the rest of the way to its budget."""

    t_steps: int
    heads: int
    ffn: int
    share: float = 1.0  # of the synapses


# the dense teacher's energy over the student's -> its units, with all synapses between them, and with some
WHOLE = {
    4: Units(4, 12, 1536),
    10: Units(3, 9, 912),
    30: Units(3, 6, 464),
    75: Units(3, 3, 240),
    120: Units(2, 3, 192),
    200: Units(2, 2, 128),
}
SPARSE = {
    4: Units(4, 12, 1536, 0.75),
    10: Units(3, 12, 1536, 0.5),
    30: Units(3, 9, 912, 0.25),
    75: Units(3, 6, 464, 0.25),
    120: Units(3, 6, 464, 0.25),
    200: Units(2, 6, 464, 0.25),
}


@dataclass(frozen=True)
class Form:
    units: dict[int, Units]
    weights: str = "float"
    masks: str = "all"  # synapses: all, single or blocks
    form: str = "auto"  # of the file's rows
    loop: str = "events"


FORMS = {
    "float rows, events": Form(WHOLE),
    "float rows, counts": Form(WHOLE, loop="counts"),
    "ternary rows, events": Form(WHOLE, weights="ternary"),
    "single synapses, as rows": Form(SPARSE, masks="single", form="rows"),
    "single synapses, as lists": Form(SPARSE, masks="single", form="lists"),
    "synapses in blocks of 16, as blocks": Form(SPARSE, masks="blocks", form="blocks"),
}


def student(size: nets.Size, units: Units, form: Form) -> SpikingBert:
    """Random weights of a dense BERT, thresholds calibrated; as many units and synapses as `units` say."""
    options = {"t_steps": units.t_steps, "residual": "membrane", "pooling": "cls", "sparse": form.masks != "all"}
    quantized = {} if form.weights == "float" else {"weights": form.weights, "fold": True}
    made = nets.student(size, CPU, **options, **quantized)
    if form.masks != "all":
        thin_out(made, units.share, LANES if form.masks == "blocks" else 1)
    made.heads[:, min(units.heads, size.heads) :] = 0
    made.ffn[:, min(units.ffn, size.ffn) :] = 0
    if quantized:
        made.set_strength(1.0)
    return compact(made)


@torch.no_grad()
def thin_out(made: SpikingBert, share: float, lanes: int) -> None:
    """Keep this share of the synapses, drawn in blocks of so many outputs of one input."""
    generator = torch.Generator().manual_seed(0)
    for layer in made.layers:
        for weight in (getattr(layer, name).weight for name in MATRICES):
            rows, columns = weight.shape
            kept = torch.rand(-(-rows // lanes), columns, generator=generator) < share
            weight.mul_(kept.repeat_interleave(lanes, 0)[:rows])
    made.refresh_synapses()


def energy_share(made: SpikingBert, batch: dict) -> tuple[float, int, float]:
    """The dense teacher's energy over the student's, its additions, and spikes per neuron and step."""
    lengths = batch["attention_mask"].sum(1)
    outputs = infer(made, **batch)
    operations = student_operations(made, outputs.counts, lengths)
    shape = dense_shape(made)
    energy = ENERGY_MODELS["convention"].per_sample
    ratio = energy(dense_network(dense(lengths, shape=shape), shape=shape)) / energy(student_network(made, operations))
    fired = [
        spikes.sum().item() / max(spikes.shape[-1], 1) for name, spikes in outputs.counts.items() if name != "pooled"
    ]
    return ratio, int(operations.ac.sum()), float(np.mean(fired)) / TOKENS / made.steps[0]


def at_budget(made: SpikingBert, batch: dict, budget: float) -> SpikingBert:
    """The student with thresholds raised or lowered by one factor until its energy is the budget's; a float file's
    weights have them folded in afterwards, a few-bit one keeps its codes and scales."""
    low, high = -3.0, 4.0
    for _ in range(14):
        factor = (low + high) / 2
        if energy_share(with_thresholds(made, factor), batch)[0] < budget:
            low = factor
        else:
            high = factor
    return with_thresholds(made, (low + high) / 2)


@torch.no_grad()
def with_thresholds(made: SpikingBert, factor: float) -> SpikingBert:
    changed = copy.deepcopy(made)
    for layer in changed.spiking_layers().values():
        layer.log_theta.add_(factor)
    return changed


# -------------------------------------------------------------------------------------------------------- onnxruntime


def onnx_sessions(size: nets.Size, batch: dict, folder: Path) -> dict[str, Work]:
    """The dense teacher in float32, and with weights and activations of 8 bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    bert, names = size.bert(), list(batch)

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = bert

        def forward(self, ids, mask, types):
            return self.bert(input_ids=ids, attention_mask=mask, token_type_ids=types).logits

    paths = [str(folder / "dense.onnx"), str(folder / "dense8.onnx")]
    with onnx_file.quiet():
        torch.onnx.export(Logits(), tuple(batch.values()), paths[0], input_names=names, dynamo=True, verbose=False)
        quantize_dynamic(paths[0], paths[1], weight_type=QuantType.QInt8)
    return {name: in_onnxruntime(path, batch) for name, path in zip(OTHERS[:2], paths, strict=True)}


def exported(made: SpikingBert, batch: dict, path: Path) -> Work:
    """The student as `spikeprune export --to onnx` writes it."""
    model = onnx_file.traced(made, tuple(batch[name].expand(2, -1).contiguous() for name in INPUTS))
    del model.graph.outputs[1:]
    path.write_bytes(onnx_file.serialized(model))
    return in_onnxruntime(str(path), batch)


def in_onnxruntime(path: str, batch: dict) -> Work:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {found.name: batch[found.name].numpy() for found in session.get_inputs()}
    return lambda: session.run(None, feed)


# ---------------------------------------------------------------------------------------------------------- measuring


def measured(size: nets.Size, budgets: list[int], budget_seconds: float) -> Iterator[dict[str, Any]]:
    """For each budget what each form and each other takes, measured in turns."""
    batch = nets.batch(size, sentences=1, tokens=TOKENS, device=CPU)
    ids = batch["input_ids"][0].numpy()
    with TemporaryDirectory() as folder:
        others = {} if onnx_file.missing() else onnx_sessions(size, batch, Path(folder))
        for budget in budgets:
            works, facts = dict(others), {}
            for name, form in FORMS.items():
                made = at_budget(student(size, form.units[budget], form), batch, budget)
                energy, additions, rate = energy_share(made, batch)
                works[name] = running(to_bytes(made, form.form), form.loop, ids)
                facts[name] = {"additions": additions, "energy": energy, "rate": rate}
                if name == next(iter(FORMS)):
                    works[SILENT] = running(to_bytes(with_thresholds(made, 30.0)), form.loop, ids)
                    if others:
                        works[OTHERS[2]] = exported(made, batch, Path(folder) / "student.onnx")
            yield {
                "budget": budget,
                "units": {"whole": asdict(WHOLE[budget]), "sparse": asdict(SPARSE[budget])},
                "facts": facts,
                "seconds": warm_seconds(works, budget_seconds),
            }


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
    """Spikes that differ from the Python network's of the same precision: of the whole network, and of each spiking
    layer that is given the network's own spikes below."""
    found = []
    for name in ("float rows, events", "ternary rows, events"):
        form = FORMS[name]
        made = student(size, form.units[30], form)
        session, layers = Session(to_bytes(made), max_tokens=TOKENS), made.spiking_layers()
        for precision in ("double", "single"):
            network = copy.deepcopy(made).double() if precision == "double" else made
            row = {"form": name, "precision": precision, "spikes": 0, "whole": 0, "each": 0, "labels": 0}
            for sentence in range(sentences):
                batch = nets.batch(size, sentences=sentences, tokens=TOKENS, device=CPU)
                batch = {key: x[sentence : sentence + 1] for key, x in batch.items()}
                trains, logits = spikes_of(network, batch)
                for part in ("whole", "each"):

                    def compare(layer, step, spikes, part=part, row=row, trains=trains):
                        wanted = trains[layer]
                        row[part] += int(np.abs(spikes - wanted.astype(np.int16)).sum())
                        if part == "each":
                            spikes[:] = wanted

                    session.observe(compare)
                    answer = session.run(batch["input_ids"][0].numpy())
                    row["labels"] += int(part == "whole" and answer.logits.argmax() == logits.argmax())
                row["spikes"] += sum(int(np.abs(train).sum()) for train in trains.values())
            found.append({**row, "sentences": sentences, "layers": len(layers)})
    return found


def spikes_of(network: SpikingBert, batch: dict) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Signed numbers of spikes `[N, channels]` of each spiking layer, and the logits."""
    trains, handles = {}, []
    for name, layer in network.spiking_layers().items():

        def note(module, inputs, train, name=name):
            steps = network.steps[0 if name == "embedding" else 1 + int(name.split(".")[1])]
            trains[name] = (train.value[0] / module.theta * steps).round().to(torch.int8).numpy()

        handles.append(layer.register_forward_hook(note))
    logits = infer(network, **batch).logits[0].numpy()
    for handle in handles:
        handle.remove()
    return trains, logits


def running(data: bytes, loop: str, ids: np.ndarray) -> Callable[[], object]:
    session = Session(data, max_tokens=TOKENS, loop=loop)
    return lambda: session.run(ids)


def run(out: Path, budgets: list[int], budget_seconds: float, size: nets.Size) -> dict[str, Any]:
    torch.set_num_threads(1)
    made = {"hardware": hardware(CPU), "commit": commit(), "load": os.getloadavg()[0], "torch": torch.__version__}
    results: dict[str, Any] = {"made": made, "tokens": TOKENS, "network": size.name, "rows": [], "sizes": sizes()}
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
STORED = {  # a network, its units, its weights, and tokens of a sentence, of which each has a position embedding
    "the tiny preset's student, float": (TINY, Units(2, 2, 154), "float", 48),
    "the tiny preset's student, ternary": (TINY, Units(2, 2, 154), "ternary", 48),
    "MiniLM 6 x 384 at 1/75, float": (nets.MINILM, WHOLE[75], "float", 128),
    "MiniLM 6 x 384 at 1/75, ternary": (nets.MINILM, WHOLE[75], "ternary", 128),
    "the same with 4,000 words, float": (FEW_WORDS, WHOLE[75], "float", 128),
    "the same with 4,000 words, ternary": (FEW_WORDS, WHOLE[75], "ternary", 128),
}
ARM = ["arm-linux-gnueabihf-gcc", "-mthumb", "-march=armv7-a", "-mfpu=vfpv3-d16", "-std=c99", "-ffp-contract=off"]


def sizes() -> dict[str, Any]:
    """Bytes of `model.spk` and arena, and of the program's text and data on Arm."""
    found: dict[str, Any] = {"networks": {}, "program": {}}
    for name, (size, units, weights, tokens) in STORED.items():
        made = student(size, units, Form({}, weights=weights))
        made.embedding.position = torch.nn.Embedding(tokens, size.hidden)
        made.values["positions"] = tokens
        data = to_bytes(made)
        found["networks"][name] = {"flash": len(data), "arena": Session(data, max_tokens=tokens).used, "tokens": tokens}
    if shutil.which(ARM[0]) is None:
        return found
    with TemporaryDirectory() as folder:
        for option in ("-Os", "-O2", "-O3"):
            target = Path(folder) / "spikerun.o"
            subprocess.run([*ARM, option, "-c", str(SOURCES / "spikerun.c"), "-o", str(target)], check=True)
            command = ["arm-linux-gnueabihf-size", str(target)]
            lines = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.splitlines()
            text, data, bss = map(int, lines[1].split()[:3])
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
        keep(of_a_commit(args.keep))
    else:
        run(args.out, args.budgets, args.seconds, replace(nets.MINILM, layers=args.layers))
    return 0


if __name__ == "__main__":
    sys.exit(streams.exit_code(lambda: main(sys.argv[1:])))
