"""Commands of shell scripts, read without running a shell.

Supported: comments, lines continued with a backslash, quotes, assignments, `$NAME`, `${NAME}` and `${NAME:-default}`,
redirections, commands joined by `&&`, `;`, `|` or `&`. What only a shell can compute, such as `$(date)`, is an error if
the value is needed, and ignored otherwise.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from glmtune.errors import ConfigError

_DOLLAR = "\0"  # replaces a literal dollar sign
_SUBSTITUTION = "\1"  # replaces what a shell would compute
_SPECIAL_PARTS = re.compile(
    r"""
    (?P<double>"(?:\\.|[^"\\])*") | (?P<single>'[^']*') | (?P<comment>(?:^|(?<=\s))\#.*$) | (?P<dollar>\\\$)
    | (?P<run>\$\([^()]*\)|`[^`]*`) | (?P<redirect>(?<!\S)(?:\d|&)?>>?\s*(?:&\d|[^\s;|&]+)|(?<!\S)<\s*[^\s;|&]+)
    """,
    re.VERBOSE,
)
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<bare>\w+))")
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)
_SEPARATORS = {";", "&&", "||", "|", "&", "|&", ";;"}


@dataclass
class ShellCommand:
    """A command with its variables replaced.

    Attributes:
        words: the command and its arguments.
        location: file and line.
        environment: assignments before the command.
    """

    words: list[str]
    location: str
    environment: dict[str, str] = field(default_factory=dict)


def read_commands(text: str, name: str, environment: Mapping[str, str]) -> Iterator[ShellCommand]:
    """Yield the commands of a shell script in order.

    A variable without a value stays in its word; `require_value` raises the error if the word is needed.

    Args:
        text: the script.
        name: its file name, for messages.
        environment: variables that are set before the script starts.

    Raises:
        ConfigError: quotes that are not closed.
    """
    variables = dict(environment)
    for line_number, line in _read_logical_lines(text):
        location = f"{name}:{line_number}"
        for words in _split_commands(line, location):
            candidates = words[1:] if words[0] in ("export", "declare", "local") else words
            assignments: dict[str, str] = {}
            count = 0
            for word in candidates:
                match = _ASSIGNMENT.fullmatch(word)
                if match is None:
                    break
                assignments[match["name"]] = _replace_variables(match["value"], variables)
                count += 1
            if count == len(candidates):
                variables |= assignments
                continue
            arguments: list[str] = []
            for word in words[count:]:
                value = _replace_variables(word, variables)
                # A shell splits the value of an unquoted variable. Only variables with flags rely on it.
                if _VARIABLE.fullmatch(word) and value.lstrip().startswith("-"):
                    arguments += shlex.split(value)
                else:
                    arguments.append(value)
            yield ShellCommand(arguments, location, assignments)


def require_value(word: str, location: str) -> str:
    """Return a word of a command as plain text.

    Raises:
        ConfigError: it contains a variable without a value, or something that only a shell can compute.
    """
    missing = _VARIABLE.search(word)
    if missing:
        name = missing["braced"] or missing["bare"]
        raise ConfigError(
            f"{location}: ${name} has no value.", f"Set it in the script, or before the command: {name}=... glmtune ..."
        )
    if _SUBSTITUTION in word:
        text = word.replace(_SUBSTITUTION, "$(...)")
        raise ConfigError(f"{location}: {text} needs a shell.", "Write the value in its place.")
    return word.replace(_DOLLAR, "$")


def _replace_variables(word: str, variables: Mapping[str, str]) -> str:
    """Replace the variables that have a value."""

    def find_value(match: re.Match[str]) -> str:
        value = variables.get(match["braced"] or match["bare"])
        if not value and match["default"] is not None:
            return match["default"]
        return match.group() if value is None else value

    return _VARIABLE.sub(find_value, word)


def _read_logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines joined at backslashes, without comments and redirections, with the number of their first line."""
    start = 1
    parts: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        code = _SPECIAL_PARTS.sub(_mask_part, line).rstrip()
        if not parts:
            start = number
        elif not code and line.lstrip().startswith("#"):
            continue  # a flag that is commented out in the middle of a command
        parts.append(code.removesuffix("\\"))
        if not code.endswith("\\"):
            yield start, " ".join(parts)
            parts = []
    if parts:
        yield start, " ".join(parts)


def _mask_part(match: re.Match[str]) -> str:
    text = match.group()
    if match.lastgroup == "single":
        return text.replace("$", _DOLLAR)
    if match.lastgroup == "double":
        return re.sub(r"\$\([^()]*\)|`[^`]*`", _SUBSTITUTION, text.replace("\\$", _DOLLAR))
    return {"dollar": _DOLLAR, "run": _SUBSTITUTION}.get(str(match.lastgroup), " ")


def _split_commands(line: str, location: str) -> Iterator[list[str]]:
    """Split a line into the words of its commands."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&")
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        for word in lexer:
            if word not in _SEPARATORS:
                words.append(word)
            elif words:
                yield words
                words = []
    except ValueError as error:
        raise ConfigError(f"{location}: cannot be read ({error}).", "Close the quotes.") from None
    if words:
        yield words
