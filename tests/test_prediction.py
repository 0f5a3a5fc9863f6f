"""Own data from file to prediction; predictions of a run: order, cost, files, refusals."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import datasets
import pytest
from hub import Hub
from micro import GLUE, ROOT, micro, only
from own import COLUMNS, MOODS, write_reviews, write_scores
from test_fetch import Machine

import spikeprune
from spikeprune import cli
from spikeprune.arguments.commands import parse
from spikeprune.config.load import load, read_resolved
from spikeprune.config.tasks import get_task
from spikeprune.errors import InputError
from spikeprune.experiment import compaction, evaluation, pipeline, prediction
from spikeprune.experiment.prediction import open_predictor, predict, predictions
from spikeprune.experiment.prediction_files import of_lines, of_words
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.integrations.sweeps import spec

WHOLE = ["stages.temporal.t_steps=null", "stages.teacher.epochs=6", "data.replace_words=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three classes, learnt by a teacher and two stages of a student, the last compacted."""
    folder = tmp_path_factory.mktemp("own")
    files = [write_reviews(folder / "reviews.csv"), write_reviews(folder / "dev.csv", 30, seed=1)]
    given = [f"data.train_file={files[0]}", f"data.dev_file={files[1]}", "data.source=auto"]
    stages = [*only("teacher", "prediction_kd", "spatial"), "stages.teacher.epochs=6"]
    pipeline.run(load(GLUE, [*micro(folder / "run"), *COLUMNS, *WHOLE, *given, *stages]))
    compaction.compact_run(folder / "run")
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(*words: str) -> int:
    return cli.main(["predict", *words])


# ---------------------------------------------------------------------------------------------------- from file to file


def test_from_a_csv_to_predictions_with_costs(folder, capsys) -> None:
    """Commas, quotes, newlines and several scripts come out as they went in; quality and cost are those of the run."""
    out = folder / "predicted.csv"
    assert run(str(folder / "run"), "--file", str(folder / "dev.csv"), "--out", str(out), "--cost") == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    given, found = table(folder / "dev.csv"), table(out)
    assert [row["review"] for row in found] == [row["review"] for row in given]
    names = sorted(MOODS)
    classes, costs = [f"p({name})" for name in names], ["additions", "energy_pj", "steps"]
    assert list(found[0]) == ["review", "prediction", *classes, *costs]
    for row in found:
        chances = [float(row[name]) for name in classes]
        assert sum(chances) == pytest.approx(1, abs=1e-5) and row["prediction"] == names[chances.index(max(chances))]
    of_run = RunDirectory(folder / "run")
    record = of_run.record("spatial")
    right = [one["prediction"] == other["mood"] for one, other in zip(found, given, strict=True)]
    assert sum(right) / 30 == pytest.approx(record["metrics"]["accuracy"]) and sum(right) > 10
    for key, name in (("ac", "additions"), ("energy_pj", "energy_pj")):
        assert sum(float(row[name]) for row in found) / 30 == pytest.approx(record["cost"][key], rel=1e-4)
    assert {row["steps"] for row in found} == {str(record["cost"]["latency_steps"])}
    dense = predict(of_run.path, [row["review"] for row in given], stage="teacher", cost=True)
    energy = of_run.record("teacher")["cost"]["energy_pj"]
    assert sum(row["energy_pj"] for row in dense) / 30 == pytest.approx(energy, rel=1e-6)


def test_json_lines_from_standard_input(folder, monkeypatch, capsys) -> None:
    texts = "lovely 映画\nawful, really\n"
    for flags in ([], ["--compact"], ["--stage", "teacher", "--cost"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(texts.encode()), encoding="utf-8"))
        out = folder / f"out{len(flags)}.jsonl"
        assert run(str(folder / "run"), *flags, "--out", str(out)) == 0
        found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert [one["review"] for one in found] == texts.splitlines()
        assert set(found[0]["probabilities"]) == set(MOODS) and ("additions" in found[0]) == ("--cost" in flags)
    assert found[0]["prediction"] == '"froh"' and found[0]["additions"] == 0 < found[0]["energy_pj"]
    capsys.readouterr()
    assert run(str(folder / "run"), "lovely", "a, b") == 0
    shown = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert [row[0] for row in shown] == ["review", "lovely", "a, b"]


