"""HTML that is escaped unless it was made here, and texts and numbers in both languages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import Any, TypeGuard

from glmtune.html.i18n import LANGUAGES, load_texts

_VOID = {"input", "meta", "br", "rect", "line", "circle", "path", "polyline"}
NOTHING = "–"
"""Stands where a number is not known."""


class Html(str):
    """Markup that goes into the page as it is; every other text is escaped."""


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
    return Html(escape(str(value).encode("utf-8", "replace").decode("utf-8")))


def say(key: str, **values: object) -> Html:
    """A text of the table in every language; the page shows one of them.

    Args:
        key: without `report.`, or a whole one such as `metric.rouge_l`.
        values: what stands in its braces; escaped unless it is `Html`.
    """
    return join(el("span", line, lang=lang) for lang, line in zip(LANGUAGES, _lines(key, values), strict=True))


def say_svg(key: str, x: float, y: float, **attributes: object) -> Html:
    """As `say`, for drawings."""
    lines = zip(LANGUAGES, _lines(key, {}), strict=True)
    return join(el("text", line, lang=lang, x=x, y=y, **attributes) for lang, line in lines)


def _lines(key: str, values: dict[str, object]) -> list[Html]:
    filled = {name: safe(value) for name, value in values.items()}
    texts = (load_texts(lang) for lang in LANGUAGES)
    key = key if key.startswith("metric.") else f"report.{key}"
    return [Html(escape(table[key], quote=False).format(**filled)) for table in texts]


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


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, form: str = ",.0f", unit: str = "") -> Html:
    """A number as it is read, with its exact value in the markup; a dash where it is none."""
    if not is_number(value):
        return Html(NOTHING)
    return _data(value, f"{value:{form}}{unit}")


def loss(value: Any) -> Html:
    """A loss: four decimals."""
    return number(value, ".4f")


def memory(value: Any) -> Html:
    """Bytes as MiB or GiB."""
    if not is_number(value):
        return Html(NOTHING)
    return _data(value, f"{value / 2**30:,.1f} GiB" if value >= 2**30 else f"{value / 2**20:,.0f} MiB")


def duration(value: Any) -> Html:
    """Seconds in the largest two units."""
    if not is_number(value):
        return Html(NOTHING)
    if value < 60:
        return say("time.seconds", seconds=_data(value, f"{value:.1f}"))
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return say("time.minutes", minutes=_data(value, str(minutes)), seconds=f"{seconds:02d}")
    return say("time.hours", hours=_data(value, str(minutes // 60)), minutes=f"{minutes % 60:02d}")


def _data(value: float, shown: str) -> Html:
    return el("data", shown.replace("-", "\u2212"), value=repr(value))


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


def folded(title: object, *body: object) -> Html:
    """What shows after a click."""
    return el("details", el("summary", title), *body)


def note(text: object) -> Html:
    """A quiet sentence: why something is not there, how to read something."""
    return el("p", text, class_="note")


def command(line: str) -> Html:
    """A command to copy."""
    return el("pre", el("code", line), class_="command")
