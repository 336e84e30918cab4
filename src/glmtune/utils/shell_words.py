"""Commands that a user can paste into the shell at hand: `sh` (Linux, macOS, Git Bash), `cmd` or PowerShell.

All advice that holds a path or a value of the user is built here; `tests/test_shell_words.py` looks for other ways.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence

from glmtune.utils.operating_system import find_shell

# Characters that mean themselves. In PowerShell, a comma makes a list, and @ or % may begin something else.
_PLAIN = {"cmd": re.compile(r"[\w@+=:,./\\-]+"), "powershell": re.compile(r"[\w+=:./\\-]+")}


def quote_word(word: str, shell: str = "") -> str:
    """A word of a command as it is typed.

    Args:
        word: any text.
        shell: `sh`, `cmd` or `powershell`; that of this machine when empty.
    """
    shell = shell or find_shell()
    if shell == "sh":
        return shlex.quote(word)
    if _PLAIN[shell].fullmatch(word):
        return word
    if shell == "powershell" and re.search(r'[$`"“”„]', word):
        # In single quotes nothing has a meaning but those quotes, also typographic ones. Windows PowerShell passes a
        # double quote on only behind a backslash; version 7 passes the backslash on too.
        is_new = "POWERSHELL_DISTRIBUTION_CHANNEL" in os.environ
        word = word if is_new else _escape_double_quotes(word)
        return "'" + re.sub("(['‘’‚‛])", r"\1\1", word) + "'"
    quoted = f'"{_escape_double_quotes(word)}"'  # as C programs split their command line
    return _escape_operators(quoted) if shell == "cmd" else quoted


def _escape_double_quotes(word: str) -> str:
    return re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + ('\\"' if match[2] else ""), word)


def _escape_operators(quoted: str) -> str:
    """Put ^ before operators that are outside of quotes for cmd, to which every quote opens or closes."""
    parts = quoted.split('"')
    return '"'.join(re.sub(r"([&|<>()^])", r"^\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))


def quote_program(path: str, shell: str = "") -> str:
    """The first word of a command: PowerShell takes a quoted one for a text, unless it is called.

    Args:
        path: of the program.
        shell: see `quote_word`.
    """
    shell = shell or find_shell()
    word = quote_word(path, shell)
    return f"& {word}" if shell == "powershell" and word[0] in "\"'" else word


def join_words(words: Sequence[str], shell: str = "") -> str:
    """A command line of words.

    Args:
        words: of the command, not quoted.
        shell: see `quote_word`.
    """
    return " ".join(quote_word(word, shell) for word in words)


def join_commands(commands: Sequence[str], shell: str = "") -> str:
    """Commands one after the other in one line; the next one only if the one before succeeded, where the shell can.

    Args:
        commands: command lines.
        shell: see `quote_word`. Windows PowerShell has no `&&`.
    """
    return ("; " if (shell or find_shell()) == "powershell" else " && ").join(commands)


def assign_variable(name: str, value: str, shell: str = "") -> str:
    """The line that sets an environment variable for later commands of the shell.

    Args:
        name: of the variable.
        value: its new value.
        shell: see `quote_word`.
    """
    shell = shell or find_shell()
    if shell == "cmd":
        return f'set "{name}={value}"'  # without the quotes, a space before && would become a part of the value
    if shell == "powershell":
        quoted = quote_word(value, shell)
        return f"$env:{name} = {quoted}" if quoted[0] in "\"'" else f'$env:{name} = "{value}"'
    return f"export {name}={shlex.quote(value)}"


def add_variables(variables: Mapping[str, str], command: str, shell: str = "") -> str:
    """A command with environment variables before it.

    Args:
        variables: names and values.
        command: a command line.
        shell: see `quote_word`.
    """
    shell = shell or find_shell()
    if shell == "sh":
        return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in variables.items()), command])
    return join_commands([*(assign_variable(name, value, shell) for name, value in variables.items()), command], shell)
