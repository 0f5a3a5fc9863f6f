"""How text becomes a value of a declared type, and a value text again: the same on the command line and in YAML files.

YAML 1.1 reads 010 as 8, 1:30 as 90, on as true and `exp #1` as `exp`. Here the type of the key decides: text is what
stands there, a whole number has plain decimal digits, a truth value is true or false; all else is refused.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import is_dataclass
from functools import lru_cache
from os.path import expanduser
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from spikeprune.config.keys import type_of
from spikeprune.errors import InputError, nearest
from spikeprune.files import jsonfile

FILES = ("data.dir", "data.train_file", "data.dev_file", "data.corpus")
PATHS = ("run.dir", "run.start_from", *FILES, "teacher.checkpoint")
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")  # fits into 64 bits
FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
# As YAML 1.2 has them. W&B's agent, and Python, write True.
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INTERPOLATION = re.compile(r"(\\*)\$\{")


class Unreadable(ValueError):
    """Text that is no value of its type; the message says how one is written, if the text looks like one."""


class Loader(yaml.SafeLoader):
    """YAML's structure alone: every scalar is the text that stands there, but for null."""

    yaml_implicit_resolvers: dict = {}
    yaml_constructors: dict = {}

    def construct_pairs_once(self, node: yaml.MappingNode) -> Any:
        made: dict[str, Any] = {}
        yield made
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                wrong = f"found duplicate key {key.value}" if isinstance(key, yaml.ScalarNode) else "a key must be text"
                raise yaml.constructor.ConstructorError(None, None, wrong, key.start_mark)
            seen.add(key.value)
        self.flatten_mapping(node)
        made.update((str(self.construct_object(k)), self.construct_object(v, deep=True)) for k, v in node.value)

    def unknown(self, node: yaml.Node) -> Any:
        raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag} is not read", node.start_mark)


Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
Loader.add_constructor("tag:yaml.org,2002:null", yaml.SafeLoader.construct_yaml_null)
Loader.add_constructor("tag:yaml.org,2002:str", yaml.SafeLoader.construct_yaml_str)
Loader.add_constructor("tag:yaml.org,2002:seq", yaml.SafeLoader.construct_yaml_seq)
Loader.add_constructor("tag:yaml.org,2002:map", Loader.construct_pairs_once)
Loader.add_constructor(None, Loader.unknown)


def parse(text: str) -> Any:
    """YAML whose scalars are text, or None for null. Raises yaml.YAMLError."""
    return copy.deepcopy(_parsed(text))


@lru_cache(64)  # a sweep, and a test, read the same files again and again
def _parsed(text: str) -> Any:
    try:
        return yaml.load(text, Loader)  # noqa: S506 it makes text, lists and dicts alone
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def parse_file(path: Path) -> dict[str, Any]:
    """The keys and values of a file. Raises InputError."""
    try:
        tree = parse(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: bad YAML: {getattr(error, 'problem', None) or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a text file in UTF-8") from None
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("*.yaml"))
        there = f"; {path.parent} has {nearest(path.name, beside)}" if beside else ""
        raise InputError(f"{path}: no such file{there}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError:  # a NUL
        raise InputError(f"{str(path)!r}: is no path of a file") from None
    if tree is not None and not isinstance(tree, dict):
        raise InputError(f"{path}: must hold keys and values")
    return tree or {}


def plain(value: Any) -> Any:
    """What `parse` has left as text, as YAML 1.2 reads it where no key says the type: numbers, truth values, text."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    for kind in (int, float, bool) if isinstance(value, str) else ():
        try:
            return _scalar(value, kind)
        except Unreadable:
            continue
    return value


def interpolated(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def literal(value: Any) -> Any:
    """What `parse` has made, with every `${` standing for itself."""
    if isinstance(value, list):
        return [literal(item) for item in value]
    return INTERPOLATION.sub(lambda found: found[1] * 2 + r"\${", value) if isinstance(value, str) else value


def read(value: Any, kind: Any) -> Any:
    """A value that `parse` has made -> one of the declared type. What holds an interpolation stays text for now.

    Raises Unreadable.
    """
    if interpolated(value) or kind is Any:
        return plain(value)
    options = get_args(kind) if get_origin(kind) not in (list, None) else (kind,)
    if value is None and type(None) in options:
        return None
    if isinstance(value, list):
        element = next((get_args(option)[0] for option in options if get_origin(option) is list), None)
        if element is not None:
            return [read(item, element) for item in value]
    scalar = next((option for option in options if option in (int, float, bool, str)), None)
    if scalar is None or not isinstance(value, str) or value == "???":  # OmegaConf's word for a missing value
        raise Unreadable
    return _scalar(value, scalar)


def _scalar(text: str, kind: type) -> Any:
    if kind is str:
        if "\0" in text or any(
            "\ud800" <= char <= "\udfff" for char in text
        ):  # the latter: bytes that the locale lacks
            raise Unreadable(" in UTF-8 (of the locale, too) and without NUL")
        return text
    if kind is bool:
        if text not in BOOLEANS:
            raise Unreadable
        return BOOLEANS[text]
    if not (INTEGER if kind is int else FLOAT).fullmatch(text):
        near = any(char.isdigit() for char in text)
        raise Unreadable(f" in plain digits, such as {'10 or 1000' if kind is int else '0.5 or 1e-4'}" if near else "")
    if not math.isfinite(float(text)):
        raise Unreadable
    return kind(text)


def read_override(item: str) -> tuple[str, Any]:
    """`key=value` -> the key and what stands behind it: of a text key as it is, else a scalar, or a list or section in
    brackets. Raises InputError."""
    key, equals, text = item.partition("=")
    if not equals or not key or key.startswith("-"):
        raise InputError(f"{item}: write key=value, such as seed=1")
    if text == "None":
        raise InputError(f"{item}: write null for no value")
    if text == "null":
        return key, None
    kind = type_of(key)
    holds_more = kind is Any or is_dataclass(kind) or any(get_origin(k) is list for k in (kind, *get_args(kind)))
    if not holds_more or text.lstrip()[:1] not in ("[", "{"):
        return key, text
    try:
        return key, parse(text)
    except yaml.YAMLError:
        raise InputError(f"{item}: the value is no YAML; is a bracket or a quote missing?") from None


def expanded(key: str, value: Any) -> Any:
    """A path's leading ~ is the home."""
    if key not in PATHS:
        return value
    if isinstance(value, list):
        return [expanded(key, item) for item in value]
    return expanduser(value) if isinstance(value, str) else value


def spelt(key: str, value: Any) -> str:
    """`key=value` as it is read back. An interpolation in text stays one: see `of_path`."""
    if isinstance(value, str):
        return f"{key}={value}"
    return f"{key}={jsonfile.dumps(value, ensure_ascii=False)}"


def of_path(key: str, path: Any) -> str:
    """`key=path` for a path that the program has made: its `${`, and a ~ before it, stand for themselves."""
    text = literal(str(path))
    return f"{key}=./{text}" if text.startswith("~") or text in ("null", "None") else f"{key}={text}"
