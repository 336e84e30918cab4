"""Files: atomic writes, reads with the place of a mistake, locks against other processes.

Imported by every command, so heavy packages are imported inside functions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from glmtune.errors import GlmtuneError, RunError
from glmtune.utils.documents import MAX_JSON_BYTES, DocumentError, parse_json, read_document
from glmtune.utils.file_access import FileAccessError, require_readable, require_writable
from glmtune.utils.operating_system import make_portable_name, replace_path

LOCK_FILE = ".lock"
_HASH_BLOCK_BYTES = 1 << 20


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: complete or not at all."""
    with open_atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


@contextmanager
def open_atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the name of `path` if the block ends without an error.

    For writers that want a path of their own, such as `Figure.savefig(temporary, format="png")`.
    """
    require_writable(path.parent)  # a link in place of the file itself is replaced, not followed
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        replace_path(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder to fill; it takes the place of `folder` if the block ends without an error.

    The old one is renamed and removed last. After a kill between the two renamings it is `.NAME.old`, and the next call
    puts it back.
    """
    require_writable(folder.parent)
    temporary, old = (folder.with_name(f".{folder.name}.{ending}") for ending in ("tmp", "old"))
    if old.is_dir() and not folder.exists():
        replace_path(old, folder)
    for leftover in (temporary, old):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            replace_path(folder, old)
        replace_path(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json_object(
    path: Path,
    error: type[GlmtuneError] = GlmtuneError,
    hint: str | None = "Write or download the file again.",
    *,
    unique_keys: bool = False,
    max_bytes: int = MAX_JSON_BYTES,
) -> dict[str, Any]:
    """Read a JSON object from a file in UTF-8, with or without a byte order mark.

    Args:
        path: of the file.
        error: the class to raise.
        hint: how to fix it, for the error's second line.
        unique_keys: refuse objects that hold a key twice.
        max_bytes: of the file.

    Raises:
        error: not a regular file, or too large; it cannot be read, is not UTF-8 or not JSON, or holds something else
            than an object.
    """
    try:
        value = parse_json(read_document(path, max_bytes), unique_keys)
    except DocumentError as problem:
        raise error(problem.describe(path), hint) from None
    if not isinstance(value, dict):
        raise error(f"{path}: must hold a JSON object, not {_json_kind(value)}.", hint)
    return value


def find_json_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object whose absence or damage does not matter; None in both cases.

    Raises:
        FileAccessError: this process is limited to other folders.
    """
    try:
        return read_json_object(path)
    except FileAccessError:
        raise
    except GlmtuneError:
        return None


def read_json_lines_end(path: Path, max_bytes: int) -> list[dict[str, Any]]:
    """The objects in the last bytes of a file of JSON lines, oldest first; damaged lines and a missing file do not
    matter.

    Raises:
        FileAccessError: this process is limited to other folders.
    """
    path = require_readable(path)
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - max_bytes))
            lines = stream.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    objects = []
    for line in lines[1:] if size > max_bytes else lines:  # the first may be cut
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            objects.append(value)
    return objects


def _json_kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


@contextmanager
def explain_write_errors(path: Path, option: str = "--output") -> Iterator[None]:
    """Turn an `OSError` of the block into an error that the user can fix.

    Args:
        path: what is written, for the message.
        option: of the command line that chooses another place.

    Raises:
        RunError: in place of the `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror or error}).", f"Free some space, or choose another {option}."
        ) from None


@contextmanager
def lock_folder(folder: Path, activity: str, option: str = "--output") -> Iterator[None]:
    """Create a folder if it is not there, and keep other processes out of it during the block.

    The system releases the lock when the process ends, however it ends.

    Args:
        folder: to lock.
        activity: what another process would be doing there, for the message: "training".
        option: that names the folder on the command line, for the message.

    Raises:
        RunError: another process holds the lock, or the folder cannot be created.
    """
    from filelock import FileLock, Timeout

    require_writable(folder)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    with explain_write_errors(folder, option):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:  # an OSError
            raise RunError(
                f"{folder}: another process is {activity} in this folder.", f"Wait for it, or choose another {option}."
            ) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a folder."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK_FILE).is_file():
        return False
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            return False
    except Timeout:
        return True


def add_file_to_hash(hasher: Any, path: Path, on_bytes: Callable[[int], None] | None = None) -> None:
    """Add the content of a file to a hash, block by block.

    Args:
        hasher: of `hashlib`.
        path: of the file.
        on_bytes: called with the number of bytes after each block.
    """
    with require_readable(path).open("rb", buffering=0) as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            hasher.update(block)
            if on_bytes:
                on_bytes(len(block))


def hash_file(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal digits."""
    hasher = hashlib.sha256()
    add_file_to_hash(hasher, path)
    return hasher.hexdigest()


def slugify(name: str, default: str) -> str:
    """A name as part of a file name: letters, digits, `_`, `.` and `-`; `default` if nothing is left of it."""
    return make_portable_name(re.sub(r"[^\w.-]+", "-", name).strip("-.") or default)


def file_timestamp() -> str:
    """The local time as part of a file name: 20261127-093000."""
    return time.strftime("%Y%m%d-%H%M%S")


def iso_timestamp() -> str:
    """The local time in ISO 8601: 2026-11-27T09:30:00+0800."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def parse_dataclass(kind: Any, value: Any) -> Any:
    """Build a dataclass from what JSON gave, without ever failing: for readers of files that a person may have edited.

    A key that is missing or holds another type gives the field's default, else an empty list, dict or dataclass, else
    None; unknown keys are ignored.

    Args:
        kind: the dataclass; fields may be dataclasses, lists and dicts of them, and unions with None.
        value: from `json.loads`.
    """
    tree = value if isinstance(value, dict) else {}
    hints = get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        parsed = _parse_value(hints[field.name], tree.get(field.name))
        if parsed is None and field.default is not dataclasses.MISSING:
            parsed = field.default
        values[field.name] = parsed
    return kind(**values)


def _parse_value(kind: Any, value: Any) -> Any:
    arguments = [argument for argument in get_args(kind) if argument is not type(None)]
    if get_origin(kind) in (Union, types.UnionType):
        return None if value is None else _parse_value(arguments[0], value)
    if dataclasses.is_dataclass(kind):
        return parse_dataclass(kind, value)
    if get_origin(kind) is list:
        return [_parse_value(get_args(kind)[0], item) for item in value] if isinstance(value, list) else []
    if get_origin(kind) is dict:
        return {key: _parse_value(arguments[1], item) for key, item in value.items()} if isinstance(value, dict) else {}
    if kind is Any:
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return value if type(value) is kind else None
