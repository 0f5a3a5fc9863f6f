"""The keys of a configuration, their types and defaults; `config/load.py` fills them, `checks/` judges the values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Run:
    """Where and how a run executes; nothing here may change what a step computes, except `precision` and, by the order
    of a sum, `kernels` and `cuda_graphs`."""

    dir: str = "runs/${task}-${preset}-s${seed}"
    start_from: str | None = None  # a run whose finished stages are taken over, as far as the settings are the same
    stages: list[str] = field(
        default_factory=lambda: [
            "teacher",
            "general_kd",
            "internal_kd",
            "prediction_kd",
            "spatial",
            "temporal",
            "quantize",
            "finetune",
        ]
    )  # order of the stages; a stage of zero epochs is skipped. Not among them: joint, which needs compress.target
    accelerator: str = "auto"  # auto | cpu | gpu
    devices: int = 1  # processes a node, one a GPU (or CPU); the batch sizes of training are those of all together
    num_nodes: int = 1
    precision: str = "32-true"  # 32-true | tf32 | bf16-mixed | 16-mixed (a GPU) | 64-true; what is reported: 32-true
    kernels: str = "auto"  # of the spiking sites: auto (triton where it applies) | torch | triton
    cuda_graphs: str = (
        "auto"  # replay training steps from CUDA graphs: auto (on a GPU) | on (evaluations as well) | off
    )
    threads: int | None = None  # CPU threads of torch; null: as many as this process may use
    validate_every: int = 1  # epochs between two validations; each stage is measured at its end anyway
    log_every: int = 20  # optimizer steps between two training records
    checkpoint_every: int | None = None  # optimizer steps between resume checkpoints; null: each epoch
    wandb: str = "off"  # off | auto (online with a key and a server that answers, else offline) | online | offline
    wandb_artifact: bool = False  # store the compressed student as an artifact


@dataclass
class Data:
    source: str = "auto"  # auto | hub | dir | embedded
    dir: str | None = None  # a GLUE directory in the original TSV layout
    hub: str = "nyu-mll/glue"
    max_length: int = 128  # tokens, [CLS] and [SEP] included
    batch_size: int = 32
    eval_batch_size: int = 64
    train_limit: int | None = None  # first examples of a seeded shuffle; null: all
    embedded_train: int = 4000
    embedded_dev: int = 500
    corpus: list[str] = field(default_factory=list)  # text files (or one hub corpus) of the general_kd stage
    corpus_limit: int | None = None  # paragraphs read from the corpus; null: all


@dataclass
class Teacher:
    checkpoint: str | None = None  # a hub name or directory of a BERT; null: built small from scratch
    hidden: int = 128  # the next four describe the teacher from scratch only
    layers: int = 2
    heads: int = 4
    ffn: int = 512
    vocab_size: int = 4000
    dropout: float | None = None  # null: as the checkpoint's configuration says, 0.1 from scratch


@dataclass
class Student:
    layers: Any = None  # null: all of the teacher's; n: n of them, evenly chosen; [i, …]: these, counted from 0
    init: str = "teacher"  # teacher | random
    spikes: str = "ternary"  # binary {0,1} | ternary {-1,0,1} | ternary_scaled, theta follows the token's input
    leak: float = 1.0  # 1: IF, below 1: LIF
    theta: str = "channel"  # one threshold per channel | tensor
    coding: str = "accumulate"  # accumulate | running_mean | per_step
    forward: str = "equilibrium"  # training forward: equilibrium | spiking
    query: str = "real"  # real | spiking
    pooling: str = "mean"  # mean | cls
    residual: str = "spikes"  # what goes past a block: spikes | membrane, the currents of the neurons that send them
    t_steps: Any = 4  # time steps: a number, or one for the embedding and each layer (L+1 numbers)
    calibration: int = 128  # sentences that theta is calibrated on, at the 99th percentile of each channel
    feedback: bool = False  # connect the last layer back to the first; not with accumulate
    dead_zone: float = 0.0  # share in % of each channel's smallest currents (calibration data) that count as none


@dataclass
class Losses:
    """Weights of the loss terms of a stage, of which zero leaves a term out; the last four say how they are formed."""

    hidden: float = 0.0  # mean squared error of the mapped hidden states
    scores: float = 0.0  # mean squared error of the mapped attention scores
    soft: float = 0.0  # Kullback-Leibler divergence to the teacher's softened answer (regression: squared error)
    hard: float = 0.0  # the task's own loss on true labels
    firing: float = 0.0  # mean firing rate over all spiking sites, each site alike
    additions: float = 0.0  # the firing priced by its fan-out: additions over the dense student's multiplications
    additions_limit: float | None = None  # … as far as above this; null: 0, with joint what keeps to its target
    additions_from: float = 0.0  # a limit that begins here and falls, by equal factors, to additions_limit; 0: constant
    additions_fall: float = 0.5  # … over this share of the stage's steps
    temperature: float = 2.0  # of the soft term


@dataclass
class Stage:
    """One `Trainer.fit`."""

    epochs: int = 0
    lr: float = 1.0e-4
    theta_lr: float = 1.0e-2  # of log(theta): a relative step
    warmup: float = 0.1  # share of the steps with a rising learning rate; then it falls linearly to zero
    weight_decay: float = 0.01
    batch_size: int | None = None  # null: data.batch_size
    losses: Losses = field(default_factory=Losses)
    callbacks: list[str] = field(default_factory=list)  # spatial | temporal | quantize | joint, acting in this stage


@dataclass
class Stages:
    teacher: Stage = field(default_factory=lambda: Stage(losses=Losses(hard=1.0)))
    general_kd: Stage = field(default_factory=lambda: Stage(losses=Losses(hidden=1.0, scores=1.0)))
    internal_kd: Stage = field(default_factory=lambda: Stage(losses=Losses(hidden=1.0, scores=1.0)))
    prediction_kd: Stage = field(default_factory=lambda: Stage(losses=Losses(soft=1.0, hidden=1.0)))
    spatial: Stage = field(default_factory=lambda: Stage(losses=Losses(soft=1.0, hidden=1.0), callbacks=["spatial"]))
    temporal: Stage = field(default_factory=lambda: Stage(losses=Losses(soft=1.0, hidden=1.0), callbacks=["temporal"]))
    quantize: Stage = field(default_factory=lambda: Stage(losses=Losses(soft=1.0, hidden=1.0), callbacks=["quantize"]))
    joint: Stage = field(default_factory=lambda: Stage(losses=Losses(soft=1.0, hidden=1.0), callbacks=["joint"]))
    finetune: Stage = field(default_factory=lambda: Stage(losses=Losses(soft=1.0, hidden=1.0)))


@dataclass
class Spatial:
    # a name in config/validation/names.py, SPATIAL_CRITERIA | kwon: masks at once, for a share of operations
    criterion: str = "fisher"
    operations: float | None = None  # kwon: share kept of the operations that heads and neurons cost
    end: float = 0.5  # share of the stage's epochs at which the target is reached; the rest of the stage recovers
    scope: str = "global"  # rank over all layers (global) or in each layer (layer)
    min_heads: int = 1  # heads kept in every layer
    min_ffn: int = 8  # feed-forward neurons kept in every layer


@dataclass
class Temporal:
    criterion: str = "convergence"  # a name in config/validation/names.py, TEMPORAL_CRITERIA
    end: float = 0.5


@dataclass
class Quantize:
    end: float = 0.5  # share of the stage's epochs at which weights are quantized; the rest trains what they are then
    fold: bool = False  # thresholds per channel are multiplied into the weights that read them before quantizing


@dataclass
class Joint:
    """How the budget of `compress.target` is met; the floors are those of `compress.spatial`."""

    candidates: list[str] = field(default_factory=lambda: ["heads", "ffn", "steps"])  # what may leave


@dataclass
class Compress:
    heads: float = 1.0  # share of attention heads kept, over all layers
    ffn: float = 1.0  # share of feed-forward neurons kept
    synapses: float = 1.0  # share of the synapses between them kept, in each matrix; float weights
    t_steps: int | None = None  # time steps at the end, mean over layers; null: unchanged
    weights: str = "float"  # of the encoder's matrices at the end: float | binary (1 bit) | ternary (1.58 bits) | int8
    target: str | None = None  # a joint budget of: ac | energy | latency; null: none
    target_value: float | None = None  # its share at the end, such as 0.02
    target_of: str = "dense"  # … of what the dense teacher has (its MACs for ac), or the uncompressed student: student
    spatial: Spatial = field(default_factory=Spatial)
    temporal: Temporal = field(default_factory=Temporal)
    quantize: Quantize = field(default_factory=Quantize)
    joint: Joint = field(default_factory=Joint)


@dataclass
class Distill:
    # most of a training sentence's words that give way to words of the batch; the teacher answers what is left anew
    replace_words: float = 0.0
    layer_map: list[int] | None = None  # teacher layer (from 0) for each student layer; null: that of student.layers


@dataclass
class Time:
    # early answers, measured beside the network's own in `evaluate` and after each stage, when a sample is settled by:
    # none | asr, spiking rates change by less than a bound | confidence, the answer's probability is above a bound
    early_exit: str = "none"


@dataclass
class Cost:
    prices: str = "fp32"  # a name in cost.PRICES: energy of one AC and one MAC


@dataclass
class Config:
    task: str = "mrpc"
    preset: str | None = None
    ablation: str | None = (
        None  # which parts of the compression: a file of experiments/ablations, read after the preset
    )
    seed: int = 0  # 0 to 4294967295
    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    teacher: Teacher = field(default_factory=Teacher)
    student: Student = field(default_factory=Student)
    distill: Distill = field(default_factory=Distill)
    stages: Stages = field(default_factory=Stages)
    compress: Compress = field(default_factory=Compress)
    time: Time = field(default_factory=Time)
    cost: Cost = field(default_factory=Cost)
