"""One configuration put together from layers, later ones over earlier, with every problem met on the way; the only file
that knows OmegaConf."""

from __future__ import annotations

import copy
from dataclasses import asdict, is_dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spikeprune.config import scalars, validation
from spikeprune.config.keys import every_key, in_words, leaves, names, near_key, type_of
from spikeprune.config.schema import Config
from spikeprune.errors import InputError
from spikeprune.files import secrets


@cache
def _defaults() -> DictConfig:
    """Only to be read and copied: a copy takes an eighth of the time."""
    return OmegaConf.structured(Config)


@cache
def _interpolated_defaults() -> frozenset[str]:
    tree = leaves(OmegaConf.to_container(_defaults(), resolve=False))
    return frozenset(key for key, value in tree if scalars.interpolated(value))


class Merge:
    """The configuration so far, where each value came from, and every problem met on the way.

    `resolved`: the values are a run's own, in which `${` and ~ stand for themselves.
    """

    def __init__(self, resolved: bool = False) -> None:
        self.resolved = resolved
        self.config = copy.deepcopy(_defaults())
        self.sources: dict[str, str] = {}
        self.interpolated: dict[str, str] = {}
        self.dollars = set(_interpolated_defaults())  # keys whose values have a `${`, a run's own ones too
        self.unread: set[str] = set()
        self.problems: list[str] = []

    def problem(self, text: str, source: str = "") -> None:
        line = f"{text} [{source}]" if source else text
        if line not in self.problems:
            self.problems.append(line)

    def add(self, tree: dict, source: str, prefix: str = "") -> None:
        """Set each leaf on its own, so that one bad value hides no other."""
        for name, value in tree.items():
            key = f"{prefix}{name}"
            kind = type_of(key)
            if kind is None:
                self.problem(f"{key}: unknown key{near_key(key)}", source)
            elif not is_dataclass(kind):
                self._set(key, value, kind, source)
            elif isinstance(value, dict):
                self.add(value, source, f"{key}.")
            else:
                self.problem(f"{key} = {value}: is a section, not a value; it holds {names(kind)}", source)

    def _set(self, key: str, value: Any, kind: Any, source: str) -> None:
        try:
            made = scalars.read(scalars.literal(value) if self.resolved else value, kind)
            if not self.resolved:
                made = scalars.expanded(key, made)
            self._put(key, made)
            (self.dollars.add if "${" in str(made) else self.dollars.discard)(key)
            self.interpolated.pop(key, None)
            if scalars.interpolated(value) and not self.resolved:
                self.interpolated[key] = made
            self.sources[key] = source
            self.unread.discard(key)
        except (OmegaConfBaseException, scalars.Unreadable, OverflowError) as error:
            self.unread.add(key)
            how = error if isinstance(error, scalars.Unreadable) else ""
            shown = "null" if value is None else scalars.plain(value) if isinstance(value, list) else value
            self.problem(f"{key} = {shown}: must be {in_words(kind)}{how}", source)

    def value(self, key: str) -> Any:
        """What it is so far; None, too, for an interpolation that leads nowhere, which `finish` reports."""
        try:
            return OmegaConf.select(self.config, key)
        except OmegaConfBaseException:
            return None

    def raw(self, key: str) -> Any:
        """Its value with interpolations as they are written."""
        section, _, name = key.rpartition(".")
        return OmegaConf.to_container(OmegaConf.select(self.config, section))[name]

    def _put(self, key: str, value: Any) -> None:
        """OmegaConf's own `update` by a dotted key takes twice as long."""
        section, _, name = key.rpartition(".")
        place = self.config
        for part in filter(None, section.split(".")):
            place = place[part]
        place[name] = value

    def finish(self) -> Config:
        for key in every_key():
            if key not in self.dollars:
                continue  # nothing to look up
            try:
                OmegaConf.select(self.config, key)
                self._check_interpolated(key)
            except (OmegaConfBaseException, scalars.Unreadable) as error:  # a `${…}` that leads nowhere, or to no value
                self.problem(f"{key}: {str(error).splitlines()[0]}", self.sources.get(key, ""))
                self._default(key)
        config = OmegaConf.to_object(self.config)
        for key, value in leaves(asdict(config)):
            if name := secrets.held(str(value)):
                self.problem(
                    f"{key}: holds the value of {name}; leave it in the environment", self.sources.get(key, "")
                )
        for keys, text in validation.problems(config, frozenset(self.unread)):
            self.problem(text, self._blame(keys))
        if self.problems:
            raise InputError(_message(self.problems))
        return config

    def _check_interpolated(self, key: str) -> None:
        """Text that an interpolation gives is read as any other; OmegaConf alone would take yes for true."""
        if key in self.interpolated:
            found = OmegaConf.create({"value": self.interpolated[key]}, parent=self.config)["value"]
            try:
                scalars.read(found, type_of(key)) if isinstance(found, str) else None
            except scalars.Unreadable as how:
                raise scalars.Unreadable(f"is {found}: must be {in_words(type_of(key))}{how}") from None

    def _default(self, key: str) -> None:
        """In place of a value that is refused, so that what else is wrong comes out as well."""
        self.unread.add(key)
        self._put(key, OmegaConf.select(_defaults(), key))

    def _blame(self, keys: tuple[str, ...]) -> str:
        """Where the first of the keys that anybody set was set; a problem with defaults alone has no source."""
        return next((self.sources[key] for key in keys if key in self.sources), "")


def _message(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} problems in the configuration:", *(f"  {line}" for line in problems)])
