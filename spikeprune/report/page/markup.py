"""HTML and SVG from Python: whatever is no `Markup` is text, and is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

VOID = ("meta", "br")


class Markup(str):
    """A piece of a page that is markup already."""


def safe(part: object) -> str:
    return part if isinstance(part, Markup) else escape(str(part))


def tag(name: str, /, *parts: object, **attributes: object) -> Markup:
    """An element. Attributes that are None are left out; `class_` is `class`, and `fill_opacity` `fill-opacity`."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{''.join(map(safe, parts))}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    return Markup("".join(map(safe, parts)))


def section(title: str, *parts: object, lead: str = "") -> Markup:
    """A titled part of the page; `lead`: a sentence below the title."""
    return tag("section", tag("h3", title), tag("p", lead, class_="lead") if lead else "", *parts)


def figures(*parts: object) -> Markup:
    """Figures side by side, as many as fit."""
    return tag("div", *parts, class_="figures")


def figure(title: str, drawing: Markup, legend: object = "", *, wide: bool = False) -> Markup:
    """A drawing under its title. A `wide` one has a size of its own and is scrolled where it does not fit."""
    body = tag("div", drawing, class_="scroll", tabindex=0, role="region", aria_label=title) if wide else drawing
    return tag("figure", tag("figcaption", title), body, legend, class_="wide" if wide else None)


def keys(names: Iterable[tuple[str, str]]) -> Markup:
    """A legend: (name, CSS class of its colour)."""
    return tag("p", *(tag("span", tag("i", class_=f"key {colour}"), name) for name, colour in names), class_="legend")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, words: int = 1) -> Markup:
    """A table whose first `words` columns are text and the others numbers; a row's first cell is its heading."""
    kind = ["words" if i < words else None for i in range(len(head))]
    top = tag("tr", *(tag("th", name, scope="col", class_=c) for name, c in zip(head, kind, strict=True)))
    body = [
        tag("tr", tag("th", row[0], scope="row", class_="words"), *map(_cell, row[1:], kind[1:]))
        for row in map(list, rows)
    ]
    whole = tag("table", tag("thead", top), tag("tbody", *body))
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=", ".join(filter(None, head)))


def _cell(value: object, kind: str | None) -> Markup:
    return tag("td", value, class_=kind)


def note(text: str) -> Markup:
    """A sentence in place of what cannot be shown."""
    return tag("p", text, class_="note")
