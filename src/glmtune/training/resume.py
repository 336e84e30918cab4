"""What a resumed run must have in common with what was started."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from glmtune.config import RunConfig, load_config
from glmtune.errors import RunError
from glmtune.run_dir import RunDir, is_run


def saved_run(run: RunDir, config: RunConfig, fingerprint: str) -> dict[str, Any]:
    """The summary of a run that is to go on.

    Raises:
        RunError: there is no such run, it is finished, or base, method, data or how the base is held are others now.
    """
    if not is_run(run.root) or not run.summary.is_file():
        raise RunError(f"{run.root}: not a run folder, so there is nothing to resume.", "Leave out --resume.")
    summary = _read_summary(run.summary)
    saved = summary["model"]["fingerprint"]
    if saved != fingerprint:
        raise RunError(
            f"{run.root}: was started on a base with fingerprint {saved}; {config.model.path} has {fingerprint}.",
            "Give the same base again with --model.",
        )
    before, now = load_config(run.config), with_absolute_paths(config)
    for key in _fixed(now):
        if _value(before, key) != _value(now, key):
            raise RunError(
                f"{run.root}: its {key} settings cannot change while it goes on ({_difference(before, now, key)}).",
                "Start a new run with another --output; steps and rates under training may change.",
            )
    if summary.get("state") == "finished" and before.training == now.training:
        raise RunError(
            f"{run.root}: finished already, at step {summary['steps']}.",
            "To go further, raise training.max_steps or training.num_train_epochs with --set.",
        )
    return summary


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        summary["model"]["fingerprint"], summary["data"]["content"]
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{path}: broken, so nothing says what this run was started with.",
            "Copy the file again, or start a new run with another --output and adapter: CHECKPOINT.",
        ) from None
    return summary


def require_same_data(run: RunDir, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises:
    RunError: the rows are not those that the run was started with.
    """
    if before["data"]["content"] != now["content"]:
        raise RunError(
            f"{run.root}: the data files are not what they were when the run was started.",
            "Put the old files back, or start a new run with another --output.",
        )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The config with local paths made absolute, so that the run can be used from any directory."""
    data = dataclasses.replace(config.data, train=_absolute(config.data.train), eval=_absolute(config.data.eval))
    replay = dataclasses.replace(config.replay, data=_absolute(config.replay.data))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=_absolute(config.model.path)),
        data=data,
        replay=replay,
        adapter=_absolute(config.adapter),
    )


def _absolute(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_absolute(part) for part in entry]
    if isinstance(entry, dict):
        return {**entry, "path": _absolute(entry["path"])} if "path" in entry else entry
    if isinstance(entry, str) and entry and Path(entry).expanduser().exists():
        return str(Path(entry).expanduser().resolve())
    return entry  # a hub id, a glob, a name from dataset_info.json


def _fixed(config: RunConfig) -> list[str]:
    """The settings that a run keeps to its end."""
    own = [config.method] if hasattr(config, config.method) else []
    return ["method", *own, "data", "replay", "adapter", "model.quantization"]


def _value(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _difference(before: RunConfig, now: RunConfig, key: str) -> str:
    old, new = _value(before, key), _value(now, key)
    if not dataclasses.is_dataclass(old):
        return f"{old} to {new}"
    names = [field.name for field in dataclasses.fields(old)]
    changed = [f"{n} {getattr(old, n)!r} to {getattr(new, n)!r}" for n in names if getattr(old, n) != getattr(new, n)]
    return ", ".join(changed)
