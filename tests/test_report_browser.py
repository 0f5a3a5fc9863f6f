"""The report page in a browser: no complaint, every figure drawn, readable on a desk and on a telephone."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser, browser
from micro import GLUE, micro, only

from spikeprune.config.load import load
from spikeprune.experiment import pipeline, stage
from spikeprune.experiment.report import write_report

pytestmark = pytest.mark.browser

# What is drawn and how large its letters are on the screen; text that leaves its drawing, or lies over another one.
FACTS = """(() => {
  const box = (e) => e.getBoundingClientRect();
  const drawings = [...document.querySelectorAll('svg')];
  const found = {empty: [], small: [], cut: [], covered: []};
  for (const svg of drawings) {
    const name = svg.getAttribute('aria-label'), frame = box(svg), scale = svg.getScreenCTM().a;
    const shapes = [...svg.querySelectorAll('path, rect, circle, line')].filter(e => box(e).width + box(e).height > 0);
    if (frame.width < 40 || frame.height < 20 || shapes.length < 2) found.empty.push(name);
    const texts = [...svg.querySelectorAll('text')].filter(e => e.textContent);
    for (const t of texts) {
      const b = box(t);
      if (parseFloat(getComputedStyle(t).fontSize) * scale < 11) found.small.push(name + ': ' + t.textContent);
      if (b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 1 || b.bottom > frame.bottom + 1)
        found.cut.push(name + ': ' + t.textContent);
    }
    texts.forEach((t, i) => texts.slice(0, i).forEach(o => {
      const a = box(t), b = box(o);
      const over = Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
      if (over) found.covered.push(name + ': ' + t.textContent + ' over ' + o.textContent);
    }));
  }
  for (const e of document.querySelectorAll('p, td, th, span, b, h1, h2, h3, h4, figcaption, blockquote'))
    if (e.textContent && parseFloat(getComputedStyle(e).fontSize) < 11) found.small.push(e.textContent);
  found.drawings = drawings.length;
  found.figures = document.querySelectorAll('figure').length;
  found.overflow = document.documentElement.scrollWidth - window.innerWidth;
  return found;
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory, glue) -> Path:
    """Of three runs: two classes, three classes in pairs, a regression."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "check_teacher", lambda *_: None)  # what a few epochs teach is no better than a constant
        patch.setattr(pipeline, "write_own", lambda *_: None)
        small = [*only("teacher", "internal_kd", "spatial"), "stages.temporal.t_steps=null", "stages.teacher.epochs=2"]
        pipeline.run(load(GLUE, [*micro(folder / "sst2", glue), *small]))
        for task in ("mnli", "stsb"):
            pipeline.run(load(GLUE, [*micro(folder / task), f"task={task}", "data.embedded=[40,30]", *small]))
    return write_report([folder / name for name in ("sst2", "mnli", "stsb")], folder / "report.html")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Browser:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_every_figure_is_drawn_and_readable(page, chromium, width, dark) -> None:
    chromium.open(page, width, dark=dark)
    found = chromium.evaluate(FACTS)
    assert chromium.complaints == []
    assert found["figures"] == found["drawings"] > 45 and found["empty"] == []
    assert found["small"] == [] and found["cut"] == [] and found["covered"] == []
    assert found["overflow"] <= 0
    dim = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dim == "rgb(255, 255, 255)") != dark


def test_nothing_is_fetched(page, chromium) -> None:
    chromium.requests.clear()
    chromium.open(page, 1280)
    assert set(chromium.requests) == {page.as_uri()}


def test_a_mark_tells_its_numbers(page, chromium) -> None:
    chromium.open(page, 1280)
    place = chromium.evaluate(
        "(() => { const mark = document.querySelector('circle[data-tip]'); mark.scrollIntoView({block: 'center'});"
        "const b = mark.getBoundingClientRect();"
        "return [b.x + b.width / 2, b.y + b.height / 2, mark.getAttribute('data-tip')]; })()"
    )
    assert chromium.evaluate("document.getElementById('tip').hidden") is True
    chromium.point_at(*place[:2])
    assert chromium.evaluate("document.getElementById('tip').textContent") == place[2] != ""
    assert chromium.evaluate("document.getElementById('tip').hidden") is False
    chromium.point_at(2, 2)
    assert chromium.evaluate("document.getElementById('tip').hidden") is True
