"""An output folder that is complete or absent."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glmtune.errors import ModelError, RunError


def require_free_folder(out: Path) -> None:
    """Require that a folder does not exist or is empty.

    Raises:
        RunError: something is there already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: exists and is not an empty folder.", "An export is never written over anything.")


@contextmanager
def create_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder that is renamed to `out` if the block ends without an error, and else removed.

    Raises:
        RunError: `out` is in use, or cannot be made.
        ModelError: the disk is full.
    """
    require_free_folder(out)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rmdir()
        os.replace(temporary, out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise ModelError(f"{out}: the disk is full.", "Free some space, or write to another disk.") from None
        if isinstance(error, PermissionError):
            raise RunError(f"{out}: cannot be written ({error.strerror}).", "Choose another folder.") from None
        raise
