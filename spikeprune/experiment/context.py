"""Data, tokenizer and architecture that all stages share, read and checked before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from spikeprune.config.derived import active_stages, least_neurons, runs, scratch_size, student_layers, without_features
from spikeprune.config.schema import Config, Stage
from spikeprune.config.tasks import CUSTOM, Task, get_task
from spikeprune.config.validation import fit
from spikeprune.data.batching import TaskData
from spikeprune.data.classes import class_weights
from spikeprune.data.glue import load_raw
from spikeprune.data.own import Columns, load_own
from spikeprune.data.raw import RawData
from spikeprune.data.tokenizer import check_vocabulary, load_tokenizer, train_wordpiece
from spikeprune.errors import InputError
from spikeprune.experiment import processes
from spikeprune.experiment.tracking import Tracker
from spikeprune.models.checkpoint_config import read_config
from spikeprune.models.families import longest_text, token_types
from spikeprune.models.other_architectures import encoder_config, gives_logits_alone, title_of
from spikeprune.models.teacher import scratch_config
from spikeprune.training.losses import uniform_layer_map

LOGITS_ALONE = (
    "The teacher ({}) teaches its logits alone, without the losses hidden and scores: the student starts from random "
    "weights and the teacher's embeddings, and the teacher's cost is counted as that of a BERT of its sizes."
)


@dataclass
class RunContext:
    """Data, tokenizer and architecture that all stages of a run share."""

    config: Config  # with the losses that the teacher can teach
    task: Task
    raw: RawData
    data: TaskData  # `raw` as tokens
    tokenizer: Any
    teacher_config: Any  # of transformers, of one of `families.FAMILIES`: the teacher's or its stand-in's
    layers: list[int]  # teacher layer that each student layer starts from and is distilled from
    class_weights: list[float] | None = None  # of the hard loss
    logits_alone: str = ""  # a sentence on a teacher of another architecture; empty for the family's
    left_out: str = ""  # a line on the losses that it cannot teach
    tracker: Tracker = field(default_factory=Tracker)

    def stage(self, name: str) -> Stage:
        """A stage with its batch size, and the epochs that it takes to reach its `steps` on these data."""
        stage = getattr(self.config.stages, name)
        size = stage.batch_size or self.config.data.batch_size
        per_epoch = math.ceil(len(self.raw.splits["train"].labels) / size)
        epochs = max(stage.epochs, math.ceil(stage.steps / per_epoch)) if stage.epochs else 0
        return replace(stage, epochs=epochs, batch_size=size)

    def active(self) -> list[str]:
        """The stages that run, in order."""
        return active_stages(self.config)


def prepare(config: Config, *, tokenizer_from: str | None = None, known: Task | None = None) -> RunContext:
    """Read data, vocabulary and the teacher's configuration. Raises InputError for what does not fit.

    `tokenizer_from`: directory of a finished run's teacher, whose vocabulary then stands in for a new one. `known`: the
    task of that run where it was made from the user's own data.
    """
    processes.use_threads(config.run)
    raw, data = read_data(config, generated=config.preset == "tiny", known=known), config.data
    task, train = raw.task, raw.splits["train"]
    texts = train.first + (train.second or [])
    notes = ("", "")
    if source := tokenizer_from or config.teacher.checkpoint:
        tokenizer, own = load_tokenizer(source), read_config(source, classes=task.num_labels)
        bert = encoder_config(own)
        if gives_logits_alone(own):
            asked, config = config, without_features(config)
            notes = LOGITS_ALONE.format(title_of(own)), left_out(asked, config)
    else:
        size, dropout = scratch_size(config), config.teacher.dropout
        tokenizer = train_wordpiece(texts, vocab_size=size["vocab"], max_length=data.max_length)
        bert = scratch_config(
            vocab=len(tokenizer),
            hidden=size["hidden"],
            layers=size["layers"],
            heads=size["heads"],
            ffn=size["ffn"],
            positions=data.max_length,
            dropout=0.1 if dropout is None else dropout,
            classes=task.num_labels,
        )
    check_vocabulary(tokenizer, texts)
    check_fit(config, bert, tokens=tokens_of(tokenizer), types=types_of(tokenizer, task))
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest_text(bert))  # saved with every stage
    layers = chosen_layers(config.student.layers, bert.num_hidden_layers)
    tokens = TaskData(
        raw=raw,
        tokenizer=tokenizer,
        max_length=data.max_length,
        batch_size=data.batch_size,
        eval_batch_size=data.eval_batch_size,
        seed=config.seed,
    )
    weights = class_weights(data.class_weights, task, train.labels)
    return RunContext(config, task, raw, tokens, tokenizer, bert, layers, weights, *notes)


def left_out(asked: Config, config: Config) -> str:
    """A line on the losses that were `asked` for and that the teacher of `config` cannot teach; empty where none is."""
    stages = active_stages(config)[1:]
    losses = {name: (getattr(asked.stages, name).losses, getattr(config.stages, name).losses) for name in stages}
    without = [name for name, (before, now) in losses.items() if before != now]
    instead = [name for name, (before, now) in losses.items() if before.soft != now.soft]
    soft = f"; soft takes their place in {', '.join(instead)}" if instead else ""
    return f"losses: hidden and scores are left out of {', '.join(without)}{soft}" if without else ""


def read_data(config: Config, *, generated: bool = False, known: Task | None = None) -> RawData:
    """The task's data. `generated`: where a hub's cannot be had, generated sentences may stand in for them. `known`:
    the task of a run on own data, whose classes are not inferred anew. Raises InputError for what is wrong with them.
    """
    data = config.data
    if config.task == CUSTOM:
        return load_own(
            train_file=data.train_file,
            dev_file=data.dev_file,
            hub=data.hub,
            columns=Columns(tuple(data.text), data.label),
            metrics=data.metrics,
            seed=config.seed,
            train_limit=data.train_limit,
            select=data.select,
            known=known,
        )
    return load_raw(
        task=get_task(config.task),
        source=data.source,
        directory=data.dir,
        hub=data.hub,
        seed=config.seed,
        train_limit=data.train_limit,
        embedded_train=data.embedded[0],
        embedded_dev=data.embedded[1],
        select=data.select,
        generated=generated,
    )


def tokens_of(tokenizer: Any) -> int:
    """Word embeddings that its ids need; a vocabulary with gaps needs more than it has tokens."""
    return max(tokenizer.get_vocab().values()) + 1


def types_of(tokenizer: Any, task: Task) -> int:
    """Token types that it marks the task's sentences with."""
    row = tokenizer("a", "b" if task.pair else None, return_token_type_ids=True)["token_type_ids"]
    return max(row) + 1


