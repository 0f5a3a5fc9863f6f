"""A task and a configuration small enough to run the whole pipeline in seconds; not a test."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from random import Random

from spikeprune.config.schema import Stages
from spikeprune.experiment.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
GLUE = ROOT / "experiments" / "glue.yaml"
STAGES = ("teacher", "internal_kd", "prediction_kd", "spatial", "temporal", "finetune")
BATCHES = 8  # of an epoch of `micro`


def write_sst2(folder: Path, train: int = 60, dev: int = 24) -> Path:
    """A GLUE directory with an SST-2 that one word decides, which any teacher learns in a few steps."""
    random = Random(0)
    (folder / "SST-2").mkdir(parents=True)
    for name, size in (("train", train), ("dev", dev)):
        rows = ["sentence\tlabel"]
        for i in range(size):
            words = random.choices(("the", "film", "was", "a", "long", "story", "of", "rain"), k=random.randint(2, 7))
            words.insert(random.randrange(len(words) + 1), ("bad", "good")[i % 2])
            rows.append(" ".join(words) + f"\t{i % 2}")
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def write_cola(folder: Path) -> Path:
    """The same sentences as a CoLA, which has four columns and no header."""
    (folder / "CoLA").mkdir()
    for name in ("train", "dev"):
        rows = (folder / "SST-2" / f"{name}.tsv").read_text().splitlines()[1:]
        pairs = [row.split("\t") for row in rows]
        (folder / "CoLA" / f"{name}.tsv").write_text("".join(f"x\t{label}\t\t{text}\n" for text, label in pairs))
    return folder


def only(*names: str) -> list[str]:
    """Overrides that leave out every stage but these; the teacher's always runs."""
    return [f"stages.{field.name}.epochs=0" for field in fields(Stages) if field.name not in ("teacher", *names)]


def micro(folder: Path, glue: Path | None = None) -> list[str]:
    """Overrides of experiments/glue.yaml for a run in `folder`; without `glue` on embedded data, task left to set."""
    real = ["task=sst2", "data.source=dir", f"data.dir={glue}"]
    task = real if glue else ["data.source=embedded"]
    return [
        *task,
        "preset=tiny",
        f"run.dir={folder}",
        "run.accelerator=cpu",
        "run.log_every=1",
        "data.batch_size=8",
        "data.max_length=24",
        "teacher.size=[24,2,3,37,300]",
        "teacher.dropout=0.1",
        "student.calibration=32",
        "data.replace_words=0.3",
        "stages.spatial.heads=0.5",
        "stages.spatial.ffn=0.3",
        "stages.temporal.t_steps=2",
        "stages.spatial.end=1.0",
        "stages.temporal.end=1.0",
        "stages.teacher.epochs=3",
        "stages.teacher.lr=1.0e-2",
        "stages.internal_kd.epochs=2",
        "stages.prediction_kd.epochs=1",
        "stages.spatial.epochs=3",
        "stages.temporal.epochs=3",
        "stages.finetune.epochs=1",
    ]


def logged(run: RunDirectory) -> list[dict]:
    """The records of `metrics.jsonl` but for the time they were made at."""
    return [{key: value for key, value in record.items() if key != "time"} for record in run.read_metrics()]
