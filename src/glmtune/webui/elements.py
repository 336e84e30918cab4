"""Small pieces of the page that several templates show."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

from glmtune.html.builder import Html, el
from glmtune.html.pages import NO_VALUE, is_number


def make_facts(rows: Iterable[tuple[str, object]]) -> Html:
    """A table of names and values."""
    body = el("tbody", *(el("tr", el("th", name, scope="row"), el("td", value)) for name, value in rows))
    return el("table", body, class_="facts")


def make_figures(items: Iterable[tuple[str, object]]) -> Html:
    """Numbers in a row, each under its name."""
    return el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in items), class_="figures")


def make_note(line: str) -> Html:
    """A quiet remark."""
    return el("p", line, class_="note")


def format_number(value: object, form: str = ".4f") -> str:
    """A number as it is read; a dash where it is not known."""
    return f"{value:{form}}" if is_number(value) else NO_VALUE


def measure_main_memory() -> dict[str, int]:
    """Bytes of main memory in use and in all."""
    memory = psutil.virtual_memory()
    return {"used": memory.total - memory.available, "total": memory.total}
