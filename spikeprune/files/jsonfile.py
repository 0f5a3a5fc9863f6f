"""Strict JSON: no bare NaN is written, and a file that cannot be read is named."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spikeprune.errors import InputError

SUM = "sha256"  # key of an object's own checksum


def dumps(value: Any, **layout: Any) -> str:
    """Strict JSON; a number that is not finite is `null`, the only value JSON has for it. `layout`: json's own."""
    return json.dumps(nulls(value), allow_nan=False, **layout)


def nulls(value: Any) -> Any:
    """`value` with None for each float that is not finite, however deep it lies."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: nulls(part) for key, part in value.items()}
    return [nulls(part) for part in value] if isinstance(value, (list, tuple)) else value


def loads(text: str) -> Any:
    """Strict JSON. Raises ValueError for anything else, a bare NaN among it."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _no_number(word: str) -> None:
    raise ValueError(f"holds {word}, which is no number")


def read(path: Path, remedy: str, needs: Iterable[str] = ()) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError where it is missing, is no JSON, or lacks a key that it `needs`;
    `remedy` is the user's next step."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: is missing; {remedy}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is damaged (no text in UTF-8); {remedy}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); mend its rights") from None
    return parsed(text, str(path), remedy, needs)


def parsed(text: str, place: str, remedy: str, needs: Iterable[str] = ()) -> dict[str, Any]:
    """As `read`, of a text that stands at `place`, which a message names."""
    try:
        value = loads(text)
    except ValueError as error:
        raise InputError(f"{place}: is damaged ({_reason(text, error)}); {remedy}") from None
    missing = [key for key in needs if key not in value] if isinstance(value, dict) else []
    if missing or not isinstance(value, dict):
        reason = f"without {missing[0]!r}" if missing else "no JSON object"
        raise InputError(f"{place}: is damaged ({reason}); {remedy}")
    return value


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """`value` as JSON reads it, with its checksum, which `read_sealed` compares."""
    value = loads(dumps(value))
    return {**value, SUM: _checksum(value)}


def read_sealed(path: Path, remedy: str, needs: Iterable[str] = ()) -> dict[str, Any]:
    """As `read`, without the checksum. Raises InputError where that is another: a digit has changed, which is JSON as
    well. An object without one is read as it is."""
    value = read(path, remedy, needs)
    if value.pop(SUM, checksum := _checksum(value)) != checksum:
        raise InputError(f"{path}: is damaged (it has changed since it was written); {remedy}")
    return value


def _checksum(value: dict[str, Any]) -> str:
    plain = {key: part for key, part in value.items() if key != SUM}
    return hashlib.sha256(dumps(plain, sort_keys=True).encode()).hexdigest()


@contextmanager
def as_written(place: Path | str, remedy: str) -> Iterator[None]:
    """Inside, parts of the object of a file, `place`, are used. Raises InputError where one is missing or of another
    kind, as in a file that was edited by hand."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(f"{place}: is not as it was written ({type(error).__name__}: {error}); {remedy}") from error


def _reason(text: str, error: ValueError) -> str:
    if not text.strip():
        return "empty"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"no JSON from line {error.lineno} on" if error.lineno > 1 else "no JSON"


def refuse_changed_tree(commit: str, what: str) -> None:
    """Raises InputError for a record of a `commit` that cannot be looked up again."""
    if commit == "unknown" or commit.endswith("-dirty"):
        raise InputError(f"{what}: made by commit {commit}; measure again from a clean checkout")
