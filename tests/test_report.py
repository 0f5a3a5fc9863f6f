"""The report page: the numbers that it draws, by hand; what it says where something is missing; what it refuses."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from micro import GLUE, micro, only, write_sst2
from students import CODINGS, H, make, prune, sentences

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.cost.energy_models import ENERGY_MODELS
from spikeprune.experiment import pipeline
from spikeprune.experiment.page_data import predictions
from spikeprune.experiment.page_data.curves import curves
from spikeprune.experiment.page_data.layers import layer_maps
from spikeprune.experiment.page_data.raster import dots, spike_trains, token_rates
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.models.inference import infer
from spikeprune.report.page.markup import joined, table, tag
from spikeprune.report.page.scale import log_ticks, short, ticks

HOSTILE = "<script>alert(1)</script> \"' onload=x &amp; <b>good"
SECTIONS = ["Stages", "Training", "Layers", "Energy", "Predictions", "Spikes, word by word"]

# ----------------------------------------------------------------------------------------------------------- by hand


def test_a_curve_has_the_mean_of_each_epoch_of_the_run() -> None:
    steps = [("teacher", 0, 3.0), ("teacher", 0, 1.0), ("teacher", 1, 1.0), ("spatial", 0, 4.0)]
    records = [{"stage": s, "epoch": e, "train/loss": x, "train/soft": x / 2, "train/lr": 1e-3} for s, e, x in steps]
    records += [{"stage": "teacher", "epoch": 1, "val/main": 0.5}]
    rates = {"rate/embedding": 0.5, "rate/layers.0.key": 0.1, "rate/layers.0.output": 0.3}
    records += [{"stage": "spatial", "epoch": 0, "val/main": 0.25, "cost/energy_pj": 7.0, **rates}]
    found = curves(records)
    assert found["bands"] == [("teacher", 0, 2), ("spatial", 2, 3)]
    assert found["loss"] == {"loss": [(1, 2.0), (2, 1.0), (3, 4.0)], "soft": [(1, 1.0), (2, 0.5), (3, 2.0)]}
    assert found["score"] == {"teacher": [(2, 50.0)], "student": [(3, 25.0)]} and found["energy"] == [(3, 7.0)]
    assert found["rates"] == {"embedding": [(3, 0.5)], "layer 1": [(3, pytest.approx(0.2))]}
    assert curves([])["bands"] == []


def test_the_confusion_and_the_scores_of_each_class() -> None:
    """True classes 0 0 0 1 1, answered 0 0 1 1 0."""
    logits, labels = torch.eye(3)[[0, 0, 1, 1, 0]].double(), torch.tensor([0, 0, 0, 1, 1])
    found = predictions.classified(logits, labels)
    assert found["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    rows = [[row[key] for key in ("precision", "recall", "f1", "examples")] for row in found["classes"]]
    assert rows[0] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 3])
    assert rows[1:] == [[0.5, 0.5, 0.5, 2], [0, 0, 0, 0]]


def test_the_calibration_error_by_hand() -> None:
    """Ten answers at 0.75, five of them right, and two at 0.95, both right: 10/12 · 0.25 + 2/12 · 0.05."""
    p = torch.tensor([0.75] * 10 + [0.95] * 2, dtype=torch.float64)
    logits = torch.stack([p, 1 - p], 1).log()
    found = predictions.calibration(logits, torch.tensor([0] * 5 + [1] * 5 + [0] * 2))
    assert found["ece"] == pytest.approx(10 / 12 * 0.25 + 2 / 12 * 0.05)
    assert [(one["count"], one["accuracy"]) for one in found["bins"]] == [(10, 0.5), (2, 1.0)]


def test_the_worst_are_those_of_the_largest_error() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 1.0]]), torch.tensor([0, 0, 0])
    assert predictions.hardest(predictions.class_errors(logits, labels)) == [1, 2, 0]
    found = predictions.regressed(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    assert found["points"] == [(1.0, 1.0), (4.0, 2.0)] and found["rmse"] == pytest.approx(2**0.5)


def test_ticks_are_round() -> None:
    assert ticks(0, 1) == [0, 0.5, 1] and ticks(83, 99) == [85, 90, 95] and ticks(-0.3, 0.31) == [-0.2, 0, 0.2]
    assert log_ticks(0.9, 30) == [1, 2, 5, 10, 20] and log_ticks(1, 1e5) == [1, 10, 100, 1000, 10000, 100000]
    assert [short(x) for x in (0, 0.0005, 0.25, 12, 3500, 2e6)] == ["0", "5e-4", "0.25", "12", "3.5k", "2M"]


# ------------------------------------------------------------------------------------------------------- the student


@pytest.mark.parametrize("coding", CODINGS)
def test_a_rasters_spikes_are_those_that_the_costs_count(coding) -> None:
    student, batch = prune(make(coding=coding)), sentences()
    trains = spike_trains(student, batch)
    counts = infer(student, **batch, stepwise=True).counts
    real = batch["attention_mask"][None, :, :, None]
    for spiking_layer, train in trains.items():  # [T, B, N, D]
        assert torch.equal((train.abs() * real).sum(2).double(), counts[spiking_layer].double()), spiking_layer
    assert set(trains) == set(student.spiking_layers())


def test_what_a_raster_shows_of_a_train() -> None:
    train = torch.zeros(2, 1, 3, 5, dtype=torch.int8)  # T, B, N, D
    train[0, 0, 1, 4], train[1, 0, 2, 0] = 1, -1
    found = dots(train[:, 0])
    assert sorted(found["spikes"]) == [(0, 2, 1, -1), (4, 1, 0, 1)] and (found["t_steps"], found["rows"]) == (2, 5)
    assert token_rates(train, torch.tensor([1, 1, 1, 1, 0])) == [0, 0, 1 / 8]


def test_maps_hold_what_each_layer_keeps() -> None:
    student = prune(make(sparse=True))
    with torch.no_grad():
        student.layers[1].up.weight[1, :6] = 0
    student.refresh_synapses()
    found = layer_maps(student)
    assert found["heads"] == [[1, 0, 1], [0, 1, 1]] and found["kept"] == {"heads": [2, 2], "neurons": [29, 29]}
    assert found["neurons"][0] == [0.0 if i % 5 == 0 else 1.0 for i in range(37)] and found["t_steps"] == [3, 4, 2]
    shares = dict(zip(found["matrices"], found["synapses"][1], strict=True))
    assert shares["query"] == shares["out"] == pytest.approx((H - 1) / H)
    assert shares["down"] == pytest.approx(29 / 37) and shares["up"] == pytest.approx((29 * 12 - 6) / (37 * 12))


# -------------------------------------------------------------------------------------------------------------- a page


class Reader(HTMLParser):
    """The headings, notes and scripts of a page, and how deep its elements lie."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []
        self.scripts = self.drawings = 0
        self.feed(text)
        assert self.open == [], "every element is closed"

    def handle_starttag(self, name, attributes) -> None:
        self.scripts += name == "script"
        self.drawings += name == "svg"
        assert not any(key.startswith("on") for key, _ in attributes)
        if name != "meta":
            self.open.append(name)

    def handle_endtag(self, name) -> None:
        assert self.open.pop() == name

    def handle_data(self, text) -> None:
        if self.open and self.open[-1] == "h3":
            self.titles.append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunDirectory:
    """A run on sentences of which one would like to be a script."""
    folder = tmp_path_factory.mktemp("report")
    write_sst2(folder / "glue")
    path = folder / "glue" / "SST-2" / "dev.tsv"
    path.write_text(path.read_text(encoding="utf-8") + f"{HOSTILE}\t0\n", encoding="utf-8")
    small = [*only("teacher", "internal_kd", "spatial"), "stages.temporal.t_steps=null", "stages.spatial.epochs=1"]
    run = folder / "run"
    pipeline.run(load(GLUE, [*micro(run, folder / "glue"), *small]))
    return RunDirectory(run)


