"""SpikePrune: spiking language models made small in space and in time.

`import spikeprune` is light: a public name is imported from its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

EXPORTS = {
    "BudgetPruning": "spikeprune.training.callbacks.joint",
    "MaskSearch": "spikeprune.training.callbacks.search",
    "SpatialPruning": "spikeprune.training.callbacks.spatial",
    "SynapsePruning": "spikeprune.training.callbacks.synapses",
    "TemporalPruning": "spikeprune.training.callbacks.temporal",
    "WeightQuantization": "spikeprune.training.callbacks.quantize",
    "SynapticOperations": "spikeprune.training.operations",
    "count_operations": "spikeprune.training.operations",
    "compact": "spikeprune.models.compaction",
    "from_bert": "spikeprune.models.conversion",
}
__all__ = ["__version__", *EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS})