def check_fit(config: Config, bert: Any, *, tokens: int, types: int) -> None:
    """Check the configuration against the checkpoint's own; all problems in one InputError."""
    problems, total = [], bert.num_hidden_layers
    if tokens > bert.vocab_size:
        problems.append(
            f"teacher.checkpoint: its tokenizer's ids go up to {tokens - 1} but the model has only {bert.vocab_size} "
            "embeddings; give the checkpoint its own tokenizer's files"
        )
    if types > (known_types := token_types(bert)) > 0:  # without types the encoder reads none
        problems.append(
            f"teacher.checkpoint: its tokenizer marks the sentences of {config.task} with {types} token types but the "
            f"model has only {known_types} (type_vocab_size); use a checkpoint made for pairs of sentences"
        )
    if config.data.max_length > longest_text(bert):
        problems.append(f"data.max_length = {config.data.max_length}: the teacher has {longest_text(bert)} positions")
    problems += [text for _, text in fit(config, total)]
    spatial, count = config.stages.spatial, student_layers(config, total)
    least = {"heads": 1, "ffn": least_neurons(bert.intermediate_size)}
    widths = {"heads": bert.num_attention_heads, "ffn": bert.intermediate_size}
    for name, width in widths.items() if runs(config, "spatial") else ():
        share, floor = getattr(spatial, name), least[name]
        if share < 1 and round(share * width * count) < floor * count:
            problems.append(f"stages.spatial.{name} = {share}: keeps fewer than the least, {floor} of {width} a layer")
    if problems:
        raise InputError("\n".join(problems))


def chosen_layers(layers: Any, total: int) -> list[int]:
    """`student.layers` -> teacher layers to start from: all, n of them evenly spread and with the last, or those."""
    if layers is None:
        return list(range(total))
    return uniform_layer_map(layers, total) if isinstance(layers, int) else list(layers)
