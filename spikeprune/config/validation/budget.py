"""What a joint budget may ask for, and which other callbacks would decide on the same candidates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spikeprune.config.derived import active, stage_rows, student_layers
from spikeprune.config.schema import Config, Stage
from spikeprune.config.validation.names import CANDIDATES
from spikeprune.errors import Problem, nearest

RIVALS = {"spatial": ("heads", "ffn"), "temporal": ("steps",)}  # callback -> the candidates that it decides on too


def rules(config: Config) -> Iterator[Problem]:
    c = config.compress
    yield from _values(config)
    if c.target is None and c.target_value is not None:
        yield ("compress.target_value",), f"compress.target_value = {c.target_value}: of what? set compress.target"
    if c.target is not None and c.target_value is None:
        yield ("compress.target",), f"compress.target = {c.target}: needs compress.target_value, such as 0.02"
    for name, stage in stage_rows(config):
        if active(config, name) and "joint" in stage.callbacks:
            yield from _stage(config, name, stage)
    if c.target == "latency":
        yield from _latency(config)


def _values(config: Config) -> Iterator[Problem]:
    c, key = config.compress, "compress.joint.candidates"
    for kind in c.joint.candidates:
        if kind not in CANDIDATES:
            yield (key,), f"{key}: unknown candidate {kind}; choose from {nearest(kind, CANDIDATES)}"
    if not c.joint.candidates:
        yield (key,), f"{key} = []: nothing could be removed; choose from {', '.join(CANDIDATES)}"
    if len(set(c.joint.candidates)) < len(c.joint.candidates):
        yield (key,), f"{key} = {c.joint.candidates}: names one twice"


def _stage(config: Config, name: str, stage: Stage) -> Iterator[Problem]:
    key, kinds = f"stages.{name}.callbacks", config.compress.joint.candidates
    for rival, decides in RIVALS.items():
        both = [kind for kind in decides if kind in kinds]
        if rival in stage.callbacks and both:
            text = f"{rival} and joint would both decide on {' and '.join(both)}; leave one callback out, or take them "
            yield (key, "compress.joint.candidates"), f"{key}: {text}from compress.joint.candidates"
    if name == "general_kd":
        yield (key,), f"{key}: joint measures cost on the task's sentences, which general_kd does not read"


def _latency(config: Config) -> Iterator[Problem]:
    c, steps = config.compress, config.student.t_steps
    if c.target_of == "dense":
        text = "the dense teacher has no time steps to compare with; set compress.target_of=student"
        yield ("compress.target", "compress.target_of"), f"compress.target = latency: {text}"
    elif "steps" not in c.joint.candidates:
        keys = ("compress.target", "compress.joint.candidates")
        yield keys, "compress.target = latency: only time steps change it; add steps to compress.joint.candidates"
    elif c.target_value is not None and (numbers := _numbers(steps, student_layers(config))):
        whole, least = (sum, len) if config.student.coding == "accumulate" else (max, lambda _: 1)
        if c.target_value * whole(numbers) < least(numbers) - 1e-9:
            text = f"leaves fewer than {least(numbers)} of student.t_steps' {whole(numbers)} steps until the answer; "
            text += f"the lowest value is {least(numbers) / whole(numbers):.3g}"
            yield ("compress.target_value", "student.t_steps"), f"compress.target_value = {c.target_value}: {text}"


def _numbers(steps: Any, layers: int | None) -> list[int]:
    """Steps of the embedding and each layer; empty where that is not known."""
    if isinstance(steps, int):
        return [] if layers is None or steps < 1 else [steps] * (layers + 1)
    return steps if all(isinstance(t, int) for t in steps) else []
