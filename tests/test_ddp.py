"""Several processes, real ones over gloo: what one process makes, and killed and resumed as if undisturbed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import safetensors.torch
import torch
from micro import BATCHES, GLUE, ROOT, STAGES, micro, write_sst2

from spikeprune import cli, evaluation, processes, ranks
from spikeprune.builders import trainers
from spikeprune.config import load
from spikeprune.data.loader import shares, sums
from spikeprune.errors import InputError
from spikeprune.models.student import Student
from spikeprune.models.teacher import Teacher, scratch_config
from spikeprune.modules.objective import MEAN_OVER, LossWeights
from spikeprune.modules.optimizer import Optimization
from spikeprune.modules.student import StudentModule
from spikeprune.modules.task import TaskModule
from spikeprune.modules.teacher import TeacherModule
from spikeprune.rundir import RunDir
from spikeprune.schema import Run
from spikeprune.size import Shape
from spikeprune.tasks import get_task

pytestmark = pytest.mark.filterwarnings("ignore")
spawning = multiprocessing.get_context("forkserver")  # as in test_resume
spawning.set_forkserver_preload(["spikeprune.pipeline"])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def enter(rank: int, world: int, port: int, log: Path, target: Callable, args: tuple) -> None:
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(target(*args))


def together(world: int, log: Path, target: Callable, *args) -> list[int]:
    """Exit codes of `world` processes that somebody else than Lightning has started."""
    port = free_port()
    children = [spawning.Process(target=enter, args=(rank, world, port, log, target, args)) for rank in range(world)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    return [child.exitcode for child in children]


class Watch(L.Callback):
    """Writes down what each process trains at the start of each batch, and kills it at a step, if one is given."""

    def __init__(self, folder: Path, stage: str, kill: int | None):
        self.folder, self.stage, self.kill = folder, stage, kill

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        if self.stage == "teacher":
            return
        s = module.student
        found = [s.heads.tolist(), s.ffn.tolist(), s.steps, s.embedding.site.theta.tolist()]
        additions = module.objective.additions
        found += [additions.limit.item(), additions.press.item()]
        with (self.folder / f"rank{ranks.rank()}.jsonl").open("a") as file:
            file.write(json.dumps([self.stage, trainer.global_step, found]) + "\n")


plain_broadcast = torch.distributed.broadcast


def answered_by_us(*args, **kwargs):
    """Lightning would ask before every batch, and wait for a GPU's answer."""
    if sys._getframe(1).f_globals["__name__"].startswith("lightning"):
        os._exit(9)
    return plain_broadcast(*args, **kwargs)


def leg(overrides: list[str], watched: Path, kill: tuple[str, int] | None = None) -> int:
    plain = trainers.stage_callbacks

    def with_watch(parts, name, run):
        return [Watch(watched, name, kill[1] if kill and kill[0] == name else None), *plain(parts, name, run)]

    trainers.stage_callbacks = with_watch
    torch.distributed.broadcast = answered_by_us
    return cli.main(["train", str(GLUE), *overrides])


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    """Neither split divides by two, and nor do the numbers of dev batches."""
    return write_sst2(tmp_path_factory.mktemp("glue"), train=61, dev=21)


# ------------------------------------------------------------------------------------------- equal to a single process

# nothing drawn at random in training, and digits enough that no rounding moves a rate to its neighbour
EXACT = [
    "run.precision=64-true",
    "student.dropout=0.0",
    "teacher.dropout=0.0",
    "distill.replace_words=0.0",
    "distill.join_sentences=0.0",
]
EXACT += ["data.eval_batch_size=5", "stages.finetune.losses.additions=0.5", "stages.finetune.losses.firing=0.5"]
EXACT += ["stages.finetune.losses.hard=0.5"]


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory, glue) -> tuple[RunDir, RunDir]:
    folder = tmp_path_factory.mktemp("exact")
    pair = RunDir(folder / "one"), RunDir(folder / "two")
    for world, run in enumerate(pair, 1):
        devices = [f"run.devices={world}"]
        codes = together(world, folder / "log", leg, [*micro(run.path, glue), *EXACT, *devices], folder)
        assert codes == [0] * world, (folder / "log").read_text()
    return pair


def check_weights(one: RunDir, two: RunDir, rtol: float = 1e-6) -> None:
    for name in STAGES:
        found, wanted = (safetensors.torch.load_file(run.stage(name) / "model.safetensors") for run in (two, one))
        assert set(found) == set(wanted)
        for key, value in wanted.items():
            exact = key in ("heads", "ffn", "t_steps")
            torch.testing.assert_close(found[key], value, rtol=0 if exact else rtol, atol=0 if exact else rtol / 100)


