"""Several processes, real ones over gloo: what one process makes, and killed and resumed as if undisturbed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from micro import BATCHES, STAGES, logged, micro, only, write_sst2
from together import EXACT, attempt, check_measurements, check_weights, together

from spikeprune.config.tasks import get_task
from spikeprune.data.batching import shares, sums
from spikeprune.experiment import evaluation
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.teacher import Teacher, scratch_config
from spikeprune.training.metrics import task_metrics
from spikeprune.training.modules.student import DistillationModule
from spikeprune.training.modules.task import TaskModule, TeacherModule
from spikeprune.training.objective import TERMS as REGISTERED
from spikeprune.training.objective import LossWeights
from spikeprune.training.optimizer import Optimization

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    """Neither split divides by two, and nor do the numbers of dev batches."""
    return write_sst2(tmp_path_factory.mktemp("glue"), train=61, dev=21)


# ------------------------------------------------------------------------------------------- equal to a single process


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory, glue) -> tuple[RunDirectory, RunDirectory]:
    folder = tmp_path_factory.mktemp("exact")
    pair = RunDirectory(folder / "one"), RunDirectory(folder / "two")
    for world, run in enumerate(pair, 1):
        devices = [f"run.devices={world}"]
        codes = together(world, folder / "log", attempt, [*micro(run.path, glue), *EXACT, *devices], folder)
        assert codes == [0] * world, (folder / "log").read_text()
    return pair


def test_two_processes_learn_what_one_learns(one_and_two) -> None:
    one, two = one_and_two
    check_weights(one, two)
    assert 0 < two.record("spatial")["heads"][0] < 3 and sum(two.record("temporal")["t_steps"]) <= 6  # it was pruned


def test_two_processes_hold_one_budget(tmp_path, glue) -> None:
    """Each with its own words and dropout. At a stage's end the run itself compares what the processes have."""
    budget = only("teacher", "internal_kd", "prediction_kd", "budget", "finetune")
    budget += ["stages.budget.value=0.06", "stages.budget.epochs=3", "stages.finetune.epochs=2"]
    budget += ["teacher.dropout=0.1", "stages.teacher.epochs=6"]
    run = RunDirectory(tmp_path / "run")
    codes = together(2, tmp_path / "log", attempt, [*micro(run.path, glue), *budget, "run.devices=2"], tmp_path)
    assert codes == [0, 0], (tmp_path / "log").read_text()
    found = [(tmp_path / f"rank{rank}.jsonl").read_text().splitlines() for rank in range(2)]
    assert found[0] == found[1] and len(found[0]) > 5 * BATCHES
    assert run.record("finetune")["budget"]["reached"] <= 0.06


def test_two_processes_measure_and_log_what_one_does(one_and_two) -> None:
    one, two = one_and_two
    check_measurements(one, two)
    assert {str(p.relative_to(one.path)) for p in one.path.rglob("*")} == {
        str(p.relative_to(two.path)) for p in two.path.rglob("*")
    }


def test_measuring_again_in_one_process_gives_the_same(one_and_two) -> None:
    _, two = one_and_two
    again, record = evaluation.evaluate(two.path), two.record("finetune")
    assert again["metrics"] == record["metrics"] and again["cost"]["ac"] == pytest.approx(record["cost"]["ac"])


SIZES = {"hidden": 12, "layers": 2, "heads": 3, "ffn": 10, "classes": 2}


def small_module(losses: dict[str, float] | None) -> TaskModule:
    """A student's with these losses; without, a teacher's."""
    torch.manual_seed(0)
    how = Optimization(1e-3, 1e-2, 0.1, 0.01)
    common = {"task": get_task("sst2"), "dev_splits": ["validation"], "optimization": how}
    config = scratch_config(vocab=30, positions=16, dropout=0.0, **SIZES)
    teacher = Teacher.scratch(config)
    if losses is None:
        return TeacherModule(teacher, **common).double()
    student = SpikingBert(vocab=30, positions=16, segments=2, t_steps=4, **SIZES)
    return DistillationModule(student, teacher, losses=LossWeights(**losses), layer_map=[0, 1], **common).double()


TERMS = [{term: 1.0} for term in ("hidden", "scores", "soft", "hard", "additions")]


