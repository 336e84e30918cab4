"""Folders of the user that may be missing: a container's user often has neither a home nor a name."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

from glmtune.utils.operating_system import is_windows, read_user_number


def find_home() -> Path | None:
    """The user's home folder; None if neither the environment nor the system names one."""
    home = os.path.expanduser("~")  # Path.home() raises where there is none
    return None if home == "~" else Path(home)


def provide_home() -> str | None:
    """Give a process whose user has no home folder one in that of temporary files.

    Libraries need it: NLTK cannot be imported without, those of the hubs would write into a folder named `~`.

    Returns:
        What the user has to know; None where there is a home.
    """
    if is_windows() or find_home() is not None:
        return None
    folder = _make_temporary_cache()
    os.environ["HOME"] = str(folder)  # for the processes that this one starts, too
    return f"This user has no home folder (HOME is not set): caches are in {folder}."


def find_user_cache() -> Path:
    """The folder of caches: `XDG_CACHE_HOME`, or .cache in the home folder.

    A user without a home gets a folder of their own in that of temporary files.
    """
    cache_name = os.environ.get("XDG_CACHE_HOME")
    if cache_name:
        return Path(cache_name)
    home = find_home()
    return _make_temporary_cache() if home is None else home / ".cache"


@functools.cache
def _make_temporary_cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"glmtune-cache-{read_user_number()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if (
            folder.is_symlink() or folder.stat().st_uid != read_user_number()
        ):  # somebody else made it: what is in it is not ours
            return Path(tempfile.mkdtemp(prefix="glmtune-cache-"))
    except OSError:
        return folder  # whoever writes there is told the reason
    return folder
