"""The names that an experiment may choose by. The packages above own what they stand for; tests hold the two equal."""

from __future__ import annotations

SPATIAL_CRITERIA = ("magnitude", "rate", "taylor", "fisher", "random", "kwon")
TEMPORAL_CRITERIA = ("uniform", "convergence", "sensitivity")
NEURONS = ("binary", "ternary", "ternary_scaled")
DENSE = "dense"  # real activations in place of spikes
CODINGS = ("accumulate", "running_mean", "per_step")
NOT_CONVERGING = ("per_step",)  # codings that have another equilibrium than the formula, and are trained by simulation
WEIGHTS = ("float", "binary", "ternary", "int8")
TARGETS = ("ac", "energy", "equal_bits", "latency")
CANDIDATES = ("heads", "ffn", "steps")
ENERGY_MODELS = ("convention", "fp32", "fp16", "int32", "int8", "memory", "stationary", "spikingjelly")
WIDEST_ACTIVATION = {"int8": 8, "fp16": 12}  # bits of the widest one that these models have figures for
PRECISIONS = ("32-true", "tf32", "bf16-mixed", "16-mixed", "64-true")
WANDB_MODES = ("off", "auto", "online", "offline")
LONGEST = 4096  # time steps of a spike train
TABLES = ("float", "int8", "int4", "ternary")
EXPORTS = ("hf", "onnx", "c")
RUNTIMES = ("torch", "c")  # of predictions
