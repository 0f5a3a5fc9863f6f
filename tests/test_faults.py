"""A short sample of the campaigns of injected faults; `make test-faults` runs them whole. Kills of two processes and of
a sweep, whose every start takes long, are in test_ddp.py and test_sweeps_local.py."""

from __future__ import annotations

import pytest
from faults import hostile_input, hostile_models, kills, storage, whole_commands
from faults.campaign import hostile

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


CAMPAIGNS = {**hostile_input.CAMPAIGNS, **hostile_models.CAMPAIGNS}


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_hostile_input(name, tmp_path) -> None:
    count = {"resumed stages": 8, "run directories": 40}.get(name, 100)  # some train
    row = hostile(name, CAMPAIGNS[name](tmp_path), tmp_path, 1, count, 5)
    assert row.lost == [] and row.refused, row


@pytest.mark.parametrize(
    ("campaign", "count"),
    [
        (kills.training, 5),
        (kills.outputs, 2),
        (storage.full_disk, 1),
        (storage.full_outputs, 2),
        (storage.read_only, 1),
        (storage.vanished, 2),
        (storage.finished, 3),
        (whole_commands.whole_commands, 8),
    ],
)
def test_faults(campaign, count, tmp_path) -> None:
    row = campaign(tmp_path, 1, count, 15)
    if row.note.startswith("mounting"):
        pytest.skip(row.note)
    assert row.lost == [] and row.tried, row
