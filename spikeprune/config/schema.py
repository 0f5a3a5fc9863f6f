"""Every key of a configuration: its type, default, allowed values and one line of help.

`load.py` fills the keys from files and arguments, `validation.py` checks how they go together, and the page
docs/configuration.md is generated from here. A key may be null where its type says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from spikeprune.config import names
from spikeprune.config.tasks import CUSTOM, TASKS

Check = tuple[str, Callable[[Any], bool]]  # a range in words, and its test

AT_LEAST_0: Check = ("must be at least 0", lambda v: v >= 0)
AT_LEAST_1: Check = ("must be at least 1", lambda v: v >= 1)
ABOVE_0: Check = ("must be above 0", lambda v: v > 0)
SHARE: Check = ("must be from 0 to 1", lambda v: 0 <= v <= 1)
SHARE_BELOW_1: Check = ("must be at least 0 and below 1", lambda v: 0 <= v < 1)
KEPT: Check = ("must be above 0 and at most 1: it is the share kept", lambda v: 0 < v <= 1)
NO_TEXT: Check = ("must not be empty; write null for no value", lambda v: v.strip() != "")
NOT_EMPTY: Check = ("must not be empty", lambda v: v.strip() != "")


def key(default: Any, text: str, *, choices: tuple[str, ...] = (), check: Check | None = None) -> Any:
    """A field with its help; `choices` for names, `check` for ranges. A list default is copied for each instance."""
    facts = {"help": text, "choices": choices, "check": check}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=facts)
    return field(default=default, metadata=facts)


def section(make: Callable[[], Any]) -> Any:
    return field(default_factory=make)


@dataclass
class Run:
    """Where and how a run executes. Devices, num_nodes, accelerator, precision and deterministic change numbers."""

    dir: str = key("runs/${task}-${preset}-s${seed}", "directory of the run", check=NOT_EMPTY)
    start_from: str | None = key(
        None, "a run whose finished stages are reused where their settings are equal", check=NO_TEXT
    )
    accelerator: str = key("auto", "device", choices=("auto", "cpu", "gpu"))
    devices: int = key(1, "processes per node, one per device; they share each training batch", check=AT_LEAST_1)
    num_nodes: int = key(1, "nodes", check=AT_LEAST_1)
    precision: str = key(
        "32-true",
        "of training, in Lightning's names or tf32; measured in 32-true (64-true: in this)",
        choices=names.PRECISIONS,
    )
    kernels: str = key(
        "auto", "Triton kernels and CUDA graphs on a GPU, or plain PyTorch", choices=("auto", "torch", "triton")
    )
    deterministic: bool = key(False, "the same bits again on one GPU, by slower algorithms; on the CPU it is always so")
    validate_every: int = key(1, "epochs between validations", check=AT_LEAST_1)
    log_every: int = key(20, "optimizer steps between logged training records", check=AT_LEAST_1)
    checkpoint_every: int | None = key(
        None, "optimizer steps between resume checkpoints; null: every epoch", check=AT_LEAST_1
    )
    wandb: str = key(
        "off", "Weights & Biases; auto: online with a key and a reachable server", choices=names.WANDB_MODES
    )
    tensorboard: bool = key(False, "also log to TensorBoard, in the run's tensorboard/")


@dataclass
class Data:
    source: str = key("auto", "auto: the file or dir that is set, else hub", choices=("auto", "hub", "dir", "embedded"))
    dir: str | None = key(None, "a GLUE directory in the original TSV layout", check=NO_TEXT)
    hub: str = key(
        "nyu-mll/glue",
        "data set on the Hugging Face hub; task custom: owner/name[:config]",
        check=NOT_EMPTY,
    )
    train_file: str | None = key(
        None, "task custom: training examples in CSV, TSV, JSON lines or parquet", check=NO_TEXT
    )
    dev_file: str | None = key(
        None, "task custom: the dev split; null: a tenth of the training examples, cut off by seed", check=NO_TEXT
    )
    text: list[str] = key([], "task custom: the column of the text, or the two of a pair")
    label: str | None = key(None, "task custom: the column of the labels", check=NO_TEXT)
    metrics: list[str] = key(
        [], "task custom: the first is the main one; []: accuracy, macro_f1, or of numbers pearson, spearman"
    )
    class_weights: Any = key("none", "of the classes in the hard loss: none, balanced, or a list in their order")
    max_length: int = key(
        128,
        "tokens, special ones included",
        check=("must be at least 8: two sentences and three special tokens", lambda v: v >= 8),
    )
    batch_size: int = key(32, "examples per optimizer step, over all devices", check=AT_LEAST_1)
    eval_batch_size: int = key(64, "examples per batch of an evaluation", check=AT_LEAST_1)
    select: float = key(
        0.0, "share of the training examples held out by seed and scored in place of dev; 0: dev", check=SHARE_BELOW_1
    )
    train_limit: int | None = key(None, "training examples used, by seeded shuffle; null: all", check=AT_LEAST_1)
    embedded: list[int] = key([4000, 500], "training and dev examples that are generated, source embedded")
    replace_words: float = key(
        0.0, "largest share of a training sentence's words replaced by other ones of its batch", check=SHARE_BELOW_1
    )
    corpus: list[str] = key([], "text files, or one hub corpus, of the stage general_kd")


@dataclass
class Teacher:
    checkpoint: str | None = key(
        None,
        "hub name or directory: BERT, RoBERTa, MPNet, ELECTRA; others teach logits alone; null: a small one, random",
        check=NO_TEXT,
    )
    size: list[int] = key(
        [128, 2, 4, 512, 4000],
        "channels, layers, heads, feed-forward neurons, WordPiece vocabulary of a teacher from random weights",
        check=("must be five numbers of at least 1", lambda v: len(v) == 5 and min(v) >= 1),
    )
    dropout: float | None = key(None, "null: the checkpoint's, or 0.1", check=SHARE_BELOW_1)


@dataclass
class Student:
    layers: Any = key(None, "null: all of the teacher's; n: n evenly spread; [i, …]: these, from 0")
    spikes: str = key(
        "ternary",
        "spike set; ternary_scaled: threshold follows the input; dense: real activations",
        choices=(*names.NEURONS, names.DENSE),
    )
    leak: float = key(1.0, "γ: 1 IF, below 1 LIF", check=("must be above 0 and at most 1", lambda v: 0 < v <= 1))
    theta: str = key("channel", "one threshold per channel or per layer", choices=("channel", "tensor"))
    coding: str = key("accumulate", "what a non-linear step between spike trains reads", choices=names.CODINGS)
    forward: str = key("equilibrium", "training forward; per_step needs spiking", choices=("equilibrium", "spiking"))
    query: str = key("real", "attention query: a current or spikes", choices=("real", "spiking"))
    pooling: str = key("mean", "of the last layer, for the classifier", choices=("mean", "cls"))
    residual: str = key("spikes", "what a residual connection carries", choices=("spikes", "membrane"))
    t_steps: Any = key(4, "T: a number, or one for the embedding and each layer (L+1)")
    calibration: int = key(128, "training sentences that thresholds are calibrated on", check=AT_LEAST_1)
    feedback: bool = key(False, "SpikingBERT's connection from the last layer to the first")
    dead_zone: float = key(
        0.0,
        "percentage of each channel's smallest currents that count as none",
        check=("must be at least 0 and below 100", lambda v: 0 <= v < 100),
    )


@dataclass
class Losses:
    """Weights of the loss terms; zero leaves a term out."""

    hidden: float = key(0.0, "squared error of the hidden states over the teacher's squared norm", check=AT_LEAST_0)
    scores: float = key(0.0, "squared error of the attention scores to the teacher's", check=AT_LEAST_0)
    soft: float = key(0.0, "divergence from the teacher's softened output", check=AT_LEAST_0)
    hard: float = key(0.0, "task loss on true labels", check=AT_LEAST_0)
    additions: float = key(0.0, "expected additions over the dense student's multiplications", check=AT_LEAST_0)
    additions_limit: float | None = key(
        None, "additions are penalized above this share; in spatial reached gradually; null: 0", check=AT_LEAST_0
    )
    temperature: float = key(2.0, "of the soft term", check=ABOVE_0)


@dataclass
class Stage:
    """One `Trainer.fit`; 0 epochs leave the stage out."""

    epochs: int = key(0, "fewest epochs; 0: the stage is left out", check=AT_LEAST_0)
    steps: int = key(0, "fewest optimizer steps: epochs are added until they are reached", check=AT_LEAST_0)
    lr: float = key(1.0e-4, "learning rate of the weights", check=ABOVE_0)
    theta_lr: float = key(1.0e-2, "learning rate of the thresholds' logarithms", check=AT_LEAST_0)
    batch_size: int | None = key(None, "null: data.batch_size", check=AT_LEAST_1)
    losses: Losses = section(Losses)


@dataclass
class Compression(Stage):
    """A stage that compresses between its epochs."""

    end: float = key(0.5, "share of the epochs at which its target is reached; the rest recovers", check=SHARE)


@dataclass
class Spatial(Compression):
    heads: float = key(1.0, "share of attention heads kept", check=KEPT)
    ffn: float = key(1.0, "share of feed-forward neurons kept", check=KEPT)
    synapses: float = key(1.0, "share of the synapses between kept units kept; float weights only", check=KEPT)
    block: int = key(1, "neighbouring outputs whose synapses to one input stay or leave together", check=AT_LEAST_1)
    criterion: str = key("fisher", "importance of a unit; kwon: masks at once", choices=names.SPATIAL_CRITERIA)
    operations: float | None = key(None, "kwon: share kept of the operations of heads and neurons", check=KEPT)
    scope: str = key("global", "rank over all layers or within each", choices=("global", "layer"))


@dataclass
class Temporal(Compression):
    t_steps: int | None = key(None, "mean T over the layers at the end; null: unchanged", check=AT_LEAST_1)
    criterion: str = key("convergence", "which layers lose steps", choices=names.TEMPORAL_CRITERIA)


@dataclass
class Quantize(Compression):
    weights: str = key("float", "of the encoder: binary 1 bit, ternary 1.58, int8", choices=names.WEIGHTS)
    fold: bool = key(False, "fold thresholds into the weights before quantizing")
    embeddings: str = key("float", "of the word table: bits of a number, with a scale a word", choices=names.TABLES)


@dataclass
class Budget(Compression):
    target: str = key("energy", "what the budget limits", choices=names.TARGETS)
    value: float | None = key(
        None,
        "share of the dense teacher's; equal_bits: of the same network's, computed densely; latency: uncompressed",
        check=KEPT,
    )
    candidates: list[str] = key(["heads", "ffn", "steps"], "what may be removed")


def distillation(kind: type = Stage, **weights: float) -> Any:
    return section(lambda: kind(losses=Losses(**weights)))


@dataclass
class Stages:
    """In the order in which they run."""

    teacher: Stage = distillation(hard=1.0)
    general_kd: Stage = distillation(hidden=1.0, scores=1.0)
    internal_kd: Stage = distillation(hidden=1.0, scores=1.0)
    prediction_kd: Stage = distillation(soft=1.0, hidden=1.0)
    spatial: Spatial = distillation(Spatial, soft=1.0, hidden=1.0)
    temporal: Temporal = distillation(Temporal, soft=1.0, hidden=1.0)
    quantize: Quantize = distillation(Quantize, soft=1.0, hidden=1.0)
    budget: Budget = distillation(Budget, soft=1.0, hidden=1.0)
    finetune: Stage = distillation(soft=1.0, hidden=1.0)


@dataclass
class Cost:
    model: str = key("convention", "energy model that tables and budgets lead with", choices=names.ENERGY_MODELS)


@dataclass
class Config:
    task: str = key("mrpc", "GLUE task, or custom: the user's own data", choices=(*TASKS, CUSTOM))
    preset: str | None = key(None, "a file of presets/", check=NO_TEXT)
    ablation: str | None = key(None, "a file of ablations/, read after the preset", check=NO_TEXT)
    seed: int = key(
        0, "of data, weights and decisions", check=("must be from 0 to 4294967295", lambda v: 0 <= v < 2**32)
    )
    run: Run = section(Run)
    data: Data = section(Data)
    teacher: Teacher = section(Teacher)
    student: Student = section(Student)
    stages: Stages = section(Stages)
    cost: Cost = section(Cost)
