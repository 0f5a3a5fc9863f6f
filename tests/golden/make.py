"""The golden values: computed here, kept in `values.json`, compared by `tests/test_golden.py`.

    python -m tests.golden.make            compute all again, print what differs, write the file
    python -m tests.golden.make --check    print what differs, write nothing

A section yields keys in the field's words with their values. A key that comes again is the same number got in another
way: from the compacted student, or in equilibrium under another coding.
Each value is a number, a text, or lists and dicts of these. Whole numbers must be the same; others up to rounding.
Training magnifies rounding: the micro runs are compared in full where `arithmetic` says that float32 rounds as where
the values were made, elsewhere only in what then stays (`portable`).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tests.golden import counts, networks, pruning, runs

VALUES = Path(__file__).parent / "values.json"
DIGITS = 7  # that are kept of a number
RTOL, ATOL = 1e-5, 1e-6

CODINGS = ("accumulate", "running_mean", "per_step")
NEURONS = tuple(f"{leak} {kind}" for leak, kind in product(("IF", "LIF"), ("binary", "ternary", "ternary_scaled")))
QUERIES, RESIDUALS = ("real", "spiking"), ("spikes", "membrane")
QUANTIZERS = ("binary", "ternary", "int8")
THRESHOLDS = {  # of a quantized student
    "threshold per tensor": {"threshold": "tensor"},
    "threshold per channel": {"threshold": "channel"},
    "folded threshold per channel": {"threshold": "channel", "fold": True},
}
Entries = Iterator[tuple[str, Any]]


def students() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(coding, all else in words, options) of every coding, neuron, query, residual; and of what most do without."""
    for coding, neuron, query, residual in product(CODINGS, NEURONS, QUERIES, RESIDUALS):
        words = f"{neuron}, {query} query, {residual} residual"
        yield coding, words, {"coding": coding, "neuron": neuron, "query": query, "residual": residual}
    for coding in CODINGS:
        for kind in ("binary", "ternary"):
            options = {"coding": coding, "neuron": f"IF {kind}", "threshold": "tensor", "pooling": "cls"}
            yield coding, f"IF {kind}, threshold per tensor, cls pooling", options
        yield coding, "nothing pruned", {"coding": coding, "masked": False}
        yield coding, "one step everywhere", {"coding": coding, "t_steps": (1, 1, 1)}
        yield coding, "dead zones", {"coding": coding, "dead_zone": True}
        yield coding, "sparse weights", {"coding": coding, "sparse": True}
        for neuron in NEURONS if coding != "accumulate" else ():
            yield coding, f"{neuron}, feedback", {"coding": coding, "neuron": neuron, "feedback": True}


def logits() -> Entries:
    for coding, words, options in students():
        student = networks.network(**options)
        for net in (student, networks.compacted(student)):
            yield f"equilibrium: {words}", networks.logits(net, "equilibrium")
            yield f"{coding}: {words}", networks.logits(net, "spiking")
    student = networks.with_calibrated_dead_zones(networks.network(dead_zone=True))
    for net in (student, networks.compacted(student)):
        yield "accumulate: calibrated dead zones of each channel", networks.logits(net, "spiking")


def quantized() -> Entries:
    for coding, quantizer, (words, options) in product(CODINGS, QUANTIZERS, THRESHOLDS.items()):
        for strength in (0.5, 1.0):
            options = {**options, "coding": coding, "quantizer": quantizer, "strength": strength}
            student = networks.network(**options)
            for net in (student, networks.compacted(student)):
                name = f"{quantizer} weights at strength {strength}, {words}"
                yield f"equilibrium: {name}", networks.logits(net, "equilibrium")
                yield f"{coding}: {name}", networks.logits(net, "spiking")


