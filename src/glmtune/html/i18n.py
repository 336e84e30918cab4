"""Texts of reports, web page and command line in every language: locales/zh.json and locales/en.json, with equal keys.

Keys begin with who shows them: `check.` (of data), `report.`, `serve.` (its page), `ui.` or `metric.` (names of
scores).
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

LANGUAGES = {"zh": "中文", "en": "English"}
"""Code of a language -> its own name."""


@cache
def load_texts(lang: str) -> dict[str, str]:
    """Load all texts of a language of `LANGUAGES`."""
    path = files("glmtune.html").joinpath("locales").joinpath(f"{lang}.json")
    texts: dict[str, str] = json.loads(path.read_text("utf-8"))
    return texts


def text(key: str, lang: str, **values: object) -> str:
    """The text of a key, with its `{names}` replaced by values.

    Raises:
        KeyError: there is no such key, or a name has no value.
    """
    message = load_texts(lang)[key]
    return format_message(message, values) if values else message


def format_message(message: str, values: Mapping[str, object]) -> str:
    """Replace `{names}` in a message by values; `{rows:row|rows}` is a number and the noun that goes with it.

    Raises:
        KeyError: a name has no value.
    """
    return _MessageFormatter().vformat(message, (), values)


class _MessageFormatter(string.Formatter):
    def format_field(self, value: object, format_spec: str) -> str:
        singular, bar, plural = format_spec.partition("|")
        if not bar:
            return str(super().format_field(value, format_spec))
        number = re.sub(r"<[^>]*>", "", str(value))  # it may be a number of a page, with its markup
        return f"{value} {singular if number == '1' else plural}"


def has_text(key: str) -> bool:
    """Whether there is a text of this key."""
    return key in load_texts("en")


def default_language() -> str:
    """The language of the locale: zh for a Chinese one, else en."""
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return "zh" if next(filter(None, names), "").lower().startswith("zh") else "en"