def test_pairs_and_words_behind_options() -> None:
    """Two words, or a line with a tab between them, are an example of a task of pairs."""
    mrpc, sst2 = get_task("mrpc"), get_task("sst2")
    assert [texts for _, texts in of_words(mrpc, ["a", "b", "c", " d "])] == [("a", "b"), ("c", "d")]
    assert list(of_lines(mrpc, [(1, "a\tb\r")], "x")) == [("x:1", ("a", "b"))]
    assert list(of_lines(sst2, [(1, "a\tb")], "x")) == [("x:1", ("a\tb",))]
    for wrong in (lambda: of_words(mrpc, ["a"]), lambda: of_lines(mrpc, [(3, "a b")], "x")):
        with pytest.raises(InputError, match=r"give two for each|x:3: has 1 texts; write the two of a pair"):
            list(wrong())
    assert parse(["predict", "runs/x", "--stage", "teacher", "one", "--cost", "two = 2"]).texts == ["one", "two = 2"]


def test_windows_keep_order_and_read_no_further(folder, monkeypatch) -> None:
    predictor = open_predictor(folder / "run")
    texts = [f"{word} film {'the ' * i}" for i, word in enumerate(["lovely", "awful", "plain"] * 4)]
    examples = [(f"text {i}", (text.strip(),)) for i, text in enumerate(texts)]
    whole = list(predictions(predictor, examples))
    monkeypatch.setattr(prediction, "WINDOW", 5)
    parts = list(predictions(predictor, examples))
    assert [one.texts for one in parts] == [texts for _, texts in examples]
    for one, other in zip(whole, parts, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    numbers = count()
    endless = ((f"text {next(numbers)}", ("lovely",)) for _ in count())
    next(predictions(predictor, endless))
    assert next(numbers) == 5


def test_texts_are_cut_as_in_training(folder, capsys) -> None:
    predictor, long = open_predictor(folder / "run"), "lovely " + "film " * 100
    length = predictor.config.data.max_length
    tokens = predictor.tokenizer(
        long, truncation=True, max_length=length, return_tensors="pt", return_token_type_ids=True
    )
    logits = spikeprune.load(folder / "run" / "stages" / "spatial")(**tokens).logits
    found = next(predict(folder / "run", [long]))
    wanted = logits.double().softmax(-1)[0].tolist()
    assert tokens["input_ids"].shape[1] == length and list(found["probabilities"].values()) == pytest.approx(
        wanted, 1e-4
    )
    assert cli.main(["predict", str(folder / "run"), "lovely", long]) == 0
    assert f"texts cut to {length} tokens (data.max_length), as in training: 1\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("fine", "texts: is one string; give a list of texts"),
        (["a", None], "text 2: the sentence is missing"),
        (["a", float("nan")], "text 2: the sentence is missing"),
        ([3], "text 1: 3 is no text"),
        ([("a", "b")], r"text 1: has 2; the task has one text an example \(review\)"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(folder, texts, message) -> None:
    with pytest.raises(InputError, match=message):
        list(predict(folder / "run", texts))


FOREIGN = """
import sys
import spikeprune
from spikeprune import SpikingBertForSequenceClassification  # registers the architecture
from transformers import pipeline
for folder in sys.argv[1:]:
    answer = pipeline("text-classification", folder)("lovely")[0]
    print(answer["label"], spikeprune.load(folder).config.id2label[0], sep="|")
"""


@pytest.mark.slow
def test_transformers_reads_every_directory_of_a_run(folder) -> None:
    """In a process that has only imported a model's name."""
    folders = [*sorted((folder / "run" / "stages").iterdir()), folder / "run" / "compact"]
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, *map(str, folders)], capture_output=True, text=True, encoding="utf-8", cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert len(lines) == 4 and all(label in MOODS and first == sorted(MOODS)[0] for label, first in lines)


# ------------------------------------------------------------------------------------------------- measured and resumed


def test_a_run_on_own_data_is_measured_again_and_on_another_file(folder, capsys) -> None:
    own = evaluation.evaluate(folder / "run")
    assert own["same_data"] and own["metrics"] == RunDirectory(folder / "run").record("spatial")["metrics"]
    other = evaluation.evaluate(folder / "run", data_dir=str(folder / "dev.csv"))
    assert other["metrics"] == own["metrics"] and not other["same_data"]
    assert cli.main(["evaluate", str(folder / "run"), "--compact"]) == 0
    assert own["data"]["largest_class"] == {"accuracy": 1 / 3, "macro_f1": pytest.approx(1 / 6)}
    assert "score: accuracy on the dev split, × 100. Always the largest class: 33.3." in capsys.readouterr().out
    (folder / "strange.csv").write_text("review,mood\nx,neutral\ny,other\n")
    with pytest.raises(InputError, match=r"strange\.csv:3: label 'other' is none of"):
        evaluation.evaluate(folder / "run", data_dir=str(folder / "strange.csv"))
    (folder / "strange.csv").write_text("review,opinion\nx,neutral\n")
    with pytest.raises(InputError, match="no column 'mood'; it has review, opinion; rename the file's columns"):
        evaluation.evaluate(folder / "run", data_dir=str(folder / "strange.csv"))
    (folder / "one.csv").write_text("review,mood\n" + "plain film,neutral\n" * 3)
    found = evaluation.evaluate(folder / "run", data_dir=str(folder / "one.csv"))
    assert found["data"]["scored"] == {"validation": 3} and found["metrics"]["accuracy"] in (0, 1)


def test_a_run_says_before_what_it_will_take(folder) -> None:
    log = (folder / "run" / "run.log").read_text(encoding="utf-8")
    before, after = log.split("[1/3] teacher: 6 epochs\n")
    assert 'classes of 120 training examples: "froh" 40 (33.3%), neutral 40 (33.3%), traurig, müde 40' in before
    assert "cut to 24 tokens (data.max_length): 0.0% of train, 0.0% of validation\n" in before
    assert "will take 150 optimizer steps (teacher 90, prediction_kd 15, spatial 45) and at most " in before
    assert re.search(r"^  teacher: \d+\.\d\d GB of memory after 10 steps, \d+ s left of the whole run$", after, re.M)


def test_sweeps_and_ablations_know_own_data(folder) -> None:
    own = [*COLUMNS, f"data.train_file={folder / 'reviews.csv'}", "data.metrics=[macro_f1]", "preset=tiny"]
    sweep = spec.read(ROOT / "experiments" / "sweeps" / "budget.yaml", [*own, "data.source=auto"])
    assert spec.default_folder(sweep) == Path("runs/sweeps/budget-reviews-tiny")
    config = load(GLUE, [*own, "ablation=temporal"])
    assert config.run.dir == "runs/reviews-tiny-temporal-s0" and config.stages.spatial.epochs == 0


def test_the_same_command_finds_the_run_and_other_data_do_not(folder, capsys) -> None:
    again = RunDirectory(folder / "run").config
    pipeline.run(read_resolved(again))
    assert "finished, nothing to run" in capsys.readouterr().out
    changed = read_resolved(again)
    changed.data.dev_file = str(write_reviews(folder / "dev.csv.csv", 30, seed=2))
    with pytest.raises(InputError, match="was started with another configuration"):
        pipeline.run(changed)


def test_a_regression_of_pairs(tmp_path) -> None:
    write_scores(tmp_path / "near.jsonl", 240)
    own = ["task=custom", "data.text=[a,b]", "data.label=near", f"data.train_file={tmp_path / 'near.jsonl'}"]
    stages = [*only("teacher", "prediction_kd"), "stages.teacher.epochs=4"]
    settings = [*micro(tmp_path / "run"), *WHOLE, "data.source=auto", *own, *stages]
    settings += ["stages.spatial.heads=1.0", "stages.spatial.ffn=1.0"]
    summary = pipeline.run(load(GLUE, settings))
    assert summary["main_metric"] == "pearson" and summary["data"]["labels"] is None
    found = list(predict(tmp_path / "run", [("red green", "red green"), ("red green", "blue black")], stage="teacher"))
    assert [set(one) for one in found] == [{"a", "b", "prediction"}] * 2
    assert all(-1 < one["prediction"] < 4 for one in found)


@pytest.mark.slow
def test_a_hub_data_set(tmp_path) -> None:
    """By the real client, from a stand-in for the hub; the classes are in the data set's order."""
    repository = tmp_path / "hub" / "datasets" / "me" / "moods"
    repository.mkdir(parents=True)
    for split, size in (("train", 60), ("validation", 24)):
        columns = {"review": [f"{('good', 'bad')[i % 2]} film {i}" for i in range(size)]}
        data = datasets.Dataset.from_dict({**columns, "mood": [i % 2 for i in range(size)]})
        kind = datasets.ClassLabel(names=["up", "down"])
        data.cast_column("mood", kind).to_parquet(repository / f"{split}.parquet")
    given = [*micro(tmp_path / "run"), *COLUMNS, *WHOLE, "data.source=hub", "data.hub=me/moods"]
    stages = [*only("teacher", "prediction_kd"), "stages.spatial.heads=1.0", "stages.spatial.ffn=1.0"]
    with Hub(tmp_path / "hub") as hub:
        machine = Machine(tmp_path / "cache", hub.url)
        code, _, error = machine("train", str(GLUE), *given, *stages)
        assert code == 0, error
    code, out, error = machine("predict", str(tmp_path / "run"), "good film", "bad film", "--stage", "teacher")
    assert code == 0, error
    header, *rows = csv.reader(io.StringIO(out))
    assert header == ["review", "prediction", "p(up)", "p(down)"] and [row[1] for row in rows] == ["up", "down"]


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["text", "--file", "dev.csv"], "texts are given as well; give one of the two"),
        (["--file", "missing.csv"], "missing.csv: is missing"),
        (["--file", "other.csv"], "no column 'review'; it has revue (did you mean revue?)"),
        (["--file", "empty.csv"], "empty.csv: holds no examples; there is nothing to predict"),
        (["--file", "empty.txt"], "empty.txt: is empty; there is nothing to predict"),
        (["--file", "blank.txt"], "blank.txt:2: the sentence is empty"),
        (["--file", "blank.csv"], "blank.csv:3: the sentence is empty"),
        (["--file", "x.docx"], "x.docx: is of no kind that is read; give one of .txt, .csv"),
        (["text", "--out", "dev.csv"], "dev.csv: exists; nothing is overwritten"),
        (["text", "--out", "a.tsv"], "a.tsv: is of no kind that is written; end its name in .csv or .jsonl"),
        (["text", "--out", "no/a.csv"], "no is no directory"),
        (["text", "--stage", "temporal"], "stage 'temporal' is not finished; finished are: "),
        ([" "], "text 1: the sentence is empty"),
        (["--glue-test"], "is a run on own data, of which GLUE has no test"),
        (["--zip", "a.zip"], "--data and --zip belong to --glue-test"),
        (["--glue-test", "--file", "dev.csv"], "without --file and --cost"),
    ],
)
def test_what_cannot_be_predicted_is_one_sentence(folder, words, message, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    (folder / "other.csv").write_text("revue\nx\n")
    (folder / "empty.csv").write_text("review\n")
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text("x\n\ny\n")
    (folder / "blank.csv").write_text('review\nx\n""\n')  # as csv.writer has an empty cell
    before = sorted(folder.iterdir())
    assert run("run", *words) == 2
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err and len(shown.err.splitlines()) == 1
    assert sorted(folder.iterdir()) == before


def test_a_file_that_breaks_off_leaves_nothing(folder, monkeypatch, capsys) -> None:
    monkeypatch.setattr(prediction, "WINDOW", 2)
    (folder / "broken.csv").write_text("review\nlovely\nawful\nplain\n\nx\n")
    before = sorted(folder.iterdir())
    assert run(str(folder / "run"), "--file", str(folder / "broken.csv"), "--out", str(folder / "broken.jsonl")) == 2
    assert "broken.csv:5: an empty line" in capsys.readouterr().err and sorted(folder.iterdir()) == before


def test_a_run_without_a_student_is_told(tmp_path, folder) -> None:
    (tmp_path / "config.yaml").write_bytes((folder / "run" / "config.yaml").read_bytes())
    with pytest.raises(InputError, match="no stage of the student is finished"):
        open_predictor(tmp_path)


@pytest.mark.compiler
def test_the_c_program_predicts_the_same(folder, capsys) -> None:
    """Probabilities, and costs counted from its own spikes."""
    rows = []
    for name in ("torch", "c"):
        out = folder / f"by-{name}.csv"
        words = [str(folder / "run"), "--file", str(folder / "dev.csv"), "--out", str(out), "--cost", "--runtime", name]
        assert run(*words) == 0
        rows.append(table(out))
    for one, other in zip(*rows, strict=True):
        assert one.keys() == other.keys() and one["prediction"] == other["prediction"]
        for key in one.keys() - {"review", "prediction"}:
            assert float(one[key]) == pytest.approx(float(other[key]), rel=1e-3), key
    assert run(str(folder / "run"), "a film", "--runtime", "c", "--stage", "teacher") == 2
    assert "runs spiking students and not the teacher" in capsys.readouterr().err
