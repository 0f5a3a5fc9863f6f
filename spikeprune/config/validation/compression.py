"""Compression: targets and the callbacks that reach them, when and down to what floor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spikeprune.config.derived import active, is_int, is_ints, stage_rows, student_layers
from spikeprune.config.schema import Config
from spikeprune.config.validation import budget
from spikeprune.errors import Problem

# the values that compress nothing
_NOTHING = {
    "compress.heads": 1,
    "compress.ffn": 1,
    "compress.synapses": 1,
    "compress.spatial.operations": "null",
    "compress.t_steps": "null",
    "compress.weights": "float",
    "compress.target": "null",
}


def rules(config: Config) -> Iterator[Problem]:
    c, steps = config.compress, config.student.t_steps
    mean = steps if is_int(steps, 1) else sum(steps) / len(steps) if is_ints(steps, 1) else None
    if c.t_steps is not None and mean is not None and c.t_steps > mean:
        text = f"must not be above student.t_steps = {steps}; compression only removes steps"
        yield ("compress.t_steps", "student.t_steps"), f"compress.t_steps = {c.t_steps}: {text}"
    space = {"compress.heads": c.heads, "compress.ffn": c.ffn, "compress.synapses": c.synapses}
    given = {key: share for key, share in space.items() if share < 1}
    yield from _search(config, given)
    if c.spatial.criterion == "kwon":
        space = {"compress.spatial.operations": c.spatial.operations}
        given = space if c.spatial.operations is not None else {}
    yield from _acting(config, "spatial", space, given)
    time = {"compress.t_steps": c.t_steps}
    yield from _acting(config, "temporal", time, time if c.t_steps is not None else {})
    bits = {"compress.weights": c.weights}
    yield from _acting(config, "quantize", bits, bits if c.weights != "float" else {})
    if c.synapses < 1 and c.weights != "float":
        text = f"single synapses leave among float weights, not {c.weights} ones; set compress.synapses=1"
        yield ("compress.synapses", "compress.weights"), f"compress.synapses = {c.synapses}: {text}"
    yield from _fold(config)
    target = {"compress.target": c.target}
    yield from _acting(config, "joint", target, target if c.target is not None else {})
    yield from budget.rules(config)
    yield from _floors(config)


def _search(config: Config, shares: dict[str, float]) -> Iterator[Problem]:
    """What goes with the criterion kwon; `shares`: targets that belong to the ranking."""
    spatial, key, target = config.compress.spatial, "compress.spatial.criterion", "compress.spatial.operations"
    if spatial.criterion != "kwon":
        if spatial.operations is not None:
            yield (target, key), f"{target} = {spatial.operations}: is for {key}=kwon; set that, or leave it null"
        return
    for name, share in shares.items():
        itself = f"chooses heads and neurons itself, within {target}"
        what = "thins out no weights" if name == "compress.synapses" else itself
        text = f"{key} = kwon {what}; set {name}=1"
        yield (name, key), f"{name} = {share}: {text}"
    if spatial.scope != "global":
        text = f"{key} = kwon is global; set global, or another criterion"
        yield ("compress.spatial.scope", key), f"compress.spatial.scope = {spatial.scope}: {text}"
    order = [n for n in config.run.stages if hasattr(config.stages, n) and active(config, n)]
    few = [i for i, n in enumerate(order) if "quantize" in getattr(config.stages, n).callbacks]
    late = [n for i, n in enumerate(order) if few and i > few[0] and "spatial" in getattr(config.stages, n).callbacks]
    if late and config.compress.weights != "float":
        text = f"{late[0]} comes after weights were quantized, and these cannot hold tuned masks; put it before"
        yield (key, "run.stages", "compress.weights"), f"{key} = kwon: {text}"


def _fold(config: Config) -> Iterator[Problem]:
    s, c, fold = config.student, config.compress, "compress.quantize.fold"
    if c.quantize.fold and s.theta == "tensor":
        text = "student.theta = tensor has one threshold for all inputs, with nothing to fold; leave it false"
        yield (fold, "student.theta"), f"{fold} = true: {text}"
    if c.quantize.fold and c.weights == "float":
        text = "nothing is quantized; set compress.weights, or leave it false"
        yield (fold, "compress.weights"), f"{fold} = true: {text}"


def _acting(config: Config, callback: str, targets: dict[str, Any], given: dict[str, Any]) -> Iterator[Problem]:
    """A callback without a target cannot act, and a target without a callback is never reached."""
    stages = [n for n, s in stage_rows(config) if active(config, n) and callback in s.callbacks]
    for name in stages if not given else []:
        key = f"stages.{name}.callbacks"
        text = f"{callback} has nothing to do; set a target in {' or '.join(targets)}, or stages.{name}.epochs=0"
        yield (key, f"stages.{name}.epochs", *targets), f"{key}: {text}"
    for key, value in given.items() if not stages else []:
        text = f"no stage that runs has the callback {callback}; give one epochs, or set {key}={_NOTHING[key]}"
        yield (key, "run.stages"), f"{key} = {value}: {text}"


def _floors(config: Config) -> Iterator[Problem]:
    layers, t, c = student_layers(config), config.teacher, config.compress
    if layers is None or t.checkpoint is not None:
        return
    rows = (("heads", c.heads, t.heads, c.spatial.min_heads), ("ffn", c.ffn, t.ffn, c.spatial.min_ffn))
    for name, share, width, floor in rows:
        if 0 < share < 1 and round(share * width * layers) < floor * layers:
            text = f"leaves fewer than compress.spatial.min_{name} = {floor} in each layer"
            keys = (f"compress.{name}", f"compress.spatial.min_{name}", f"teacher.{name}", "student.layers")
            yield keys, f"compress.{name} = {share} of {width} {text}"
