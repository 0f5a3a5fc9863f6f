"""What each `run.precision` trains in, through Lightning's own plugins and the optimizer of a GPU."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from micro import GLUE, micro, only
from pruning import batches, distillation

from spikeprune.config.load import load
from spikeprune.errors import InputError
from spikeprune.experiment import pipeline
from spikeprune.experiment.build import arithmetic
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.kernels.cuda_graphs import undisturbed
from spikeprune.training import optimizer
from spikeprune.training.modules.student import DistillationModule

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = [*only("teacher", "internal_kd", "spatial"), "stages.temporal.t_steps=null", "stages.spatial.epochs=1"]
SHORT += ["stages.internal_kd.losses.additions=0.1", "stages.spatial.losses.additions=0.1"]


@pytest.fixture
def fused(monkeypatch) -> None:
    """The optimizer that a GPU gets."""
    plain = torch.optim.AdamW
    monkeypatch.setattr(optimizer.torch.optim, "AdamW", lambda groups, fused: plain(groups, fused=True))


@pytest.mark.parametrize("precision", ["bf16-mixed", "tf32", "64-true"])
def test_a_run_trains_in_it(precision, fused, glue, tmp_path) -> None:
    pipeline.run(load(GLUE, [*micro(tmp_path / "run", glue), *SHORT, f"run.precision={precision}"]))
    weights = RunDirectory(tmp_path / "run").weights("spatial")
    assert all(x.isfinite().all() for x in weights.values())
    assert weights["spiking_bert.classifier.weight"].dtype == (
        torch.float64 if precision == "64-true" else torch.float32
    )


class Steps(DistillationModule):
    """Learns batches as they are, with nothing logged."""

    def configure_optimizers(self):
        return optimizer.adamw(self, self.optimization, self.total_steps)

    def training_step(self, batch, batch_idx):
        return self.loss_terms(batch)["loss"]


def clipped(precision: str, scale: float = 1.0) -> tuple[DistillationModule, torch.Tensor]:
    """A student after steps whose gradients are clipped, and the norms that the optimizer saw."""
    made = distillation(soft=1.0, additions=0.2)
    made.__class__ = Steps
    made.total_steps, norms = 10, []

    class Norms(L.Callback):
        def on_before_zero_grad(self, trainer, net, _) -> None:
            grads = [p.grad for p in net.parameters() if p.grad is not None]
            if grads:
                norms.append(torch.cat([g.flatten() for g in grads]).norm())

    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if precision == "16-mixed" else None
    plugins = [] if precision == "32-true" else [MixedPrecision(precision, "cpu", scaler)]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=10,
        gradient_clip_val=0.01,
        plugins=plugins,
        callbacks=[Norms()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(made, torch.utils.data.DataLoader(batches((4, 4)) * 5, batch_size=None))
    assert trainer.global_step == 10
    return made, torch.stack(norms)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_clips_what_a_fused_step_takes(precision, fused) -> None:
    """The scaler's factor is out of the gradients before their norm is taken; the steps lead where float32's do."""
    exact, _ = clipped("32-true")
    made, norms = clipped(precision, scale=2.0**12)
    assert len(norms) and (norms <= 0.0101).all() and norms.max() > 0.0099
    before = distillation(soft=1.0, additions=0.2)
    for name in ("classifier.weight", "layers.1.up.weight"):
        start, want, got = (net.student.get_parameter(name) for net in (before, exact, made))
        same = torch.cosine_similarity((got - start).flatten(), (want - start).flatten(), dim=0)
        assert same > 0.8, (name, same)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "16", "bf16", "half", "transformer-engine"])
def test_a_precision_that_trains_no_spikes_is_refused(precision, tmp_path) -> None:
    with pytest.raises(InputError, match=f"run.precision = {precision}: choose from .*bf16-mixed"):
        load(GLUE, [*micro(tmp_path), "task=mrpc", f"run.precision={precision}"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_half_precision_without_a_gpu_is_refused_before_anything_is_written(tmp_path, glue) -> None:
    """Lightning would train in another one."""
    given = ["run.precision=16-mixed", "run.accelerator=auto"]
    config = load(GLUE, [*micro(tmp_path / "run", glue), *SHORT, *given])
    with pytest.raises(InputError, match="run.precision = 16-mixed: needs a GPU, which is not here; use bf16-mixed"):
        pipeline.run(config)
    assert not (tmp_path / "run").exists()
    assert arithmetic.precision(load(GLUE, [*micro(tmp_path, glue), "run.precision=tf32"])) == "32-true"


def test_a_capture_uses_no_cast_that_was_made_before() -> None:
    """A graph would hold the cast, not the weight that it was made from."""
    linear, x = torch.nn.Linear(3, 2, bias=False), torch.ones(1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        linear(x)  # autocast now has a cast of the weight
        with torch.no_grad():
            linear.weight.fill_(2.0)
        with undisturbed():
            assert linear(x).tolist() == [[6.0, 6.0]]
        assert torch.is_autocast_cache_enabled()


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_gpu_trains_in_mixed_precision(precision, kernels, glue, tmp_path) -> None:
    """Long enough that graphs are replayed where there are any."""
    given = [f"run.precision={precision}", "run.accelerator=gpu", f"run.kernels={kernels}"]
    given += ["stages.teacher.epochs=8"]  # the first steps find the scale
    pipeline.run(load(GLUE, [*micro(tmp_path / "run", glue), *SHORT, *given]))
    assert all(x.isfinite().all() for x in RunDirectory(tmp_path / "run").weights("spatial").values())
