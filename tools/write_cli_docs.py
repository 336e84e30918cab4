"""Write docs/cli.md, every command with its arguments and options, from the typer app.

python tools/write_cli_docs.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer.main

from glmtune.cli.main import app
from glmtune.config import RunConfig, get_help

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# The command line

`glmtune COMMAND --help` prints the same. Numbers outside the ranges named here, unknown options and words that an
option does not take are refused before anything is loaded. Exit codes: 0 done, 1 an error that is explained in one or
two lines, 2 an unknown option or a missing argument, 130 stopped by Ctrl-C; others are named with their command.
This page is generated from the code by `python tools/write_cli_docs.py`.

| command | |
| --- | --- |
"""
# Named in help texts as files of the repository.
_PAGE_NAME = re.compile(r"\bdocs/([\w-]+\.md)\b")


def render_page() -> str:
    """The whole page."""
    commands = list(list_commands())
    index = [
        f"| [`glmtune {name}`](#glmtune-{name.replace(' ', '-')}) | {_first_line(c.help)} |" for name, c in commands
    ]
    return HEAD + "\n".join(index) + "\n" + "".join(_render_command(name, command) for name, command in commands)


def list_commands() -> Iterator[tuple[str, Any]]:
    """Every command that is not hidden, by its name: `train`, `data check`."""
    for name, command in typer.main.get_command(app).commands.items():
        for child_name, child in getattr(command, "commands", {"": command}).items():
            if not child.hidden:
                yield f"{name} {child_name}".strip(), child


def _render_command(name: str, command: Any) -> str:
    arguments, options = [], []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            arguments.append(parameter)
        elif not parameter.hidden and parameter.name != "help":
            options.append(parameter)
    kinds = get_type_hints(inspect.unwrap(command.callback))
    words = " ".join(["glmtune", name, "[OPTIONS]" if options else "", *map(_format_argument, arguments)])
    parts = [
        f"\n## glmtune {name}\n",
        f"```\n{re.sub(' +', ' ', words).strip()}\n```\n",
        f"{_link_pages(command.help)}\n",
    ]
    if arguments:
        parts += ["| argument | |", "| --- | --- |"]
        parts += [f"| `{_argument_name(argument)}` | {_format_help(argument.help)} |" for argument in arguments]
        parts.append("")
    if options:
        parts += ["| option | value | default | |", "| --- | --- | --- | --- |"]
        parts += [_render_option(option, kinds[option.name]) for option in options]
        parts.append("")
    return "\n".join(parts)


def _render_option(option: Any, kind: Any) -> str:
    spellings = ", ".join(f"`{word}`" for word in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        value = "none"
        default = "on" if option.default is True else ""
    else:
        value = _describe_value(option, kind) + (", several times" if option.multiple else "")
        default = "required" if option.required else _format_default(option.default)
    return f"| {spellings} | {value} | {default} | {_format_help(option.help)} |"


def _describe_value(option: Any, kind: Any) -> str:
    """The words that an option takes, or the kind of its value."""
    words = (
        inspect.getclosurevars(inspect.unwrap(option.callback)).nonlocals.get("known", ()) if option.callback else ()
    )
    if option.name in ("method", "stage") and option.help == get_help(option.name):
        words = get_args(get_type_hints(RunConfig)[option.name])
    return " or ".join(f"`{word}`" for word in words) or _describe_kind(kind)


def _describe_kind(kind: Any) -> str:
    """The kind of an option's value; `list[str] | None` is a text."""
    while get_args(kind):
        kind = next(part for part in get_args(kind) if part is not type(None))
    return {int: "whole number", float: "number", str: "text", Path: "path"}[kind]


def _format_default(default: Any) -> str:
    return "" if default in (None, "", [], ()) else f"`{default}`"


def _argument_name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper()).replace("|", "\\|")


def _format_argument(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper())
    name += "..." if argument.nargs == -1 and "..." not in name else ""
    return name if argument.required else f"[{name}]"


def _format_help(help: str | None) -> str:
    return _link_pages(help or "").replace("|", "\\|").replace("\n", " ")


def _link_pages(help: str) -> str:
    """Plain text of a help as Markdown: pages linked, what Markdown would take for markup kept."""
    pieces = re.split(r"(`[^`]*`)", help)
    text = "".join(piece if number % 2 else re.sub(r"([<>*_])", r"\\\1", piece) for number, piece in enumerate(pieces))
    return _PAGE_NAME.sub(r"[\1](\1)", text)


def _first_line(help: str) -> str:
    return _format_help(help.split("\n\n")[0])


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
