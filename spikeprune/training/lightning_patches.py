"""What this package changes inside Lightning, because there is no public way. Written against Lightning 2.6.6; each
entry says why it is needed and what fails when Lightning changes there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L

# The state of a validation that is under way, before its first batch has been processed.
_BEGUN = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


def without_sigterm_broadcast(trainer: L.Trainer) -> L.Trainer:
    """The trainer without the broadcast, before every batch, of whether rank 0 has received SIGTERM.

    Why: each process waits for the answer until its GPU is idle, which halves the speed of short steps. `StopOnSignal`
    asks instead, of all ranks, at every tenth batch. Lightning has no switch for it (`_TrainingEpochLoop.advance`).
    Fails: tests/test_ddp.py, whose runs end where Lightning broadcasts.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


@contextmanager
def ctrl_c(trainer: L.Trainer) -> Iterator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt, as everywhere else.

    Why: a Trainer that fits or validates turns it into SystemExit, code 1, and says nothing.
    Fails: tests/test_resume.py and tests/test_preempt.py, which interrupt both.
    """
    try:
        yield
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def log_steps_early(trainer: L.Trainer) -> None:
    """From now on Lightning logs no training step: whoever calls this calls `log_step` at the end of each batch.

    Why: Lightning logs a step when all callbacks have seen its batch, and one of them writes the checkpoint. A kill
    between the two would lose the step's record, since who resumes begins behind it.
    Fails: tests/test_resume.py, which kills there and compares what was logged.
    """
    trainer._logger_connector.update_train_step_metrics = lambda: None


def log_step(trainer: L.Trainer) -> None:
    """Log the batch that ends, if its step is one to be logged."""
    type(trainer._logger_connector).update_train_step_metrics(trainer._logger_connector)


def begin_validation_again(checkpoint: dict[str, Any]) -> None:
    """Changes a checkpoint that was written in the middle of a validation: who resumes it begins the validation again.

    Why: Lightning would resume in its middle, where the metrics of the first batches are lost, and its loops have no
    public way to say "from the start".
    Fails: KeyError here, and tests/test_preempt.py, which compares the resumed run with an undisturbed one.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
    progress.update(total=dict(_BEGUN), current=dict(_BEGUN), is_last_batch=False)
