"""What `spikeprune launch` writes, and what it refuses before anything is written. test_slurm.py has a cluster."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from micro import GLUE, micro, only, write_cola, write_sst2
from together import attempt, together

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.config.scalars import literal
from spikeprune.errors import InputError
from spikeprune.experiment import slurm_job
from spikeprune.integrations.labels import label
from spikeprune.integrations.launch import MAX_RUNS, read_seeds

EMBEDDED = ("preset=tiny", "data.source=embedded")


@pytest.fixture
def launch(tmp_path, monkeypatch, capsys):
    """`spikeprune launch --dry-run` in an empty directory; returns the exit code, what it printed, and the script."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, dry: bool = True) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["launch", str(GLUE), *arguments, *(["--dry-run"] if dry else [])])
        captured = capsys.readouterr()
        scripts = sorted(tmp_path.glob("runs/*/job.sh"))
        return code, captured.out + captured.err, scripts[-1].read_text() if scripts else ""

    return run


def directives(script: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", script, re.M)


def train_command(script: str, index: int | None = None) -> list[str]:
    """The words that the script starts with srun, as bash understands them."""
    shell = script.replace("srun ", "printf '%s\\n' ")
    environment = {"SLURM_CPUS_PER_TASK": "3", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n", "PATH": "/usr/bin:/bin"}
    environment |= {"SLURM_ARRAY_TASK_ID": str(index)} if index is not None else {}
    done = subprocess.run(["bash", "-u", "-c", shell], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()[1:]


def test_one_run(launch, tmp_path) -> None:
    where = ("--gpus=0", "--cpus=3", "--time=30:00", "--partition=long", "--sbatch=--mem=8G", "--sbatch=--account=me")
    code, text, script = launch(*EMBEDDED, "task=rte", *where, "seed=3", "student.t_steps=[4,2,2]")
    assert (code, text) == (0, "wrote runs/rte-tiny-s3/job.sh; submit it with: sbatch runs/rte-tiny-s3/job.sh\n")
    assert [p.name for p in (tmp_path / "runs").rglob("*")] == ["rte-tiny-s3", "job.sh"]
    assert directives(script) == [
        "--job-name=rte-tiny-s3",
        f"--chdir={tmp_path}",
        f"--output={tmp_path}/runs/rte-tiny-s3/slurm-%j.log",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=3",
        "--time=30:00",
        "--partition=long",
        "--mem=8G",
        "--account=me",
        "--open-mode=append",
        "--requeue",
        "--signal=USR1@90",
    ]
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        assert re.search(rf"^export .*\b{name}=1\b", script, re.M)
    assert 'WANDB_MODE="${WANDB_MODE:-offline}"' in script and script.endswith("exit $?\n")
    overrides = [*EMBEDDED, "student.t_steps=[4,2,2]", "run.accelerator=cpu"]
    expected = ["--kill-on-bad-exit=1", sys.executable, "-m", "spikeprune", "train", str(GLUE), *overrides]
    assert train_command(script) == [*expected, "task=rte", "seed=3"]
    assert "#   spikeprune launch " + shlex.quote(str(GLUE)) in script


def test_an_array_of_tasks_and_seeds(launch, tmp_path) -> None:
    code, text, script = launch(*EMBEDDED, "--array=mrpc, rte", "--seeds=0,7-8", "--gpus=0")
    assert code == 0
    folder = next((tmp_path / "runs").iterdir())
    assert re.fullmatch(r"launch-\d{8}-\d{6}", folder.name)
    assert f"--output={folder}/slurm-%A_%a.log" in directives(script) and "--array=0-5" in directives(script)
    pairs = [train_command(script, index)[-2:] for index in range(6)]
    assert pairs == [[f"task={task}", f"seed={seed}"] for task in ("mrpc", "rte") for seed in (0, 7, 8)]


def test_gpus_and_nodes(launch) -> None:
    _, _, script = launch("preset=minilm", "data.source=embedded", "task=rte")
    assert "--gres=gpu:1" in directives(script) and "run.accelerator=gpu" in train_command(script)
    for nodes in ("--nodes=2", "run.num_nodes=2"):
        _, _, script = launch(*EMBEDDED, "task=rte", "--gpus=0", "run.devices=3", nodes)
        assert {"--nodes=2", "--ntasks-per-node=3"} <= set(directives(script))
        assert "run.num_nodes=2" in train_command(script)
    assert launch(*EMBEDDED, "--nodes=3", "run.num_nodes=2")[:2] == (
        2,
        "error: nodes = 3: contradicts run.num_nodes = 2; leave one of them out\n",
    )
    _, _, script = launch(*EMBEDDED, "task=rte", "run.accelerator=cpu")
    assert "--gres" not in script and "run.accelerator=cpu" in train_command(script)


def task_of_srun(count: int, overrides: list[str], folder: Path) -> int:
    """As srun starts one of `count` tasks on a node; `together` has numbered it."""
    rank = os.environ.pop("LOCAL_RANK")
    for name in ("NODE_RANK", "WORLD_SIZE"):
        del os.environ[name]
    os.environ |= {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1"}
    os.environ |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "job", "SLURM_STEP_ID": "0"}
    os.environ |= {name: str(count) for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS_PER_NODE")}
    return attempt(overrides, folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_four_gpus_are_four_processes_with_the_same_network(launch, tmp_path) -> None:
    """The job's command in as many processes as the script asks srun for, on the CPU in place of its GPUs."""
    stages = ["stages.internal_kd.epochs=1", "stages.spatial.epochs=1", "teacher.dropout=0.0"]
    plain = [item for item in micro(tmp_path / "run", write_sst2(tmp_path / "glue")) if "accelerator" not in item]
    code, _, _ = launch(*plain, *stages, *only("teacher", "internal_kd", "spatial"), "--gpus=4")
    script = (tmp_path / "run" / "job.sh").read_text()
    assert code == 0 and {"--gres=gpu:4", "--ntasks-per-node=4", "--nodes=1"} <= set(directives(script))
    words = train_command(script)
    assert {"run.devices=4", "run.accelerator=gpu"} <= set(words)
    overrides = ["run.accelerator=cpu" if word == "run.accelerator=gpu" else word for word in words]
    overrides = overrides[overrides.index("train") + 2 :]
    count = int(re.search(r"--ntasks-per-node=(\d+)", script)[1])
    codes = together(count, tmp_path / "log", task_of_srun, count, overrides, tmp_path)
    assert codes == [0] * 4, (tmp_path / "log").read_text()
    found = [(tmp_path / f"rank{rank}.jsonl").read_text() for rank in range(4)]
    assert '"spatial"' in found[0] and found.count(found[0]) == 4


def test_a_path_with_spaces_quotes_and_signs(launch, tmp_path) -> None:
    name = """a b #1 %j 'q' "r" ${HOME} $x"""
    code, _, _ = launch(*EMBEDDED, "task=rte", "--gpus=0", "run.dir=" + literal(f"my 100%j/{name}"))
    assert code == 0
    script = (tmp_path / "my 100%j" / name / "job.sh").read_text()
    config = load(GLUE, [word for word in train_command(script) if "=" in word and not word.startswith("-")])
    assert config.run.dir == f"my 100%j/{name}"
    assert "--job-name=a-b-1-j-q-r-HOME-x" in directives(script)
    output = next(line for line in directives(script) if line.startswith("--output="))
    assert shlex.split(output) == [f"--output={tmp_path}/my 100%%j/{name.replace('%', '%%')}/slurm-%j.log"]
    assert output.endswith('"') and "'q'" in output  # sbatch reads a backslash in single quotes as one that escapes


def test_a_path_that_no_log_can_have_is_refused(launch, tmp_path) -> None:
    for name in ("a\nb", "a\\b"):
        code, text, _ = launch(*EMBEDDED, "task=rte", "--gpus=0", f"run.dir=runs/{name}")
        assert code == 2 and "a job's log cannot have a backslash or a line break" in text
    assert not list(tmp_path.iterdir())


def test_names_for_other_programs() -> None:
    assert label(Path("x/sst2-tiny-spatial+temporal-s0")) == "sst2-tiny-spatial-temporal-s0"
    assert label("a b #1 %j 'q'") == "a-b-1-j-q" and label("ü") == "run" and label("a--b") == "a-b"
    assert label("x" * 300) == "x" * 128
    assert label(Path(".")) == label(Path.cwd())


def test_a_template_of_ones_own(launch, tmp_path) -> None:
    own = tmp_path / "own.sh"
    own.write_text("#!/bin/bash\n@{resources}\nmodule load cuda  # me@host\n@{choice}\nsrun @{train}\n")
    _, _, script = launch(*EMBEDDED, "task=rte", "--gpus=0", f"--template={own}")
    assert "module load cuda  # me@host\ntask=rte seed=0\nsrun " in script
    for text, words in (("@{tasks}", "'tasks'; there are name, script"), ("@{", "there are name")):
        own.write_text(text)
        code, message, _ = launch(*EMBEDDED, "task=cola", "--gpus=0", f"--template={own}")
        assert code == 2 and words in message and "Traceback" not in message
    assert "no.sh: no such file" in launch(*EMBEDDED, "--template=no.sh")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("task=mrpc",), ("data.source = auto", "data.source=hub", "spikeprune fetch")),
        ((*EMBEDDED, "--array=mrpc mrcp"), ("unknown task mrcp", "did you mean mrpc?")),
        ((*EMBEDDED, "--seeds=4-0"), ("seeds = 4-0", "such as 0-4")),
        ((*EMBEDDED, "--seeds="), ("seeds = ", "such as 0-4")),
        ((*EMBEDDED, "--seeds=0-1000000"), ("seeds = 0-1000000",)),
        ((*EMBEDDED, "--seeds=4294967296"), ("seed = 4294967296",)),
        ((*EMBEDDED, f"--seeds=1-{MAX_RUNS}", "--array=mrpc rte"), (f"{2 * MAX_RUNS} runs", "launch fewer")),
        ((*EMBEDDED, "task=rte", "--array=mrpc"), ("task: is given twice",)),
        ((*EMBEDDED, "seed=1", "--seeds=0-1"), ("seed: is given twice",)),
        ((*EMBEDDED, "--array=mrpc rte", "run.dir=runs/x"), ("run.dir = runs/x: 2 runs", "${task}")),
        ((*EMBEDDED, "--gpus=-1", "--cpus=0"), ("gpus = -1", "cpus = 0")),
        ((*EMBEDDED, "--gpus=1", "run.accelerator=cpu"), ("gpus = 1: contradicts run.accelerator=cpu",)),
        ((*EMBEDDED, "--time=4:00"), ("time = 4:00: is 4 minutes to SLURM", "as 4:00:00")),
        ((*EMBEDDED, "student.t_steps=0"), ("student.t_steps = 0",)),
    ],
)
def test_refused_with_nothing_written(launch, tmp_path, arguments, words) -> None:
    code, text, _ = launch(*arguments)
    assert code == 2 and text.startswith("error: ") and "Traceback" not in text
    assert all(word in text for word in words), text
    assert not list(tmp_path.iterdir())


def test_all_problems_come_at_once(launch) -> None:
    _, text, _ = launch("--array=mrcp rte", "--seeds=1-0", "--nodes=0", "sed=1")
    assert all(word in text for word in ("mrcp", "1-0", "nodes = 0", "sed: unknown key"))


def test_no_sbatch_on_path(launch, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, text, script = launch(*EMBEDDED, "task=rte", "--gpus=0", dry=False)
    assert (code, script) == (2, "") and not list(tmp_path.iterdir())
    assert text == "error: sbatch is not on PATH; SLURM's commands are found on a cluster's login node\n"


def test_seeds() -> None:
    assert read_seeds("0-3") == [0, 1, 2, 3]
    assert read_seeds("5, 0-1 1") == [5, 0, 1]
    for text in ("a", "1-", "-1", "1--2", "1.5", ""):
        with pytest.raises(InputError, match="write numbers and rising ranges"):
            read_seeds(text)


def test_time_limits_are_read_as_slurm_reads_them() -> None:
    """As `man sbatch` lists them."""
    times = ("90", "4:30", "4:00:00", "2-3", "2-3:30", "1-0:0:7")
    seconds = [90 * 60, 270, 4 * 3600, 51 * 3600, 51.5 * 3600, 86407]
    assert [slurm_job.read_time(text) for text in times] == seconds
    assert [slurm_job.read_time(text) for text in ("UNLIMITED", "soon", "1:2:3:4", "-5")] == [None] * 4


@pytest.mark.parametrize("target", ["slurm", "fetch"])
def test_make(target, make, tmp_path, capsys) -> None:
    """The Makefile's arguments become the command's."""
    glue = write_cola(write_sst2(tmp_path / "glue"))
    runs = [item for item in micro(tmp_path / "${task}-${seed}", glue)[3:] if not item.startswith("preset")]
    arguments = [f"DATA={glue}", "ARGS=" + " ".join(shlex.quote(i) for i in runs), "ARRAY=sst2 cola"]
    more = ["SEEDS=0-1", "TIME=10:00", "PARTITION=p", "SBATCH=--mem=1G --exclusive", "CPUS=1", "DRY=1"]
    program, words = make(target, *arguments, *(more if target == "slurm" else []))
    assert program == "spikeprune" and cli.main(words) == 0
    printed = capsys.readouterr().out
    if target == "fetch":
        assert printed.splitlines()[-1] == "verified: a compute node without network finds all of it"
        assert all(f"data: {task} from directory {glue}; 60 train" in printed for task in ("sst2", "cola"))
        return
    script = next(tmp_path.glob("launch-*/job.sh")).read_text()
    lines = directives(script)
    assert {"--array=0-3", "--time=10:00", "--partition=p", "--mem=1G", "--exclusive", "--cpus-per-task=1"} <= set(
        lines
    )
    assert [train_command(script, i)[-2:] for i in (0, 3)] == [["task=sst2", "seed=0"], ["task=cola", "seed=1"]]
    assert not [line for line in lines if "gres" in line]


def test_make_asks_for_gpus(make, tmp_path) -> None:
    run = tmp_path / "run"
    _, words = make("slurm", "TASK=sst2", "DRY=1", "GPUS=4", "DATA=embedded", f"ARGS=run.dir={run}")
    assert cli.main(words) == 0
    script = (run / "job.sh").read_text()
    assert {"--gres=gpu:4", "--ntasks-per-node=4"} <= set(directives(script)) and "run.devices=4" in script
