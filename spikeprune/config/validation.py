"""What the values of a configuration may be, alone and together. `load` reports every problem found here at once.

A rule takes a configuration and yields problems: the keys involved, the one to blame first, and a sentence. To add a
rule: write one generator, add it to RULES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from spikeprune.config import data_rules
from spikeprune.config.derived import is_int, is_ints, runs, scratch_size, stage_rows, student_layers, value_of, wrong
from spikeprune.config.names import CANDIDATES, DENSE, LONGEST, NOT_CONVERGING, WIDEST_ACTIVATION
from spikeprune.config.schema import Config, Losses
from spikeprune.errors import Problem, nearest

Rule = Callable[[Config], Iterator[Problem]]


def values(section: Any, prefix: str = "") -> Iterator[Problem]:
    """Each value on its own: among its choices, within its range, as the schema says. Null passes: its type decides."""
    for field in fields(section):
        name, value = f"{prefix}{field.name}", getattr(section, field.name)
        if is_dataclass(value):
            yield from values(value, f"{name}.")
            continue
        choices, check = field.metadata["choices"], field.metadata["check"]
        if choices and value is not None and value not in choices:
            yield (name,), f"{name} = {value}: choose from {nearest(value, choices)}"
        if check and value is not None and not check[1](value):
            yield (name,), f"{name} = {value}: {check[0]}"


def lists(config: Config) -> Iterator[Problem]:
    """Values whose type is checked here, since they may be a number or a list."""
    layers, t_steps, sizes = config.student.layers, config.student.t_steps, config.data.embedded
    if not (layers is None or is_int(layers, 1) or is_ints(layers, 0)):
        text = "must be a number of layers (at least 1), a list of teacher layers counted from 0, or null for all"
        yield wrong(config, "student.layers", text)
    if not (is_int(t_steps, 1) or is_ints(t_steps, 1)):
        text = "must be a whole number of at least 1, or a list of them (the embedding's, then each layer's)"
        yield wrong(config, "student.t_steps", text)
    elif max([t_steps] if isinstance(t_steps, int) else t_steps) > LONGEST:
        yield wrong(config, "student.t_steps", f"a spike train has at most {LONGEST} steps")
    if len(sizes) != 2 or min(sizes) < 1:
        yield wrong(config, "data.embedded", "must be two numbers of at least 1, training and dev")


def teacher(config: Config) -> Iterator[Problem]:
    size = scratch_size(config)
    if config.teacher.checkpoint is None and size and size["hidden"] % size["heads"]:
        text = f"its third number, the heads, must divide the first, {size['hidden']} channels"
        yield wrong(config, "teacher.size", text)


def student(config: Config) -> Iterator[Problem]:
    s = config.student
    if is_ints(s.layers, 0) and s.layers != sorted(set(s.layers)):
        yield wrong(config, "student.layers", "must name each layer once, in rising order", "teacher.size")
    else:
        yield from fit(config, scratch_size(config).get("layers") if config.teacher.checkpoint is None else None)
    if s.coding in NOT_CONVERGING and s.forward == "equilibrium":
        text = f"{s.coding} coding has another equilibrium than the formula; set student.forward=spiking"
        yield wrong(config, "student.forward", text, "student.coding")
    if s.feedback and s.coding == "accumulate":
        text = "in accumulate the first layer is done before the last begins; use running_mean or per_step"
        yield wrong(config, "student.feedback", text, "student.coding")


def fit(config: Config, total: int | None) -> Iterator[Problem]:
    """The student's layers and steps on a teacher of `total` layers, None while they are not known."""
    s, count = config.student, student_layers(config, total)
    if total is not None and is_ints(s.layers, 0) and s.layers[-1] >= total:
        yield wrong(config, "student.layers", f"the teacher's layers are 0 to {total - 1}", "teacher.size")
    elif total is not None and is_int(s.layers, 1) and s.layers > total:
        yield wrong(config, "student.layers", f"the teacher has {total}", "teacher.size")
    if count is not None and isinstance(s.t_steps, list) and len(s.t_steps) != count + 1:
        text = f"needs {count + 1} numbers, the embedding's and one for each of {count} layers"
        yield wrong(config, "student.t_steps", f"{text}; it has {len(s.t_steps)}", "student.layers", "teacher.size")


def losses(config: Config) -> Iterator[Problem]:
    for name, stage in stage_rows(config):
        if name == "general_kd" and stage.steps:
            text = "a corpus has no fixed number of steps; give epochs, and set it to 0"
            yield wrong(config, f"stages.{name}.steps", text)
        if runs(config, name):
            yield from _losses(config, f"stages.{name}.losses", name, stage.losses)


