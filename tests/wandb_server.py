"""A stand-in for the W&B server on loopback, for the real client: runs, artifacts, grid sweeps; not a test.

It answers what the client asks and keeps what it sends. It is no model of the real server's behaviour: a run's history
is the file that the client's offsets and lines make.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

PROJECT = {"id": "P", "name": "spikeprune", "entity": {"id": "E", "name": "someone"}}
VIEWER = {"id": "U", "entity": "someone", "username": "someone", "name": "someone", "email": "", "flags": "{}"}
VIEWER |= {"teams": {"edges": []}, "apiKeys": {"edges": []}, "admin": False}


class Board:
    """What the clients have sent."""

    def __init__(self) -> None:
        self.url = ""
        self.runs: dict[str, dict[str, Any]] = {}
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}  # by id; `files` holds what was sent, by path
        self.uploads: list[str] = []  # paths in artifacts, one for each time that a file was sent
        self.files: dict[str, bytes] = {}
        self.unknown: set[str] = set()
        self.lock = threading.Lock()

    def history(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.runs[run]["history"]]

    def summary(self, run: str) -> dict[str, Any]:
        return json.loads(self.runs[run]["summary"])

    def config(self, run: str) -> dict[str, Any]:
        return {key: entry["value"] for key, entry in json.loads(self.runs[run]["config"]).items()}

    # ------------------------------------------------------------------------------------------------ GraphQL, by name

    def answer(self, name: str, v: dict[str, Any]) -> dict[str, Any]:
        method = getattr(self, f"on_{name}", None)
        if method is None:
            self.unknown.add(name)
            return {}
        with self.lock:
            return method(v)

    def on_Viewer(self, v):
        return {"viewer": VIEWER}

    def on_ServerFeaturesQuery(self, v):
        return {"serverInfo": {"features": []}}

    def on_OrganizationCoreWeaveOrganizationID(self, v):
        return {"entity": None}

    def bucket(self, run: dict[str, Any]) -> dict[str, Any]:
        lines = run["history"]
        counts = {"historyLineCount": len(lines), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps(lines[-1:]), "eventsTail": "[]", "summaryMetrics": run["summary"]}
        name = {"id": run["name"], "name": run["name"], "displayName": run["name"], "description": None, "tags": []}
        more = {"config": run["config"], "sweepName": run["sweep"], "project": PROJECT, "notes": None}
        return {**name, **counts, **tails, **more, "wandbConfig": json.dumps({"t": 1})}

    def on_RunResumeStatus(self, v):
        run = self.runs.get(v["name"])
        return {"model": {**PROJECT, "bucket": self.bucket(run) if run else None}}

    def on_UpsertBucket(self, v):
        new = {"history": [], "summary": "{}", "config": "{}", "sweep": v.get("sweep"), "exit": None, "attempts": 0}
        run = self.runs.setdefault(v["name"], {"name": v["name"], "display": v.get("displayName"), **new})
        run["config"], run["exit"] = v.get("config") or run["config"], None
        run["attempts"] += 1
        return {"upsertBucket": {"bucket": self.bucket(run), "inserted": run["attempts"] == 1}}

    def on_CreateRunFiles(self, v):
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def on_ArtifactType(self, v):
        return {"project": {"artifact": None}}

    def on_CreateArtifact(self, v):
        """A name with the digest of an earlier one is that one; a client sends no files of what is committed."""
        given = v["input"]
        name, digest = given["artifactCollectionName"], given["digest"]
        found = [a for a in self.artifacts.values() if (a["name"], a["digest"]) == (name, digest)]
        if not found:
            key = f"A{len(self.artifacts) + 1}"
            found = [{"id": key, "name": name, "digest": digest, "state": "PENDING", "files": {}}]
            self.artifacts[key] = found[0]
        made = {key: found[0][key] for key in ("id", "digest", "state")}
        sequence = {"id": name, "latestArtifact": None}
        return {"createArtifact": {"artifact": {**made, "aliases": [], "artifactSequence": sequence}}}

    def on_CreateArtifactManifest(self, v):
        file = {"id": "F", "uploadUrl": f"{self.url}/artifact/{v['artifactID']}/manifest", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": v["artifactID"], "file": file}}}

    def on_CreateArtifactFiles(self, v):
        edges = []
        for file in v["input"]["artifactFiles"]:
            key, path = file["artifactID"], file["name"]
            place = {"storagePath": path, "uploadUrl": f"{self.url}/artifact/{key}/files/{path}", "uploadHeaders": []}
            edges.append({"node": {**place, "uploadMultipartUrls": None, "artifact": {"id": key}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, v):
        found = self.artifacts[v["artifactID"]]
        found["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": found["id"], "digest": found["digest"]}}}

    def on_UseArtifact(self, v):
        return {"useArtifact": {"artifact": {"id": v["artifactID"], "digest": "", "state": "COMMITTED"}}}

    # ----------------------------------------------------------------------------------------------------- grid sweeps

    def on_UpsertSweep(self, v):
        name = f"sweep{len(self.sweeps) + 1}"
        config = yaml.safe_load(v["config"])
        axes = {key: p.get("values", [p.get("value")]) for key, p in config["parameters"].items()}
        grid = enumerate(itertools.product(*axes.values()), 1)
        left = [(f"trial{number}", dict(zip(axes, values, strict=True))) for number, values in grid]
        self.sweeps[name] = {"config": config, "left": left, "given": {}}
        return {"upsertSweep": {"sweep": {"name": name, "project": PROJECT}, "configValidationWarnings": []}}

    def on_SweepWithRuns(self, v):
        config = yaml.safe_dump(self.sweeps[v["sweep"]]["config"])
        sweep = {"id": v["sweep"], "name": v["sweep"], "state": "RUNNING", "config": config, "method": "grid"}
        return {
            "project": {
                "sweep": {**sweep, "bestLoss": None, "controller": None, "scheduler": None, "runs": {"edges": []}}
            }
        }

    def on_CreateAgent(self, v):
        return {"createAgent": {"agent": {"id": v["sweep"]}}}

    def on_Heartbeat(self, v):
        sweep, running = self.sweeps[v["id"]], json.loads(v["runState"] or "{}")
        orders: list[dict[str, Any]] = []
        if not running and not sweep["left"]:
            orders = [{"type": "exit"}]
        elif not running:
            run, values = sweep["left"].pop(0)
            sweep["given"][run] = values
            args = {key: {"value": value} for key, value in values.items()}
            orders = [{"type": "run", "run_id": run, "args": args, "program": None}]
        return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": json.dumps(orders)}}

    # ----------------------------------------------------------------------------------------------------------- files

    def take(self, path: str, data: bytes) -> None:
        with self.lock:
            if not path.startswith("/artifact/"):
                self.files[path.removeprefix("/upload/")] = data
                return
            _, _, key, kind, *name = path.split("/", 4)
            if kind == "manifest":
                self.artifacts[key]["manifest"] = json.loads(data)
            else:
                self.artifacts[key]["files"][name[0]] = data
                self.uploads.append(name[0])

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        with self.lock:
            run, files = self.runs[name], sent.get("files", {})
            if part := files.get("wandb-history.jsonl"):
                at = part["offset"]
                assert at <= len(run["history"]), f"a gap before line {at}"
                run["history"][at:] = part["content"]
            if part := files.get("wandb-summary.json"):
                run["summary"] = part["content"][-1]
            if sent.get("complete"):
                run["exit"] = sent["exitcode"]
            if sent.get("preempting") and run["sweep"]:  # the next agent resumes it
                sweep = self.sweeps[run["sweep"]]
                sweep["left"].insert(0, (name, sweep["given"][name]))


class Handler(BaseHTTPRequestHandler):
    board: Board
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """The test's output is not for every request."""

    def body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def send(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.send({})

    def do_PUT(self) -> None:
        self.board.take(unquote(self.path), self.body())
        self.send({})

    def do_POST(self) -> None:
        sent = json.loads(self.body() or b"{}")
        if self.path.startswith("/graphql"):
            name = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"]).group(1)
            self.send({"data": self.board.answer(name, sent.get("variables") or {})})
        else:
            self.board.stream(self.path.split("/")[-2], sent)
            self.send({"exitcode": None, "limits": {}})


@contextmanager
def wandb_server() -> Iterator[Board]:
    board = Board()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoardHandler", (Handler,), {"board": board}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that is killed resets its connections
    board.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        server.shutdown()
        server.server_close()
