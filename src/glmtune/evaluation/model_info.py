"""What is evaluated: a model that was opened, and how its results name it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from glmtune.config import DataConfig, RunConfig
from glmtune.config_checks import check_config
from glmtune.config_parsing import build_dataclass, read_config_file, set_key
from glmtune.errors import ConfigError
from glmtune.generation.load import LoadedModel, load_parts
from glmtune.methods.tuned_model import ModelTarget, hash_folder
from glmtune.models.checkpoints import Checkpoint
from glmtune.models.loading import DTYPES
from glmtune.run_dir import RunDir, is_run


@dataclass(frozen=True)
class ModelInfo:
    """The `model` of metrics.json."""

    name: str
    path: str
    """Of the base."""
    family: str
    fingerprint: str
    adapter: str | None
    adapter_digest: str | None
    """Of the files in `adapter`; training further in the same folder changes it."""
    quantization: str | None
    dtype: str

    @classmethod
    def from_loaded(
        cls, name: str, base: Checkpoint, found: ModelTarget, adapter_digest: str | None, dtype: torch.dtype
    ) -> ModelInfo:
        """Describe a base and its adapter as results name them.

        Args:
            name: a short one.
            base: the checkpoint.
            found: the resolved `RUN_OR_MODEL`, with its quantisation.
            adapter_digest: `hash_folder` of the adapter.
            dtype: that it computes in.
        """
        return cls(
            name,
            str(base.folder.resolve()),
            base.family.name,
            base.fingerprint,
            str(found.adapter) if found.adapter else None,
            adapter_digest,
            found.quantization or (f"packed{base.packed_bits}" if base.packed_bits else None),
            next((short for short, kind in DTYPES.items() if kind is dtype), str(dtype)),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def identity(self) -> dict[str, Any]:
        """What decides the replies, independent of names and paths of folders."""
        keys = ("family", "fingerprint", "adapter_digest", "quantization", "dtype")
        return {key: getattr(self, key) for key in keys}


def load_target(target: str, **options: Any) -> tuple[LoadedModel, ModelInfo]:
    """Open a run, an adapter, a checkpoint folder or a hub id.

    Args:
        target: what the user named.
        options: those of `open_model`, whose errors these are too.
    """
    opened, found, base = load_parts(target, **options)
    digest = hash_folder(found.adapter) if found.adapter else None
    return opened, ModelInfo.from_loaded(_name_target(target), base, found, digest, opened.model.dtype)


def find_run(target: str) -> RunDir | None:
    """The run that a target is, or is the result or a checkpoint of."""
    folder = Path(target).expanduser()
    if is_run(folder):
        return RunDir(folder)
    # A config.yaml in the parent of any other folder may be unrelated.
    resolved = folder.resolve()
    if resolved.name in ("adapter", "model") and is_run(resolved.parent):
        return RunDir(resolved.parent)
    if resolved.parent.name == "checkpoints" and is_run(resolved.parent.parent):
        return RunDir(resolved.parent.parent)
    return None


def read_settings(target: str, overrides: list[str]) -> RunConfig:
    """The run's own settings, or the defaults for a model that no run made, with `data.key=value` on top.

    Raises:
        ConfigError: an override of something else, an unknown key or a wrong value.
    """
    run = find_run(target)
    tree: dict[str, Any] = (
        read_config_file(run.config) if run else {"model": {"path": target}, "data": {"train": "none"}}
    )
    # The tokens of a run are those that it was trained with.
    other_keys = {"train", "eval", "eval_fraction", "eval_rows", "packing", "new_tokens"}
    data_keys = DataConfig.__dataclass_fields__.keys() - other_keys
    reading: dict[str, Any] = {}
    for override in overrides:
        section, _, key = override.partition("=")[0].strip().partition(".")
        if section != "data" or key.split(".")[0] not in data_keys:
            raise ConfigError(
                f"--set {override}: an evaluation has no such setting.",
                f"It takes data.* with {', '.join(sorted(data_keys))}.",
            )
        set_key(reading if key == "preference" else tree, override)
    config: RunConfig = build_dataclass(RunConfig, tree, str(run.config) if run else "options")
    check_config(config)
    if "data" in reading:  # how rows are read has nothing to do with the stage of the training
        config.data.preference = build_dataclass(RunConfig, reading, "options").data.preference
    return config


def _name_target(target: str) -> str:
    return Path(target).expanduser().resolve().name if Path(target).expanduser().is_dir() else target