TERMS = tuple(field.name for field in fields(Losses) if field.name not in ("additions_limit", "temperature"))
ABSENT = {  # terms that a stage cannot have, and why
    "teacher": ("it has no teacher and does not spike", tuple(term for term in TERMS if term != "hard")),
    "general_kd": ("its text has no labels", ("hard",)),
}


def _losses(config: Config, key: str, name: str, loss: Losses) -> Iterator[Problem]:
    reason, absent = ABSENT.get(name, ("", ()))
    for term in absent:
        if getattr(loss, term) > 0:
            yield wrong(config, f"{key}.{term}", f"does not apply to the stage {name}; {reason}")
    if name != "teacher" and config.data.replace_words > 0 and loss.hard > 0:
        text = "the true label is not that of a sentence changed by data.replace_words; set one of the two to 0"
        yield wrong(config, f"{key}.hard", text, "data.replace_words")
    if loss.additions_limit and not loss.additions:
        text = f"limits nothing while {key}.additions = 0; give that a weight, or set {key}.additions_limit=null"
        yield wrong(config, f"{key}.additions_limit", text, f"{key}.additions")
    if not any(getattr(loss, term) > 0 for term in TERMS if term not in absent):
        keys = (key, *(f"{key}.{term}" for term in TERMS))
        yield keys, f"{key}: every weight is zero, so {name} would learn nothing"


def spatial(config: Config) -> Iterator[Problem]:
    s, key = config.stages.spatial, "stages.spatial"
    if s.criterion != "kwon":
        if s.operations is not None:
            text = f"is for {key}.criterion=kwon; set that, or leave it null"
            yield wrong(config, f"{key}.operations", text, f"{key}.criterion")
    else:
        for name in ("heads", "ffn", "synapses"):
            if getattr(s, name) < 1:
                text = f"criterion kwon removes heads and neurons within {key}.operations; set {key}.{name}=1"
                yield wrong(config, f"{key}.{name}", text, f"{key}.criterion")
        if s.operations is None and s.epochs:
            yield wrong(config, f"{key}.criterion", f"needs {key}.operations, a share such as 0.5")
        if s.scope != "global":
            yield wrong(config, f"{key}.scope", "criterion kwon is global", f"{key}.criterion")
    if s.block > 1 and s.synapses == 1:
        text = f"is for synapses that are removed; set {key}.synapses below 1, or leave it 1"
        yield wrong(config, f"{key}.block", text, f"{key}.synapses")
    if s.epochs and s.synapses < 1 and config.stages.quantize.epochs and config.stages.quantize.weights != "float":
        text = f"single synapses are removed from float weights, not {config.stages.quantize.weights} ones"
        yield wrong(config, f"{key}.synapses", f"{text}; set {key}.synapses=1", "stages.quantize.weights")


def temporal(config: Config) -> Iterator[Problem]:
    steps, key = config.student.t_steps, "stages.temporal.t_steps"
    mean = steps if is_int(steps, 1) else sum(steps) / len(steps) if is_ints(steps, 1) else None
    target = config.stages.temporal.t_steps
    if runs(config, "temporal") and target is not None and mean is not None and target > mean:
        text = f"must not be above student.t_steps = {steps}; compression only removes steps"
        yield wrong(config, key, text, "student.t_steps")


def quantize(config: Config) -> Iterator[Problem]:
    q, fold = config.stages.quantize, "stages.quantize.fold"
    if q.fold and config.student.theta == "tensor":
        text = "student.theta = tensor has one threshold for all inputs, with nothing to fold; leave it false"
        yield wrong(config, fold, text, "student.theta")
    if q.fold and q.weights == "float":
        text = "nothing is quantized; set stages.quantize.weights, or leave it false"
        yield wrong(config, fold, text, "stages.quantize.weights")


def without_target(config: Config) -> Iterator[Problem]:
    """A compression stage that runs and compresses nothing is a slip more often than a wish."""
    s = config.stages
    all_kept = s.spatial.heads == s.spatial.ffn == s.spatial.synapses == 1 and s.spatial.criterion != "kwon"
    stages = {  # the keys of its target, and whether it has none
        "spatial": ("heads, ffn or synapses", all_kept),
        "temporal": ("t_steps", s.temporal.t_steps is None),
        "quantize": ("weights or embeddings", s.quantize.weights == s.quantize.embeddings == "float"),
        "budget": ("value", s.budget.value is None),
    }
    for name, (target, idle) in stages.items():
        if idle and runs(config, name):
            text = f"the stage would compress nothing; set its {target}, or stages.{name}.epochs=0"
            keys = ("epochs", *target.replace(" or ", ", ").split(", "))
            yield tuple(f"stages.{name}.{key}" for key in keys), f"stages.{name}: {text}"


