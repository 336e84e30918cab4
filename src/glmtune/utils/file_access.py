"""Which files a process may open for its user: any, or only those in some folders.

The command line opens any file that its user may. The web page opens files for whoever reaches it, so it limits its
own process, and the processes of its jobs, to its roots. Whoever opens a file that a user named, or that such a file
names, asks here first, with links resolved at every level of the path:

    with require_readable(path).open() as stream: ...

Native readers (pyarrow, safetensors, tokenizers) open files without Python, and read whole folders: they are given
what `require_readable` or `require_readable_folder` has let pass.

Not covered: hard links, which are files like others (making one takes write access to the folder), and a folder that
somebody with write access changes between the check and the opening.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.utils.user_folders import find_user_cache

ROOTS_VARIABLE = "GLMTUNE_FILE_ROOTS"
"""Environment variable with a JSON list of folders: a process of glmtune that is started with it is limited to them."""
SECRET_FILES = ("server.key",)
"""Names of files that are never opened for a user of a limited process: that by which the page knows its users."""
_PACKAGE = Path(__file__).resolve().parent.parent


class FileAccessError(GlmtuneError):
    """A file outside of the folders that the process is limited to."""


@dataclass
class _FileLimit:
    """Folders, resolved.

    Attributes:
        roots: what the user may name.
        caches: folders that glmtune itself reads and writes: caches of hubs and of encoded rows, temporary ones.
    """

    roots: tuple[Path, ...]
    caches: list[Path] = field(default_factory=list)

    def includes(self, path: Path) -> bool:
        if path.name in SECRET_FILES:
            return False
        return any(path.is_relative_to(folder) for folder in (*self.roots, *self.caches, _PACKAGE))


# The limit of this process; [] until it is first asked for, since it may be in the environment.
_current: list[_FileLimit | None] = []


def set_file_limit(roots: Sequence[str | os.PathLike[str]] | None) -> None:
    """Limit this process to folders; None: no limit.

    Args:
        roots: folders that may be used. Caches of the hubs and of glmtune are added; the page's state is in a root.
    """
    limit = None
    if roots is not None:
        limit = _FileLimit(tuple(map(_resolve, roots)), [_resolve(folder) for folder in _list_caches()])
    _current[:] = [limit]


@contextmanager
def limit_files(roots: Sequence[str | os.PathLike[str]] | None) -> Iterator[None]:
    """Limit this process to folders during the block; see `set_file_limit`."""
    before = list(_current)
    set_file_limit(roots)
    try:
        yield
    finally:
        _current[:] = before


def load_file_limit(environment: Mapping[str, str] = os.environ) -> None:
    """Limit this process as `GLMTUNE_FILE_ROOTS` says; without it there is no limit.

    Raises:
        ConfigError: the variable holds something else than a JSON list of folders.
    """
    value = environment.get(ROOTS_VARIABLE)
    if value is None:
        set_file_limit(None)
        return
    try:
        roots = json.loads(value)
    except (ValueError, RecursionError):
        roots = None
    if not isinstance(roots, list) or not roots or not all(isinstance(root, str) and root for root in roots):
        raise ConfigError(
            f"{ROOTS_VARIABLE} must be a JSON list of folders.", f"""For example {ROOTS_VARIABLE}='["/data/models"]'."""
        )
    set_file_limit(roots)


def make_limit_variable() -> dict[str, str]:
    """The environment variable that limits another process as this one is; nothing without a limit."""
    limit = _find_limit()
    return {} if limit is None else {ROOTS_VARIABLE: json.dumps([str(root) for root in limit.roots])}


def add_cache_folder(folder: Path) -> None:
    """Let this process use a folder that glmtune made for itself, such as a temporary one."""
    limit = _find_limit()
    if limit is not None:
        limit.caches.append(_resolve(folder))


def is_readable(path: str | os.PathLike[str]) -> bool:
    """Whether `require_readable` would let a path pass; it need not exist."""
    limit = _find_limit()
    return limit is None or limit.includes(_resolve(path))


def require_readable(path: str | os.PathLike[str]) -> Path:
    """Require that a file or folder may be read.

    Args:
        path: it need not exist, so that the answer does not tell whether it does.

    Returns:
        The path with all links resolved; without a limit, the path as it is.

    Raises:
        FileAccessError: it is outside of the folders that this process is limited to, or a link that leads out.
    """
    return _require(path, "read")


def require_writable(path: str | os.PathLike[str]) -> Path:
    """Require that a file or folder may be written; see `require_readable`.

    Raises:
        FileAccessError: it is outside of the folders that this process is limited to, or a link that leads out.
    """
    return _require(path, "written")


def require_code_allowed(path: str | os.PathLike[str]) -> None:
    """Require that this process may run a Python file that its user named.

    Raises:
        FileAccessError: it is limited to folders: code would not keep to them.
    """
    if _find_limit() is not None:
        raise FileAccessError(
            f"{os.fspath(path)}: Python files are not run by the page, nor by commands that it starts.",
            "Start this by a command of your own.",
        )


def require_readable_folder(folder: str | os.PathLike[str]) -> Path:
    """Require that a folder may be read with all that is in it, at any depth and behind links to other folders.

    For code that reads a folder by itself, such as transformers' `from_pretrained`.

    Returns:
        The folder as it is given.

    Raises:
        FileAccessError: the folder or a link in it leads out of the folders that this process is limited to.
    """
    if _find_limit() is None:
        return Path(folder)
    pending = [require_readable(folder)]
    visited = set()
    while pending:
        current = pending.pop()
        if current in visited:
            continue
        visited.add(current)
        try:
            entries = list(os.scandir(current))
        except OSError as error:
            raise FileAccessError(f"{current}: cannot be read ({error.strerror}).") from None
        for entry in entries:
            if entry.is_symlink():
                target = require_readable(entry.path)
                if target.is_dir():
                    pending.append(target)
            elif entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
    return Path(folder)


def _require(path: str | os.PathLike[str], verb: str) -> Path:
    limit = _find_limit()
    if limit is None:
        return Path(path)
    resolved = _resolve(path)
    if limit.includes(resolved):
        return resolved
    from glmtune.utils.documents import shorten_path

    lexical = Path(os.path.abspath(path)) if "\0" not in str(path) else resolved
    is_link = lexical != resolved and limit.includes(lexical)
    problem = "a link that leads out of" if is_link else "outside of"
    if resolved.name in SECRET_FILES:
        problem = "a secret of the server, which is not a file for users of"
    folders = ", ".join(map(str, limit.roots))
    raise FileAccessError(
        f"{shorten_path(os.fspath(path))}: {problem} the folders whose files may be {verb} ({folders}).",
        "Copy what is needed there, or start the page with that folder too: glmtune ui --root FOLDER --root ...",
    )


def _find_limit() -> _FileLimit | None:
    if not _current:
        load_file_limit()
    return _current[0]


def _resolve(path: str | os.PathLike[str]) -> Path:
    """The path with its links resolved. One that no system accepts leads nowhere."""
    try:
        return Path(os.path.realpath(path))
    except (ValueError, OSError):  # a NUL, a name that is too long
        return Path(os.devnull)


def _list_caches() -> list[Path]:
    """Folders of downloads and of encoded rows. Those of the hubs' logins are above them, and not included."""
    user_cache = find_user_cache()
    hugging_face = Path(os.environ.get("HF_HOME") or user_cache / "huggingface")
    return [
        Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or hugging_face / "hub"),
        Path(os.environ.get("HF_DATASETS_CACHE") or hugging_face / "datasets"),
        Path(os.environ.get("MODELSCOPE_CACHE") or user_cache / "modelscope" / "hub"),
        Path(os.environ.get("GLMTUNE_CACHE") or user_cache / "glmtune"),
    ]
