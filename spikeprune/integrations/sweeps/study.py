"""Optuna in a local sweep: its storage, its samplers, and a trial's values."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import Trial

from spikeprune.errors import InputError
from spikeprune.files import jsonfile
from spikeprune.integrations.sweeps.form import Parameter
from spikeprune.integrations.sweeps.spec import Sweep

NAME = "sweep"  # of the study, the only one in its storage


def open_study(sweep: Sweep, folder: Path) -> tuple[Study, JournalStorage]:
    """The study of a folder, and its storage."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.NopPruner()
    if sweep.rungs:
        first, factor = sweep.rungs
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor)
    journal = folder / "journal.log"
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(
            storage=storage, study_name=NAME, direction=sweep.goal, pruner=pruner, load_if_exists=True
        )
    except (ValueError, KeyError) as error:
        raise InputError(f"{journal}: is damaged ({error}); remove {folder} to begin the sweep again") from None
    if sweep.method == "grid" and not study.user_attrs.get("grid"):
        for values in sweep.grid():
            study.enqueue_trial({key: _spelt(value) for key, value in values.items()}, skip_if_exists=True)
        study.set_user_attr("grid", True)
    return study, storage


def begun_trial(study: Study, storage: JournalStorage, number: int) -> Trial:
    """A trial of an earlier start, to report on."""
    of_study = storage.get_study_id_from_name(NAME)
    return Trial(study, storage.get_trial_id_from_study_id_trial_number(of_study, number))


def draw(trial: Trial, sweep: Sweep) -> dict[str, Any]:
    """A trial's values. Each has a sampler of its own, seeded by trial and key: a draw that was interrupted is
    completed as it would have been, and later trials do not repeat the values of an earlier start."""
    values = {}
    for parameter in sweep.parameters:
        seed = zlib.crc32(f"{trial.number} {parameter.key}".encode())
        trial.study.sampler = TPESampler(seed=seed) if sweep.method == "bayes" else RandomSampler(seed=seed)
        values[parameter.key] = suggest(trial, parameter)
    return values


def suggest(trial: Trial, parameter: Parameter) -> Any:
    """A trial's value; one that it has already comes back."""
    p = parameter
    if p.values:
        return jsonfile.loads(trial.suggest_categorical(p.key, [_spelt(value) for value in p.values]))
    if p.distribution == "int_uniform":
        return trial.suggest_int(p.key, int(p.low), int(p.high))
    if p.distribution == "q_uniform":
        return trial.suggest_float(p.key, p.low, p.high, step=p.q)
    return trial.suggest_float(p.key, p.low, p.high, log=p.distribution == "log_uniform_values")


def _spelt(value: Any) -> str:
    """Optuna's categories are plain values; a list such as t_steps is none."""
    return jsonfile.dumps(value)