def test_two_processes_learn_what_one_learns(one_and_two) -> None:
    one, two = one_and_two
    check_weights(one, two)
    assert 0 < two.record("spatial")["heads"][0] < 3 and sum(two.record("temporal")["t_steps"]) <= 6  # it was pruned


def test_two_processes_hold_one_budget(tmp_path, glue) -> None:
    """Each with its own words and dropout. At a stage's end the run itself compares what the processes have."""
    stages = "run.stages=[teacher,internal_kd,prediction_kd,joint,finetune]"
    budget = ["compress.heads=1", "compress.ffn=1", "compress.t_steps=null", "compress.target=energy"]
    budget += ["compress.target_value=0.06", "compress.joint.sentences=24", "compress.joint.block=4"]
    budget += ["stages.joint.epochs=3", "stages.finetune.epochs=2", "stages.finetune.callbacks=[joint]"]
    run = RunDir(tmp_path / "run")
    codes = together(2, tmp_path / "log", leg, [*micro(run.path, glue), stages, *budget, "run.devices=2"], tmp_path)
    assert codes == [0, 0], (tmp_path / "log").read_text()
    found = [(tmp_path / f"rank{rank}.jsonl").read_text().splitlines() for rank in range(2)]
    assert found[0] == found[1] and len(found[0]) > 5 * BATCHES
    assert run.record("finetune")["budget"]["reported"] <= 0.06


def check_measurements(one: RunDir, two: RunDir) -> None:
    for name in STAGES:
        found, wanted = two.record(name), one.record(name)
        for key in ("metrics", "main", "steps", *(("t_steps", "heads", "ffn") if name != "teacher" else ())):
            assert found[key] == wanted[key], (name, key)
        rates = found["cost"].pop("rates", {}), wanted["cost"].pop("rates", {})
        assert rates[0] == pytest.approx(rates[1], rel=1e-12)
        assert found["cost"] == pytest.approx(wanted["cost"], rel=1e-12)
    found, wanted = two.read_metrics(), one.read_metrics()
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.pop("stage") == theirs.pop("stage")
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-9)


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
    torch.manual_seed(0)
    how = Optimization(1e-3, 1e-2, 0.1, 0.01)
    common = {"task": get_task("sst2"), "dev_splits": ["validation"], "optimization": how}
    config = scratch_config(vocab=30, positions=16, dropout=0.0, **SIZES)
    teacher = Teacher.scratch(config)
    if losses is None:
        return TeacherModule(teacher, **common).double()
    student = Student(vocab=30, positions=16, segments=2, t_steps=4, **SIZES)
    shape = Shape(pooling="mean", query="real", theta="channel", vocab_size=30, positions=16, types=2, **SIZES)
    options = {"losses": LossWeights(**losses), "layer_map": [0, 1], "shape": shape}
    return StudentModule(student, teacher, **options, **common).double()


TERMS = [{term: 1.0} for term in ("hidden", "scores", "soft", "hard", "firing", "additions")]


