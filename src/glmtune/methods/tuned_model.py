"""Loading anything that has weights: a folder, a hub id, a run, an adapter."""

from __future__ import annotations

import hashlib
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
from glmtune.methods.lora_files import find_adapter_folder
from glmtune.methods.lora_sources import CONFIG, find_bare_weights
from glmtune.methods.ptuning import find_official_base, holds_whole_model, is_prefix_folder, load_prefix
from glmtune.methods.value_head_file import require_generating
from glmtune.models.checkpoints import Checkpoint, inspect_checkpoint
from glmtune.models.loading import load_base
from glmtune.run_dir import RunDir, is_run
from glmtune.utils.console import print_message
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import add_file_to_hash, find_json_object
from glmtune.utils.shell_words import quote_word

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
    is_reward_model: bool = False,
) -> PreTrainedModel:
    """Load an inspected base and, once the fingerprints agree, its adapter.

    Args:
        base: from `inspect_checkpoint`.
        adapter: its folder; None for the base alone.
        dtype: see `load_model`.
        device: see `load_model`.
        quantization: see `load_model`.
        double_quantization: with nf4, quantise the scales too.
        is_reward_model: the caller uses the layers of a reward model for rewards, not to generate.

    Raises:
        RunError: the adapter belongs to another base, or a reward model was given to generate with.
    """
    if not is_reward_model:
        require_generating(adapter or base.folder)
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
    if folder.is_absolute() or ".." in folder.parts:
        require_readable(folder)
    folder = _find_result_place(folder)
    if base:
        _require_base_folder(base)
    if is_run(folder):
        return _resolve_run(folder, base, family)
    if folder.is_file() and find_bare_weights(folder) is None:
        folder = find_adapter_folder(folder) if is_adapter(folder) else folder
    folder = _choose_newest_inside(folder)
    if is_adapter(folder):
        return _resolve_adapter(folder, base, family, hub)
    if base and not folder.exists():
        raise RunError(f"{path}: no such file or folder.", "Give a run or an adapter folder.")
    if base:
        raise RunError(f"{path}: has no adapter, so --base has no meaning.", "Give a run or an adapter folder.")
    _require_no_weight_checkpoint(folder)
    return ModelTarget(str(path), None, family, hub)


def _require_no_weight_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint of method freeze or full: it holds the trained weights without config and tokenizer."""
    run = folder.absolute().parent.parent
    holds_weights = any(folder.glob("trained*.safetensors"))
    if holds_weights and not (folder / "config.json").is_file() and is_run(run):
        raise RunError(
            f"{folder}: a checkpoint of method freeze or full, which holds the trained weights alone.",
            "The end of the run writes the whole model: glmtune train --resume --output "
            f"{quote_word(os.path.relpath(run))}, sooner with a lower --set training.max_steps=N.",
        )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds something that needs a base: a peft adapter, bare LoRA weights or a P-Tuning prefix.

    A file of LoRA weights counts too.
    """
    described = (find_adapter_folder(folder) / CONFIG).is_file()
    return described or is_prefix_folder(folder) or find_bare_weights(folder) is not None


def find_newest_inside(folder: Path) -> Path:
    """The newest `checkpoint-N` of a folder that other tools wrote and that holds nothing itself; else the folder."""
    if (folder / "config.json").is_file() or not folder.is_dir() or is_run(folder) or is_adapter(folder):
        return folder
    numbered = [(int(path.name.rpartition("-")[2]), path) for path in folder.glob("checkpoint-*[0-9]") if path.is_dir()]
    return next((path for _, path in sorted(numbered, reverse=True) if is_adapter(path)), folder)


def _choose_newest_inside(folder: Path) -> Path:
    """What `find_newest_inside` finds, and say which one it is."""
    chosen = find_newest_inside(folder)
    if chosen != folder:
        print_message(f"{folder}: its newest checkpoint is used, {chosen.name}; another one is given by its own path.")
    return chosen


def find_trained_folder(folder: Path, output_kind: str) -> Path:
    """The result of a run, or the folder itself when it is no run.

    Args:
        folder: a run, or what one trained.
        output_kind: `adapter` or `model`.

    Raises:
        RunError: the run has none, or not yet.
    """
    folder = _find_result_place(folder)
    if not is_run(folder):
        return _choose_newest_inside(folder) if output_kind == "adapter" else folder
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


