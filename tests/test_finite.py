"""The first number that is not finite ends a stage: which step, what, and the key to change; nothing bad is saved."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from micro import BATCHES, GLUE, micro, only
from together import attempt as rank_attempt
from together import together
from torch.utils.data import DataLoader

from spikeprune import cli
from spikeprune.errors import InputError
from spikeprune.experiment.measurement import check_finite
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.models.outputs import Outputs
from spikeprune.models.teacher import Teacher, scratch_config
from spikeprune.models.tensors import not_finite
from spikeprune.training import losses
from spikeprune.training.callbacks import schedule
from spikeprune.training.callbacks.finite import SKIPS, StopOnNonFinite, likely_key

pytestmark = pytest.mark.filterwarnings("ignore")


class Toy(L.LightningModule):
    """A weight whose gradient and loss terms can be spoilt in single steps, and which a scaler's skips leave alone."""

    dev_splits = ("one", "two")

    def __init__(self, spoil: dict[str, set[int]], skips: bool = False):
        super().__init__()
        self.spoil, self.skips = spoil, skips
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.spiking_layer = torch.nn.Module()
        self.spiking_layer.log_theta = torch.nn.Parameter(torch.ones(1))

    def hit(self, what: str) -> bool:
        return self.global_step in self.spoil.get(what, ())

    def training_step(self, batch, index):
        soft = (self.weight * batch).square().mean() + self.spiking_layer.log_theta.sum()
        self.terms = {"loss": soft.detach(), "soft": soft.detach()}
        for name in self.terms:
            self.terms[name] = self.terms[name] * (math.nan if self.hit(name) else 1.0)
        return soft

    def on_after_backward(self):
        if self.hit("gradient"):
            self.weight.grad[0] = math.inf

    def validation_step(self, batch, index, dataloader_idx=0):
        logits = self.weight * batch
        return Outputs(logits.where(~torch.tensor(dataloader_idx == 1 and bool(self.spoil.get("answer"))), math.nan))

    def configure_optimizers(self):
        return Descent(self)


class Descent(torch.optim.SGD):
    """Of a `Toy`: skips a step as a scaler does, and spoils a weight."""

    def __init__(self, toy: Toy):
        super().__init__(toy.parameters(), lr=1e-3)
        self.toy = toy

    def step(self, closure):
        step = self.toy.global_step
        closure()
        if not self.toy.skips or self.toy.weight.grad.isfinite().all():
            super().step()
        if step in self.toy.spoil.get("weight", ()):
            with torch.no_grad():
                self.toy.weight[1] = math.inf


def fit(folder: Path, module: Toy, steps: int = 40, scaler: bool = False, every: int = 3) -> StopOnNonFinite:
    found = StopOnNonFinite("temporal", "16-mixed" if scaler else "32-true")
    save = L.pytorch.callbacks.ModelCheckpoint(
        folder, "resume", every_n_train_steps=every, enable_version_counter=False
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=1, callbacks=[found, save], num_sanity_val_steps=0, **quiet)
    if scaler:
        trainer.precision_plugin.scaler = object()
    data = DataLoader(torch.rand(steps, 2), batch_size=1)
    trainer.fit(module, data, [DataLoader(torch.rand(4, 2), batch_size=2)] * 2)
    return found


@pytest.fixture(params=[1, 10], ids=["each step", "every tenth"])
def looks(request, monkeypatch) -> None:
    """As on a CPU, and as on a GPU."""
    start = StopOnNonFinite.on_train_start

    def on_train_start(self, trainer, module) -> None:
        start(self, trainer, module)
        self.every = request.param

    monkeypatch.setattr(StopOnNonFinite, "on_train_start", on_train_start)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("soft", "step 13: loss term soft is NaN, likely because of stages.temporal.lr"),
        ("loss", "step 13: the loss is NaN, likely because of the weights of stages.temporal.losses"),
        ("gradient", "step 13: gradient weight is infinite, likely because of stages.temporal.lr"),
        ("weight", "step 13: weight weight is infinite, likely because of stages.temporal.lr"),
    ],
)
def test_the_first_bad_step_is_named_and_nothing_bad_is_saved(tmp_path, looks, what, words) -> None:
    with pytest.raises(InputError, match=f"stage temporal, {words}"):
        fit(tmp_path, Toy({what: {13, 16, 17}}))
    saved = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    assert saved["global_step"] == 12 and not not_finite(saved["state_dict"])


