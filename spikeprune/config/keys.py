"""The keys of a configuration as `a.b.c`: their declared types, in words too, and the one that a typo was meant for."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from spikeprune.config.schema import Config

fields = cache(get_type_hints)  # of a section: name -> declared type; typing reads them anew at each call


def type_of(key: str) -> Any:
    """The declared type of a dotted key, a dataclass for a section; None for a key that is not there."""
    kind: Any = Config
    for part in key.split("."):
        if not is_dataclass(kind):
            return None
        kind = fields(kind).get(part)
    return kind


def every_key(kind: type = Config, prefix: str = "", sections: bool = False) -> Iterator[str]:
    for name, hint in fields(kind).items():
        if not is_dataclass(hint) or sections:
            yield prefix + name
        if is_dataclass(hint):
            yield from every_key(hint, f"{prefix}{name}.", sections)


def near_key(key: str) -> str:
    """The keys that were probably meant: close as a whole, or the same last word in another section."""
    known = {k: k.rpartition(".")[2] for k in every_key(sections=True)}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    if not close:
        last = difflib.get_close_matches(key.rpartition(".")[2], sorted(set(known.values())), n=1, cutoff=0.75)
        close = [k for k, word in known.items() if word in last][:3]
    if close:
        return f" (did you mean {' or '.join(close)}?)"
    kind = type_of(key.rpartition(".")[0]) if "." in key else Config
    return f"; there are {names(kind)}" if is_dataclass(kind) else ""


def names(kind: type) -> str:
    return ", ".join(fields(kind))


def in_words(kind: Any) -> str:
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
    if kind in words:
        return words[kind]
    if get_origin(kind) is list:
        return f"a list, each {words[get_args(kind)[0]]}"
    return " or ".join(in_words(k) for k in get_args(kind)) or "a value"


def leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
