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
