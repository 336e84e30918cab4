"""Resuming a run: what must be unchanged since its start, and checkpoints that are known to be complete."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

from glmtune.config import RunConfig, load_config
from glmtune.errors import RunError
from glmtune.run_dir import RunDir, is_run
from glmtune.utils.console import print_warning
from glmtune.utils.io import write_json

CHECKSUMS_FILE = "checksums.json"
_BLOCK_BYTES = 1 << 24


def read_saved_run(run: RunDir, config: RunConfig, fingerprint: str) -> dict[str, Any]:
    """Read the summary of a run that is to be resumed.

    Raises:
        RunError: there is no such run, it is finished, or its base, method, data or quantisation have changed.
    """
    if not is_run(run.root) or not run.summary.is_file():
        raise RunError(f"{run.root}: not a run folder, so there is nothing to resume.", "Leave out --resume.")
    summary = _read_summary(run.summary)
    saved_fingerprint = summary["model"]["fingerprint"]
    if saved_fingerprint != fingerprint:
        raise RunError(
            f"{run.root}: was started on a base with fingerprint {saved_fingerprint}; "
            f"{config.model.path} has {fingerprint}.",
            "Give the same base again with --model.",
        )
    before, now = load_config(run.config), resolve_paths(config)
    for key in _list_fixed_keys(now):
        if _get_value(before, key) != _get_value(now, key):
            difference = _describe_difference(before, now, key)
            raise RunError(
                f"{run.root}: its {key} settings cannot change when it is resumed ({difference}).",
                "Start a new run with another --output; steps and rates under training may change.",
            )
    if summary.get("state") == "finished" and before.training == now.training:
        raise RunError(
            f"{run.root}: finished already, at step {summary['steps']}.",
            "To train further, raise training.max_steps or training.num_train_epochs with --set.",
        )
    return summary


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        summary["model"]["fingerprint"], summary["data"]["content"]
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{path}: broken, so the settings that this run was started with are unknown.",
            "Copy the file again, or start a new run with another --output and adapter: CHECKPOINT.",
        ) from None
    return summary


def require_same_data(run: RunDir, previous_summary: dict[str, Any], data_summary: dict[str, Any]) -> None:
    """Require that the rows are those that the run was started with.

    Raises:
        RunError: they are not.
    """
    if previous_summary["data"]["content"] != data_summary["content"]:
        raise RunError(
            f"{run.root}: the data files are not what they were when the run was started.",
            "Put the old files back, or start a new run with another --output.",
        )


def resolve_paths(config: RunConfig) -> RunConfig:
    """Make local paths of a config absolute, so that the run can be used from any directory."""
    data = dataclasses.replace(
        config.data, train=_resolve_entry(config.data.train), eval=_resolve_entry(config.data.eval)
    )
    replay = dataclasses.replace(config.replay, data=_resolve_entry(config.replay.data))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=_resolve_entry(config.model.path)),
        data=data,
        replay=replay,
        adapter=_resolve_entry(config.adapter),
    )


def _resolve_entry(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_resolve_entry(part) for part in entry]
    if isinstance(entry, dict):
        return {**entry, "path": _resolve_entry(entry["path"])} if "path" in entry else entry
    if isinstance(entry, str) and entry and Path(entry).expanduser().exists():
        return str(Path(entry).expanduser().resolve())
    return entry  # a hub id, a glob, a name from dataset_info.json


def _list_fixed_keys(config: RunConfig) -> list[str]:
    """Settings that cannot change when a run is resumed."""
    sections = [config.method] if hasattr(config, config.method) else []
    return ["method", *sections, "data", "replay", "adapter", "model.quantization"]


def _get_value(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _describe_difference(before: RunConfig, now: RunConfig, key: str) -> str:
    old, new = _get_value(before, key), _get_value(now, key)
    if not dataclasses.is_dataclass(old):
        return f"{old} to {new}"
    names = [field.name for field in dataclasses.fields(old)]
    changed = [f"{n} {getattr(old, n)!r} to {getattr(new, n)!r}" for n in names if getattr(old, n) != getattr(new, n)]
    return ", ".join(changed)


def write_checksums(folder: Path) -> None:
    """Write size and CRC-32 of every file of a finished checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    checksums = {str(path.relative_to(folder)): [path.stat().st_size, _compute_crc(path)] for path in files}
    write_json(folder / CHECKSUMS_FILE, checksums)


def find_damage(folder: Path) -> str | None:
    """Describe what is wrong with a checkpoint; None if it is complete, or has no checksums to compare with."""
    if not (folder / CHECKSUMS_FILE).is_file():
        return None
    try:
        checksums = json.loads((folder / CHECKSUMS_FILE).read_text("utf-8"))
        for name, (size, crc) in checksums.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _compute_crc(path) != crc:
                return f"{name} was changed after it was saved"
    except (ValueError, AttributeError, TypeError):
        return f"{CHECKSUMS_FILE} cannot be read"
    return None


def find_whole_checkpoint(run: RunDir) -> Path | None:
    """Find the newest checkpoint that is not damaged; damaged ones are reported and not removed."""
    for checkpoint in run.checkpoints_newest_first():
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        print_warning(f"{checkpoint} is damaged ({damage}): using the one before.")
    return None


def _compute_crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc
