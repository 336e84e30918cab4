"""Spellings of options that click does not know: `--resume=PATH`, `--json=true`, `--max_new_tokens 5`."""

from __future__ import annotations

from typing import Any

import typer

_YES = ("true", "yes", "1", "on")
_NO = ("false", "no", "0", "off")
_FOLLOWED_FLAGS = ("--resume",)
"""Flags that may be followed by what they refer to, which is a word of its own."""


def normalize_words(app: typer.Typer, words: list[str]) -> list[str]:
    """Rewrite the options of a command line as the commands of `app` spell them.

    Underscores become hyphens, a flag with `=true` is the flag, one with `=false` is left out (or its `--no-` form),
    and `--resume=PATH` is `--resume PATH`. Words that are no option of the command stay as they are, and so do all
    words of commands that take the options of other projects, except flags.

    Args:
        app: the commands.
        words: after the program's name.

    Returns:
        The words for click; the same list if there is nothing to rewrite.
    """
    if not any(word.startswith("--") and ("=" in word or "_" in word) for word in words):
        return words
    command: Any = typer.main.get_command(app)
    place = 0
    while place < len(words) and words[place] in getattr(command, "commands", ()):
        command, place = command.commands[words[place]], place + 1
    options = {spelling: parameter for parameter in command.params for spelling in parameter.opts}
    has_foreign_options = command.context_settings.get("ignore_unknown_options", False)
    result = words[:place]
    for number, word in enumerate(words[place:], start=place):
        if word == "--":
            return [*result, *words[number:]]
        result += _normalize_word(word, options, has_foreign_options)
    return result


def _normalize_word(word: str, options: dict[str, Any], has_foreign_options: bool) -> list[str]:
    name, equals, value = word.partition("=")
    hyphenated = name.replace("_", "-")
    if name not in options and hyphenated in options and not has_foreign_options:
        name = hyphenated
    option = options.get(name)
    if not equals or option is None or not getattr(option, "is_flag", False):
        return [f"{name}{equals}{value}"]
    if value.lower() in _YES:
        return [name]
    if value.lower() in _NO:
        return option.secondary_opts[:1]
    return [name, value] if name in _FOLLOWED_FLAGS and value else [word]
