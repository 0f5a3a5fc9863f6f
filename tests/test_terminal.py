"""What a run prints: bars on stderr where that is a terminal, the time left, and `run.log`."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers.logger import DummyLogger
from micro import GLUE, micro

from spikeprune.config.load import load
from spikeprune.errors import InputError
from spikeprune.experiment import opening
from spikeprune.experiment.build import trainers
from spikeprune.experiment.context import prepare
from spikeprune.experiment.estimate import duration, seconds_left, stage_steps
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.experiment.streams import recorded, unrecorded
from spikeprune.experiment.terminal import Bars, bars, epoch_line
from spikeprune.training.callbacks.resume import ResumeState
from spikeprune.training.signals import Stopped

QUIET = {"accelerator": "cpu", "logger": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


class Seconds(ResumeState):
    """Without what needs this package's loader."""

    def on_train_start(self, *_) -> None: ...


@pytest.mark.filterwarnings("ignore")
def test_stdout_stays_free_of_bars(capsys) -> None:
    trainer = L.Trainer(
        max_epochs=1, limit_train_batches=2, enable_checkpointing=False, callbacks=[Bars(refresh_rate=1)], **QUIET
    )
    trainer.fit(BoringModel())
    trainer.validate(BoringModel(), verbose=False)
    shown = capsys.readouterr()
    assert "Epoch 0" in shown.err and "Validation DataLoader" in shown.err and shown.out.strip() == ""


@pytest.mark.filterwarnings("ignore")
def test_a_line_stands_above_the_bar(tmp_path, capsys) -> None:
    """Also where what is printed is recorded; the recording has the line alone."""

    class Line(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            trainer.progress_bar_callback.print("a line")

    how = {"max_epochs": 1, "limit_train_batches": 2, "enable_checkpointing": False}
    with recorded(tmp_path / "run.log"):
        L.Trainer(callbacks=[Bars(refresh_rate=1), Line()], **how, **QUIET).fit(BoringModel())
    shown = capsys.readouterr()
    assert shown.out == "a line\n" and "2/2" in shown.err
    assert shown.err.rstrip(" ").endswith("\r") and re.search(r"\r +\r\rEpoch 0: 100%", shown.err), (
        "cleared, then drawn again"
    )
    assert (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()[1:] == ["a line"]


def test_bars_are_for_terminals(monkeypatch) -> None:
    assert bars() == []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert len(bars()) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_bar_shows_the_time_left_and_after_a_resume_its_total(tmp_path, capsys) -> None:
    """Of the second start, in the middle of an epoch, Lightning's own bar has no total."""
    for steps, resumed in ((2, None), (4, tmp_path / "resume.ckpt")):
        save = ModelCheckpoint(tmp_path, "resume", every_n_train_steps=2, enable_version_counter=False)
        shown = [Bars({"before": 7, "one": 4, "after": 4}, "one", 1), Seconds(), save]
        trainer = L.Trainer(max_epochs=1, max_steps=steps, limit_train_batches=4, callbacks=shown, **QUIET)
        trainer.fit(BoringModel(), ckpt_path=resumed)
        printed = capsys.readouterr().err
        assert f"| {steps}/4 [" in printed and "run=0 s left" in printed
        assert set(re.findall(r"(\d+)/\?", printed)) <= {"0"}


def test_the_time_left_is_that_of_the_whole_run() -> None:
    planned = {"teacher": 100, "spatial": 40, "finetune": 20}
    assert seconds_left(planned, "spatial", done=10, total=40, seconds=5.0) == 0.5 * (30 + 20)
    assert seconds_left(planned, "teacher", done=10, total=100, seconds=5.0) == 0.5 * (90 + 2 * (40 + 20))
    assert seconds_left(planned, "spatial", done=0, total=40, seconds=5.0) is None
    assert [duration(s) for s in (0.4, 59.4, 60, 3570, 7500)] == ["0 s", "59 s", "1 min", "1 h 00 min", "2 h 05 min"]


def test_the_steps_of_a_run_are_known_before(glue) -> None:
    """60 sentences in batches of 8; the spatial stage in batches of 4 has more steps."""
    config = load(GLUE, [*micro(Path("never"), glue), "stages.spatial.batch_size=4", "stages.finetune.steps=20"])
    found = stage_steps(prepare(config))
    wanted = {"teacher": 24, "internal_kd": 16, "prediction_kd": 8, "spatial": 45, "temporal": 24, "finetune": 24}
    assert found == wanted


def test_an_epoch_without_validation_has_no_score() -> None:
    losses = {"loss": 0.123456, "soft": 0.1, "hidden": 0.02}
    assert epoch_line("spatial 1/3", losses, {}, "5 s left") == (
        "  spatial 1/3  loss 0.1235 (soft 0.1, hidden 0.02)  5 s left"
    )
    measured = {"val/main": 0.9, "cost/energy_pj": 2.5e6}
    assert epoch_line("spatial 1/3", {}, measured, "") == "  spatial 1/3  score 90.0  2.50 µJ"


# -------------------------------------------------------------------------------------------------------------- run.log


def test_the_log_holds_every_attempt_and_why_it_ended(tmp_path, capsys) -> None:
    path = tmp_path / "run.log"
    for error in (InputError("a sentence"), Stopped(15), KeyboardInterrupt(), ZeroDivisionError("surprise"), None):
        try:
            with recorded(path):
                print("loss é")
                print("a warning", file=sys.stderr)
                print("a bar", file=unrecorded(sys.stderr))
                if error:
                    raise error
        except BaseException as found:
            assert found is error
    attempts = [part.splitlines()[1:] for part in path.read_text(encoding="utf-8").split("# ")[1:]]
    assert all(lines[:2] == ["loss é", "a warning"] for lines in attempts) and len(attempts) == 5
    ends = [lines[-1] for lines in attempts]
    assert ends[:3] == ["error: a sentence", "stopped by SIGTERM", "interrupted"]
    assert ends[3:] == ["ZeroDivisionError: surprise", "a warning"] and "Traceback" in attempts[3][2]
    shown = capsys.readouterr()
    assert shown.out.count("loss") == 5 and shown.err.count("a bar") == 5


def test_outside_an_attempt_nothing_is_recorded(tmp_path) -> None:
    before = sys.stdout
    with recorded(tmp_path / "run.log"):
        assert unrecorded(sys.stdout) is before is not sys.stdout
    assert sys.stdout is before and unrecorded(io.StringIO()) is not before


# ---------------------------------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_is_told_each_stages_metrics(glue, tmp_path, monkeypatch) -> None:
    made = []

    class Stand(DummyLogger):
        def __init__(self, *arguments, **options):
            super().__init__()
            made.append((*arguments, options))

    monkeypatch.setattr(trainers, "TensorBoardLogger", Stand)
    context = prepare(load(GLUE, [*micro(tmp_path / "run", glue), "run.tensorboard=true"]))
    trainer = trainers.trainer(context, "teacher", RunDirectory(tmp_path / "run"), 0)
    assert made == [(tmp_path / "run", "tensorboard", {"version": "teacher"})] and len(trainer.loggers) == 2
    context.config.run.tensorboard = False
    assert len(trainers.trainer(context, "teacher", RunDirectory(tmp_path / "run"), 0).loggers) == 1


def test_without_tensorboard_the_run_is_refused(glue, monkeypatch) -> None:
    config = load(GLUE, [*micro(Path("never"), glue), "run.tensorboard=true"])
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="TensorBoard is missing; `pip install tensorboard`"):
        opening.check_backends(config)
