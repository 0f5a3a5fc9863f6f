"""The names that an experiment may choose by. Rooms above own their functions; tests hold the registries to these."""

from __future__ import annotations

SPATIAL_CRITERIA = ("magnitude", "rate", "taylor", "fisher", "random")
TEMPORAL_CRITERIA = ("uniform", "convergence", "sensitivity")
CALLBACKS = ("spatial", "temporal", "quantize", "joint")
NEURONS = ("binary", "ternary", "ternary_scaled")
CODINGS = ("accumulate", "running_mean", "per_step")
WEIGHTS = ("float", "binary", "ternary", "int8")
TARGETS = ("ac", "energy", "latency")
CANDIDATES = ("heads", "ffn", "steps")  # of a joint budget
LONGEST = 4096  # time steps of a train
PRICES = ("fp32", "fp16", "int32", "int8")
