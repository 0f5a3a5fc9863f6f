"""What the values of a configuration may be, alone and together; `config.load` reports every problem found here.

A rule belongs here when it can be decided before any data or checkpoint is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import reduce
from typing import Any

from spikeprune import targets
from spikeprune.errors import nearest
from spikeprune.schema import Config, Losses, Stage
from spikeprune.tasks import TASKS

# The rooms above own these functions and prices; a test holds their registries to these names.
SPATIAL_CRITERIA = ("magnitude", "rate", "taylor", "fisher", "random")
TEMPORAL_CRITERIA = ("uniform", "convergence", "sensitivity")
PRICES = ("fp32", "fp16", "int32", "int8")
WEIGHTS = ("float", "binary", "ternary", "int8")
CALLBACKS = ("spatial", "temporal", "quantize", "joint")
# the values that compress nothing
_NOTHING = {"compress.heads": 1, "compress.ffn": 1, "compress.t_steps": "null", "compress.weights": "float"}
_NOTHING["compress.spatial.operations"] = "null"
_NOTHING |= {"compress.target": "null"}

Problem = tuple[tuple[str, ...], str]  # the keys involved, the first one to blame, and what is wrong with it

CHOICES: dict[str, tuple[str, ...]] = {
    "task": tuple(TASKS),
    "run.accelerator": ("auto", "cpu", "gpu"),
    "run.strategy": ("auto", "ddp"),
    "run.precision": ("32-true", "tf32", "bf16-mixed", "16-mixed", "64-true"),
    "run.kernels": ("auto", "torch", "triton"),
    "run.cuda_graphs": ("auto", "on", "off"),
    "run.products": ("float", "int8"),
    "run.evaluation": ("closed", "stepwise"),
    "run.wandb_mode": ("auto", "online", "offline"),
    "data.source": ("auto", "hub", "dir", "embedded"),
    "student.init": ("teacher", "random"),
    "student.spikes": ("binary", "ternary", "ternary_scaled"),
    "student.theta": ("channel", "tensor"),
    "student.coding": ("accumulate", "running_mean", "per_step"),
    "student.forward": ("equilibrium", "spiking"),
    "student.query": ("real", "spiking"),
    "student.pooling": ("mean", "cls"),
    "compress.weights": WEIGHTS,
    "compress.spatial.search": ("rank", "kwon"),
    "compress.target": targets.TARGETS,
    "compress.target_of": ("dense", "student"),
    "compress.joint.split": ("dev", "train"),
    "compress.spatial.criterion": SPATIAL_CRITERIA,
    "compress.spatial.scope": ("global", "layer"),
    "compress.temporal.criterion": TEMPORAL_CRITERIA,
    "student.dead_zone_per": ("channel", "site"),
    "time.rule": ("asr", "confidence"),
    "cost.prices": PRICES,
}

# A range in words, its test, and the keys it holds for; `*` stands for every stage. Null passes: the type decides it.
RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("must be from 0 to 4294967295", lambda v: 0 <= v < 2**32, "seed"),
    (
        "must be at least 0",
        lambda v: v >= 0,
        "stages.*.epochs stages.*.weight_decay stages.*.theta_lr stages.*.losses.hidden stages.*.losses.scores"
        " stages.*.losses.soft stages.*.losses.hard stages.*.losses.firing stages.*.losses.additions"
        " stages.*.losses.additions_limit",
    ),
    (
        "must be at least 1",
        lambda v: v >= 1,
        "run.devices run.num_nodes run.threads run.chunk data.pad_to run.validate_every run.log_every"
        " run.checkpoint_every"
        " data.batch_size data.eval_batch_size data.train_limit data.embedded_train data.embedded_dev data.corpus_limit"
        " teacher.hidden teacher.layers"
        " teacher.heads teacher.ffn student.calibration stages.*.batch_size compress.spatial.min_heads"
        " compress.spatial.min_ffn compress.spatial.batches compress.temporal.batches"
        " compress.joint.block compress.joint.sentences compress.joint.measured",
    ),
    ("must be at least 1: a network of no time steps says nothing", lambda v: v >= 1, "compress.t_steps"),
    ("must be at least 8: two sentences and three special tokens", lambda v: v >= 8, "data.max_length"),
    ("must be at least 100", lambda v: v >= 100, "teacher.vocab_size"),
    ("must be above 0", lambda v: v > 0, "stages.*.lr stages.*.clip stages.*.losses.temperature"),
    ("must be above 0 and at most 1", lambda v: 0 < v <= 1, "student.leak compress.joint.stride"),
    ("must be above 0 and at most 1: it is a share", lambda v: 0 < v <= 1, "compress.target_value"),
    ("must be above 0 and at most 1: it is the share kept", lambda v: 0 < v <= 1, "compress.heads compress.ffn"),
    ("must be above 0 and at most 1: it is the share kept", lambda v: 0 < v <= 1, "compress.spatial.operations"),
    ("must be above 0 and at most 100", lambda v: 0 < v <= 100, "student.percentile"),
    ("must be at least 0 and below 1", lambda v: 0 <= v < 1, "teacher.dropout student.dropout distill.replace_words"),
    ("must be at least 0 and below 100", lambda v: 0 <= v < 100, "student.dead_zone"),
    ("must be a list of numbers from 0 to 1", lambda v: v and all(0 <= b <= 1 for b in v), "time.bounds"),
    (
        "must be from 0 to 1",
        lambda v: 0 <= v <= 1,
        "stages.*.warmup compress.spatial.begin compress.spatial.end compress.temporal.begin compress.temporal.end"
        " compress.quantize.begin compress.quantize.end compress.joint.begin compress.joint.end",
    ),
    ("must not be empty", lambda v: v.strip() != "", "run.dir run.wandb_project data.hub"),
)


def problems(config: Config, unread: frozenset[str] = frozenset()) -> list[Problem]:
    """`unread`: keys whose given value had the wrong type, so that the configuration holds another one."""
    found = [(keys, text) for keys, text in _values(config) if not unread & set(keys)]
    bad = unread | {keys[0] for keys, _ in found}
    for rule in (_teacher, _student, _data, _stage_list, _stage_rows, _compress, _time, _run):
        # A combination of values that are wrong on their own would be reported twice.
        found += [(keys, text) for keys, text in rule(config) if not bad & set(keys)]
    return found


def validate(config: Config) -> list[str]:
    """Every value and combination that cannot work, one sentence each; empty when all is well."""
    return [text for _, text in problems(config)]


def value_of(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def stage_rows(config: Config) -> Iterator[tuple[str, Stage]]:
    for row in fields(config.stages):
        yield row.name, getattr(config.stages, row.name)


def student_layers(config: Config) -> int | None:
    """L where the configuration alone tells it; None where only the teacher's checkpoint does."""
    layers = config.student.layers
    if layers is None:
        return config.teacher.layers if config.teacher.checkpoint is None else None
    return layers if _is_int(layers, 1) else len(layers) if _is_ints(layers, 0) else None


