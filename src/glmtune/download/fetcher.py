"""Download what a model needs from a hub into a folder."""

from __future__ import annotations

import contextvars
import dataclasses
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from glmtune.download.listing import list_repository, make_file_url, make_headers
from glmtune.download.repository import (
    FileSum,
    Repository,
    RepositoryFile,
    hash_file,
    read_record,
    write_record,
)
from glmtune.download.selection import select_files
from glmtune.download.transfer import Transfer, TransferStopped, find_part
from glmtune.errors import ModelError
from glmtune.utils.console import ProgressBar, format_bytes
from glmtune.utils.file_access import require_readable_folder
from glmtune.utils.io import explain_write_errors, lock_folder

_SPARE_BYTES = 64 * 2**20  # left free on the disk
_TIMEOUT_S = 15.0  # between two blocks; Ctrl-C waits for it too


@dataclass(frozen=True)
class FetchRequest:
    """What to download, and where to."""

    name: str
    """`org/name`."""
    hub: str
    folder: Path
    revision: str | None = None
    mirror: str | None = None
    files: list[str] = field(default_factory=list)
    """Only these; all that the model needs when empty."""
    parallel: int = 4
    """Files at a time."""


@dataclass
class FetchResult:
    """What was downloaded."""

    repository: Repository
    """Its files with their SHA-256."""
    downloaded: list[str]
    present: list[str]
    """Files that were there with the right content."""
    downloaded_bytes: int
    unproven: list[str]
    """Files for which the hub publishes no sum: their size alone was compared, where it is known."""


def fetch_model(request: FetchRequest) -> FetchResult:
    """Download a model's files; those that are there and right are left alone, others are replaced.

    Raises:
        ModelError: the hub does not have it or cannot be reached, the disk is too small, or a file arrives wrong.
        RunError: another process downloads into the folder, or it cannot be written to.
    """
    listing = list_repository(request.name, request.hub, request.revision, request.mirror)
    chosen = select_files(listing, request.files or None)
    for file in chosen:
        _require_safe_path(file.path)
    with explain_write_errors(request.folder), lock_folder(request.folder, "downloading"):
        require_readable_folder(request.folder)  # parts of files are continued
        _require_space(request.folder, chosen)
        return _fetch_files(request, listing, chosen)


def _require_safe_path(path: str) -> None:
    parts = path.replace("\\", "/").split("/")
    if path.startswith(("/", "\\")) or ":" in path or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise ModelError(
            f"The hub lists a file named {path!r}, which would be outside the folder.", "Take another hub."
        )


def _require_space(folder: Path, files: list[RepositoryFile]) -> None:
    needed = 0
    for file in files:
        target, part = folder / file.path, find_part(folder, file)
        is_there = target.is_file() and file.size == target.stat().st_size
        arrived = part.stat().st_size if part.is_file() and file.sum else 0
        needed += 0 if is_there else max((file.size or 0) - arrived, 0)
    free = shutil.disk_usage(folder).free
    if needed and needed + _SPARE_BYTES > free:
        raise ModelError(
            f"{folder}: {format_bytes(needed)} are needed, {format_bytes(free)} are free there.",
            "Free some space, or give a folder on another disk with --output.",
        )


def _fetch_files(request: FetchRequest, listing: Repository, chosen: list[RepositoryFile]) -> FetchResult:
    import httpx

    total = sum(file.size or 0 for file in chosen)
    stop, lock = threading.Event(), threading.Lock()
    sums: dict[str, str] = {}
    present: list[str] = []
    arrived = 0
    pool = ThreadPoolExecutor(request.parallel, thread_name_prefix="fetch")
    headers, timeout = make_headers(request.hub, request.mirror), httpx.Timeout(_TIMEOUT_S)
    with (
        ProgressBar("Fetch", total or None, unit="bytes") as progress,
        httpx.Client(headers=headers, timeout=timeout, follow_redirects=True) as client,
    ):

        def add(count: int) -> None:
            with lock:
                progress.add(count)

        def fetch_one(file: RepositoryFile) -> None:
            nonlocal arrived
            digits = _find_present(request.folder / file.path, file, stop, add)
            if digits is not None:
                present.append(file.path)
            else:
                url = make_file_url(listing, file.path)
                transfer = Transfer(client, url, file, request.folder, add, stop)
                digits = transfer.run()
                with lock:
                    arrived += (request.folder / file.path).stat().st_size
            sums[file.path] = digits

        # Small files first: a config that is not there, or a refused token, shows at once.
        # Each in a copy of this context, which says where progress is printed.
        order = sorted(chosen, key=lambda file: file.size or 0)
        tasks = [pool.submit(contextvars.copy_context().run, fetch_one, file) for file in order]
        try:
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
            errors = [error for task in done if (error := task.exception()) is not None]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    _write_sums(request, listing, sums)
    real = [error for error in errors if not isinstance(error, TransferStopped)]
    if real:
        raise real[0]
    repository = dataclasses.replace(listing, files=_make_entries(request.folder, sums))
    downloaded = [file.path for file in chosen if file.path not in present]
    unproven = [file.path for file in chosen if file.sum is None]
    return FetchResult(repository, downloaded, sorted(present), arrived, unproven)


def _find_present(path: Path, file: RepositoryFile, stop: threading.Event, add: Callable[[int], None]) -> str | None:
    """The SHA-256 of a file that is there with the hub's content; None if it has to be downloaded."""
    if file.sum is None or not path.is_file():
        return None
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return None
    counted = 0

    def count(number: int) -> None:
        nonlocal counted
        if stop.is_set():
            raise TransferStopped
        counted += number
        add(number)

    digits = hash_file(path, "sha256", count)
    is_right = (digits if file.sum.kind == "sha256" else hash_file(path, file.sum.kind)) == file.sum.digits
    if is_right:
        return digits
    add(-counted)
    return None


def _make_entries(folder: Path, sums: dict[str, str]) -> dict[str, RepositoryFile]:
    return {
        path: RepositoryFile(path, (folder / path).stat().st_size, FileSum("sha256", digits))
        for path, digits in sums.items()
    }


def _write_sums(request: FetchRequest, listing: Repository, sums: dict[str, str]) -> None:
    """Record the sums of what has arrived, beside those of earlier downloads of the same revision."""
    earlier = read_record(request.folder)
    files = _make_entries(request.folder, sums)
    if earlier and (earlier.hub, earlier.id, earlier.revision) == (listing.hub, listing.id, listing.revision):
        files = earlier.files | files
    if files:
        write_record(request.folder, dataclasses.replace(listing, files=files))
