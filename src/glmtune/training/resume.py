"""Resuming a run: what must be unchanged since its start."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Any

from glmtune.config import RunConfig, load_config
from glmtune.config_parsing import drop_secrets
from glmtune.errors import RunError
from glmtune.methods.base_info import read_base_info
from glmtune.models.tokenizers.new_tokens import read_new_tokens
from glmtune.run_dir import RunDir, is_run
from glmtune.training.data_position import POSITION_FILE
from glmtune.utils.console import print_warning
from glmtune.utils.documents import parse_json, read_document

# Training settings that a checkpoint's state depends on.
_FIXED_TRAINING = (
    *("seed", "data_seed", "full_determinism"),
    *("optim", "optim_args", "optim_target_modules"),
    *("metric_for_best_model", "greater_is_better"),
)
# Schedules whose rate depends on what they have measured, so that it cannot be computed from the settings.
_MEASURING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
_SCHEDULE_KEYS = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
_BATCH_KEYS = ("per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy")


def read_saved_run(
    run: RunDir, config: RunConfig, fingerprint: str, checkpoint: str = "", result_kind: str = "adapter"
) -> dict[str, Any] | None:
    """Read the summary of a run that is to be resumed.

    Args:
        run: its folder.
        config: that it is resumed with.
        fingerprint: of the base of that config.
        checkpoint: to go back to; empty for the newest.
        result_kind: of the method, `adapter` or `model`.

    Returns:
        The summary; empty if summary.json is missing. None if the run was ended before it had begun.

    Raises:
        RunError: there is no such run, it is finished, or a setting has changed that must be what it was.
    """
    if not is_run(run.root):
        raise RunError(f"{run.root}: not a run folder, so there is nothing to resume.", "Leave out --resume.")
    if run.is_unstarted():
        return None
    summary = _read_summary(run.summary) if run.summary.exists() else {}
    if not summary:
        print_warning(f"{run.summary} is missing: whether the data files are those of the run is not checked.")
    last = run.last_checkpoint()
    saved_fingerprint = summary["model"]["fingerprint"] if summary else _find_fingerprint(run)
    if saved_fingerprint and saved_fingerprint != fingerprint:
        raise RunError(
            f"{run.root}: was started on a base with fingerprint {saved_fingerprint}; "
            f"{config.model.path} has {fingerprint}.",
            "Give the same base again with --model.",
        )
    before, now = load_config(run.config), remove_secrets(resolve_paths(config))
    require_fixed_settings(run, before, now)
    if last is not None and not (last / POSITION_FILE).is_file():
        changed = [key for key in _BATCH_KEYS if before.training.get(key) != now.training.get(key)]
        if changed:
            raise _make_fixed_error(
                run, f"training.{changed[0]}", before, now, "its checkpoints are of an older version"
            )
    same = ("path", "family", "hub")
    model = dataclasses.replace(before.model, **{key: getattr(now.model, key) for key in same})
    is_unchanged = dataclasses.replace(before, model=model, output=now.output) == now
    if is_unchanged and not checkpoint and has_result(run, summary, result_kind):
        raise make_finished_error(run, summary["steps"])
    return summary


def _find_fingerprint(run: RunDir) -> str | None:
    """Find the fingerprint of the base in the newest checkpoint where it can be read."""
    for checkpoint in run.checkpoints_newest_first():
        with suppress(RunError):  # damaged: reported where a checkpoint is chosen
            if base_info := read_base_info(checkpoint):
                return base_info.fingerprint
    return None


def has_result(run: RunDir, summary: dict[str, Any], kind: str) -> bool:
    """Whether a run ended with a result that is still there."""
    return summary.get("state") == "finished" and any(run.result(kind).glob("*.json"))


def make_finished_error(run: RunDir, step: int) -> RunError:
    """The error that there is nothing to resume."""
    return RunError(
        f"{run.root}: finished already, at step {step}.",
        "To train further, raise training.max_steps or training.num_train_epochs with --set; "
        "to go back, give a checkpoint: --resume CHECKPOINT.",
    )


def require_fixed_settings(run: RunDir, before: RunConfig, now: RunConfig) -> None:
    """Require that what the state of a checkpoint depends on is unchanged.

    Raises:
        RunError: names the setting, and its old and new value.
    """
    for key in _list_fixed_keys(now):
        if _get_value(before, key) != _get_value(now, key):
            raise _make_fixed_error(run, key, before, now)
    kinds = {str(each.training.get("lr_scheduler_type")) for each in (before, now)}
    if kinds & set(_MEASURING_SCHEDULES):
        for key in _SCHEDULE_KEYS:
            if before.training.get(key) != now.training.get(key):
                kind = next(kind for kind in kinds if kind in _MEASURING_SCHEDULES)
                raise _make_fixed_error(run, f"training.{key}", before, now, f"the rate of {kind} depends on its past")


def _make_fixed_error(run: RunDir, key: str, before: RunConfig, now: RunConfig, reason: str = "") -> RunError:
    difference = _describe_difference(before, now, key)
    settings = f"{key} settings" if dataclasses.is_dataclass(_get_value(now, key)) else key
    return RunError(
        f"{run.root}: its {settings} cannot change when it is resumed ({difference}{'; ' + reason if reason else ''}).",
        "Start a new run with another --output; steps, rates and batch sizes under training may change.",
    )


def remove_secrets(config: RunConfig) -> RunConfig:
    """Leave out access tokens and passwords: config.yaml is copied into reports and given to others."""
    return dataclasses.replace(config, training=drop_secrets(config.training))


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = parse_json(read_document(path))
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
    previous = previous_summary.get("data")
    if not previous or previous["content"] == data_summary["content"]:
        return
    if previous.get("reading") == data_summary["reading"]:
        raise RunError(
            f"{run.root}: the data files are not what they were when the run was started.",
            "Put the old files back, or start a new run with another --output.",
        )
    # An earlier version hashed data in another way: what is left to compare is how many rows and tokens there are.
    for name in ("train_rows", "eval_rows", "replay_rows", "train", "eval"):
        if not _agrees(previous[name], data_summary[name]):
            raise RunError(
                f"{run.root}: an earlier version of glmtune read other rows from the data files ({name}: "
                f"{previous[name]}, now {data_summary[name]}).",
                "Put the old files back, or start a new run with another --output.",
            )
    print_warning(
        "The run was started by an earlier version: rows and tokens of the data files are the same, "
        "their contents cannot be compared."
    )


def _agrees(previous: Any, current: Any) -> bool:
    """Whether values are equal, of objects those that both have."""
    if isinstance(previous, dict) and isinstance(current, dict):
        return all(previous[key] == current[key] for key in previous.keys() & current.keys())
    return bool(previous == current)


def resolve_paths(config: RunConfig) -> RunConfig:
    """Make local paths of a config absolute, and read the file of new tokens, so that the run can be used from any
    directory."""
    data = dataclasses.replace(
        config.data,
        train=_resolve_entry(config.data.train),
        eval=_resolve_entry(config.data.eval),
        new_tokens=read_new_tokens(config.data.new_tokens) or "",
    )
    replay = dataclasses.replace(config.replay, data=_resolve_entry(config.replay.data))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=_resolve_entry(config.model.path)),
        data=data,
        replay=replay,
        adapter=_resolve_entry(config.adapter),
        reward=_resolve_rewards(config.reward),
    )


def _resolve_rewards(reward: Any) -> Any:
    """Entries of `reward` with absolute paths."""
    if isinstance(reward, list):
        return [_resolve_rewards(entry) for entry in reward]
    path, colon, name = reward.rpartition(":")
    return f"{_resolve_entry(path)}{colon}{name}" if path.endswith(".py") else _resolve_entry(reward)


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
    model = ["model.quantization", "model.double_quantization", "model.head_quantization"]
    online = [f"grpo.{field.name}" for field in dataclasses.fields(config.grpo) if field.name != "max_batch"]
    keys = ["method", "stage", "preference", *online, *sections, "data", "replay", "adapter"]
    return [*keys, *model, *(f"training.{key}" for key in _FIXED_TRAINING)]


def _get_value(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part)
    return value


def _describe_difference(before: RunConfig, now: RunConfig, key: str) -> str:
    old, new = _get_value(before, key), _get_value(now, key)
    if not dataclasses.is_dataclass(old):
        return f"{old} to {new}"
    names = [field.name for field in dataclasses.fields(old)]
    changed = [f"{n} {getattr(old, n)!r} to {getattr(new, n)!r}" for n in names if getattr(old, n) != getattr(new, n)]
    return ", ".join(changed)
