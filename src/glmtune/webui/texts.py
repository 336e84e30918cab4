"""The texts of the page: the keys `ui.` of `glmtune.html.i18n`."""

from __future__ import annotations

from typing import Any

from glmtune.html import i18n


def text(key: str, lang: str, **values: Any) -> str:
    """The text of `ui.KEY` in a language, with its `{names}` filled in."""
    return i18n.text(f"ui.{key}", lang, **values)


def has_text(key: str) -> bool:
    """Whether there is a text `ui.KEY`."""
    return i18n.has_text(f"ui.{key}")