def test_a_run_ends_with_its_page(finished) -> None:
    page = (finished.path / "report.html").read_text(encoding="utf-8")
    found = Reader(page)
    assert found.titles == SECTIONS and found.scripts == 1 and found.drawings > 15
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert all(f"<figcaption>{model}: " in page for model in ENERGY_MODELS) and "the same network at equal bits" in page
    assert f"report: {finished.path / 'report.html'}" in finished.log.read_text(encoding="utf-8").splitlines()[-1]
    assert not re.search(r"""(?:src|href|url\(|@import)\s*=?\s*["']?https?:""", page), "nothing comes from a network"


def test_sentences_of_choice(finished, tmp_path, capsys) -> None:
    out = tmp_path / "spikes.html"
    out.write_text("what was there", encoding="utf-8")
    words = ["a good film", HOSTILE]
    assert cli.main(["report", str(finished.path), "-o", str(out), *(w for t in words for w in ("--text", t))]) == 0
    assert capsys.readouterr().out == f"report: {out}\n"
    page = out.read_text(encoding="utf-8")
    Reader(page)
    assert page.count("<blockquote>") == 2 and "<blockquote>a good film</blockquote>" in page


def test_several_runs_have_their_front(finished, tmp_path) -> None:
    other = shutil.copytree(finished.path, tmp_path / "other")
    assert cli.main(["report", str(finished.path), str(other), "-o", str(tmp_path / "two.html")]) == 0
    page = (tmp_path / "two.html").read_text(encoding="utf-8")
    assert Reader(page).titles == ["The runs side by side", *SECTIONS, *SECTIONS]
    assert page.count('<td class="words">yes</td>') == 1  # of two equal ones the first