@pytest.mark.parametrize("losses", [None, *TERMS], ids=str)
@pytest.mark.parametrize("world", [2, 3])
def test_the_mean_gradient_of_the_parts_is_that_of_the_batch(losses, world) -> None:
    module = small_module(losses)
    lengths = torch.tensor([3, 4, 4, 6, 9, 11, 13])
    mask = (torch.arange(13) < lengths[:, None]).long()
    torch.manual_seed(1)
    batch = {"input_ids": torch.randint(1, 30, mask.shape) * mask, "attention_mask": mask}
    batch |= {"token_type_ids": torch.zeros_like(mask), "labels": torch.tensor([0, 1, 1, 0, 1, 0, 1])}

    def gradients(batch) -> list[torch.Tensor]:
        parameters = [p for p in module.parameters() if p.requires_grad]
        found = torch.autograd.grad(module.loss_terms(batch)["loss"], parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    whole, added = gradients(batch), None
    for rank in range(world):
        part = {key: value[rank::world] for key, value in batch.items()}
        found = gradients({**part, "share": shares(sums(lengths[rank::world]), sums(lengths), world)})
        added = found if added is None else [a + b for a, b in zip(added, found, strict=True)]
    assert any(g.abs().max() > 1e-6 for g in whole)
    for a, b in zip(added, whole, strict=True):
        torch.testing.assert_close(a / world, b, rtol=1e-4, atol=1e-8)  # the logits' losses are in float32
    assert set(REGISTERED) == {next(iter(term)) for term in TERMS}


def answers(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and labels of 31 examples."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (31,), generator=random)
    noise = torch.rand(31, generator=random)
    return (labels + noise, labels.float()) if name == "stsb" else ((labels + noise).round().long() % 2, labels)


def own_part(rank_file: str) -> int:
    """Of each task's examples this process sees every second one."""
    torch.distributed.init_process_group("gloo", rank=(rank := int(os.environ["LOCAL_RANK"])), world_size=2)
    found = {}
    for name in ("cola", "mrpc", "stsb"):
        metrics = task_metrics(get_task(name))
        metrics.update(*(x[rank::2] for x in answers(name)))
        found[name] = metrics.compute()
    Path(f"{rank_file}{rank}").write_text(json.dumps(found))
    return 0


def test_metrics_of_two_processes_are_those_of_one(tmp_path) -> None:
    assert together(2, tmp_path / "log", own_part, str(tmp_path / "rank")) == [0, 0], (tmp_path / "log").read_text()
    whole = {}
    for name in ("cola", "mrpc", "stsb"):
        metrics = task_metrics(get_task(name))
        metrics.update(*answers(name))
        whole[name] = metrics.compute()
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}").read_text())
        for name in whole:
            assert found[name] == pytest.approx(whole[name], abs=1e-12)
    assert all(0 < abs(value) < 1 for metrics in whole.values() for value in metrics.values())


@pytest.mark.parametrize("own", [True, False], ids=["its own teacher", "another teacher"])
def test_validation_asks_the_teacher_once_a_batch(own) -> None:
    module, asked = small_module({"soft": 1.0}), []
    teach = module.infer if own else module.teacher_outputs
    module.teacher_outputs = lambda batch: asked.append(batch) or teach(batch)
    generator = torch.Generator().manual_seed(2)
    batches, apart, same = [], 0.0, 0
    for size in (4, 4, 1):
        ids = torch.randint(1, 30, (size, 5), generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        batches.append(batch | {"labels": ids[:, 0] % 2})
        p, q = (answer(batch).logits.detach().softmax(-1) for answer in (teach, module.infer))
        apart += (p * (p / q).log()).sum().item()
        same += (p.argmax(-1) == q.argmax(-1)).sum().item()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    found = trainer.validate(module, torch.utils.data.DataLoader(batches, batch_size=None), verbose=False)[0]
    assert len(asked) == 3
    assert found["val/agreement"] == pytest.approx(same / 9) and (same == 9) >= own
    assert found["val/divergence"] == pytest.approx(apart / 9, rel=1e-5, abs=1e-12) and (apart > 1e-6) != own


# ------------------------------------------------------------------------------------------------- killed and resumed


# two processes' dropout is another's than one's: enough to beat one class
LONGER = ["stages.teacher.epochs=6", "stages.spatial.synapses=0.6"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, glue) -> RunDirectory:
    folder = tmp_path_factory.mktemp("undisturbed")
    run = RunDirectory(folder / "run")
    assert together(2, folder / "log", attempt, [*micro(run.path, glue), *LONGER, "run.devices=2"], folder) == [0, 0], (
        folder / "log"
    ).read_text()
    return run


def watched(folder: Path) -> list[list]:
    return [[json.loads(line) for line in (folder / f"rank{r}.jsonl").read_text().splitlines()] for r in (0, 1)]


def test_all_ranks_prune_the_same(undisturbed) -> None:
    """Though each has seen other words in the place of those replaced."""
    zero, one = watched(undisturbed.path.parent)
    assert zero == one and len(zero) == (2 + 1 + 3 + 3 + 1) * BATCHES
    masks = [found[:2] for stage, _, found in zero if stage == "spatial"]
    assert len({str(mask) for mask in masks}) == 2  # one a decision


def test_two_killed_ranks_go_on_as_if_undisturbed(undisturbed, glue, tmp_path) -> None:
    """In the middle of an epoch, with dropout and replaced words drawn by each rank for itself."""
    run, log = RunDirectory(tmp_path / "run"), tmp_path / "log"
    command = [*micro(run.path, glue), *LONGER, "run.devices=2", "run.checkpoint_every=3"]
    for kill in (("internal_kd", 5), ("spatial", BATCHES + 2)):
        assert together(2, log, attempt, command, tmp_path, kill) == [-signal.SIGKILL] * 2, log.read_text()
        assert run.resume(kill[0]).is_file() and not run.finished(kill[0])
    assert together(2, log, attempt, command, tmp_path) == [0, 0], log.read_text()
    assert log.read_text().count("resumed from step") == 2
    for name in STAGES:
        assert run.weights(name).keys() == undisturbed.weights(name).keys()
        for key, value in undisturbed.weights(name).items():
            assert torch.equal(run.weights(name)[key], value), (name, key)
    assert logged(run) == logged(undisturbed)