def _is_int(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_ints(value: Any, low: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(_is_int(v, low) for v in value)


def _active(config: Config, name: str) -> bool:
    return name in config.run.stages and getattr(config.stages, name, None) is not None and acts(config, name)


def acts(config: Config, name: str) -> bool:
    """Whether a stage does anything: it has epochs, or a mask search, which needs none."""
    stage, spatial = getattr(config.stages, name), config.compress.spatial
    at_once = "spatial" in stage.callbacks and spatial.search == "kwon" and spatial.operations is not None
    return stage.epochs > 0 or at_once


def _values(config: Config) -> Iterator[Problem]:
    names = [name for name, _ in stage_rows(config)]
    for key, allowed in CHOICES.items():
        value = value_of(config, key)
        if value not in allowed and value is not None:
            yield (key,), f"{key} = {value}: choose from {nearest(value, allowed)}"
    for words, holds, keys in RANGES:
        for key in [k.replace("*", name) for k in keys.split() for name in (names if "*" in k else [""])]:
            value = value_of(config, key)
            if value is not None and not holds(value):
                yield (key,), f"{key} = {value}: {words}"
    layers, t_steps = config.student.layers, config.student.t_steps
    if not (layers is None or _is_int(layers, 1) or _is_ints(layers, 0)):
        words = "a number of layers (at least 1), a list of teacher layers counted from 0, or null for all"
        yield ("student.layers",), f"student.layers = {layers}: must be {words}"
    if not (_is_int(t_steps, 1) or _is_ints(t_steps, 1)):
        words = "a whole number of at least 1, or a list of them (the embedding's, then each layer's)"
        yield ("student.t_steps",), f"student.t_steps = {t_steps}: must be {words}"


def _teacher(config: Config) -> Iterator[Problem]:
    t = config.teacher
    if t.checkpoint is None and t.heads > 0 and t.hidden % t.heads:
        yield ("teacher.heads", "teacher.hidden"), f"teacher.heads = {t.heads}: must divide teacher.hidden = {t.hidden}"


def _student(config: Config) -> Iterator[Problem]:
    s, total = config.student, config.teacher.layers
    known = config.teacher.checkpoint is None
    keys = ("student.layers", "teacher.layers")
    if _is_ints(s.layers, 0) and s.layers != sorted(set(s.layers)):
        yield keys, f"student.layers = {s.layers}: must name each layer once, in rising order"
    elif known and _is_ints(s.layers, 0) and s.layers[-1] >= total:
        yield keys, f"student.layers = {s.layers}: the teacher's layers are 0 to {total - 1}"
    elif known and _is_int(s.layers, 1) and s.layers > total:
        yield keys, f"student.layers = {s.layers}: the teacher has {total}"
    if s.coding == "per_step" and s.forward == "equilibrium":
        text = "per_step coding has another equilibrium than the formula; set student.forward=spiking"
        yield ("student.forward", "student.coding"), f"student.forward = equilibrium: {text}"
    if s.feedback and s.coding == "accumulate":
        text = "in accumulate the first layer is done before the last begins; use running_mean or per_step"
        yield ("student.feedback", "student.coding"), f"student.feedback = true: {text}"
    if s.feedback and s.dropout > 0:
        text = "a network that changes from pass to pass has no fixed point; set student.dropout=0"
        yield ("student.feedback", "student.dropout"), f"student.feedback = true: {text}"
    yield from _layer_lists(config)


def _layer_lists(config: Config) -> Iterator[Problem]:
    layers, steps, chosen = student_layers(config), config.student.t_steps, config.distill.layer_map
    if layers is None:
        return
    if isinstance(steps, list) and len(steps) != layers + 1:
        text = f"needs {layers + 1} numbers, the embedding's and one for each of {layers} layers; it has {len(steps)}"
        yield ("student.t_steps", "student.layers", "teacher.layers"), f"student.t_steps = {steps}: {text}"
    keys = ("distill.layer_map", "student.layers", "teacher.layers")
    if chosen is not None and len(chosen) != layers:
        yield keys, f"distill.layer_map = {chosen}: needs one teacher layer for each of the student's {layers} layers"
    elif chosen is not None:
        total = config.teacher.layers if config.teacher.checkpoint is None else 10**6
        if not all(0 <= i < total for i in chosen):
            yield keys, f"distill.layer_map = {chosen}: teacher layers are counted from 0 and must exist"


def _data(config: Config) -> Iterator[Problem]:
    d, keys = config.data, ("data.dir", "data.source")
    if d.source == "dir" and not d.dir:
        yield keys, "data.source = dir: needs data.dir, a GLUE directory"
    if d.source in ("hub", "embedded") and d.dir:
        text = f"contradicts data.source = {d.source}; use data.source=dir, or leave data.dir out"
        yield keys, f"data.dir = {d.dir}: {text}"
    if _active(config, "general_kd") and not d.corpus:
        text = "needs data.corpus, the text it learns from; or set it to 0"
        yield ("stages.general_kd.epochs", "data.corpus"), f"stages.general_kd.epochs: {text}"


def _stage_list(config: Config) -> Iterator[Problem]:
    names, known, key = config.run.stages, [name for name, _ in stage_rows(config)], ("run.stages",)
    for name in names:
        if name not in known:
            yield key, f"run.stages: unknown stage {name}; the stages are {nearest(name, known)}"
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield key, f"run.stages: {name} stands there more than once"
    if _active(config, "teacher") and names[0] != "teacher":
        yield key, "run.stages: teacher must come first, since the others learn from it"
    if not names:
        yield key, "run.stages: is empty"


def _stage_rows(config: Config) -> Iterator[Problem]:
    for name, stage in stage_rows(config):
        key = f"stages.{name}.callbacks"
        for callback in stage.callbacks:
            if callback not in CALLBACKS:
                yield (key,), f"{key}: unknown callback {callback}; choose from {nearest(callback, CALLBACKS)}"
        if len(set(stage.callbacks)) < len(stage.callbacks):
            yield (key,), f"{key} = {stage.callbacks}: names one twice"
        if name == "general_kd" and stage.losses.soft == 0 and _asks_for_loss(config, stage):
            text = "its criterion asks for a loss of the answer, but the text has no labels; give losses.soft a weight"
            yield (key, f"stages.{name}.losses.soft"), f"{key} = {stage.callbacks}: {text}"
        if name == "teacher" and stage.callbacks:
            yield (key,), f"{key} = {stage.callbacks}: the teacher is not compressed"
        if _active(config, name):
            yield from _stage_losses(name, stage.losses, config.distill.replace_words)


def _asks_for_loss(config: Config, stage: Stage) -> bool:
    by_loss = config.compress.temporal.criterion == "sensitivity" and "temporal" in stage.callbacks
    return by_loss or "spatial" in stage.callbacks or "joint" in stage.callbacks


def _stage_losses(name: str, losses: Losses, replace_words: float) -> Iterator[Problem]:
    key = f"stages.{name}.losses"
    terms = {"hidden": losses.hidden, "scores": losses.scores, "soft": losses.soft, "hard": losses.hard}
    terms |= {"firing": losses.firing, "additions": losses.additions}
    without = {
        "teacher": ("it has no teacher and does not spike", ("hidden", "scores", "soft", "firing", "additions")),
        "general_kd": ("its text has no labels", ("hard",)),
    }
    reason, absent = without.get(name, ("", ()))
    for term in absent:
        if terms[term] > 0:
            yield (f"{key}.{term}",), f"{key}.{term} = {terms[term]}: does not apply to the stage {name}; {reason}"
    if name != "teacher" and replace_words > 0 and losses.hard > 0:
        text = "the true label is not that of a sentence changed by distill.replace_words; set one of the two to 0"
        yield (f"{key}.hard", "distill.replace_words"), f"{key}.hard = {losses.hard}: {text}"
    if not any(weight > 0 for term, weight in terms.items() if term not in absent):
        yield (key, *(f"{key}.{t}" for t in terms)), f"{key}: every weight is zero, so {name} would learn nothing"


def _compress(config: Config) -> Iterator[Problem]:
    c, steps = config.compress, config.student.t_steps
    for name in CALLBACKS:
        part, key = getattr(c, name), f"compress.{name}.begin"
        if part.begin > part.end:
            yield (key, f"compress.{name}.end"), f"{key} = {part.begin}: must not come after end = {part.end}"
    mean = steps if _is_int(steps, 1) else sum(steps) / len(steps) if _is_ints(steps, 1) else None
    if c.t_steps is not None and mean is not None and c.t_steps > mean:
        text = f"must not be above student.t_steps = {steps}; compression only removes steps"
        yield ("compress.t_steps", "student.t_steps"), f"compress.t_steps = {c.t_steps}: {text}"
    space = {"compress.heads": c.heads, "compress.ffn": c.ffn}
    given = {key: share for key, share in space.items() if share < 1}
    yield from _search(config, given)
    if c.spatial.search == "kwon":
        space = {"compress.spatial.operations": c.spatial.operations}
        given = space if c.spatial.operations is not None else {}
    yield from _acting(config, "spatial", space, given)
    time = {"compress.t_steps": c.t_steps}
    yield from _acting(config, "temporal", time, time if c.t_steps is not None else {})
    bits = {"compress.weights": c.weights}
    yield from _acting(config, "quantize", bits, bits if c.weights != "float" else {})
    yield from _integers(config)
    budget = {"compress.target": c.target}
    yield from _acting(config, "joint", budget, budget if c.target is not None else {})
    running = {n: s for n, s in stage_rows(config) if _active(config, n)}
    yield from targets.problems(config, running, student_layers(config))
    yield from _floors(config)


def _search(config: Config, shares: dict[str, float]) -> Iterator[Problem]:
    """What goes with compress.spatial.search; `shares`: targets that belong to the ranking."""
    spatial, key, target = config.compress.spatial, "compress.spatial.search", "compress.spatial.operations"
    if spatial.search == "rank":
        if spatial.operations is not None:
            yield (target, key), f"{target} = {spatial.operations}: is for {key}=kwon; set that, or leave it null"
        return
    for name, share in shares.items():
        text = f"{key} = kwon chooses heads and neurons itself, within {target}; set {name}=1"
        yield (name, key), f"{name} = {share}: {text}"
    for name, value, right in (("criterion", spatial.criterion, "fisher"), ("scope", spatial.scope, "global")):
        if value != right:
            keys = (f"compress.spatial.{name}", key)
            yield keys, f"compress.spatial.{name} = {value}: {key} = kwon is {right}; set {right}, or {key}=rank"
    order = [n for n in config.run.stages if hasattr(config.stages, n) and _active(config, n)]
    few = [i for i, n in enumerate(order) if "quantize" in getattr(config.stages, n).callbacks]
    late = [n for i, n in enumerate(order) if few and i > few[0] and "spatial" in getattr(config.stages, n).callbacks]
    if late and spatial.tune and config.compress.weights != "float":
        text = f"{late[0]} comes after weights were quantized, and these cannot hold tuned masks"
        keys = ("compress.spatial.tune", "run.stages", "compress.weights")
        yield keys, f"compress.spatial.tune = true: {text}; put it before, or set compress.spatial.tune=false"


def _integers(config: Config) -> Iterator[Problem]:
    """What products of whole numbers need (see models/integer.py)."""
    s, c, steps = config.student, config.compress, config.student.t_steps
    fold = "compress.quantize.fold"
    if c.quantize.fold and s.theta == "tensor":
        text = "student.theta = tensor has one threshold for all inputs, with nothing to fold; leave it false"
        yield (fold, "student.theta"), f"{fold} = true: {text}"
    if c.quantize.fold and c.weights == "float":
        text = "nothing is quantized; set compress.weights, or leave it false"
        yield (fold, "compress.weights"), f"{fold} = true: {text}"
    if config.run.products == "float":
        return
    longest = steps if _is_int(steps, 1) else max(steps) if _is_ints(steps, 1) else 1
    needs = (
        (c.weights == "float", "compress.weights", "needs few-bit weights; set compress.weights"),
        (s.theta == "channel" and not c.quantize.fold, fold, f"needs {fold}=true or student.theta=tensor"),
        (s.leak != 1, "student.leak", "needs student.leak=1, since a leaky rate is no number of spikes"),
        (s.spikes == "ternary_scaled", "student.spikes", "needs thresholds that do not follow the input"),
        (longest > 127, "student.t_steps", "needs at most 127 time steps, since counts are int8"),
    )
    for missing, key, text in needs:
        if missing:
            yield ("run.products", key), f"run.products = int8: {text}; or use run.products=float"


def _acting(config: Config, callback: str, targets: dict[str, Any], given: dict[str, Any]) -> Iterator[Problem]:
    """A callback without a target cannot act, and a target without a callback is never reached."""
    stages = [n for n, s in stage_rows(config) if _active(config, n) and callback in s.callbacks]
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


def _time(config: Config) -> Iterator[Problem]:
    if not config.time.dynamic or config.time.rule != "confidence":
        return
    instead = "use time.rule=asr"
    if config.student.coding == "accumulate":
        text = f"the coding accumulate has one answer, at the end; {instead}"
        yield ("time.rule", "student.coding", "time.dynamic"), f"time.rule = confidence: {text}"
    if config.task in TASKS and TASKS[config.task].regression:
        text = f"{config.task} is a regression, whose answer has no probability; {instead}"
        yield ("time.rule", "task", "time.dynamic"), f"time.rule = confidence: {text}"


def _run(config: Config) -> Iterator[Problem]:
    if config.run.accelerator == "cpu" and config.run.precision == "16-mixed":
        keys = ("run.precision", "run.accelerator")
        yield keys, "run.precision = 16-mixed: needs a GPU; on run.accelerator=cpu use bf16-mixed or 32-true"
    if config.run.kernels == "triton" and config.run.accelerator == "cpu":
        keys = ("run.kernels", "run.accelerator")
        yield keys, "run.kernels = triton: needs a GPU; on run.accelerator=cpu use torch or auto"
    if config.run.cuda_graphs == "on" and config.run.accelerator == "cpu":
        keys = ("run.cuda_graphs", "run.accelerator")
        yield keys, "run.cuda_graphs = on: needs a GPU; on run.accelerator=cpu use off or auto"
    if config.run.cuda_graphs == "on" and config.student.feedback:
        text = (
            "a step with student.feedback iterates until it has converged, which no graph can replay; use off or auto"
        )
        yield ("run.cuda_graphs", "student.feedback"), f"run.cuda_graphs = on: {text}"
    yield from _shared_batches(config)


def _shared_batches(config: Config) -> Iterator[Problem]:
    """Each of several processes needs a sentence of every batch."""
    run, sizes = config.run, {"data.batch_size": config.data.batch_size}
    processes = run.devices * run.num_nodes
    for name, stage in stage_rows(config):
        if _active(config, name) and stage.batch_size is not None:
            sizes[f"stages.{name}.batch_size"] = stage.batch_size
    for key, size in sizes.items() if processes > 1 else []:
        if size < processes:
            text = f"is shared by all devices, run.devices × run.num_nodes = {processes}; it must not be below that"
            yield (key, "run.devices", "run.num_nodes"), f"{key} = {size}: {text}"
