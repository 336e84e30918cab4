"""An output folder that is complete or absent."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glmtune.errors import ModelError, RunError
from glmtune.utils.io import LOCK_FILE, lock_folder
from glmtune.utils.operating_system import replace_path


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
        RunError: `out` is in use, another process is exporting to it, or it cannot be made.
        ModelError: the disk is full.
    """
    require_free_folder(out)
    temporary = out.with_name(f".{out.name}.tmp")
    with lock_folder(temporary, "exporting", "OUT"), _remove_on_error(out, temporary):
        for leftover in temporary.iterdir():  # of an export that was killed
            if leftover.name != LOCK_FILE:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield temporary
    with _remove_on_error(out, temporary):
        (temporary / LOCK_FILE).unlink(missing_ok=True)
        require_free_folder(out)
        if out.exists():
            out.rmdir()
        replace_path(temporary, out)


@contextmanager
def _remove_on_error(out: Path, temporary: Path) -> Iterator[None]:
    """Remove the temporary folder after an error; name what a user can do about one of the disk."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise ModelError(f"{out}: the disk is full.", "Free some space, or write to another disk.") from None
        if isinstance(error, PermissionError):
            raise RunError(f"{out}: cannot be written ({error.strerror}).", "Choose another folder.") from None
        raise
