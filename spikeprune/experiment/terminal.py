"""Terminal output of a run: progress bars, this package's own lines, warnings that matter."""

from __future__ import annotations

import logging
import sys
import warnings
from contextlib import redirect_stdout

from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_only


class Bars(TQDMProgressBar):
    """Progress bars on stderr: stdout is for a command's result."""

    def init_train_tqdm(self) -> Tqdm:
        with redirect_stdout(sys.stderr):
            return super().init_train_tqdm()

    def init_validation_tqdm(self) -> Tqdm:
        with redirect_stdout(sys.stderr):
            return super().init_validation_tqdm()


def bars() -> list[Bars]:
    """Progress bars where stderr is a terminal."""
    return [Bars(refresh_rate=10, leave=True)] if sys.stderr.isatty() else []


@rank_zero_only
def print_once(line: str) -> None:
    print(line, flush=True)


def quiet() -> None:
    """Silence routine messages of Lightning and transformers."""
    from transformers.utils import logging as transformers_logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for message in (".*in eval mode at the start of training.*", ".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message)  # the teacher is frozen; data are in memory; Lightning's own
    warnings.filterwarnings("ignore", ".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*logging on epoch level in distributed.*")  # all processes log the same
    warnings.filterwarnings("ignore", ".*have no `val_dataloader`.*")  # general_kd's text has no labels
    warnings.filterwarnings("ignore", ".*AccumulateGrad node's stream.*")  # a CUDA graph is captured on its own
    warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # also raised on a login node
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # a stage's directory, on resume
