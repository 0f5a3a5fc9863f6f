"""What each value may be on its own: a choice of names, or a range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from spikeprune.config.derived import is_int, is_ints, stage_rows, value_of
from spikeprune.config.schema import Config
from spikeprune.config.tasks import TASKS
from spikeprune.config.validation import names
from spikeprune.errors import Problem, nearest

CHOICES: dict[str, tuple[str, ...]] = {
    "task": tuple(TASKS),
    "run.accelerator": ("auto", "cpu", "gpu"),
    "run.precision": ("32-true", "tf32", "bf16-mixed", "16-mixed", "64-true"),
    "run.kernels": ("auto", "torch", "triton"),
    "run.cuda_graphs": ("auto", "on", "off"),
    "run.wandb": ("off", "auto", "online", "offline"),
    "data.source": ("auto", "hub", "dir", "embedded"),
    "student.init": ("teacher", "random"),
    "student.spikes": names.NEURONS,
    "student.theta": ("channel", "tensor"),
    "student.coding": names.CODINGS,
    "student.forward": ("equilibrium", "spiking"),
    "student.query": ("real", "spiking"),
    "student.pooling": ("mean", "cls"),
    "compress.weights": names.WEIGHTS,
    "compress.target": names.TARGETS,
    "compress.target_of": ("dense", "student"),
    "compress.spatial.criterion": (*names.SPATIAL_CRITERIA, "kwon"),
    "compress.spatial.scope": ("global", "layer"),
    "compress.temporal.criterion": names.TEMPORAL_CRITERIA,
    "student.residual": ("spikes", "membrane"),
    "time.early_exit": ("none", "asr", "confidence"),
    "cost.prices": names.PRICES,
}

# A range in words, its test, and the keys it holds for; `*` stands for every stage. Null passes: the type decides it.
RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("must be from 0 to 4294967295", lambda v: 0 <= v < 2**32, "seed"),
    (
        "must be at least 0",
        lambda v: v >= 0,
        "stages.*.epochs stages.*.weight_decay stages.*.theta_lr stages.*.losses.hidden stages.*.losses.scores"
        " stages.*.losses.soft stages.*.losses.hard stages.*.losses.firing stages.*.losses.additions"
        " stages.*.losses.additions_limit stages.*.losses.additions_from",
    ),
    (
        "must be at least 1",
        lambda v: v >= 1,
        "run.devices run.num_nodes run.threads run.validate_every run.log_every"
        " run.checkpoint_every"
        " data.batch_size data.eval_batch_size data.train_limit data.embedded_train data.embedded_dev data.corpus_limit"
        " teacher.hidden teacher.layers"
        " teacher.heads teacher.ffn student.calibration stages.*.batch_size compress.spatial.min_heads"
        " compress.spatial.min_ffn",
    ),
    ("must be at least 1: a network of no time steps says nothing", lambda v: v >= 1, "compress.t_steps"),
    ("must be at least 8: two sentences and three special tokens", lambda v: v >= 8, "data.max_length"),
    ("must be at least 100", lambda v: v >= 100, "teacher.vocab_size"),
    ("must be above 0", lambda v: v > 0, "stages.*.lr stages.*.losses.temperature"),
    (
        "must be above 0 and at most 1",
        lambda v: 0 < v <= 1,
        "student.leak stages.*.losses.additions_fall",
    ),
    ("must be above 0 and at most 1: it is a share", lambda v: 0 < v <= 1, "compress.target_value"),
    (
        "must be above 0 and at most 1: it is the share kept",
        lambda v: 0 < v <= 1,
        "compress.heads compress.ffn compress.synapses",
    ),
    ("must be above 0 and at most 1: it is the share kept", lambda v: 0 < v <= 1, "compress.spatial.operations"),
    ("must be at least 0 and below 1", lambda v: 0 <= v < 1, "teacher.dropout distill.replace_words"),
    ("must be at least 0 and below 100", lambda v: 0 <= v < 100, "student.dead_zone"),
    (
        "must be from 0 to 1",
        lambda v: 0 <= v <= 1,
        "stages.*.warmup compress.spatial.end compress.temporal.end compress.quantize.end",
    ),
    ("must not be empty", lambda v: v.strip() != "", "run.dir data.hub"),
    (
        "must not be empty; write null for no value",
        lambda v: v.strip() != "",
        "run.start_from data.dir teacher.checkpoint preset ablation",
    ),
)


def values(config: Config) -> Iterator[Problem]:
    stages = [name for name, _ in stage_rows(config)]
    for key, allowed in CHOICES.items():
        value = value_of(config, key)
        if value not in allowed and value is not None:
            yield (key,), f"{key} = {value}: choose from {nearest(value, allowed)}"
    for words, holds, keys in RANGES:
        for key in [k.replace("*", name) for k in keys.split() for name in (stages if "*" in k else [""])]:
            value = value_of(config, key)
            if value is not None and not holds(value):
                yield (key,), f"{key} = {value}: {words}"
    layers, t_steps = config.student.layers, config.student.t_steps
    if not (layers is None or is_int(layers, 1) or is_ints(layers, 0)):
        words = "a number of layers (at least 1), a list of teacher layers counted from 0, or null for all"
        yield ("student.layers",), f"student.layers = {layers}: must be {words}"
    if not (is_int(t_steps, 1) or is_ints(t_steps, 1)):
        words = "a whole number of at least 1, or a list of them (the embedding's, then each layer's)"
        yield ("student.t_steps",), f"student.t_steps = {t_steps}: must be {words}"
    elif max([t_steps] if isinstance(t_steps, int) else t_steps) > names.LONGEST:
        yield ("student.t_steps",), f"student.t_steps = {t_steps}: a train has at most {names.LONGEST} steps"
