"""SpikePrune: spiking language models made small in space and in time.

Public names are imported on first use, so that `import spikeprune` loads neither torch nor transformers. The first name
of a model also registers it with transformers' Auto classes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_MODULES = {
    "BudgetPruning": "spikeprune.training.callbacks.budget",
    "MaskSearch": "spikeprune.training.callbacks.mask_search",
    "SpatialPruning": "spikeprune.training.callbacks.spatial",
    "SpikingBert": "spikeprune.models.sequence_classification",
    "SpikingBertConfig": "spikeprune.models.sequence_classification",
    "SpikingBertForSequenceClassification": "spikeprune.models.sequence_classification",
    "SynapsePruning": "spikeprune.training.callbacks.synapses",
    "SynapticOperations": "spikeprune.training.operations",
    "TemporalPruning": "spikeprune.training.callbacks.temporal",
    "WeightQuantization": "spikeprune.training.callbacks.quantization",
    "compact": "spikeprune.models.compaction",
    "count_operations": "spikeprune.training.operations",
    "evaluate": "spikeprune.experiment.evaluation",
    "from_bert": "spikeprune.models.conversion",
    "load": "spikeprune.experiment.checkpoints",
    "predict": "spikeprune.experiment.prediction",
}
__all__ = ["__version__", "run", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'spikeprune' has no attribute {name!r}; it has {', '.join(_MODULES)}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def run(config: Any = (), *, experiment: str | Path | None = None, tracker: Any = None) -> dict[str, Any]:
    """Run an experiment as `spikeprune train` does, and return the content of its `summary.json`.

    Args:
        config: a resolved `Config`, or `key=value` strings such as `["task=mrpc", "preset=tiny"]`.
        experiment: the experiment file that the strings change; by default the glue.yaml that the package carries.
        tracker: an `experiment.tracking.Tracker`; by default Weights & Biases, as the key `run.wandb` sets it.

    Raises `errors.InputError` for bad input.

        >>> from spikeprune import run
        >>> run(["task=mrpc", "preset=tiny", "run.dir=runs/mrpc"])["final"]  # doctest: +SKIP
        'finetune'
    """
    from spikeprune.config.load import load
    from spikeprune.config.resources import experiment_file
    from spikeprune.config.schema import Config
    from spikeprune.experiment import pipeline
    from spikeprune.integrations.wandb.tracker import WandbTracker

    if not isinstance(config, Config):
        if isinstance(config, str) or not isinstance(config, Iterable):
            raise TypeError(f"config must be a Config or a list of key=value, not {config!r}")
        config = load(experiment_file(experiment), config)
    return pipeline.run(config, tracker=tracker or WandbTracker())
