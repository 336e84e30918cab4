"""Files that a browser sends: as they are, one a request, into the folder `uploads` of the first root.

    PUT /uploads?name=rows.jsonl

Nothing is held in memory, and nothing has its final name before it is complete: parts go to a file in the page's state
folder, which is renamed. What a user makes of the file is limited elsewhere (`utils.file_access`): an uploaded
`dataset_info.json` names files of the roots alone.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glmtune.data.files import has_data_suffix
from glmtune.html.i18n import text
from glmtune.utils.io import find_json_object, write_json
from glmtune.utils.network import parse_content_length
from glmtune.utils.operating_system import get_open_flags, make_portable_name, replace_path
from glmtune.webui.context import Context
from glmtune.webui.guard import visitor_of
from glmtune.webui.page_rules import RouteRule
from glmtune.webui.paths import inside

UPLOAD_PATH = "/uploads"
_RECEIVED = "uploads.json"
"""In the page's folder: size and time of change of files as they were sent, by name."""
FOLDER = "uploads"
_CONFIG_SUFFIXES = (".yaml", ".yml")
_BLOCK_BYTES = 2**20
_received_lock = threading.Lock()
_MAX_NAME_BYTES = 120
# No part arrives for as long as this in an upload that lives: the guard ends it after a minute.
_LEFTOVER_SECONDS = 600.0


@dataclass(frozen=True)
class UploadLimits:
    """How much may be sent.

    Attributes:
        file_bytes: of one file.
        files: in the folder.
        at_once: uploads at the same time.
        free_bytes: of the disk that stay free.
    """

    file_bytes: int = 16 * 2**30
    files: int = 1000
    at_once: int = 4
    free_bytes: int = 2**30


class UploadError(Exception):
    """A file that is not taken.

    Args:
        status: of HTTP.
        key: of the text `ui.upload.KEY`.
        values: of its placeholders.
    """

    def __init__(self, status: HTTPStatus, key: str, **values: object):
        super().__init__(f"{int(status)} {key}")
        self.status = status
        self.key = key
        self.values = values


