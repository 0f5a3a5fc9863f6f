"""Numbers that must stay: see `golden/make.py`, which computes them, and prints what differs."""

from __future__ import annotations

import pytest

from tests.golden import make

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("section", make.SECTIONS)
def test_nothing_differs_from_the_stored_values(section) -> None:
    faults, _ = make.check(section, make.read()[section])
    assert not faults, f"{len(faults)} golden values differ:\n" + "\n".join(faults[:20])


def test_every_stored_section_is_computed() -> None:
    assert list(make.read()) == list(make.SECTIONS)


def changes(stored, found, **options) -> list[str]:
    return list(make.differences(stored, found, "here", **options))


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        (1, 2),
        (1.5, 1.5001),
        (1.5, float("nan")),
        (1.5, None),
        ("011", "101"),
        ([1, 2], [1, 2, 3]),
        ([1, [2.5]], [1, [2.6]]),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 1, "b": 1}),
        ({"a": 1}, [1]),
    ],
)
def test_a_change_is_seen(stored, found) -> None:
    assert changes(stored, stored) == [] and changes(stored, found)


def test_rounding_is_no_change() -> None:
    assert changes([1.5, 0.25, 0], [1.500001, 0.25, 1e-9]) == []
    assert make.rounded({"a": [2.0, 1 / 3]}) == {"a": [2, 0.3333333]}


def test_a_run_elsewhere_is_compared_roughly() -> None:
    """In full where float32 rounds alike; otherwise what does not depend on rounding must stay, and costs about so."""
    run = {"accuracy": 0.9, "optimizer steps": 8, "AC": 1000, "MAC": 48, "normalized operations": 0.5}
    run |= {"heads kept": [1, 2], "neurons kept": [12, 10], "t_steps": [2, 2, 2]}
    stored = {make.ARITHMETIC: "here", "sst2: spatial": run}

    def seen(where: str, **changed) -> bool:
        found = {make.ARITHMETIC: where, "sst2: spatial": {**run, **changed}}
        return bool(list(make.section_differences("micro runs", stored, found)))

    assert not seen("here") and seen("here", AC=1001) and seen("here", **{"heads kept": [2, 1]})
    assert not seen("there", AC=1100, accuracy=0.8, **{"heads kept": [2, 1]})
    assert seen("there", AC=1500) and seen("there", accuracy=0.4) and seen("there", **{"optimizer steps": 9})
    assert seen("there", **{"heads kept": [2, 2]})
