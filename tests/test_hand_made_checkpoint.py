"""A resume checkpoint whose parts are whole and do not fit together: one sentence, and exit code 2."""

from __future__ import annotations

import signal
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from children import Killer, add_callback, attempt, run_command
from micro import BATCHES, GLUE, micro, only

from spikeprune import cli
from spikeprune.experiment.run_directory import RunDirectory

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def killed(glue, tmp_path_factory) -> tuple[RunDirectory, list[str], dict[str, Any]]:
    """A run that was killed in its teacher's second epoch, its command, and its checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    words = [*micro(folder / "run", glue), *only(), "stages.teacher.epochs=2", "run.checkpoint_every=3"]
    assert attempt(words, folder / "log", ("teacher", BATCHES + 2)) == -signal.SIGKILL, (folder / "log").read_text()
    run = RunDirectory(folder / "run")
    return run, ["train", str(GLUE), *words], torch.load(run.resume("teacher"), weights_only=True)


def fit_loop(saved: dict[str, Any]) -> dict[str, Any]:
    return saved["loops"]["fit_loop"]


def moments(saved: dict[str, Any]) -> dict[str, Any]:
    return saved["optimizer_states"][0]["state"][0]


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no loops": (lambda saved: saved.pop("loops"), "at step 9"),
    "an empty loop": (lambda saved: saved["loops"].update(fit_loop={}), "at batch 0 of epoch 0"),
    "a text for a counter": (
        lambda saved: fit_loop(saved)["epoch_loop.batch_progress"]["current"].update(ready="x"),
        "counter that is no whole number",
    ),
    "another epoch": (lambda saved: fit_loop(saved)["epoch_progress"]["current"].update(processed=0), "of epoch 0"),
    "an epoch after the last": (
        lambda saved: fit_loop(saved)["epoch_progress"]["current"].update(processed=99),
        "of epoch 99",
    ),
    "other batches": (
        lambda saved: fit_loop(saved)["state_dict"]["combined_loader"][0].update(yielded=5),
        "at batch 5 of epoch 1",
    ),
    "another step": (lambda saved: saved.update(global_step=4), "not at step 4"),
    "another schedule": (lambda saved: saved["lr_schedulers"][0].update(last_epoch=3), "counted 3 steps and not 9"),
    "a text for calls": (lambda saved: saved["lr_schedulers"][0].update(_step_count="x"), "made x calls and not 10"),
    "no optimizer": (lambda saved: saved.pop("optimizer_states"), "only the model"),
    "an optimizer of others": (
        lambda saved: moments(saved).update(exp_avg=torch.zeros(3, 3)),
        "optimizer is that of another network",
    ),
    "moments that are not finite": (lambda saved: moments(saved)["exp_avg_sq"].fill_(torch.inf), "is not finite"),
    "a text for a rate": (
        lambda saved: saved["optimizer_states"][0]["param_groups"][0].update(betas="x"),
        "optimizer has another betas",
    ),
    "no callbacks": (lambda saved: saved.pop("callbacks"), "no states of callbacks"),
    "no random state": (lambda saved: saved["callbacks"]["ResumeState"].pop("cpu"), "KeyError: 'cpu'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused(change, killed, capsys) -> None:
    run, words, saved = killed
    make, said = CHANGES[change]
    saved = deepcopy(saved)
    make(saved)
    torch.save(saved, run.resume("teacher"))
    assert cli.main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {run.resume('teacher')}: does not fit this stage (") and said in error
    assert error.endswith("); remove it, and the stage begins again") and not run.finished("teacher")


def test_what_fits_is_resumed(killed, capsys) -> None:
    run, words, saved = killed
    torch.save(saved, run.resume("teacher"))
    assert cli.main(words) == 0 and run.finished("teacher"), capsys.readouterr().err


def fused_and_killed(step: int) -> None:
    """From now on in this process: the optimizer of a GPU, whose counts of steps are float32 tensors."""
    plain = torch.optim.AdamW

    def fused(groups, fused: bool):
        assert not fused
        return plain(groups, fused=True)

    torch.optim.AdamW = fused
    if step:
        add_callback("teacher", Killer(step, signal.SIGKILL))


def test_the_state_of_a_fused_optimizer_fits(glue, tmp_path) -> None:
    weights, log = [], tmp_path / "log"
    for name, kills in (("undisturbed", ()), ("killed", (BATCHES + 2,))):
        run, short = RunDirectory(tmp_path / name), [*only(), "stages.teacher.epochs=2", "run.checkpoint_every=3"]
        words = ["train", str(GLUE), *micro(run.path, glue), *short]
        for step in kills:
            assert run_command(words, log, None, fused_and_killed, (step,)) == -signal.SIGKILL, log.read_text()
            [saved] = torch.load(run.resume("teacher"), weights_only=True)["optimizer_states"]
            assert saved["param_groups"][0]["fused"] is True and saved["state"][0]["step"].dtype is torch.float32
        assert run_command(words, log, None, fused_and_killed, (0,)) == 0, log.read_text()
        weights.append(run.verified("teacher"))
    assert weights[0] == weights[1] and log.read_text().count("resumed from step 9") == 1