class UploadStore:
    """Takes files.

    Args:
        roots: of the page; files go to the first.
        state: folder for files that are not complete yet. It is on the disk of the first root.
        limits: how much may be sent.
    """

    def __init__(self, roots: Sequence[Path], state: Path, limits: UploadLimits | None = None):
        self._roots = roots
        self._state = state
        self.limits = limits or UploadLimits()
        self._active = 0
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Remove files of uploads that ended without their end: of a server that was killed, of a lost connection."""
        for path in self._state.glob("*.part"):
            try:
                if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                    path.unlink()
            except OSError:  # complete or removed meanwhile
                continue

    async def receive(self, request: Request, name: str) -> Path:
        """Write the body of a request to a file.

        Args:
            request: whose body is the file.
            name: as the browser has it; another one is chosen if it is taken.

        Returns:
            Where the file is.

        Raises:
            UploadError: the name cannot be used, or it is too large, or too many are there, or the disk is full.
            PathError: the folder is a link that leads out of the roots.
        """
        safe_name = make_safe_name(name)
        self.remove_leftovers()
        folder = inside(self._roots, FOLDER)
        if folder.is_dir() and sum(1 for _ in os.scandir(folder)) >= self.limits.files:
            raise UploadError(HTTPStatus.INSUFFICIENT_STORAGE, "count", limit=self.limits.files, folder=FOLDER)
        self._check_size(parse_content_length(request.headers.get("content-length", "")))
        with self._reserve_place() as partial:
            await self._write_body(request, partial)
            folder.mkdir(exist_ok=True)
            path = _rename_new(partial, folder, safe_name)
        _change_received(self._state.parent, path.name, _read_stamp(path))
        return path

    @contextmanager
    def _reserve_place(self) -> Iterator[Path]:
        if self._active >= self.limits.at_once:
            raise UploadError(HTTPStatus.TOO_MANY_REQUESTS, "busy", limit=self.limits.at_once)
        self._active += 1
        partial = self._state / f"{secrets.token_hex(8)}.part"
        try:
            yield partial
        finally:
            self._active -= 1
            partial.unlink(missing_ok=True)

    async def _write_body(self, request: Request, partial: Path) -> None:
        size = 0
        block = bytearray()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | get_open_flags()
        with os.fdopen(os.open(partial, flags, 0o666), "wb", buffering=0) as file:
            async for part in request.stream():
                size += len(part)
                if size > self.limits.file_bytes:
                    raise self._make_size_error()
                block += part
                if len(block) >= _BLOCK_BYTES:
                    await self._write_block(file.fileno(), block)
                    block = bytearray()
            if not size:
                raise UploadError(HTTPStatus.BAD_REQUEST, "empty")
            await self._write_block(file.fileno(), block)

    async def _write_block(self, descriptor: int, block: bytearray) -> None:
        if shutil.disk_usage(self._state).free < self.limits.free_bytes:
            raise UploadError(HTTPStatus.INSUFFICIENT_STORAGE, "space")
        try:
            await asyncio.to_thread(_write_all, descriptor, block)
        except OSError:
            raise UploadError(HTTPStatus.INSUFFICIENT_STORAGE, "space") from None

    def _check_size(self, declared: int) -> None:
        if declared > self.limits.file_bytes:
            raise self._make_size_error()
        if shutil.disk_usage(self._state).free - declared < self.limits.free_bytes:
            raise UploadError(HTTPStatus.INSUFFICIENT_STORAGE, "space")

    def _make_size_error(self) -> UploadError:
        return UploadError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "size", limit=f"{self.limits.file_bytes:,}")


def list_received(context: Context) -> list[Path]:
    """Uploaded files that are as they were sent: a file that a user put there or changed is none of them."""
    received = find_json_object(context.state() / _RECEIVED) or {}
    paths = [context.roots[0] / FOLDER / name for name in received]
    return [path for path in paths if _read_stamp(path) == received[path.name]]


def remove_received(context: Context, path: Path) -> None:
    """Remove an uploaded file."""
    path.unlink(missing_ok=True)
    _change_received(context.state(), path.name, None)


def _change_received(state: Path, name: str, stamp: list[int] | None) -> None:
    with _received_lock:
        received = {**(find_json_object(state / _RECEIVED) or {}), name: stamp}
        write_json(state / _RECEIVED, {name: stamp for name, stamp in received.items() if stamp is not None})


def _read_stamp(path: Path) -> list[int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else None


def make_safe_name(name: str) -> str:
    """A name for a file, of letters (of any language), digits, `_`, `.` and `-`.

    Args:
        name: of the browser's file; of a path, the last part counts.

    Raises:
        UploadError: nothing is left of it, or it is not the name of data or settings.
    """
    last = re.split(r"[/\\]", name)[-1]
    safe = re.sub(r"[^\w.-]+", "-", last.encode("utf-8", "replace").decode("utf-8")).strip("-.")
    stem, suffixes = _split_suffixes(safe)
    while len(stem.encode()) > _MAX_NAME_BYTES:
        stem = stem[:-1]
    if not stem or not (has_data_suffix(safe) or safe.lower().endswith(_CONFIG_SUFFIXES)):
        raise UploadError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "type", name=last[:100] or "-")
    return make_portable_name(f"{stem}{suffixes}")


def add_routes(app: FastAPI, context: Context, limits: UploadLimits | None = None) -> RouteRule:
    """Add the route that takes files.

    Returns:
        The rule for the guard: bodies as large as a file.
    """
    store = UploadStore(context.roots, context.state(FOLDER), limits)

    @app.put(UPLOAD_PATH)
    async def receive_file(request: Request) -> Response:
        name = request.query_params.get("name") or unquote(request.headers.get("x-file-name", ""))
        try:
            path = await store.receive(request, name)
        except UploadError as error:
            problem = text(f"ui.upload.{error.key}", visitor_of(request).lang, **error.values)
            return JSONResponse({"error": problem}, error.status)
        place = str(path.relative_to(context.roots[0].resolve()))
        return JSONResponse({"path": place, "bytes": path.stat().st_size}, HTTPStatus.CREATED)

    return RouteRule(UPLOAD_PATH, body_bytes=store.limits.file_bytes, body_seconds=None)


def _split_suffixes(name: str) -> tuple[str, str]:
    """`rows`, `.jsonl.gz` of `rows.jsonl.gz`."""
    match = re.fullmatch(r"(.*?)(\.\w{1,8}(\.gz)?)?", name, re.DOTALL | re.IGNORECASE)
    assert match is not None
    return match[1], match[2] or ""


def _rename_new(partial: Path, folder: Path, name: str) -> Path:
    """Rename a file to a name that is free, with a number if it has to be; never over another one."""
    stem, suffixes = _split_suffixes(name)
    number = 1
    while True:
        path = folder / (name if number == 1 else f"{stem}-{number}{suffixes}")
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))  # reserves the name; links are not followed
        except FileExistsError:
            number += 1
            continue
        replace_path(partial, path)
        return path


def _write_all(descriptor: int, block: bytearray) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(descriptor, view) :]
