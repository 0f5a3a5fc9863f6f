"""W&B with its real client: offline runs read back from their files, when a run is online, results by hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from micro import GLUE
from tracked import KEY, STAGES, check_history, start, train

from spikeprune import cli
from spikeprune.config.load import load
from spikeprune.config.tasks import get_task
from spikeprune.errors import InputError
from spikeprune.experiment.run_directory import RunDirectory
from spikeprune.integrations.wandb import server as connection
from spikeprune.report.results import front, layer_rows, names, results


@pytest.fixture(scope="module")
def offline(tmp_path_factory, glue) -> RunDirectory:
    """A run without a key, finished."""
    folder = tmp_path_factory.mktemp("offline")
    arguments = train(folder / "run+1", glue)
    assert start(arguments, folder / "log") == 0, (folder / "log").read_text()
    assert "W&B: offline, since there is no key for" in (folder / "log").read_text()
    return RunDirectory(folder / "run+1")


def inspect(folder: Path) -> list[dict]:
    """Records of an attempt's own file, by W&B's reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def of_type(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


@pytest.fixture(scope="module")
def records(offline) -> list[dict]:
    attempts = sorted(offline.path.glob("wandb/offline-run-*"))
    assert len(attempts) == 1, "one run for all stages"
    return inspect(attempts[0])


# ---------------------------------------------------------------------------------------------------------- offline


def test_the_offline_run_holds_every_step_of_every_stage(offline, records) -> None:
    check_history([record["item"] for record in of_type(records, "history")], offline)
    assert [record["exit_code"] for record in of_type(records, "exit")] == [0]
    run = of_type(records, "run")[0]
    assert run["run_id"] == (offline.path / "wandb_id").read_text() and run["project"] == "spikeprune"


def test_charts_are_against_the_step_of_the_whole_run(records) -> None:
    metrics = of_type(records, "metric")
    assert {m["glob_name"]: m["step_metric"] for m in metrics if "glob_name" in m} == {
        f"{group}/*": "global_step" for group in (*STAGES, "result")
    }


def test_the_resolved_configuration_is_the_runs(records) -> None:
    config = of_type(records, "run")[0]["config"]["update"]
    assert config["teacher"]["size"][0] == 24 and config["stages"]["spatial"]["epochs"] == 2
    assert config["student"]["leak"] == 1.0  # a default


def flat(tree: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_the_summary_ends_with_the_last_stages_results(offline, records) -> None:
    summary: dict = {}
    for record in of_type(records, "summary"):
        summary |= flat(record.get("update", {}))
    final = results(offline.record("spatial"), offline.record("teacher"))
    assert {key: summary[key] for key in final} == pytest.approx(final)
    assert summary["final"] == "spatial" and "sst2 from directory" in summary["data"]


def test_every_result_that_a_sweep_may_name_is_logged(records) -> None:
    logged = set().union(*(record["item"] for record in of_type(records, "history")))
    assert set(names(get_task("sst2").quality)) <= logged


@pytest.mark.parametrize("stage", STAGES[1:])
def test_each_stage_leaves_a_table_of_its_layers(offline, stage) -> None:
    path = next(offline.path.glob(f"wandb/offline-run-*/files/media/table/{stage}/layers_*.table.json"))
    table, record = json.loads(path.read_text()), offline.record(stage)
    assert table["columns"] == ["layer", "heads", "neurons", "t_steps"]
    assert table["data"] == [
        ["embedding", None, None, record["t_steps"][0]],
        ["0", record["heads"][0], record["ffn"][0], record["t_steps"][1]],
        ["1", record["heads"][1], record["ffn"][1], record["t_steps"][2]],
    ]


def test_sync_refuses_what_it_cannot_send(offline, tmp_path, monkeypatch, capsys) -> None:
    assert cli.main(["sync", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert cli.main(["sync", str(offline.path)]) == 2
    assert "cannot be sent: there is no key for" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ no key, no server, no wait


@pytest.fixture
def silent_server(monkeypatch):
    """A server that takes calls and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr(connection, "address", lambda: address)
        monkeypatch.setattr(connection, "TIMEOUT", 0.3)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        yield address


def config(*overrides: str):
    return load(GLUE, ["run.wandb=auto", *overrides])


def test_a_silent_server_is_not_waited_for(silent_server, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    begin = time.monotonic()
    assert connection.chosen_mode(config()) == "offline"
    assert time.monotonic() - begin < 5
    assert "gave no answer in 0.3 s; `spikeprune sync" in capsys.readouterr().out
    with pytest.raises(InputError, match=rf"run.wandb = online: {silent_server} gave no answer"):
        connection.chosen_mode(config("run.wandb=online"))


def test_no_key_is_offline_and_online_by_word_is_refused(silent_server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert connection.chosen_mode(config()) == "offline"
    with pytest.raises(InputError, match="there is no key for .*; set WANDB_API_KEY"):
        connection.chosen_mode(config("run.wandb=online"))
    host = silent_server.removeprefix("http://")
    (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    assert connection.why_unreachable().startswith(f"{silent_server} gave no answer")  # the key was found


@pytest.mark.parametrize(
    ("overrides", "said", "mode"),
    [
        (["run.wandb=off"], "", "off"),
        ([], "disabled", "off"),
        ([], "offline", "offline"),
        (["run.wandb=offline"], "online", "offline"),
    ],
)
def test_the_mode_is_by_key_then_by_environment(overrides, said, mode, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", said)
    assert connection.chosen_mode(config(*overrides)) == mode


# ------------------------------------------------------------------------------------------------ results, by hand


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "ofline"), ("WANDB_BASE_URL", "htp:/x")])
def test_settings_that_the_client_refuses_are_told(name, value, tmp_path) -> None:
    """In a process of its own: the client reads its settings once."""
    call = "from spikeprune.config.load import load; from spikeprune.integrations.wandb.server import chosen_mode; "
    call += f"chosen_mode(load({str(GLUE)!r}, ['run.wandb=offline', 'run.dir={tmp_path}']))"
    environment = {**os.environ, "WANDB_MODE": "offline", name: value}
    done = subprocess.run([sys.executable, "-c", call], env=environment, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("spikeprune.errors.InputError: W&B's settings, WANDB_… in the environment") and value in last


def test_results_are_quality_beside_cost() -> None:
    cost = dict.fromkeys(("ac", "mac", "norm_ops", "latency_steps", "rate", "params", "bytes"), 1)
    row = {"metrics": {"accuracy": 0.5, "mismatched/accuracy": 0.4}, "main": 0.5, "cost": {**cost, "energy_pj": 20.0}}
    row |= {"heads": [2, 1], "ffn": [8, 4], "t_steps": [4, 2, 1]}
    row["fidelity"] = {"agreement": 0.75, "divergence": 0.5, "mismatched/agreement": 0.25, "mismatched/divergence": 1.0}
    found = results(row, {"cost": {"energy_pj": 100.0}})
    assert set(found) == set(names(get_task("mnli").quality))
    assert found["result/energy_saving"] == 5 and found["result/main"] == 0.5
    assert (found["result/heads"], found["result/ffn"], found["result/t_steps"]) == (3, 12, pytest.approx(7 / 3))
    assert (found["result/agreement"], found["result/divergence"]) == (0.75, 0.5)
    regression = names(get_task("stsb").quality)
    assert "result/divergence" in regression and "result/agreement" not in regression


def test_the_front_by_hand() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.5), (2.0, 0.8), (3.0, 0.9), (4.0, 0.85)]
    assert front(points) == [1, 3, 0]
    assert front([]) == [] and front([(1.0, 0.0)]) == [0]


def test_a_table_names_the_embeddings_steps() -> None:
    _, found = layer_rows({"heads": [2], "ffn": [8], "t_steps": [4, 2]})
    assert found == [["embedding", None, None, 4], ["0", 2, 8, 2]]
