"""SpikePrune: spiking language models made small in space and in time.

Public names are imported on first use, so that `import spikeprune` loads neither torch nor transformers. The first name
of a model also registers it with transformers' Auto classes.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_MODULES = {
    "BudgetPruning": "spikeprune.training.callbacks.budget",
    "MaskSearch": "spikeprune.training.callbacks.search",
    "SpatialPruning": "spikeprune.training.callbacks.spatial",
    "SpikingBert": "spikeprune.models.sequence_classification",
    "SpikingBertConfig": "spikeprune.models.sequence_classification",
    "SpikingBertForSequenceClassification": "spikeprune.models.sequence_classification",
    "SynapsePruning": "spikeprune.training.callbacks.synapses",
    "SynapticOperations": "spikeprune.training.operations",
    "TemporalPruning": "spikeprune.training.callbacks.temporal",
    "WeightQuantization": "spikeprune.training.callbacks.quantize",
    "compact": "spikeprune.models.compaction",
    "count_operations": "spikeprune.training.operations",
    "from_bert": "spikeprune.models.conversion",
    "load": "spikeprune.experiment.checkpoints",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'spikeprune' has no attribute {name!r}; it has {', '.join(_MODULES)}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