def gradients() -> Entries:
    """One for each role of `networks.names_of_roles`, in its order."""
    for coding in CODINGS:
        yield "trained in equilibrium", networks.gradients(networks.network(coding=coding), "equilibrium")
        yield f"{coding}, trained spiking", networks.gradients(networks.network(coding=coding), "spiking")
    feedback = {"coding": "per_step", "feedback": True, "query": "spiking", "pooling": "cls"}
    yield "feedback, trained in equilibrium", networks.gradients(networks.network(**feedback), "equilibrium")
    weights = {"quantizer": "ternary", "strength": 0.5, "fold": True}
    yield "ternary weights, trained in equilibrium", networks.gradients(networks.network(**weights), "equilibrium")


def operations() -> Entries:
    """AC, MAC and element-wise operations of three sentences: in the embedding, each layer and the head."""
    yield "dense", counts.by_kind(counts.dense_operations())
    for coding, words, options in students():
        student = networks.network(**options)
        for net in (student, networks.compacted(student)):
            yield f"{coding}: {words}", counts.by_kind(counts.operations(net))
        if coding == "accumulate":
            yield f"{coding}: {words}", counts.by_kind(counts.operations(student, "equilibrium"))
    for coding in CODINGS:
        yield f"{coding}: AC by step", counts.additions_by_step(counts.operations(networks.network(coding=coding)))


def costs() -> Entries:
    for energy in counts.ENERGY_MODELS:
        yield f"dense, {energy}", counts.costs(None, energy)
        for coding in CODINGS:
            yield f"{coding}, {energy}", counts.costs(networks.network(coding=coding), energy)
    for bits in (1, 2, 8):
        yield f"accumulate, weights of {bits} bits", counts.costs(networks.network(), "fp32", bits)
    for quantizer in ("float", *QUANTIZERS):
        for words, options in THRESHOLDS.items():
            sizes = networks.size_of_compacted(networks.network(quantizer=quantizer, **options))
            yield f"compacted, {quantizer} weights, {words}", sizes


def decisions() -> Entries:
    for criterion, scope in product(pruning.SPATIAL, ("global", "layer")):
        yield f"spatial: {criterion}, {scope}", pruning.spatial_masks(criterion, scope)
    for criterion in pruning.SPATIAL:
        found = pruning.spatial_masks(criterion, "global", coding="per_step", neuron="LIF binary", query="spiking")
        yield f"spatial: {criterion}, global, per_step, LIF binary, spiking query", found
    for share, rearranged in product((0.4, 0.6), (False, True)):
        words = "search and rearrangement" if rearranged else "search"
        yield f"spatial: {words} at {share}", pruning.searched_masks(share, rearranged)
    for criterion, coding, total in product(pruning.TEMPORAL, CODINGS, (12, 8, 5)):
        yield f"temporal: {criterion}, {coding}, {total} steps", pruning.temporal_steps(criterion, total, coding=coding)


ARITHMETIC, BY_SHARE = "arithmetic", "sst2"  # BY_SHARE: the run whose shares say how many units and steps stay
LOOSE = {"rtol": 0.25, "atol": 0.21}  # together; of costs, and of an accuracy on 24 or 40 sentences, elsewhere


def micro_runs() -> Entries:
    yield ARITHMETIC, arithmetic()
    for task in runs.MICRO_RUNS:
        with TemporaryDirectory() as folder:
            for stage, facts in runs.micro_run(task, Path(folder)).items():
                yield f"{task}: {stage}", facts


