"""From whatever has weights (a folder, a hub id, a run, an adapter) to a model that answers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from glmtune.config import load_config
from glmtune.errors import ModelError, RunError
from glmtune.methods.lora import check_base, load_adapter, read_note, saved_base_path
from glmtune.models.loading import Base, inspect_base, load_base
from glmtune.rundir import RunDir, is_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Target:
    """What `RUN_OR_MODEL` stands for: a base and, perhaps, an adapter on it."""

    base: str
    adapter: Path | None = None
    family: str | None = None
    hub: str = "huggingface"
    prefix: str = ""
    """The text that the run put in front of every first question."""


def load_model(
    path: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None = None,
    quantization: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    *,
    family: str | None = None,
    hub: str = "huggingface",
) -> PreTrainedModel:
    """Load a model of any layout, with an adapter if one is given.

    Args:
        path: a published folder, a transformers folder, a hub id, a run or an adapter folder (then with its base).
        adapter: a run or a peft folder to put onto the model.
        quantization: must be None; loading in fewer bits is not there yet.
        dtype: `fp32`, `bf16`, `fp16` or a torch dtype; the checkpoint's own when None.
        device: a GPU if there is one when None.
        family: the generation, for folders that do not say it.
        hub: where a hub id is looked up: `huggingface` or `modelscope`.

    Returns:
        `GlmForCausalLM` or `ChatGLMForCausalLM` in eval mode; a `PeftModel` around it when there is an adapter.

    Raises:
        ModelError: the folder cannot be loaded as it is.
        RunError: the adapter belongs to another base.
    """
    if quantization is not None:
        raise ModelError(f"quantization={quantization!r} cannot be loaded yet.", "Leave it out; use dtype='bf16'.")
    target = resolve_target(path, family=family, hub=hub)
    if adapter is not None:
        target = Target(target.base, adapter_folder(Path(adapter)), target.family, target.hub)
    base = inspect_base(target.base, family=target.family, hub=target.hub)
    return load_onto(base, target.adapter, dtype=dtype, device=device)


def load_onto(
    base: Base,
    adapter: Path | None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """Load an inspected base and, once the fingerprints agree, its adapter.

    Raises:
        RunError: the adapter belongs to another base.
    """
    if adapter is not None:
        check_base(adapter, base.fingerprint, base.folder)
    model = load_base(base, dtype=dtype, device=device)
    return model if adapter is None else load_adapter(model, adapter).eval()  # type: ignore[return-value]


def resolve_target(
    path: str | os.PathLike[str],
    *,
    base: str | None = None,
    family: str | None = None,
    hub: str = "huggingface",
) -> Target:
    """Find base and adapter behind a `RUN_OR_MODEL`.

    Args:
        path: see `load_model`.
        base: overrides where an adapter's base lies.

    Raises:
        RunError: a run without a finished adapter, or an adapter whose base is not to be found.
    """
    folder = Path(path).expanduser()
    if is_run(folder):
        config = load_config(folder / "config.yaml")
        return Target(
            base or config.model.path,
            adapter_folder(folder),
            family or config.model.family,
            config.model.hub,
            config.data.prefix,
        )
    if (folder / "adapter_config.json").is_file():
        note = read_note(folder)
        where = base or (note.path if note else saved_base_path(folder))
        if not where:
            raise RunError(f"{folder}: the adapter does not say where its base lies.", "Give it with --base.")
        if not base and os.path.isabs(where) and not Path(where).is_dir():
            raise RunError(f"{folder}: its base {where} is not there any more.", "Give its new place with --base.")
        return Target(where, folder, family or (note.family if note else None), hub)
    if base:
        raise RunError(f"{path}: has no adapter, so --base has no meaning.", "Give a run or an adapter folder.")
    return Target(str(path), None, family, hub)


def adapter_folder(folder: Path) -> Path:
    """The adapter of a run, or the folder itself when it is one.

    Raises:
        RunError: the run has none yet.
    """
    if not is_run(folder):
        return folder
    run = RunDir(folder)
    if (run.adapter / "adapter_config.json").is_file():
        return run.adapter
    last = run.last_checkpoint()
    hint = f"Its newest checkpoint can be used: {last}." if last else "Continue it: glmtune train --resume --output RUN"
    raise RunError(f"{folder}: the run is not finished, so it has no adapter yet.", hint)
