"""Small pieces of the page, escaped."""

from __future__ import annotations

from collections.abc import Iterable

from glmtune.errors import GlmtuneError
from glmtune.html.builder import Html, el, join
from glmtune.webui.errors import as_html


def facts(rows: Iterable[tuple[str, str]]) -> Html:
    """A table of names and values."""
    return el(
        "table", *(el("tr", el("th", name, scope="row"), el("td", value)) for name, value in rows), class_="facts"
    )


def figures(items: Iterable[tuple[str, str]]) -> Html:
    """Numbers in a row, each under its name."""
    return el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in items), class_="figures")


def note(said: str) -> Html:
    """A quiet remark."""
    return el("p", said, class_="note")


def problem(error: GlmtuneError) -> Html:
    """The one or two lines of an error."""
    return el("p", Html(as_html(error)), class_="problem", role="alert")


def bar(share: float, name: str) -> Html:
    """A progress bar, 0 to 1."""
    percent = max(0.0, min(1.0, share)) * 100
    return el(
        "div",
        el("div", style=f"width:{percent:.1f}%"),
        class_="bar",
        role="progressbar",
        aria_label=name,
        aria_valuemin="0",
        aria_valuemax="100",
        aria_valuenow=f"{percent:.0f}",
    )


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


__all__ = ["Html", "bar", "facts", "figures", "join", "note", "problem", "size"]
