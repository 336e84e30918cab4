"""Errors in the language of the page: the messages of the command line are English."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files


def translate_error(line: str, lang: str) -> str | None:
    """A message or a hint in a language; None where there is no translation.

    Args:
        line: as the command line prints it.
        lang: a code of `LANGUAGES`.
    """
    for pattern, text in _load_patterns(lang):
        match = pattern.fullmatch(line.strip())
        if match is not None:
            return text.format_map({name: value or "" for name, value in match.groupdict().items()})
    return None


@cache
def _load_patterns(lang: str) -> list[tuple[re.Pattern[str], str]]:
    """Patterns of whole lines and their translations, the first that fits counts."""
    path = files("glmtune.html").joinpath("locales").joinpath(f"errors.{lang}.json")
    if not path.is_file():  # English, the language of the messages
        return []
    entries = json.loads(path.read_text("utf-8"))
    return [(re.compile(entry["pattern"], re.DOTALL), entry["text"]) for entry in entries]
