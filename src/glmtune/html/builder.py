"""Elements of HTML built in Python, for the web page: every text is escaped unless it is `Html`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from markupsafe import Markup

_VOID = {"input", "meta", "br", "rect", "line", "circle", "path", "polyline"}


class Html(str):
    """Markup that goes into the page as it is; every other text is escaped."""

    def __html__(self) -> str:
        """For templates, which would escape it otherwise."""
        return self


def el(tag: str, *children: object, **attributes: object) -> Html:
    """An element.

    Args:
        tag: its name.
        children: text (escaped), markup (`Html`), or None, which is left out.
        attributes: `class_` is `class`, other underscores become hyphens; True is a bare attribute; None and False are
            left out.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Html(f"<{tag}{written}>" if tag in ("input", "meta", "br") else f"<{tag}{written}/>")
    return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def join(parts: Iterable[object]) -> Html:
    """Markup and escaped texts, one after the other."""
    return Html("".join(safe(part) for part in parts if part is not None))


def safe(value: object) -> Html:
    """`value` as markup: escaped unless it is `Html`. A lone surrogate, which no file can hold, becomes a mark."""
    if isinstance(value, Html):
        return value
    if isinstance(value, Markup):
        return Html(value)
    return Html(escape(str(value).encode("utf-8", "replace").decode("utf-8")))


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{safe(_short(value))}"'


def _short(value: object) -> object:
    """Coordinates need no more than a hundredth."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def table(head: Iterable[object], rows: Iterable[Iterable[object]], kind: str = "") -> Html:
    """A table that scrolls inside its own box where the screen is narrow; the first cell of a row is its heading."""
    titles = join(el("th", cell, scope="col") for cell in head)
    body = join(_table_row(row) for row in rows)
    return el(
        "div",
        el("table", el("thead", el("tr", titles)) if titles else None, el("tbody", body), class_=kind or None),
        class_="scroll",
        tabindex="0",
    )


def _table_row(cells: Iterable[object]) -> Html:
    first, *others = cells
    return el("tr", el("th", first, scope="row"), *(el("td", cell) for cell in others))
