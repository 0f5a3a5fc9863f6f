"""A run's `compact/`: a student without its pruned heads and neurons, its logits compared with the masked student's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spikeprune.config.load import read_resolved
from spikeprune.errors import InputError
from spikeprune.experiment.checkpoints import load_student, write_student
from spikeprune.experiment.context import RunContext
from spikeprune.experiment.evaluation import reopen, untrained_changes
from spikeprune.experiment.run_directory import WEIGHTS, sums
from spikeprune.files.atomic import write_sealed
from spikeprune.models.compaction import as_float, compact
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.models.serialization import file_tensors, nbytes, parameter_count

SENTENCES = 8  # of the dev split, on which compacted and masked logits must agree
TOLERANCE = 1e-9  # of a logit in float64


def compact_run(
    run_dir: str | Path, stage: str | None = None, data_dir: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a finished stage's student (the last one's, unless `stage` names another) without what its masks prune to
    the run's `compact/`, with its tokenizer, and return the record. `data_dir` and `overrides` as in `evaluate`."""
    directory, context = reopen(run_dir, data_dir, overrides)
    name = stage or directory.last_student()
    source = directory.record(name)["weights"]
    if name == "teacher":
        raise InputError(f"{run_dir}: the teacher has nothing to compact; name a stage of the student")
    masked = untrained_changes(load_student(directory, name), context, read_resolved(directory.config))
    small = compact(masked)
    checked = compare_logits(masked, small, context)
    folder = directory.compact
    folder.mkdir(exist_ok=True)
    (folder / "record.json").unlink(missing_ok=True)  # written last, so removed first
    tensors = file_tensors(small)
    weights = write_student(folder, small, tensors, context.tokenizer)
    files = {"bytes": folder / WEIGHTS, "masked_bytes": directory.stage(name) / WEIGHTS}
    facts = {
        "parent": {"stage": name, "weights": source},
        "changed": list(overrides),
        "weights": weights,
        "files": sums(folder),
        "t_steps": small.steps,
        **{key: {"kept": small.values[f"layer_{key}"], "of": small.values[key]} for key in ("heads", "ffn")},
        "encoder": {"weights": small.weights, "packed": small.packed, "bits": small.stored_bits},
        "params": parameter_count(small),
        "masked_params": parameter_count(masked),
        **{key: path.stat().st_size for key, path in files.items()},
        "tensor_bytes": nbytes(tensors),  # the rest of the file is its header
        "check": checked,
    }
    write_sealed(folder / "record.json", facts)
    return {"run": str(run_dir), **facts}


@torch.no_grad()
def compare_logits(masked: SpikingBert, small: SpikingBert, context: RunContext) -> dict[str, Any]:
    """The largest difference of two students' logits on a few dev sentences, spikes simulated step by step.

    In float64: in float32 a current within rounding of its threshold may fire in one of the two and not in the other.
    Quantized matrices enter as their float32 values; quantized again in float64 they would differ.
    Raises InputError where they are not finite, and RuntimeError where they differ, which is a fault of the program.
    """
    data = context.data.val_dataloader()[0].data
    batch = data.batch(range(min(SENTENCES, len(data))))
    inputs = [batch[name] for name in INPUTS]
    one, other = (as_float(s).double().eval()(*inputs, mode="spiking").logits for s in (masked, small))
    if not one.isfinite().all():
        raise InputError(
            "the stage's logits are not finite: its weights are damaged; remove the stage and train it again"
        )
    difference = (one - other).abs().max().item()
    if not difference <= TOLERANCE:
        raise RuntimeError(f"compaction changed a logit by {difference:.3g}")
    return {"sentences": len(one), "dtype": "float64", "max_difference": difference}
