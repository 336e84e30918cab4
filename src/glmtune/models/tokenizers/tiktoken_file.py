"""Reading a tiktoken file: one token per line, base64, and its rank."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from glmtune.errors import ModelError


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """Tokens and their ranks, which are their ids.

    Raises:
        ModelError: a line is not a token and a rank, or ranks are missing (a truncated file).
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ModelError(
                f"{path}:{number}: not a tiktoken vocabulary, or a corrupt or truncated one.",
                "Each line is a base64 token and its rank; download the file again.",
            ) from None
    # The special tokens follow the last rank, so a gap would shift every one of them.
    if not ranks or sorted(ranks.values()) != list(range(len(ranks))):
        raise ModelError(
            f"{path}: {len(ranks)} tokens whose ranks do not run from 0 to {len(ranks) - 1}.",
            "The file is corrupt or truncated; download it again.",
        )
    return ranks