@pytest.mark.parametrize("losses", [None, *TERMS], ids=lambda losses: next(iter(losses)) if losses else "teacher")
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
        found = torch.autograd.grad(module.learn(batch)["loss"], parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    whole, added = gradients(batch), None
    for rank in range(world):
        part = {key: value[rank::world] for key, value in batch.items()}
        found = gradients({**part, "share": shares(sums(lengths[rank::world]), sums(lengths), world)})
        added = found if added is None else [a + b for a, b in zip(added, found, strict=True)]
    assert any(g.abs().max() > 1e-6 for g in whole)
    for a, b in zip(added, whole, strict=True):
        torch.testing.assert_close(a / world, b, rtol=1e-4, atol=1e-8)  # the logits' losses are in float32
    assert set(MEAN_OVER) == {next(iter(term)) for term in TERMS}


# ------------------------------------------------------------------------------------------------- killed and resumed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, glue) -> RunDir:
    folder = tmp_path_factory.mktemp("undisturbed")
    run = RunDir(folder / "run")
    assert together(2, folder / "log", leg, [*micro(run.path, glue), "run.devices=2"], folder) == [0, 0], (
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
    run, log = RunDir(tmp_path / "run"), tmp_path / "log"
    command = [*micro(run.path, glue), "run.devices=2", "run.checkpoint_every=3"]
    for kill in (("internal_kd", 5), ("spatial", BATCHES + 2)):
        assert together(2, log, leg, command, tmp_path, kill) == [-signal.SIGKILL] * 2, log.read_text()
        assert run.resume(kill[0]).is_file() and not run.finished(kill[0])
    assert together(2, log, leg, command, tmp_path) == [0, 0], log.read_text()
    assert log.read_text().count("goes on from step") == 2
    for name in STAGES:
        assert run.weights(name).keys() == undisturbed.weights(name).keys()
        for key, value in undisturbed.weights(name).items():
            assert torch.equal(run.weights(name)[key], value), (name, key)
    assert run.read_metrics() == undisturbed.read_metrics()


# --------------------------------------------------------------------------------------------------------- the command


def spikeprune(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "spikeprune", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables, timeout=120)


def test_one_command_starts_both_and_logs_one_wandb_run(tmp_path, glue) -> None:
    stages = ["run.stages=[teacher,general_kd]", "compress.heads=1.0", "compress.ffn=1.0", "compress.t_steps=null"]
    (tmp_path / "corpus.txt").write_text("\n".join(["the film was a story of rain"] * 20))
    stages += ["stages.general_kd.epochs=1", f"data.corpus=[{tmp_path / 'corpus.txt'}]", "run.wandb=true"]
    overrides = [*micro(tmp_path / "run", glue), *stages, "run.devices=2"]
    done = spikeprune("train", str(GLUE), *overrides, WANDB_MODE="offline", WANDB_SILENT="true", WANDB_API_KEY="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[1/2] teacher") == done.stdout.count("· preset tiny ·") == 1
    files = list((tmp_path / "run").rglob("offline-run-*/run-*.wandb"))
    assert {path.name for path in files} == {f"run-{(tmp_path / 'run' / 'wandb_id').read_text()}.wandb"}


def test_bad_input_is_one_sentence_of_one_process(tmp_path) -> None:
    """Found by rank 0 when both are there already."""
    missing = [*micro(tmp_path / "run"), "task=sst2", "data.source=dir", f"data.dir={tmp_path}", "run.devices=2"]
    assert together(2, tmp_path / "log", leg, missing, tmp_path) == [2, 0]
    said = (tmp_path / "log").read_text()
    assert said.count("error: ") == 1 and "has no directory SST-2" in said and "Traceback" not in said, said
    assert not (tmp_path / "run").exists()


def speak(folder: Path) -> int:
    """What the ranks say to each other; run in each of them."""
    with processes.started(load(GLUE, [*micro(folder / "run"), "task=sst2", "run.devices=3"])):
        me = ranks.rank()
        assert (ranks.world(), ranks.gather(me), ranks.first(lambda: me)) == (3, [0, 1, 2], 0)
        assert ranks.total(torch.tensor([float(me), 1.0])).tolist() == [3.0, 3.0]
        means = ranks.gather(ranks.mean(torch.tensor([0.1, 0.7]) * (me + 0.3)).tolist())
        assert means[0] == means[1] == means[2] == pytest.approx([0.13, 0.91])
        ranks.same("word", "a word")
        try:
            ranks.same(me // 2, "a number")
        except RuntimeError as error:
            assert str(error) == "a number of rank 2 is not that of rank 0"
        else:
            raise AssertionError("another number passed as the same")
        torch.manual_seed(5)
        ranks.own_randomness()
        assert len(set(ranks.gather(torch.rand(()).item()))) == 3
        torch.manual_seed(5)
        assert me or torch.rand(()).item() == ranks_first_draw()
        try:
            ranks.first(no_data)
        except SystemExit as quietly:
            assert me and quietly.code == 0
        except InputError:
            assert me == 0
        (folder / f"reached{me}").touch()
    assert me == 0, "only rank 0 returns"
    return 0


def ranks_first_draw() -> float:
    return torch.rand((), generator=torch.Generator().manual_seed(5)).item()


def no_data() -> None:
    raise InputError("there are no data")


def test_what_ranks_say_to_each_other(tmp_path) -> None:
    assert together(3, tmp_path / "log", speak, tmp_path) == [0, 0, 0], (tmp_path / "log").read_text()
    assert all((tmp_path / f"reached{rank}").exists() for rank in range(3)), (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("run", "environment", "message"),
    [
        ({"num_nodes": 2}, {}, "nobody has started it on several machines; use srun"),
        ({"devices": 2}, {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "x"}, "start it with srun"),
        (
            {"devices": 2},
            {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NAME": "x", "SLURM_STEP_ID": "0"},
            "srun has started 4 tasks; give --ntasks-per-node=2",
        ),
        ({"devices": 2}, {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "3"}, "torchrun has started 3 processes"),
    ],
)
def test_a_launcher_that_does_not_fit_is_refused(run, environment, message, monkeypatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        processes.check(Run(accelerator="cpu", **run))


def test_a_batch_must_have_a_sentence_for_each_process(tmp_path) -> None:
    with pytest.raises(InputError) as problem:
        load(GLUE, [*micro(tmp_path), "task=sst2", "run.devices=4", "run.num_nodes=3", "stages.spatial.batch_size=16"])
    assert "data.batch_size = 8: is shared by all devices, run.devices × run.num_nodes = 12" in str(problem.value)
    assert "stages.spatial" not in str(problem.value)
