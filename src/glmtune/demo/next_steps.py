"""The commands to type after the demo, made of what is in the user's folder: they work when they are pasted there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from glmtune.data.sources import open_source
from glmtune.errors import GlmtuneError
from glmtune.families import family_from_folder
from glmtune.utils.installation import name_program
from glmtune.utils.shell_words import join_words

DEFAULT_MODEL = "THUDM/chatglm3-6b"
ROWS_NAME = "YOUR.json"
"""Stands for the user's rows where none are found."""
_ENDINGS = (".json", ".jsonl", ".csv", ".parquet")
_MOST_TRIED = 20
_LARGEST_BYTES = 2**28


def find_rows(folder: Path) -> str | None:
    """The newest file of a folder whose rows glmtune can train on, None if there is none.

    Args:
        folder: where the user is; folders in it are not searched.
    """
    files = [path for path in _list_folder(folder) if path.suffix.lower() in _ENDINGS and path.is_file()]
    files = [path for path in files if path.stat().st_size < _LARGEST_BYTES]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)[:_MOST_TRIED]:
        try:
            open_source(path)
        except (GlmtuneError, OSError):
            continue
        return path.name
    return None


def find_model(folder: Path) -> str | None:
    """A checkpoint of a known generation in a folder, as `./name`; None if there is none."""
    for path in sorted(_list_folder(folder)):
        if (path / "config.json").is_file():
            try:
                family_from_folder(path)
            except (GlmtuneError, OSError):
                continue
            return f"./{path.name}"
    return None


def _list_folder(folder: Path) -> Iterator[Path]:
    try:
        yield from islice(folder.iterdir(), 500)
    except OSError:  # a folder that may not be listed
        return


def format_command(*words: str) -> str:
    """A command of glmtune as it is typed where the user is, in quotes where the shell needs them."""
    return f"{name_program()} {join_words(words)}"


def format_next_steps(folder: Path) -> list[str]:
    """The three commands that tune a model on the user's own rows.

    Args:
        folder: where the user is. A checkpoint and a file of rows that lie there are in the commands.
    """
    rows = find_rows(folder) or ROWS_NAME
    model = find_model(folder) or DEFAULT_MODEL
    return [
        format_command("data", "check", rows),
        format_command("plan", "--model", model, "--data", rows),
        format_command("train", "--model", model, "--data", rows, "--output", "runs/mine"),
    ]
