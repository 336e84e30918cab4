"""Checkpoints that are known to be complete: checksums, finite weights, and the newest one that is whole."""

from __future__ import annotations

import errno
import json
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from glmtune.errors import RunError, summarize_error
from glmtune.run_dir import RunDir
from glmtune.utils.console import print_message, print_warning
from glmtune.utils.documents import parse_json, read_document
from glmtune.utils.file_access import require_readable_folder
from glmtune.utils.io import file_timestamp, write_json
from glmtune.utils.operating_system import replace_path

CHECKSUMS_FILE = "checksums.json"
STATE_FILE = "trainer_state.json"
PARTIAL_FOLDER = ".saving"
"""Beside the checkpoints: the one that is being written."""
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM)
"""Errors of a system that cannot write: full, over quota, read-only, no permission."""
_BLOCK_BYTES = 1 << 24


def write_checksums(folder: Path) -> None:
    """Write size and CRC-32 of every file of a finished checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    checksums = {str(path.relative_to(folder)): [path.stat().st_size, _compute_crc(path)] for path in files}
    write_json(folder / CHECKSUMS_FILE, checksums)


def find_damage(folder: Path, needs_optimizer: bool = True) -> str | None:
    """Describe what is wrong with a checkpoint; None if it is whole.

    Files are compared with their checksums. One without a checksum must at least be complete by its own format. Weights
    must be finite: nothing can be trained further from NaN.

    Args:
        folder: of the checkpoint.
        needs_optimizer: whether it must hold the state of the optimiser: not with `training.save_only_model`.

    Raises:
        FileAccessError: a link in it leads out of the folders that this process is limited to.
    """
    require_readable_folder(folder)
    try:
        checksums = _read_checksums(folder)
    except (ValueError, TypeError, OSError):
        return f"{CHECKSUMS_FILE} cannot be read"
    try:
        for name, (size, crc) in checksums.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _compute_crc(path) != crc:
                return f"{name} was changed after it was saved"
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            if path.is_file() and name not in checksums and not _is_complete(path):
                return f"{name} is incomplete"
        if needs_optimizer and describe_optimizer_state(folder) is None:
            return "the state of the optimiser is missing"
        if read_step(folder) != int(folder.name.rsplit("-", 1)[1]):
            return f"{STATE_FILE} is not the one of this step"
        return _find_bad_weight(folder)
    except OSError as error:
        return f"{Path(error.filename).name if error.filename else 'a file'} cannot be read: {error.strerror or error}"


def read_step(folder: Path) -> int | None:
    """The step that a checkpoint says it is of; None if it does not."""
    try:  # it holds all logged steps, so its size has no limit
        step = json.loads((folder / STATE_FILE).read_text("utf-8")).get("global_step")
    except (ValueError, AttributeError, RecursionError):
        return None
    return step if type(step) is int else None


def find_whole_checkpoint(run: RunDir, needs_optimizer: bool = True) -> Path | None:
    """Find the newest checkpoint that is whole; damaged ones are reported and not removed."""
    checkpoints = run.checkpoints_newest_first()
    for checkpoint in checkpoints:
        damage = find_damage(checkpoint, needs_optimizer)
        if damage is None:
            return checkpoint
        is_last = checkpoint == checkpoints[-1]
        print_warning(f"{checkpoint} is damaged ({damage}): {'there is none' if is_last else 'using the one'} before.")
    return None


def require_whole_checkpoint(run: RunDir, checkpoint: Path, needs_optimizer: bool = True) -> Path:
    """Require that a checkpoint that the user named is one of the run, and whole.

    Args:
        run: its folder.
        checkpoint: a path, or the name alone.
        needs_optimizer: see `find_damage`.

    Raises:
        RunError: it is not.
    """
    names = [path.name for path in run.checkpoints_newest_first()]
    own = run.checkpoints / checkpoint.name
    is_own = checkpoint == Path(checkpoint.name) or checkpoint.resolve() == own.resolve()
    if checkpoint.name not in names or not is_own:
        present = ", ".join(reversed(names)) or "none"
        raise RunError(f"{checkpoint}: not a checkpoint of {run.root}.", f"Those there: {present}.")
    damage = find_damage(own, needs_optimizer)
    if damage is not None:
        raise RunError(f"{own} is damaged ({damage}).", "Choose another checkpoint.")
    return own


def set_aside_later(run: RunDir, step: int) -> None:
    """Move checkpoints of later steps, and a copy of metrics.jsonl, into a folder of their own: they belong to a
    training that is not continued, and would be resumed from otherwise."""
    later = [path for path in run.checkpoints_newest_first() if int(path.name.rsplit("-", 1)[1]) > step]
    if not later:
        return
    folder = run.checkpoints / f"after-step-{step}-{file_timestamp()}"
    folder.mkdir(parents=True)
    if run.metrics.is_file():
        shutil.copyfile(run.metrics, folder / run.metrics.name)
    for path in later:
        replace_path(path, folder / path.name)
    print_message(f"Later checkpoints are not used any more; they are in {folder}.")


def describe_optimizer_state(folder: Path) -> str | None:
    """By what the state of the optimiser was written: `one file`, `FSDP` or `DeepSpeed`; None if there is none."""
    if (folder / "optimizer.pt").is_file():
        return "one file"
    if any(path.is_dir() for path in folder.glob("optimizer_*")) or (folder / "optimizer.bin").is_file():
        return "FSDP"
    return "DeepSpeed" if any(folder.glob("global_step*")) else None


def describe_write_error(error: Exception) -> str | None:
    """The reason why a file could not be written; None for an error that has another cause.

    Args:
        error: of the system, of safetensors, or of torch, which says only in words that writing failed.
    """
    if isinstance(error, OSError):
        return error.strerror or summarize_error(error)
    text = summarize_error(error)
    if "No space left" in text:
        return "No space left on device"
    if isinstance(error, SafetensorError) or "PytorchStreamWriter" in text or "inline_container" in text:
        return f"writing failed, is the disk full? {text[:100]}"
    return None


def _read_checksums(folder: Path) -> dict[str, tuple[int, int]]:
    if not (folder / CHECKSUMS_FILE).exists():
        return {}
    content: dict[str, Any] = parse_json(read_document(folder / CHECKSUMS_FILE))
    if not isinstance(content, dict):
        raise TypeError
    return {name: (int(size), int(crc)) for name, (size, crc) in content.items()}


def _is_complete(path: Path) -> bool:
    """Whether a file is complete, as far as its format says so; nothing in it is unpickled."""
    if path.suffix in (".pt", ".pth", ".bin"):
        try:
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, zlib.error):
            return False
    if path.suffix == ".json" and path.name != CHECKSUMS_FILE:
        try:
            json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError):
            return False
    return True


def _find_bad_weight(folder: Path) -> str | None:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - not a dictionary
                    if not torch.isfinite(weights.get_tensor(name)).all():
                        return f"{name} in {path.name} is not finite"
        except SafetensorError:
            return f"{path.name} is incomplete"
    return None


def _compute_crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc
