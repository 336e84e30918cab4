"""Download one file so that it ends with the right bytes, or with an error that says why not.

A transfer that breaks is continued where it stopped. What is there already is in `.NAME.SUM.part`, beside the file:
content that changes on the hub has another sum and starts anew.
"""

from __future__ import annotations

import glob
import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.download.repository import RepositoryFile, start_sum
from glmtune.errors import ModelError, summarize_error
from glmtune.utils.console import print_message
from glmtune.utils.operating_system import replace_path

if TYPE_CHECKING:
    import httpx

_MAX_FAILURES = 6
"""Attempts in a row that bring nothing new."""
_MAX_REPEATS = 2
"""Complete downloads with a wrong sum."""
_BLOCK_BYTES = 2**20
_LONG_PAUSE_S = 5.0
_wait_scale = 1.0  # tests do not wait
_UNKNOWN_SUM = "unknown"


class TransferStopped(Exception):
    """Another file's error or Ctrl-C ended the download."""


class _Retry(Exception):
    """The attempt failed in a way that another may not.

    Args:
        reason: as part of a sentence.
        wait_s: seconds that the server asks to wait.
        restart: nothing of what is there can be used.
    """

    def __init__(self, reason: str, wait_s: float = 0.0, restart: bool = False):
        super().__init__(reason)
        self.wait_s = wait_s
        self.restart = restart


@dataclass
class Transfer:
    """A file on its way."""

    client: httpx.Client
    url: str
    file: RepositoryFile
    folder: Path
    on_bytes: Callable[[int], None]
    """Called with the number of bytes that arrived; negative when they had to be dropped."""
    stop: threading.Event
    """Ends the transfer, also while it waits for the next attempt."""
    _etag: str = ""
    _offset: int = 0
    _digests: list[Any] = field(default_factory=list)

    @property
    def part(self) -> Path:
        """What has arrived so far."""
        return find_part(self.folder, self.file)

    def run(self) -> str:
        """Download the file.

        Returns:
            Its SHA-256, read from the bytes as they were written.

        Raises:
            ModelError: the server does not have it, does not send all of it, or sends other content.
            TransferStopped: `stop` was set.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self._open_part()
        failures = repeats = furthest = 0
        while True:
            problem: _Retry | None = None
            if self.file.size is None or self._offset < self.file.size or not self._offset:
                problem = self._attempt()
            if problem is None:
                if self._has_right_sum():
                    replace_path(self.part, self.folder / self.file.path)
                    return self._digests[0].hexdigest()
                repeats += 1
                if repeats >= _MAX_REPEATS:
                    self.part.unlink(missing_ok=True)
                    raise ModelError(
                        f"{self.file.path}: the server sent other content {repeats} times (its sum is not the hub's).",
                        "Run the command again later, or take another server with --mirror or --hub.",
                    )
                self._restart()
                continue
            # A server that always starts from the beginning and stops half-way makes no progress.
            failures = 0 if self._offset > furthest else failures + 1
            furthest = max(furthest, self._offset)
            if problem.restart:
                self._restart()
            if failures >= _MAX_FAILURES:
                raise ModelError(
                    f"{self.file.path}: the download stopped {failures} times in a row ({problem}).",
                    "Run the command again to continue it; if it stops there again, try --mirror or --hub.",
                )
            pause_s = min(2.0**failures, 30.0) if failures else 0.0
            pause_s = max(problem.wait_s, pause_s) * _wait_scale
            if pause_s >= _LONG_PAUSE_S:
                print_message(f"{self.file.path}: {problem}; trying again in {pause_s:.0f} s.")
            self.stop.wait(pause_s)
            if self.stop.is_set():
                raise TransferStopped

    def _open_part(self) -> None:
        """Continue with a part of an earlier process, if the file's sum is known: only then it is surely the same."""
        self._digests = [hashlib.sha256()]
        if self.file.sum is not None and self.file.sum.kind != "sha256":
            self._digests.append(start_sum(self.file.sum.kind, self.file.size or 0))
        self._offset = 0
        if self.file.sum is None:
            self.part.unlink(missing_ok=True)
            return
        for old in self.part.parent.glob(f".{glob.escape(Path(self.file.path).name)}.*.part"):
            if old != self.part:  # of content that the hub has replaced
                old.unlink(missing_ok=True)
        if not self.part.is_file():
            return
        with self.part.open("rb", buffering=0) as stream:
            while block := stream.read(_BLOCK_BYTES):
                self._count(block)

    def _count(self, block: bytes) -> None:
        for digest in self._digests:
            digest.update(block)
        self._offset += len(block)
        self.on_bytes(len(block))

    def _restart(self) -> None:
        self.on_bytes(-self._offset)
        self.part.unlink(missing_ok=True)
        self._etag = ""
        self._open_part()

    def _has_right_sum(self) -> bool:
        if self.file.size is not None and self._offset != self.file.size:
            return False
        return self.file.sum is None or self._digests[-1].hexdigest() == self.file.sum.digits

    def _attempt(self) -> _Retry | None:
        """One request; None if the file is complete after it."""
        import httpx

        headers = {"accept-encoding": "identity"}
        is_strong = bool(self._etag) and not self._etag.startswith("W/")
        if self._offset and self.file.sum is None and not is_strong:
            self._restart()  # nothing would say whether the rest belongs to the same content
        if self._offset:
            headers["range"] = f"bytes={self._offset}-"
            if is_strong:
                headers["if-range"] = self._etag
        try:
            with self.client.stream("GET", self.url, headers=headers) as response:
                self._check_response(response)
                self._write(response)
        except _Retry as problem:
            return problem
        except httpx.TransportError as error:  # connections that break, time out or contradict their headers
            if self.file.size is not None and self._offset == self.file.size:
                return None
            return _Retry(summarize_error(error, 120))
        except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.DecodingError) as error:
            raise ModelError(f"{self.url}: {summarize_error(error)}.", "Check --mirror.") from None
        if self.file.size is not None and self._offset < self.file.size:
            return _Retry(f"it ended after {self._offset:,} of {self.file.size:,} bytes")
        return None

    def _check_response(self, response: httpx.Response) -> None:
        code = response.status_code
        if code in (401, 403):
            raise ModelError(
                f"{self.file.path}: the server refuses it ({code}).",
                "For a private or gated repository log in with `hf auth login`, or set HF_TOKEN.",
            )
        if code == 404:
            raise ModelError(f"{self.url}: not there (404).", "Check --revision and --mirror.")
        if code == 416:  # behind the end: the part is of something else
            raise _Retry("the server has fewer bytes than are here", restart=True)
        if code == 429 or code >= 500:
            wait = response.headers.get("retry-after", "")
            raise _Retry(f"the server answers {code}", float(wait) if re.fullmatch(r"\d{1,3}", wait) else 0.0)
        if code not in (200, 206):
            raise ModelError(f"{self.url}: the server answers {code}.", "Check --mirror, or try later.")
        if response.headers.get("content-type", "").startswith("text/html") and not self.file.path.endswith(".html"):
            raise _Retry("the server sends a web page: a login page of the network, or a mirror that lacks the file")
        etag = response.headers.get("etag", "")
        if self._offset and code == 206:
            match = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
            if match is None or int(match[1]) != self._offset:
                raise _Retry("the server sends another part than was asked for", restart=True)
            if self._etag and etag and etag != self._etag and self.file.sum is None:
                raise _Retry("the file changed on the server", restart=True)
        elif self._offset:  # 200: it ignores ranges, or the file changed
            self._restart()
        self._etag = etag

    def _write(self, response: httpx.Response) -> None:
        with self.part.open("ab", buffering=0) as stream:
            # As they arrive: of a block that is collected first, a break would lose all.
            for block in response.iter_bytes():
                if self.stop.is_set():
                    raise TransferStopped
                if self.file.size is not None:  # a server may send, or announce, more than there is
                    block = block[: self.file.size - self._offset]
                stream.write(block)
                self._count(block)
                if self.file.size is not None and self._offset >= self.file.size:
                    return


def find_part(folder: Path, file: RepositoryFile) -> Path:
    """Where a file's bytes are until it is complete."""
    digits = file.sum.digits[:12] if file.sum else _UNKNOWN_SUM
    target = folder / file.path
    return target.with_name(f".{target.name}.{digits}.part")
