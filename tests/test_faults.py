"""A short sample of each campaign of injected faults; `make test-faults` runs them whole."""

from __future__ import annotations

import pytest
from faults import hostile_input, hostile_models, kills, storage, whole_commands
from faults.campaign import hostile

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


CAMPAIGNS = {**hostile_input.CAMPAIGNS, **hostile_models.CAMPAIGNS}


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_hostile_input(name, tmp_path) -> None:
    count = {"resumed stages": 12, "run directories": 60}.get(name, 100)  # some train
    row = hostile(name, CAMPAIGNS[name](tmp_path), tmp_path, 1, count, 5)
    assert row.lost == [] and row.refused, row


@pytest.mark.parametrize(
    ("campaign", "count"),
    [
        (kills.training, 6),
        (kills.two_processes, 1),
        (kills.sweep, 1),
        (kills.outputs, 2),
        (storage.full_disk, 1),
        (storage.full_outputs, 2),
        (storage.read_only, 1),
        (storage.vanished, 3),
        (storage.finished, 4),
        (whole_commands.whole_commands, 8),
    ],
)
def test_faults(campaign, count, tmp_path) -> None:
    row = campaign(tmp_path, 1, count, 15)
    if row.note.startswith("mounting"):
        pytest.skip(row.note)
    assert row.lost == [] and row.tried, row