def budget(config: Config) -> Iterator[Problem]:
    b, key, steps = config.stages.budget, "stages.budget", config.student.t_steps
    for kind in b.candidates:
        if kind not in CANDIDATES:
            yield (f"{key}.candidates",), f"{key}.candidates: unknown {kind}; choose from {nearest(kind, CANDIDATES)}"
    if not b.candidates or len(set(b.candidates)) < len(b.candidates):
        text = f"must name each of what may be removed once, of {', '.join(CANDIDATES)}"
        yield wrong(config, f"{key}.candidates", text)
    if not runs(config, "budget") or b.target != "latency":
        return
    if "steps" not in b.candidates:
        text = f"only time steps change it; add steps to {key}.candidates"
        yield wrong(config, f"{key}.target", text, f"{key}.candidates")
    elif b.value is not None and (numbers := _numbers(steps, student_layers(config))):
        accumulate = config.student.coding == "accumulate"
        whole, least = (sum(numbers), len(numbers)) if accumulate else (max(numbers), 1)
        if b.value * whole < least - 1e-9:
            text = f"leaves fewer than {least} of student.t_steps' {whole} steps; the lowest value is"
            yield wrong(config, f"{key}.value", f"{text} {least / whole:.3g}", "student.t_steps")


def _numbers(steps: Any, layers: int | None) -> list[int]:
    """Steps of the embedding and each layer; empty where that is not known."""
    if is_int(steps, 1):
        return [] if layers is None else [steps] * (layers + 1)
    return steps if is_ints(steps, 1) else []


def dense(config: Config) -> Iterator[Problem]:
    """The dense opponent sends no spikes, so nothing that counts or shortens trains applies to it."""
    s, key = config.student, "student.spikes"
    if s.spikes != DENSE:
        return
    for name, value in (("coding", "accumulate"), ("forward", "equilibrium"), ("leak", 1.0), ("query", "real")):
        if getattr(s, name) != value:
            text = f"{key} = dense has no spike trains; set student.{name}={value}"
            yield wrong(config, f"student.{name}", text, key)
    for name in ("temporal", "budget"):
        if runs(config, name):
            yield (f"stages.{name}.epochs", key), f"stages.{name}: {key} = dense has no spikes; set its epochs to 0"
    for name, stage in stage_rows(config):
        if runs(config, name) and name != "teacher" and stage.losses.additions > 0:
            yield wrong(config, f"stages.{name}.losses.additions", f"{key} = dense has no spikes; set it to 0", key)


def energy_model(config: Config) -> Iterator[Problem]:
    """A model's figures must reach the activations of the dense network that a student is compared with."""
    model, steps = config.cost.model, config.student.t_steps
    longest = max([steps] if is_int(steps, 1) else steps) if is_int(steps, 1) or is_ints(steps, 1) else 1
    bits = ((1 if config.student.spikes == "binary" else 2) * longest).bit_length()
    if bits > WIDEST_ACTIVATION.get(model, bits):
        text = f"has no figure for the {bits} bits that student.t_steps = {steps} takes densely; use int32"
        yield wrong(config, "cost.model", text, "student.t_steps")


def devices(config: Config) -> Iterator[Problem]:
    run = config.run
    if run.accelerator == "cpu" and run.precision == "16-mixed":
        text = "needs a GPU; on run.accelerator=cpu use bf16-mixed or 32-true"
        yield wrong(config, "run.precision", text, "run.accelerator")
    if run.accelerator == "cpu" and run.kernels == "triton":
        yield wrong(config, "run.kernels", "needs a GPU; on run.accelerator=cpu use torch or auto", "run.accelerator")
    processes = run.devices * run.num_nodes
    text = f"is shared by all devices, run.devices × run.num_nodes = {processes}; it must not be below that"
    stages = [f"stages.{name}" for name, stage in stage_rows(config) if runs(config, name) and stage.batch_size]
    for key in (f"{section}.batch_size" for section in ("data", *stages)):
        if value_of(config, key) < processes:
            yield wrong(config, key, text, "run.devices", "run.num_nodes")


RULES: tuple[Rule, ...] = (
    lists,
    teacher,
    student,
    data_rules.sources,
    data_rules.own,
    data_rules.metrics,
    data_rules.class_weights,
    losses,
    spatial,
    temporal,
    quantize,
    without_target,
    budget,
    dense,
    energy_model,
    devices,
)


def problems(config: Config, unread: frozenset[str] = frozenset()) -> list[Problem]:
    """`unread`: keys whose given value had the wrong type, so that the configuration holds another one."""
    found = [(keys, text) for keys, text in values(config) if not unread & set(keys)]
    for rule in RULES:  # a combination of values that are wrong on their own would be reported twice
        bad = unread | {keys[0] for keys, _ in found}
        found += [(keys, text) for keys, text in rule(config) if not bad & set(keys)]
    return found
