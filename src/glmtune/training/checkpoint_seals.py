"""Checkpoints that say what they should hold, so that a damaged one is known before it is used."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from rich.console import Console

from glmtune.run_dir import RunDir
from glmtune.training.training_data import say
from glmtune.utils.io import write_json

SEAL = "checksums.json"
_PIECE = 1 << 24


def seal(folder: Path) -> None:
    """Note size and CRC-32 of every file in a finished checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_json(folder / SEAL, {str(path.relative_to(folder)): [path.stat().st_size, _crc(path)] for path in files})


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is whole. Those without a seal are taken as they are."""
    if not (folder / SEAL).is_file():
        return None
    try:
        noted = json.loads((folder / SEAL).read_text("utf-8"))
        for name, (size, crc) in noted.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _crc(path) != crc:
                return f"{name} was changed after it was saved"
    except (ValueError, AttributeError, TypeError):
        return f"{SEAL} cannot be read"
    return None


def newest_whole(run: RunDir, console: Console) -> Path | None:
    """The newest checkpoint that is not damaged; damaged ones are named and left where they are."""
    for checkpoint in run.checkpoints_newest_first():
        wrong = damage(checkpoint)
        if wrong is None:
            return checkpoint
        say(console, f"{checkpoint} is damaged ({wrong}): going back to the one before.", "yellow")
    return None


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return crc
