"""Record which files of a folder are opened, by whatever code: the kernel says it (inotify)."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_IN_ACCESS, _IN_OPEN = 0x1, 0x20


class OpenRecorder:
    """Names of what is opened in folders, as the kernel sees it."""

    def __init__(self, folder: Path):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._queue = self._libc.inotify_init1(os.O_NONBLOCK)
        for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            assert self._libc.inotify_add_watch(self._queue, os.fsencode(place), _IN_OPEN | _IN_ACCESS) >= 0
        self.read_names()

    def read_names(self) -> list[str]:
        """Names since the last call; `.` is the listing of a folder."""
        try:
            data = os.read(self._queue, 1 << 16)
        except BlockingIOError:
            return []
        names, place = [], 0
        while place < len(data):
            length = struct.unpack_from("iIII", data, place)[3]
            names.append(data[place + 16 : place + 16 + length].rstrip(b"\0").decode() or ".")
            place += 16 + length
        return names

    def close(self) -> None:
        os.close(self._queue)