def test_a_checkpoint_that_is_due_with_the_bad_step_is_not_written(tmp_path, looks) -> None:
    with pytest.raises(InputError, match="step 2: weight weight is infinite"):
        fit(tmp_path, Toy({"weight": {2}}))
    assert not (tmp_path / "resume.ckpt").exists()


def test_the_last_steps_are_looked_at_before_the_validation(tmp_path, looks) -> None:
    with pytest.raises(InputError, match="step 6: loss term soft is NaN"):
        fit(tmp_path, Toy({"soft": {6}, "answer": {0}}), steps=7, every=100)


def test_a_buffer_that_is_not_finite_is_not_saved(tmp_path) -> None:
    module = Toy({})
    module.register_buffer("edge", torch.full((2,), math.nan))
    with pytest.raises(InputError, match="stage temporal, step 2: edge of the network is not finite"):
        fit(tmp_path, module)
    assert not (tmp_path / "resume.ckpt").exists()


def test_a_scaler_may_skip_steps_but_not_for_ever(tmp_path, looks) -> None:
    module = Toy({"gradient": set(range(SKIPS - 1)) | {30}, "soft": {25}}, skips=True)
    fit(tmp_path, module, scaler=True)
    assert not not_finite(module.state_dict())
    with pytest.raises(InputError, match=rf"step 4: gradient weight is infinite in {SKIPS} steps .* run.precision"):
        fit(tmp_path, Toy({"gradient": set(range(4, 40))}, skips=True), scaler=True)
    with pytest.raises(InputError, match="step 0: loss term soft is NaN in 5 steps in a row"):  # of five
        fit(tmp_path, Toy({"soft": set(range(5))}), steps=5, scaler=True)
    with pytest.raises(InputError, match="step 3: weight weight is infinite"):  # no scaler does that
        fit(tmp_path, Toy({"weight": {3}, "gradient": {2, 3}}, skips=True), scaler=True)


def test_outputs_that_are_not_finite_name_their_split(tmp_path) -> None:
    with pytest.raises(InputError, match="stage temporal: 4 predictions of the split 'two' are not finite"):
        fit(tmp_path, Toy({"answer": {0}}))


@pytest.mark.parametrize(
    ("kind", "names", "facts", "key"),
    [
        ("loss term", ["hidden", "scores"], {"runaway": True}, "stages.x.theta_lr"),
        ("weight", ["embedding.neurons.log_theta"], {}, "stages.x.theta_lr"),
        ("gradient", ["a.log_theta", "a.weight"], {}, "stages.x.lr"),
        ("loss term", ["soft"], {"first": True}, "stages.x.losses.temperature"),
        ("loss term", ["hidden"], {"first": True}, "teacher.checkpoint"),
        ("loss", ["loss"], {"first": True}, "the weights of stages.x.losses"),
        ("loss term", ["hidden"], {"precision": "bf16-mixed"}, "stages.x.lr"),
    ],
)
def test_the_key_to_blame(kind, names, facts, key) -> None:
    facts = {"precision": "32-true", "runaway": False, "first": False} | facts
    assert likely_key("x", kind, names, **facts) == key


def test_a_gradient_whose_norm_overflows_is_no_harmless_one() -> None:
    """Clipping by it would leave a gradient of zero."""
    module = SimpleNamespace(terms={"loss": torch.tensor(1.0)}, device=torch.device("cpu"))
    weight = torch.nn.Parameter(torch.ones(4))
    module.named_parameters = lambda: [("a", weight)]
    trainer = SimpleNamespace(global_step=0, precision_plugin=None)
    found = StopOnNonFinite("x")
    found.on_train_start(trainer, module)
    weight.grad = torch.full((4,), 3e38)
    found.on_before_optimizer_step(trainer, module, None)
    trainer.global_step = 1
    with pytest.raises(InputError, match="gradient a is infinite"):
        found.on_train_batch_end(trainer, module, None)


