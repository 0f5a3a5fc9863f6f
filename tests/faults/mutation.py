"""Files and values made hostile, at random: bytes, lines of text, trees of JSON, tensors of safetensors."""

from __future__ import annotations

import json
import struct
from copy import deepcopy
from random import Random
from typing import Any

import torch

BYTES = (
    *(
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b'"',
        b"'",
        b"\t",
        b"\n",
        b"\r",
        b",",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b"#",
        b"&a",
    ),
    *(b"nan", b"NaN", b"1e999", b"-1", b"9" * 40, b"null", b"true", b"../../x", b"\x1b[2J", b"${oc.env:HOME}", b"*a"),
    *(
        b"[" * 3000,
        b"a" * 70000,
        "\u202e".encode(),
        "\x85\u2028".encode(),
        "text".encode("utf-16"),
        b"!!python/object:os",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 7, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "\0", "../../../x", "/etc/passwd", "a" * 5000, "${seed}", "\x1b[31m", "é\u202e", "1e5", "none", "~"),
    *([], {}, [[]], [None], [1, 2], {"": 1}, {"a": {"b": []}}, ["x"] * 2000),
)


def of_bytes(random: Random, data: bytes, most: int = 4) -> bytes:
    """One to `most` changes: bytes flipped, cut, doubled, moved, or something nasty put in."""
    for _ in range(random.randint(1, most)):
        at = random.randrange(len(data) + 1)
        to = min(len(data), at + random.choice((1, 2, 8, 64, 4096)))
        kind = random.randrange(6)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[to:]
        elif kind == 2:
            data = data[:to] + data[at:]
        elif kind == 3:
            data = data[:at]
        elif kind == 4:
            data = data[:at] + data[at:to][::-1] + data[to:]
        else:
            data = data[:at] + random.choice(BYTES) + data[at:]
    return data


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of each part of a tree, but for the tree itself."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, part in parts for p in ((*path, key), *places(part, (*path, key)))]


def of_tree(random: Random, value: Any, most: int = 3) -> Any:
    """A copy of a tree of JSON in which one to `most` parts are other values, gone, or have another name."""
    value = json.loads(json.dumps(value))
    for _ in range(random.randint(1, most)):
        found = places(value)
        if not found:
            return deepcopy(random.choice(VALUES))
        *path, key = random.choice(found)
        holder = value
        for step in path:
            holder = holder[step]
        kind = random.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[random.choice(("", "x", "auto_map", "\0", str(key) + "s", "../x"))] = holder.pop(key)
        elif isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool) and kind < 4:
            holder[key] = random.choice((holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 1000, 0))
        else:
            holder[key] = deepcopy(random.choice(VALUES))
    return value


def of_json(random: Random, text: bytes) -> bytes:
    """A JSON file with changes in its tree, or in its bytes."""
    if random.random() < 0.3:
        return of_bytes(random, text)
    return json.dumps(of_tree(random, json.loads(text))).encode("utf-8", "surrogatepass")


def of_safetensors(random: Random, data: bytes) -> bytes:
    """Another header (shapes, number types, places, huge sizes), or other bytes."""
    (size,) = struct.unpack("<Q", data[:8])
    kind = random.randrange(4)
    if kind == 0:
        return of_bytes(random, data)
    if kind == 1:  # the header's size
        return struct.pack("<Q", random.choice((0, 1, size - 1, size + 1, 2**40, 2**63, 2**64 - 1))) + data[8:]
    header = json.loads(data[8 : 8 + size])
    if kind == 2:
        header = of_tree(random, header)
    else:
        entry = header[random.choice([key for key in header if key != "__metadata__"])]
        entry["dtype"] = random.choice(("F32", "F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "x"))
        entry["shape"] = random.choice((entry["shape"][::-1], [2**40, 2**40], [0], [], [-1], entry["shape"]))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def of_state(random: Random, state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a checkpoint's tree in which one part, at any depth, is another value, another tensor, or gone."""
    state = deepcopy(state)
    holder, key = state, random.choice(list(state))
    while isinstance(holder[key], (dict, list)) and holder[key] and random.random() < 0.9:
        holder = holder[key]
        key = random.choice(list(holder if isinstance(holder, dict) else range(len(holder))))
    value, kind = holder[key], random.randrange(4)
    if kind == 0:
        del holder[key]
    elif isinstance(value, torch.Tensor) and kind < 3:
        changed = [value.double(), value.to(torch.uint8), value.reshape(1, -1), torch.full_like(value, 0)]
        holder[key] = random.choice([*changed, value[:-1]] if value.dim() else changed)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and kind < 3:
        holder[key] = random.choice((value + 1, value - 1, -value, value * 1000, 0, float(value)))
    else:
        holder[key] = deepcopy(random.choice(VALUES))
    return state
