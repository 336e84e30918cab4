"""The server's secret key: it signs tokens and logins, so that both survive a restart."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from filelock import FileLock

from glmtune.errors import ServerError
from glmtune.utils.operating_system import get_open_flags, replace_path

KEY_FILE = "server.key"
_KEY_BYTES = 32


def load_server_key(folder: Path) -> bytes:
    """Read the key of a state folder; it is made where none is there.

    Args:
        folder: of the page's state. Two servers that start in it at the same time get the same key.

    Returns:
        32 random bytes. The file can be read by its owner alone.

    Raises:
        ServerError: the file is no key (a link, another size), or the folder cannot be written to.
    """
    path = folder / KEY_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{KEY_FILE}.lock"):
            if not os.path.lexists(path):
                _write_key(path)
            # A link could lead to a file whose content somebody else knows.
            descriptor = os.open(path, os.O_RDONLY | get_open_flags())
            with os.fdopen(descriptor, "rb") as stream:
                key = stream.read(_KEY_BYTES + 1)
    except OSError as error:
        raise ServerError(
            f"{path}: cannot be read or written ({error.strerror}).", "Remove the file, or choose another first --root."
        ) from None
    if len(key) != _KEY_BYTES:
        raise ServerError(f"{path}: not a key of this server.", "Remove the file; everybody logs in again.")
    return key


def sign(key: bytes, purpose: str, text: str) -> str:
    """A signature of a text that only this key can make.

    Args:
        key: see `load_server_key`.
        purpose: what the signature is good for; one of another purpose does not fit.
        text: to sign.

    Returns:
        64 hexadecimal digits: HMAC-SHA256 (RFC 2104).
    """
    return hmac.new(key, f"{purpose}:{text}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def is_signature(signature: str, key: bytes, purpose: str, text: str) -> bool:
    """Whether a signature is that of `sign`, in a time that does not depend on where it differs."""
    given = signature.encode("utf-8", "surrogateescape")
    return hmac.compare_digest(given, sign(key, purpose, text).encode())


def _write_key(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # of a server that was killed
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | get_open_flags(), 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(secrets.token_bytes(_KEY_BYTES))
    replace_path(temporary, path)