def arithmetic() -> str:
    """The same where this torch on this processor rounds float32 alike: a digest of what some training steps leave."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    weights = [(torch.arange(24 * 37).view(24, 37).mul(k).sin() / 5).requires_grad_() for k in (1, 2, 3)]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    x = torch.arange(8 * 19 * 24).view(8, 19, 24).cos()
    for _ in range(20):
        optimizer.zero_grad()
        a, b, c = (torch.nn.functional.gelu(torch.layer_norm(x, (24,)) @ w) for w in weights)
        ((a @ b.mT).softmax(-1) @ c).tanh().square().mean().backward()
        optimizer.step()
    torch.set_num_threads(threads)
    kept = b"".join(w.detach().numpy().tobytes() for w in weights)
    return f"torch {torch.__version__.partition('+')[0]}, {hashlib.sha256(kept).hexdigest()[:12]}"


def portable(runs: dict[str, Any]) -> dict[str, Any]:
    """What a run leaves on any processor, its costs roughly."""
    found = {}
    for key, facts in runs.items():
        if key == ARITHMETIC:
            continue
        found[key] = {"optimizer steps": facts["optimizer steps"]}
        found[key] |= {name: float(facts[name]) for name in ("accuracy", "AC", "MAC", "normalized operations")}
        if key.startswith(BY_SHARE) and "t_steps" in facts:
            found[key] |= {name: sum(facts[name]) for name in ("heads kept", "neurons kept", "t_steps")}
    return found


SECTIONS = {
    "logits": logits,
    "logits of quantized weights": quantized,
    "gradient norms": gradients,
    "operations": operations,
    "costs": costs,
    "decisions": decisions,
    "micro runs": micro_runs,
}


# ---------------------------------------------------------------------------------------------------------- comparison


def rounded(value: Any) -> Any:
    """As it is stored: numbers of some digits, whole ones as such."""
    if isinstance(value, dict):
        return {key: rounded(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(x) for x in value]
    if isinstance(value, float):
        short = float(f"{value:.{DIGITS}g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    return value


def differences(stored: Any, found: Any, path: str = "", *, rtol: float = RTOL, atol: float = ATOL) -> Iterator[str]:
    """A sentence for each number, text or length that differs. Whole numbers where both are whole must be equal."""
    if isinstance(stored, dict) and isinstance(found, dict):
        for key in [*stored, *(key for key in found if key not in stored)]:
            if key not in stored or key not in found:
                yield f"{path} {key}: {'new' if key in found else 'gone'}"
            else:
                yield from differences(stored[key], found[key], f"{path} {key}", rtol=rtol, atol=atol)
    elif isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        for i, pair in enumerate(zip(stored, found, strict=True)):
            yield from differences(*pair, f"{path}[{i}]", rtol=rtol, atol=atol)
    elif isinstance(stored, float) or isinstance(found, float):
        if not isinstance(stored, int | float) or not isinstance(found, int | float):
            yield f"{path}: {found}, was {stored}"
        elif not abs(found - stored) <= atol + rtol * abs(stored):
            yield f"{path}: {found}, was {stored}"
    elif stored != found:
        yield f"{path}: {found}, was {stored}"


def check(section: str, stored: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """What differs from the stored section, and the section as it is now."""
    found: dict[str, Any] = {}
    faults = []
    for key, value in SECTIONS[section]():
        value = rounded(value)
        if key in found:
            faults += differences(found[key], value, f"{section} / {key} (in another way)")
        else:
            found[key] = value
    return [*section_differences(section, stored, found), *faults], found


def section_differences(section: str, stored: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    if stored.get(ARITHMETIC) == found.get(ARITHMETIC):
        return differences(stored, found, f"{section} /")
    return differences(portable(stored), portable(found), f"{section} (roughly, on another processor) /", **LOOSE)


def read() -> dict[str, dict[str, Any]]:
    return json.loads(VALUES.read_text()) if VALUES.is_file() else {}


def write(values: dict[str, dict[str, Any]]) -> None:
    """A line for each key, so that a change shows as one."""
    sections = []
    for section, entries in values.items():
        lines = (f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}" for key, value in entries.items())
        sections.append(f"{json.dumps(section)}:{{\n" + ",\n".join(lines) + "\n}")
    VALUES.write_text("{\n" + ",\n".join(sections) + "\n}\n")


def main() -> int:
    stored, values, changed = read(), {}, []
    for section in SECTIONS:
        faults, values[section] = check(section, stored.get(section, {}))
        changed += faults
    changed += [f"{section}: gone" for section in stored if section not in SECTIONS]
    print("\n".join(changed) or "nothing differs")
    if "--check" not in sys.argv[1:]:
        write(values)
    return int("--check" in sys.argv[1:] and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
