"""SpikePrune: spiking language models made small in space and in time.

Public names are imported when they are first used, so that `import spikeprune` itself loads neither torch nor
transformers. The first name of a model also registers it with transformers' Auto classes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

PUBLIC = {  # name -> the module that defines it
    "SpikingBert": "spikeprune.models.sequence_classification",
    "SpikingBertConfig": "spikeprune.models.sequence_classification",
    "SpikingBertForSequenceClassification": "spikeprune.models.sequence_classification",
    "compact": "spikeprune.models.compaction",
    "load": "spikeprune.experiment.checkpoints",
}
__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'spikeprune' has no attribute {name!r}; it has {', '.join(PUBLIC)}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
