"""Loading anything that has weights: a folder, a hub id, a run, an adapter."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glmtune.config import load_config
from glmtune.errors import RunError
from glmtune.methods.base_info import read_base_info, require_same_base
from glmtune.methods.lora import load_adapter, read_base_path
from glmtune.methods.ptuning import find_official_base, is_prefix_folder, load_prefix
from glmtune.models.checkpoints import Checkpoint, inspect_checkpoint
from glmtune.models.loading import load_base
from glmtune.run_dir import RunDir, is_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class ModelTarget:
    """What `RUN_OR_MODEL` means: a base and perhaps an adapter."""

    base: str
    adapter: Path | None = None
    family: str | None = None
    hub: str = "huggingface"
    prefix: str = ""
    """The text that the run put in front of every first question."""
    quantization: str | None = None
    """Quantisation of the base during the run."""
    double_quantization: bool = True


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
        adapter: a run, a peft folder or a P-Tuning folder (the published scripts' too) to load onto the model.
        quantization: `nf4` or `int8` (bitsandbytes), `packed4` or `packed8` (the scheme of the published int4 and
            int8 repositories): bits of the layers' matrices. None: as in the checkpoint.
        dtype: `fp32`, `bf16`, `fp16` or a torch dtype; the checkpoint's own when None.
        device: a GPU if there is one when None.
        family: the generation, for folders that do not name it.
        hub: source of a hub id: `huggingface` or `modelscope`.

    Returns:
        `GlmForCausalLM` or `ChatGLMForCausalLM` in eval mode; a `PeftModel` around it when there is a LoRA adapter.

    Raises:
        ModelError: the folder cannot be loaded as it is.
        RunError: the adapter belongs to another base.
    """
    target = resolve_target(path, family=family, hub=hub)
    if adapter is not None:
        folder = find_trained_folder(Path(adapter), "adapter")
        target = ModelTarget(target.base, folder, target.family, target.hub)
    base = inspect_checkpoint(target.base, family=target.family, hub=target.hub)
    return load_with_adapter(base, target.adapter, dtype=dtype, device=device, quantization=quantization)


def load_with_adapter(
    base: Checkpoint,
    adapter: Path | None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantization: str | None = None,
    double_quantization: bool = True,
) -> PreTrainedModel:
    """Load an inspected base and, once the fingerprints agree, its adapter.

    Raises:
        RunError: the adapter belongs to another base.
    """
    if adapter is not None:
        require_same_base(adapter, base.fingerprint, base.folder)
    model = load_base(
        base, dtype=dtype, device=device, quantization=quantization, double_quantization=double_quantization
    )
    if adapter is None:
        return model
    load: Callable[..., Any] = load_prefix if is_prefix_folder(adapter) else load_adapter
    return load(model, adapter).eval()


def resolve_target(
    path: str | os.PathLike[str],
    *,
    base: str | None = None,
    family: str | None = None,
    hub: str = "huggingface",
) -> ModelTarget:
    """Find base and adapter behind a `RUN_OR_MODEL`.

    Args:
        path: see `load_model`.
        base: of the adapter, if it is no longer where the adapter was trained.

    Raises:
        RunError: a run without a result, or an adapter whose base is not to be found.
    """
    folder = Path(path).expanduser()
    if is_run(folder):
        return _resolve_run(folder, base, family)
    if is_adapter(folder):
        return _resolve_adapter(folder, base, family, hub)
    if base:
        raise RunError(f"{path}: has no adapter, so --base has no meaning.", "Give a run or an adapter folder.")
    return ModelTarget(str(path), None, family, hub)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds something that needs a base: a peft adapter or a P-Tuning prefix."""
    return (folder / "adapter_config.json").is_file() or is_prefix_folder(folder)


def find_trained_folder(folder: Path, output_kind: str) -> Path:
    """The result of a run, or the folder itself when it is no run.

    Args:
        folder: a run, or what one trained.
        output_kind: `adapter` or `model`.

    Raises:
        RunError: the run has none, or not yet.
    """
    if not is_run(folder):
        return folder
    run = RunDir(folder)
    if any(run.result(output_kind).glob("*.json")):
        return run.result(output_kind)
    other = "model" if output_kind == "adapter" else "adapter"
    if run.result(other).is_dir():
        raise RunError(
            f"{folder}: the run trained a whole {other}, not an {output_kind}.", f"Give {run.result(other)}."
        )
    last = run.last_checkpoint()
    hint = f"Its newest checkpoint can be used: {last}." if last else "Continue it: glmtune train --resume --output RUN"
    raise RunError(f"{folder}: the run is not finished, so it has no {output_kind} yet.", hint)


def _resolve_run(folder: Path, base: str | None, family: str | None) -> ModelTarget:
    config = load_config(folder / "config.yaml")
    family = family or config.model.family
    if config.method in ("freeze", "full"):
        return ModelTarget(str(find_trained_folder(folder, "model")), None, family, prefix=config.data.prefix)
    adapter = find_trained_folder(folder, "adapter")
    if not base:
        _require_existing_base(folder, config.model.path)
    return ModelTarget(
        base or config.model.path,
        adapter,
        family,
        config.model.hub,
        config.data.prefix,
        config.model.quantization,
        config.model.double_quantization,
    )


def _resolve_adapter(folder: Path, base: str | None, family: str | None, hub: str) -> ModelTarget:
    base_info = read_base_info(folder)
    saved = find_official_base(folder) if is_prefix_folder(folder) else read_base_path(folder)
    base_path = base or (base_info.path if base_info else saved)
    if not base_path:
        raise RunError(f"{folder}: the adapter does not name its base.", "Give it with --base.")
    if not base:
        _require_existing_base(folder, base_path)
    return ModelTarget(base_path, folder, family or (base_info.family if base_info else None), hub)


def _require_existing_base(folder: Path, base: str) -> None:
    """A relative path may be a hub id; runs and notes have their local folders absolute."""
    if os.path.isabs(base) and not Path(base).is_dir():
        raise RunError(f"{folder}: its base {base} is not there any more.", "Give its new place with --base.")
