"""Messages of the command line in the language of the page: the command line speaks English.

`locales/messages.zh.json` has templates with their translations: `"{path}: no such file."`. A name in braces stands
for any text, `{count}` for a number. A text in a message is translated by itself where it is a message too, and so are
the items of a list.
"""

from __future__ import annotations

import json
import re
import string
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from glmtune.html.builder import Html, el, join
from glmtune.webui.texts import text

_MAX_DEPTH = 3
"""Of messages inside messages."""
_MAX_LENGTH = 2_000
_COUNT = re.compile(r"count(_\d)?")
_NUMBER = re.compile(r"[\d.,]+")


@dataclass(frozen=True)
class _Template:
    """A message with names for its values, and its translation.

    Attributes:
        pieces: the text before the first value, between values, and after the last one.
        names: of the values.
        text: the translation, which may leave names out.
    """

    pieces: tuple[str, ...]
    names: tuple[str, ...]
    text: str
    is_frame: bool = False
    """Whether all that it says is in its values: `training: {reason}`."""

    def match(self, message: str) -> dict[str, str] | None:
        """The values in a message; None if it is another one.

        In time that grows with the message alone: a regular expression with many values may take very long.
        """
        if not self.names:
            return {} if message == self.pieces[0] else None
        first, *middle, last = self.pieces
        if not message.startswith(first) or not message.endswith(last):
            return None
        start, end = len(first), len(message) - len(last)
        values = []
        for piece in middle:
            place = message.find(piece, start, end)
            if place < 0:
                return None
            values.append(message[start:place])
            start = place + len(piece)
        if start > end:
            return None
        values_by_name = dict(zip(self.names, [*values, message[start:end]], strict=True))
        return values_by_name if all(_fits(name, value) for name, value in values_by_name.items()) else None


def _fits(name: str, value: str) -> bool:
    return not _COUNT.fullmatch(name) or _NUMBER.fullmatch(value) is not None


_WORD_NAMES = frozenset(("activity", "expected", "output_kind", "other", "what", "problem", "difference"))
"""Values that are one of our words; in others a single word is a name that a user gave."""


def localize_message(message: str, lang: str) -> Html:
    """A message on the page: translated, or the English original after a remark which says that it is one."""
    translation = message if lang == "en" else translate_message(message, lang)
    if translation is not None:
        return join([translation])
    return join([el("span", text("app.in_english", lang), class_="note"), " ", el("span", message, lang="en")])


@lru_cache(maxsize=2048)
def translate_message(message: str, lang: str, depth: int = 0) -> str | None:
    """A message, a hint or a finding in a language; None where there is no translation.

    Args:
        message: as the command line prints it.
        lang: a code of `LANGUAGES`.
        depth: of the message in others.
    """
    message = message.strip()
    if not message or len(message) > _MAX_LENGTH or depth > _MAX_DEPTH:
        return None
    for template in _load_templates(lang):
        values = template.match(message)
        if values is None:
            continue
        parts = {name: _translate_value(name, value, lang, depth) for name, value in values.items()}
        if template.is_frame and any(" " in value and parts[name] == value for name, value in values.items()):
            return None
        return template.text.format_map(parts)
    if message[-1] not in ".?!" and (whole := translate_message(f"{message}.", lang, depth + 1)) is not None:
        return whole.rstrip("。.")  # the start of a sentence of ours
    return _translate_after_place(message, lang, depth) or (_translate_list(message, lang, depth) if depth else None)


def _translate_after_place(message: str, lang: str, depth: int) -> str | None:
    """A message after the place that it is about: `rows.json:3: no column answer`."""
    place, colon, rest = message.partition(": ")
    translation = translate_message(rest, lang, depth + 1) if colon else None
    return f"{place}：{translation}" if translation is not None else None


def _translate_value(name: str, value: str, lang: str, depth: int) -> str:
    is_ours = " " in value or name in _WORD_NAMES
    return (translate_message(value, lang, depth + 1) if is_ours else None) or value


def _translate_list(message: str, lang: str, depth: int) -> str | None:
    """The items of a list in a sentence; None unless all are messages."""
    items = re.split(r"[,;] ", message)
    parts: list[str] = []
    for item in items if len(items) > 1 else []:
        part = translate_message(item, lang, depth + 1)
        if part is None:
            return None
        parts.append(part)
    return "，".join(parts) or None


@cache
def _load_templates(lang: str) -> list[_Template]:
    """Templates of a language, those with the most text of their own first."""
    path = files("glmtune.html").joinpath("locales").joinpath(f"messages.{lang}.json")
    if not path.is_file():  # English, the language of the messages
        return []
    templates = [_parse_template(message, text) for message, text in json.loads(path.read_text("utf-8")).items()]
    return sorted(templates, key=lambda template: -sum(map(len, template.pieces)))


def _parse_template(message: str, text: str) -> _Template:
    pieces, names = [""], []
    for literal, name, _, _ in string.Formatter().parse(message):
        pieces[-1] += literal
        if name is not None:
            names.append(name)
            pieces.append("")
    return _Template(tuple(pieces), tuple(names), text, _list_letters(message) == _list_letters(text))


def _list_letters(text: str) -> str:
    return "".join(filter(str.isalpha, text))