def hash_folder(folder: Path) -> str:
    """A hash of the weights and settings in the folder of an adapter or a model, or of an adapter that is one file."""
    hasher = hashlib.sha256()
    bare = find_bare_weights(folder)
    for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        is_part = path.suffix in (".safetensors", ".bin", ".json") and not path.name.startswith(".")
        if path.is_file() and (is_part or path == bare):
            hasher.update(path.name.encode())
            add_file_to_hash(hasher, path)
    return hasher.hexdigest()[:16]


def _resolve_run(folder: Path, base: str | None, family: str | None) -> ModelTarget:
    config = load_config(folder / "config.yaml")
    family = family or config.model.family
    if config.method in ("freeze", "full"):
        return ModelTarget(str(find_trained_folder(folder, "model")), None, family, prefix=config.data.prefix)
    adapter = find_trained_folder(folder, "adapter")
    base_path = base or _find_moved_base(adapter) or config.model.path
    if not base:
        _require_existing_base(adapter, base_path)
    return ModelTarget(
        base_path,
        adapter,
        family,
        config.model.hub,
        config.data.prefix,
        config.model.quantization,
        config.model.double_quantization,
    )


def _resolve_adapter(folder: Path, base: str | None, family: str | None, hub: str) -> ModelTarget:
    base_info = read_base_info(folder)
    is_prefix = is_prefix_folder(folder)
    saved = find_official_base(folder) if is_prefix else read_base_path(folder)
    own = str(folder) if is_prefix and holds_whole_model(folder) else None
    base_path = base or own or _find_moved_base(folder) or (base_info.path if base_info else saved)
    if not base_path:
        raise RunError(f"{folder}: the adapter does not name its base.", "Give it with --base.")
    if not base:
        _require_existing_base(folder, base_path)
    return ModelTarget(base_path, folder, family or (base_info.family if base_info else None), hub)


def _find_moved_base(adapter: Path) -> str | None:
    """The base that a LoRA adapter's config names, if it was edited since the adapter was saved."""
    base_info = read_base_info(adapter)
    if base_info is None or not (adapter / CONFIG).is_file():
        return None
    named = str((find_json_object(adapter / CONFIG) or {}).get("base_model_name_or_path") or "")
    return named if named and named != base_info.path else None


def _require_existing_base(folder: Path, base: str) -> None:
    """A relative path may be a hub id; runs and notes have their local folders absolute."""
    if os.path.isabs(base) and not require_readable(base).is_dir():
        edit = f', or in {folder / CONFIG} as "base_model_name_or_path"' if (folder / CONFIG).is_file() else ""
        raise RunError(f"{folder}: its base {base} is not there any more.", f"Give its new place with --base{edit}.")


def _require_base_folder(base: str) -> None:
    """Refuse a path for --base where there is nothing; a hub id is left to the hub."""
    path = Path(base).expanduser()
    if path.is_absolute() or ".." in path.parts:
        require_readable(path)
    is_path = base.startswith((".", "/", "~")) or path.exists() or base.count("/") != 1
    if is_path and not path.is_dir():
        what = "a file, not a folder" if path.exists() else "no such folder"
        raise RunError(f"--base {base}: {what}.", "Give the folder of the base model, which holds config.json.")


def _find_result_place(folder: Path) -> Path:
    """What a run has for a path of other trainers, which is said.

    `RUN/checkpoints/checkpoint-N` for `RUN/checkpoint-N`, the run for a weight file such as `RUN/chatglm-lora.pt`.

    Raises:
        RunError: the run has no such checkpoint.
    """
    run = RunDir(folder.parent)
    if folder.exists() or not is_run(run.root):
        return folder
    if folder.suffix in (".pt", ".bin", ".safetensors"):
        print_message(f"{folder}: no such file; the result of the run {run.root} is used.")
        return run.root
    if not folder.name.startswith("checkpoint-"):
        return folder
    place = run.checkpoints / folder.name
    present = [path.name for path in run.checkpoints_newest_first()]
    if place.name in present:
        print_message(f"{folder}: it is in {place}, which is used.")
        return place
    hint = f"Those there: {', '.join(str(run.checkpoints / name) for name in present[:4])}." if present else None
    raise RunError(f"{folder}: no such folder, and the run has no {folder.name}.", hint)