def test_an_unfinished_run_shows_what_is_there(finished, tmp_path) -> None:
    run = RunDirectory(shutil.copytree(finished.path, tmp_path / "run"))
    (run.path / "summary.json").unlink()
    sentences = []
    for gone in ("spatial", "internal_kd", "teacher"):
        shutil.rmtree(run.stage(gone))
        assert cli.main(["report", str(run.path)]) == 0
        page = (run.path / "report.html").read_text(encoding="utf-8")
        assert Reader(page).titles == SECTIONS and f"{gone}" in page
        sentences.append(re.findall(r'<p class="note">(.*?)</p>', page))
    assert [len(found) for found in sentences] == [1, 5, 6]
    assert sentences[0] == ["Unfinished: spatial still to run. The same `spikeprune train` command resumes the run."]
    assert sentences[1][1:] == ["No stage of the student is finished yet."] * 4
    assert sentences[2][1] == "No stage is finished yet."


def test_without_its_data_the_rest_is_shown(finished, tmp_path) -> None:
    run = RunDirectory(shutil.copytree(finished.path, tmp_path / "run"))
    text = run.config.read_text(encoding="utf-8")
    run.begin(re.sub(r"dir: .*/glue\n", "dir: nowhere/glue\n", text), run.data_facts())
    for texts, missing in (([], 3), (["--text", "a good film"], 2)):
        assert cli.main(["report", str(run.path), *texts]) == 0
        page = (run.path / "report.html").read_text(encoding="utf-8")
        notes = re.findall(r'<p class="note">(.*?)</p>', page)
        assert len(notes) == missing and all(note.startswith("Not shown: data.dir=nowhere/glue") for note in notes)
        assert "Attention heads kept" in page and ("<blockquote>" in page) == bool(texts)


REFUSED = [
    (["nowhere"], "nowhere: holds no run"),
    (["RUN", "-o", "nowhere/report.html"], "nowhere/report.html: its directory does not exist"),
    (["RUN", "-o", "FOLDER"], "is a directory; give -o the name of a file"),
    (["RUN", "--text", "one\ttwo"], "--text 'one': the task reads one sentence, without a tab"),
    (["RUN", "--text", " "], "--text: is empty"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_what_is_refused(words, sentence, finished, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = (finished.path / "report.html").read_bytes()
    words = [{"RUN": str(finished.path), "FOLDER": str(tmp_path)}.get(word, word) for word in words]
    assert cli.main(["report", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [] and (finished.path / "report.html").read_bytes() == before


def test_all_that_is_no_markup_is_escaped() -> None:
    made = joined([tag("p", HOSTILE, tag("b", 1), title=HOSTILE), table([HOSTILE], [[HOSTILE]])])
    assert made.count("<") == 2 * made.count("</") and "<script" not in made
    assert made.startswith(
        '<p title="&lt;script&gt;alert(1)&lt;/script&gt; &quot;&#x27; onload=x &amp;amp; &lt;b&gt;good">'
    )
