"""Scripts, commands and config files of other trainers, translated by the command `glmtune migrate`."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from glmtune.errors import ConfigError
from glmtune.utils.documents import DocumentError, parse_yaml
from glmtune.utils.io import write_text
from glmtune.webui.commands import run_command
from glmtune.webui.context import Context
from glmtune.webui.paths import inside
from glmtune.webui.rendering import get_language
from glmtune.webui.run_form import RunForm, make_form
from glmtune.webui.texts import text

SUFFIXES = (".sh", ".bash", ".yaml", ".yml", ".json", ".py", ".txt")
"""Of files that can be translated; `.txt` is read as a script or a command line."""
_TIMEOUT_S = 60
_OWN_SECTIONS = {"model", "data", "method"}
_NAME = re.compile(r"[\w.-]{1,60}")
_PYTHON = re.compile(r"^(from|import) \w|^\w+ = ", re.MULTILINE)


@dataclass(frozen=True)
class Migration:
    """What a script is with glmtune.

    Attributes:
        config: YAML of the training; empty: it starts none, or several.
        notes: one sentence each: what was translated, what differs, what has no effect and why.
        commands: of glmtune, in the order of the script.
    """

    config: str
    notes: list[str]
    commands: list[str]


async def translate_script(
    request: Request, context: Context, content: str, name: str = "", path: str = ""
) -> Migration:
    """Translate what was pasted, or a file.

    A process of its own, which works in the first root, where relative paths begin, and reads files of the roots only.

    Args:
        request: whose client waits for it.
        context: the server's settings.
        content: of the script; empty where `path` is given.
        name: of the file that it comes from, which says how it is read; empty: found from the content.
        path: of a file inside the roots.

    Raises:
        GlmtuneError: nothing was given, or it cannot be translated.
    """
    if path:
        file = inside(context.roots, path)
        if not file.is_file():
            raise ConfigError(f"{path}: no such file.", "Give a shell script, a YAML, JSON or Python file.")
        return await _run_migrate(request, context, [str(file)])
    if not content.strip():
        raise ConfigError("Nothing was pasted.", "Paste a YAML file, or the command of an older trainer.")
    suffix = Path(name).suffix.lower() or _find_suffix(content)
    if suffix not in SUFFIXES:
        raise ConfigError(f"{name}: not a script or a config file.", f"Choose one of: {', '.join(SUFFIXES)}.")
    if suffix in (".yaml", ".yml") and (own := _find_own_config(content)):
        return Migration(own, [text("migrate.own", get_language(request, context))], ["glmtune train config.yaml"])
    words = _split_command(content) if suffix in (".sh", ".txt") else None
    if words:
        return await _run_migrate(request, context, words)
    if suffix == ".txt":
        suffix = ".sh"
    base = Path(name).stem if _NAME.fullmatch(Path(name).stem) else "script"
    with tempfile.TemporaryDirectory(dir=context.state("files")) as folder:  # inside the roots, as the command needs
        file = Path(folder) / f"{base}{suffix}"
        await run_in_threadpool(write_text, file, content)
        migration = await _run_migrate(request, context, [str(file)], shown={str(file): file.name})
    if migration.config and not name:  # the script is no file; its config is below the command
        commands = [
            re.sub(rf"\btrain {re.escape(file.name)}", "train config.yaml", line) for line in migration.commands
        ]
        return replace(migration, commands=commands)
    return migration


def make_migrated_form(migration: Migration) -> RunForm:
    """The form of a training that was translated.

    Raises:
        ConfigError: the script starts none, or the form has no field for a part of it.
    """
    tree = parse_yaml(migration.config) if migration.config else None
    if not isinstance(tree, dict):
        raise ConfigError("It starts no training, or several.", "Use the commands, one at a time.")
    return make_form(tree)


async def _run_migrate(
    request: Request, context: Context, words: list[str], shown: dict[str, str] | None = None
) -> Migration:
    lang = get_language(request, context)
    limits: dict[str, Any] = {"timeout_s": _TIMEOUT_S, "timeout_message": text("migrate.slow", lang)}
    arguments = ["migrate", "--json", "--", *words]
    result = await run_command(arguments, context.roots[0], request=request, **limits)
    for place, name in (shown or {}).items():
        result = replace(result, output=result.output.replace(place, name), errors=result.errors.replace(place, name))
    if result.code:
        raise result.to_error()
    answer = json.loads(result.output)
    return Migration(answer["config"] or "", answer["notes"], answer["commands"])


def _find_suffix(content: str) -> str:
    """The kind of a pasted text, as the suffix of its file."""
    if content.lstrip().startswith("{"):
        return ".json"
    if content.startswith("#!") or re.search(r"(^|\s)--\w", content):  # no YAML or Python has flags
        return ".sh"
    try:
        tree = parse_yaml(content)
    except DocumentError as error:
        if _PYTHON.search(content):
            return ".py"
        first = next((line for line in content.splitlines() if line.strip() and not line.startswith("#")), "")
        if not re.match(r"\w+:(\s|$)", first):
            return ".sh"
        line = f", line {error.line}" if error.line else ""
        raise ConfigError(f"Pasted text{line}: {error.problem}.", "Paste a whole YAML file.") from None
    return ".yaml" if isinstance(tree, dict) else ".sh"


def _find_own_config(content: str) -> str:
    """The text where it is a config of glmtune; empty where it is not."""
    try:
        tree = parse_yaml(content)
    except DocumentError:  # the command says what is wrong
        return ""
    return content if isinstance(tree, dict) and _OWN_SECTIONS & set(tree) else ""


def _split_command(content: str) -> list[str] | None:
    """The words of a single command; None for a script of several lines.

    Raises:
        ConfigError: a quotation mark is opened and never closed.
    """
    joined = re.sub(r"\\\r?\n", " ", content)
    lines = [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) != 1:
        return None
    try:
        return shlex.split(lines[0], comments=True)
    except ValueError:
        raise ConfigError("Pasted text: a quotation mark is opened and never closed.", "Paste all of it.") from None
