"""Shell scripts that start a training, read without running a shell.

Known: comments, lines continued by a backslash, quotes, assignments, `$NAME`, `${NAME}` and `${NAME:-default}`,
redirections, commands joined by `&&`, `;`, `|` or `&`. What only a shell can know, such as `$(date)`, is an error where
it matters and unnoticed where it does not (a port).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from glmtune.errors import ConfigError

_DOLLAR = "\0"  # stands for a dollar sign that is meant as it is
_RUN = "\1"  # stands for what a shell would have to compute
_PARTS = re.compile(
    r"""
    (?P<double>"(?:\\.|[^"\\])*") | (?P<single>'[^']*') | (?P<comment>(?:^|(?<=\s))\#.*$) | (?P<dollar>\\\$)
    | (?P<run>\$\([^()]*\)|`[^`]*`) | (?P<redirect>(?<!\S)(?:\d|&)?>>?\s*(?:&\d|[^\s;|&]+)|(?<!\S)<\s*[^\s;|&]+)
    """,
    re.VERBOSE,
)
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<bare>\w+))")
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)
_JOINERS = {";", "&&", "||", "|", "&", "|&", ";;"}


@dataclass
class Command:
    """A command of a script, its variables filled in.

    Attributes:
        words: the command and its arguments.
        where: file and line.
        environment: assignments that stood in front of it.
    """

    words: list[str]
    where: str
    environment: dict[str, str] = field(default_factory=dict)


def read_commands(text: str, name: str, environment: Mapping[str, str]) -> Iterator[Command]:
    """The commands of a shell script, in order.

    Args:
        text: the script.
        name: its file name, for messages.
        environment: variables that the script may rely on.

    Raises:
        ConfigError: quotes that do not close. A variable without a value is left in its word, see `need`.
    """
    variables = dict(environment)
    for line, joined in _logical_lines(text):
        where = f"{name}:{line}"
        for words in _split(joined, where):
            exported = words[1:] if words[0] in ("export", "declare", "local") else words
            count = _count_assignments(exported)
            assigned = {}
            for word in exported[:count]:
                match = _ASSIGNMENT.fullmatch(word)
                assert match is not None
                assigned[match["name"]] = fill(match["value"], variables)
            if count == len(exported):
                variables |= assigned
            else:
                filled = [part for word in words[count:] for part in _fill_word(word, variables)]
                yield Command(filled, where, assigned)


def need(word: str, where: str) -> str:
    """A word that has to be known.

    Raises:
        ConfigError: it holds a variable without a value, or something that only a shell can compute.
    """
    missing = _VARIABLE.search(word)
    if missing:
        name = missing["braced"] or missing["bare"]
        hint = f"Set it in the script, or in front: {name}=... glmtune ..."
        raise ConfigError(f"{where}: ${name} has no value.", hint)
    if _RUN in word:
        raise ConfigError(f"{where}: {word.replace(_RUN, '$(...)')} needs a shell.", "Write the value in its place.")
    return word.replace(_DOLLAR, "$")


def fill(word: str, variables: Mapping[str, str]) -> str:
    """A word with its variables filled in; those without a value stay."""

    def value(match: re.Match[str]) -> str:
        known = variables.get(match["braced"] or match["bare"])
        if not known and match["default"] is not None:
            return match["default"]
        return match.group() if known is None else known

    return _VARIABLE.sub(value, word)


def _fill_word(word: str, variables: Mapping[str, str]) -> list[str]:
    filled = fill(word, variables)
    # A shell splits what an unquoted variable holds. Only flags are kept in variables that way.
    if _VARIABLE.fullmatch(word) and filled.lstrip().startswith("-"):
        return shlex.split(filled)
    return [filled]


def _count_assignments(words: list[str]) -> int:
    count = 0
    while count < len(words) and _ASSIGNMENT.fullmatch(words[count]):
        count += 1
    return count


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations, comments and redirections taken out, and where they begin."""
    start = 1
    parts: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        bare = _PARTS.sub(_mask, line).rstrip()
        if not parts:
            start = number
        elif not bare and line.lstrip().startswith("#"):
            continue  # a flag that is commented out in the middle of a command
        parts.append(bare.removesuffix("\\"))
        if not bare.endswith("\\"):
            yield start, " ".join(parts)
            parts = []
    if parts:
        yield start, " ".join(parts)


def _mask(match: re.Match[str]) -> str:
    text = match.group()
    if match.lastgroup == "single":
        return text.replace("$", _DOLLAR)
    if match.lastgroup == "double":
        return re.sub(r"\$\([^()]*\)|`[^`]*`", _RUN, text.replace("\\$", _DOLLAR))
    return {"dollar": _DOLLAR, "run": _RUN}.get(str(match.lastgroup), " ")


def _split(line: str, where: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&")
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        for word in lexer:
            if word not in _JOINERS:
                words.append(word)
            elif words:
                yield words
                words = []
    except ValueError as error:
        raise ConfigError(f"{where}: cannot be read ({error}).", "Mend the quotes.") from None
    if words:
        yield words
