"""Where progress bars stand: on stderr, and only where that is a terminal."""

from __future__ import annotations

import sys

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from spikeprune.experiment.terminal import Bars, bars


@pytest.mark.filterwarnings("ignore")
def test_stdout_stays_free_of_bars(capsys) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    quiet["num_sanity_val_steps"] = 0
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, limit_train_batches=2, callbacks=[Bars()], **quiet)
    trainer.fit(BoringModel())
    trainer.validate(BoringModel(), verbose=False)
    shown = capsys.readouterr()
    assert "Epoch 0" in shown.err and "Validation DataLoader" in shown.err and shown.out.strip() == ""


def test_bars_are_for_terminals(monkeypatch) -> None:
    assert bars() == []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert len(bars()) == 1
