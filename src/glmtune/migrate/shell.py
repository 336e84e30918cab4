"""Commands of shell scripts, read without running a shell.

Supported: comments, lines continued with a backslash, quotes, assignments, `$NAME`, `${NAME}` and `${NAME:-default}`,
redirections, commands joined by `&&`, `;`, `|` or `&`, and `$(date +FORMAT)`. What only a shell can compute, such as
`$(hostname)`, is an error if the value is needed, and ignored otherwise.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

from glmtune.errors import ConfigError

_DOLLAR = "\0"  # replaces a literal dollar sign
_SUBSTITUTION = "\1"  # replaces what a shell would compute
_SPECIAL_PARTS = re.compile(
    r"""
    (?P<double>"(?:\\.|\$\([^()]*\)|[^"\\])*") | (?P<single>'[^']*') | (?P<comment>(?:^|(?<=\s))\#.*$)
    | (?P<dollar>\\\$) | (?P<run>\$\([^()]*\)|`[^`]*`)
    | (?P<redirect>(?<!\S)(?:\d|&)?>>?\s*(?:&\d|[^\s;|&]+)|(?<!\S)<\s*[^\s;|&]+)
    """,
    re.VERBOSE,
)
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::?-(?P<default>[^}]*))?\}|(?P<bare>\w+))")
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)
_SEPARATORS = {";", "&&", "||", "|", "&", "|&", ";;"}
_RUN_PARTS = re.compile(r"\$\([^()]*\)|`[^`]*`")
_DATE = re.compile(
    r"""date\s+(?P<utc>-u\s+|--utc\s+)?
    (?:\+(?P<bare>[^\s"';&|<>$`()]*) | \+(?P<q1>["'])(?P<inner>[^"'$`]*)(?P=q1)
    | (?P<q2>["'])\+(?P<outer>[^"'$`]*)(?P=q2))""",
    re.VERBOSE,
)
# The directives of `date` that strftime computes the same on every system.
_DATE_FORMAT = re.compile(r"(?:[^%]|%[YmdHMSyjBbAaeFTDpIUWuwGVsnt%])*")
_EXPORTED_PREFIXES = (
    *("CUDA_", "OMP_", "MKL_", "NCCL_", "HF_", "HUGGING", "TRANSFORMERS_", "TOKENIZERS_", "PYTORCH_", "TORCH_"),
    *("WANDB_", "ACCELERATE_", "USE_MODELSCOPE_HUB", "MODELSCOPE_", "GRADIO_", "TMPDIR"),
)
"""Variables that are read by libraries; others that a script exports are its own."""


@dataclass
class ShellCommand:
    """A command with its variables replaced.

    Attributes:
        words: the command and its arguments.
        location: file and line.
        environment: assignments before the command, and exported variables that libraries read.
    """

    words: list[str]
    location: str
    environment: dict[str, str] = field(default_factory=dict)


def read_commands(
    text: str, name: str, environment: Mapping[str, str], notes: list[str] | None = None
) -> Iterator[ShellCommand]:
    """Yield the commands of a shell script in order.

    A variable without a value stays in its word; `require_value` raises the error if the word is needed.

    Args:
        text: the script.
        name: its file name, for messages.
        environment: variables that are set before the script starts.
        notes: gets a line for each thing that is not read as a shell would.

    Raises:
        ConfigError: quotes that are not closed.
    """
    variables = dict(environment)
    exported: dict[str, str] = {}
    notes = [] if notes is None else notes
    for line_number, line in _read_logical_lines(text, name, notes):
        location = f"{name}:{line_number}"
        for words in _split_commands(line, location):
            if words[1:2] == ["="] and len(words) > 3 and words[0].isidentifier():  # CUDA_VISIBLE_DEVICES = 0 python
                notes.append(f"{location}: {words[0]} = {words[2]} is read as {words[0]}={words[2]}.")
                words = [f"{words[0]}={words[2]}", *words[3:]]
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
                if words[0] == "export":
                    exported |= {name: value for name, value in assignments.items() if _is_library_variable(name)}
                continue
            arguments: list[str] = []
            for word in words[count:]:
                value = _replace_variables(word, variables)
                # A shell splits the value of an unquoted variable. Only variables with flags rely on it.
                if _VARIABLE.fullmatch(word) and value.lstrip().startswith("-"):
                    arguments += shlex.split(value)
                else:
                    arguments.append(value)
            yield ShellCommand(arguments, location, {**exported, **assignments})


def split_environment(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split the words of a command line into the assignments before the command, and the command."""
    environment: dict[str, str] = {}
    for index, word in enumerate(words):
        match = _ASSIGNMENT.fullmatch(word)
        if match is None:
            return environment, words[index:]
        environment[match["name"]] = match["value"]
    return {}, words


def _is_library_variable(name: str) -> bool:
    return name.startswith(_EXPORTED_PREFIXES)


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


def _read_logical_lines(text: str, name: str, notes: list[str]) -> Iterator[tuple[int, str]]:
    """Yield lines joined at backslashes, without comments and redirections, with the number of their first line."""
    start = 1
    parts: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        dates: list[str] = []
        code = _SPECIAL_PARTS.sub(lambda match, dates=dates: _mask_part(match, dates), line).rstrip()  # type: ignore[misc]
        notes += [f"{name}:{number}: {date}" for date in dates]
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


def _mask_part(match: re.Match[str], dates: list[str]) -> str:
    """Return what a part with a meaning for the shell is replaced by; notes about dates are added to `dates`."""
    text = match.group()
    if match.lastgroup == "single":
        return text.replace("$", _DOLLAR)
    if match.lastgroup == "double":
        return _RUN_PARTS.sub(lambda part: _replace_run(part.group(), dates), text.replace("\\$", _DOLLAR))
    if match.lastgroup == "run":
        value = _replace_run(text, dates)
        return value if value == _SUBSTITUTION else shlex.quote(value)
    return _DOLLAR if match.lastgroup == "dollar" else " "


def _replace_run(text: str, dates: list[str]) -> str:
    """Return the value of `$(date +FORMAT)`, and a mark for every other program; nothing is executed."""
    inner = text[2:-1] if text.startswith("$(") else text[1:-1]
    match = _DATE.fullmatch(inner.strip())
    if match is None:
        return _SUBSTITUTION
    directives = match["bare"] or match["inner"] or match["outer"] or ""
    if not _DATE_FORMAT.fullmatch(directives):
        return _SUBSTITUTION
    now = datetime.now(timezone.utc) if match["utc"] else datetime.now().astimezone()
    # %s is not known to strftime on every system.
    value = now.strftime(directives.replace("%s", str(int(now.timestamp()))))
    dates.append(f"{text} is {value}, the time of this translation.")
    return value


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
