"""Submission files of GLUE's test splits, from predictions of runs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from test_glue import ROWS

from spikeprune import cli
from spikeprune.config.schema import Config
from spikeprune.config.tasks import TASKS, get_task
from spikeprune.data.tokenizer import train_wordpiece
from spikeprune.experiment import prediction, submission
from spikeprune.experiment.prediction import Predictor
from spikeprune.models.outputs import Outputs


def predict(*words: str) -> int:
    return cli.main(["predict", *words])


TEST_HEADERS = {"cola": "index\tsentence", "sst2": "index\tsentence"}


def write_test(folder: Path, name: str, size: int = 7) -> None:
    """A test split: a training file without its label column, and an index in front."""
    task = get_task(name)
    header = ROWS[name][0] or ""
    columns = [column for column in header.lstrip("\ufeff").split("\t") if column != task.tsv_label]
    columns = TEST_HEADERS.get(name, "\t".join(["index", *(c for c in columns if c != "index")])).split("\t")
    for test in submission.tests(task).values():
        path = folder / test.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if "diagnostic" in test.file:
            columns = ["index", "sentence1", "sentence2"]
        rows = ["\t".join(str(i) if c in ("index", "id") else f'a "word {i}' for c in columns) for i in range(size)]
        path.write_text("\n".join(["\t".join(columns), *rows]) + "\n", encoding="utf-8")


def predictor_of(name: str) -> Predictor:
    """One that answers the classes in turn, by the number that stands in a text; of a regression beyond its range."""
    task = get_task(name)
    tokenizer = train_wordpiece([f'a "word {i}' for i in range(10)], vocab_size=100)

    def forward(batch: dict[str, torch.Tensor]) -> Outputs:
        numbers = [int("".join(c for c in tokenizer.decode(ids, skip_special_tokens=True) if c.isdigit())[0])
                   for ids in batch["input_ids"]]  # fmt: skip
        if task.regression:
            return Outputs(torch.tensor([[2.0 * n] for n in numbers]))
        return Outputs(torch.nn.functional.one_hot(torch.tensor(numbers) % task.num_labels, task.num_labels).float())

    return Predictor(Config(task=name), task, tokenizer, torch.device("cpu"), forward, None, 0)


FIRST = {  # what GLUE's files say of the first rows
    "CoLA.tsv": "0 1 0", "SST-2.tsv": "0 1 0", "MRPC.tsv": "0 1 0", "QQP.tsv": "0 1 0", "WNLI.tsv": "0 1 0",
    "STS-B.tsv": "0.000 2.000 4.000", "MNLI-m.tsv": "entailment neutral contradiction",
    "MNLI-mm.tsv": "entailment neutral contradiction", "AX.tsv": "entailment neutral contradiction",
    "QNLI.tsv": "entailment not_entailment entailment", "RTE.tsv": "entailment not_entailment entailment",
}  # fmt: skip


def test_all_eleven_submission_files_in_one_archive(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(prediction, "open_predictor", lambda run, stage, compacted, runtime: predictor_of(run))
    for name in TASKS:
        write_test(tmp_path / "glue", name)
    archive = tmp_path / "all.zip"
    assert predict(*TASKS, "--glue-test", "--data", str(tmp_path / "glue"), "--zip", str(archive)) == 0
    with zipfile.ZipFile(archive) as opened:
        files = {name: opened.read(name).decode() for name in opened.namelist()}
    assert set(files) == set(FIRST)
    for name, text in files.items():
        header, *rows = text.splitlines()
        assert header == "index\tprediction" and [row.split("\t")[0] for row in rows] == [str(i) for i in range(7)]
        assert " ".join(row.split("\t")[1] for row in rows[:3]) == FIRST[name], name
    assert files["STS-B.tsv"].splitlines()[-1] == "6\t5.000"  # within the range
    assert len(capsys.readouterr().out.splitlines()) == 11


def test_submission_files_are_refused_in_a_sentence(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        prediction, "open_predictor", lambda run, stage, compacted, runtime: predictor_of(Path(run).name)
    )
    data, out = ["--glue-test", "--data", str(tmp_path)], ["--out", str(tmp_path / "files")]
    write_test(tmp_path, "mnli")
    (tmp_path / "diagnostic" / "diagnostic.tsv").unlink()
    assert predict("mnli", *data, *out) == 0
    assert "AX.tsv is left out: there is no diagnostic/diagnostic.tsv" in capsys.readouterr().out
    for words, message in (
        (["mnli", *data, *out], "MNLI-m.tsv: exists"),
        (["rte", *data, *out], "test.tsv: is missing"),
        (["mnli", "x/mnli", *data, "--zip", str(tmp_path / "a.zip")], "MNLI-m.tsv is another run's already"),
        (["mnli", *data, *out, "--zip", "a.zip"], "--zip a.zip is given as well"),
    ):
        assert predict(*words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "a.zip").exists()
