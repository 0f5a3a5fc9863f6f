"""A small stand-in for the hub on loopback, which the real client libraries ask for files of a folder, and which takes
commits of small files; not a test."""

from __future__ import annotations

import base64
import json
import re
import threading
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

LARGE = 1000  # bytes from which a file is stored under its sha256, as git-lfs does


class Hub:
    """`folder` holds `models/<owner>/<name>/…` and `datasets/<owner>/<name>/…`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


COMMIT = "c" * 40
WRITES = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>preupload|commit)/main")
ADDRESS = re.compile(
    r"/(?:api/)?(?P<kind>models/|datasets/)?(?P<repo>[^/]+/[^/]+)(?:/(?P<what>resolve|revision|tree|paths-info)"
    r"/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?"
)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def answer(self, body: bytes) -> None:
        asked = urlparse(self.path)
        self.hub.asked.append(f"{self.command} {self.path}")
        if (written := self.write(asked.path, body)) is not None:
            return self.send_json(written)
        match = ADDRESS.fullmatch(unquote(asked.path))
        folder = match and self.hub.folder / (match["kind"] or "models/") / match["repo"]
        if not folder or not folder.is_dir():
            return self.refuse("RepoNotFound")
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if match["what"] == "resolve":
            path = folder / match["path"]
            return self.send_file(path) if path in files else self.refuse("EntryNotFound")
        if match["what"] == "tree" and not (folder / (match["path"] or "")).is_dir():
            return self.refuse("EntryNotFound")
        if match["what"] in ("tree", "paths-info"):
            wanted = parse_qs(body.decode()).get("paths") or (json.loads(body)["paths"] if body else None)
            return self.send_json(listing(folder, match["path"] or "", wanted, asked.query))
        names = [{"rfilename": str(path.relative_to(folder))} for path in files]
        about = {
            "_id": "1",
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        self.send_json({**about, "id": match["repo"], "sha": COMMIT, "siblings": names})

    def write(self, path: str, body: bytes) -> dict | None:
        """What an upload asks, in its order: a repository, how each file is sent, and a commit of them."""
        if path == "/api/repos/create":
            about = json.loads(body)
            name = f"{about.get('organization') or 'me'}/{about['name']}"
            (self.hub.folder / "models" / name).mkdir(parents=True, exist_ok=True)
            return {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        match = WRITES.fullmatch(unquote(path))
        if match is None:
            return None
        if match["what"] == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": file, "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                place = self.hub.folder / "models" / match["repo"] / line["value"]["path"]
                place.write_bytes(base64.b64decode(line["value"]["content"]))
        address = f"{self.hub.url}/{match['repo']}/commit/{COMMIT}"
        return {"success": True, "commitOid": COMMIT, "commitUrl": address, "hookOutput": ""}

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_json(self, value: object) -> None:
        self.send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_file(self, path: Path) -> None:
        content = path.read_bytes()
        self.send(content, {"ETag": f'"{name_of(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def send(self, content: bytes, headers: dict[str, str]) -> None:
        first, last = 0, len(content) - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), int(asked[2] or last)
        self.send_response(206 if asked else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[first : last + 1])


def name_of(content: bytes) -> str:
    """Git's name of a small file, the sha256 of a large one."""
    if len(content) >= LARGE:
        return sha256(content).hexdigest()
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()


def listing(folder: Path, below: str, wanted: list[str] | None, query: str) -> list[dict]:
    """Entries of a tree, or of the paths asked for."""
    recursive = parse_qs(query).get("recursive", ["False"])[0].lower() in ("true", "1")
    if wanted is not None:
        paths = [folder / name for name in wanted if (folder / name).exists()]
    else:
        paths = sorted((folder / below).rglob("*") if recursive else (folder / below).iterdir())
    entries = []
    for path in paths:
        entry = {"path": str(path.relative_to(folder)), "oid": "d" * 40, "size": 0, "type": "directory"}
        if path.is_file():
            content = path.read_bytes()
            entry |= {"type": "file", "size": len(content), "oid": name_of(content)}
            if len(content) >= LARGE:
                entry |= {"oid": "d" * 40, "lfs": {"oid": name_of(content), "size": len(content), "pointerSize": 130}}
        entries.append(entry)
    return entries
