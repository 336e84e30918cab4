"""Tables on the page, escaped, in a box that scrolls by itself where the screen is narrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from glmtune.html.builder import Html, el, table
from glmtune.html.pages import NO_VALUE, is_number

CSS = """
.scroll { overflow-x: auto; border: 1px solid var(--border-color-primary); border-radius: 10px; }
.scroll:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin: 0; border: 0; }
thead, tbody, tr { border: 0; }
th, td { text-align: left; padding: 7px 12px; white-space: nowrap; border: 0;
  border-bottom: 1px solid var(--border-color-primary); }
tr:last-child > * { border-bottom: 0; }
thead th { color: var(--body-text-color-subdued); font-weight: 500; font-size: 13px; }
tbody th { font-weight: 600; }
td.wrap { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 12em; }
.note { color: var(--body-text-color-subdued); margin: 6px 2px; }
"""
"""For the `css_template` of the component that shows one."""


def show_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A table; the first cell of a row is its heading, and every text is escaped."""
    return table(head, rows)


def quiet(line: str) -> Html:
    """A sentence in place of a table that would be empty."""
    return el("p", line, class_="note")


def number(value: object, form: str = ".4f") -> str:
    """A number as it is read; a dash where it is not known."""
    return f"{value:{form}}" if is_number(value) else NO_VALUE