def test_pruning_is_not_decided_by_scores_that_are_nan() -> None:
    assert torch.equal(schedule.finite_mean(torch.ones(2)), torch.ones(2))
    with pytest.raises(InputError, match="would be decided by is not finite"):
        schedule.finite_mean(torch.tensor([1.0, math.nan]))


def test_what_a_stage_measured_must_be_finite() -> None:
    measured = {"metrics": {"pearson": 0.5}, "fidelity": {}, "cost": {"ac": 1.0, "rates": {"embedding": 0.1}}}
    check_finite(measured, "stage x")
    measured["cost"]["rates"]["embedding"] = math.nan
    with pytest.raises(InputError, match="stage x: cost.rates.embedding is nan"):
        check_finite(measured, "stage x")


def test_a_checkpoint_with_a_weight_that_is_not_finite_is_no_teacher(tmp_path) -> None:
    sizes = {"vocab": 30, "hidden": 12, "layers": 1, "heads": 2, "ffn": 13, "positions": 16, "dropout": 0.0}
    teacher = Teacher.scratch(scratch_config(**sizes, classes=2))
    with torch.no_grad():
        teacher.bert.bert.encoder.layer[0].output.dense.weight[3, 4] = math.nan
    teacher.bert.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="encoder.layer.0.output.dense.weight at .* is not finite; give another"):
        Teacher.load(tmp_path, classes=2)


# -------------------------------------------------------------------------------------------------------- whole stages

SHORT = [
    *only("teacher", "internal_kd"),
    "stages.spatial.heads=1",
    "stages.spatial.ffn=1",
    "stages.temporal.t_steps=null",
]
SHORT += ["run.checkpoint_every=2"]


def spoilt(monkeypatch, call: int) -> None:
    """`hidden_loss` is NaN once."""
    plain, calls = losses.hidden_loss, []

    def hidden_loss(*args):
        calls.append(None)
        return plain(*args) * (math.nan if len(calls) == call + 1 else 1.0)

    monkeypatch.setattr(losses, "hidden_loss", hidden_loss)


def test_a_stage_stops_and_resumes_from_its_last_good_checkpoint(tmp_path, glue, monkeypatch, capsys) -> None:
    words = [*micro(tmp_path / "run", glue), *SHORT]
    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        spoilt(patch, BATCHES + 3)
        assert cli.main(["train", str(GLUE), *words]) == 2
    said = capsys.readouterr().err
    assert f"error: stage internal_kd, step {BATCHES + 3}: loss term hidden is NaN, likely because of stages." in said
    assert not run.finished("internal_kd") and not run.summary.exists()
    saved = torch.load(run.resume("internal_kd"), weights_only=True)
    assert saved["global_step"] == BATCHES + 2 and not not_finite(saved["state_dict"])
    assert len(run.read_metrics()) == len(run.metrics.read_text().splitlines())
    assert cli.main(["train", str(GLUE), *words]) == 0
    assert f"resumed from step {BATCHES + 2}" in capsys.readouterr().out and run.finished("internal_kd")


def test_thresholds_that_run_away_are_blamed_on_their_rate(tmp_path, glue, capsys) -> None:
    words = [*micro(tmp_path / "run", glue), *SHORT, "stages.internal_kd.theta_lr=30"]
    assert cli.main(["train", str(GLUE), *words]) == 2
    said = capsys.readouterr().err
    assert "stage internal_kd, step " in said and "likely because of stages.internal_kd.theta_lr" in said


def spoilt_rank(overrides: list[str], folder: Path) -> int:
    from spikeprune import distributed

    plain = losses.hidden_loss
    step = []

    def hidden_loss(*args):
        step.append(None)
        return plain(*args) * (math.nan if distributed.rank() == 1 and len(step) == 4 else 1.0)

    losses.hidden_loss = hidden_loss
    return rank_attempt(overrides, folder)


def test_all_processes_stop_where_one_of_them_has_a_bad_loss(tmp_path, glue) -> None:
    words = [*micro(tmp_path / "run", glue), *SHORT, "run.devices=2"]
    codes = together(2, tmp_path / "log", spoilt_rank, words, tmp_path)
    log = (tmp_path / "log").read_text()
    assert codes == [2, 0], log
    assert log.count("error: ") == 1 and "stage internal_kd, step 3: loss term hidden is NaN" in log
    assert "Traceback" not in log
