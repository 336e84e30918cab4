"""Read and write the files of a peft LoRA adapter; load its weights into a model completely or not at all."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from glmtune.errors import ModelError, summarize_error
from glmtune.methods.lora_sources import (
    CONFIG,
    OLD_WEIGHTS,
    WEIGHTS,
    find_bare_weights,
    make_assumed_config,
    normalize_names,
    read_bare_weights,
    require_finite_weights,
    require_usable_scale,
)
from glmtune.methods.method import StateDict
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import read_json_object

_COPY_AGAIN = "Copy or download the adapter again."


def read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json without changing it; for weights without one, what can be told from them.

    Args:
        folder: of an adapter, or a file of LoRA weights.

    Raises:
        ModelError: there is none, it is no JSON object, it is not LoRA's, or rank or alpha are not usable.
    """
    bare = find_bare_weights(folder)
    if bare:
        return make_assumed_config(bare, read_weights(bare))
    path = find_adapter_folder(folder) / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder}: no adapter here (no {CONFIG}).", "Give a run or a peft folder.")
    config = read_json_object(path, ModelError, _COPY_AGAIN)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type is {config.get('peft_type')!r}, not LORA.", "Give a LoRA adapter.")
    require_usable_scale(path, config)
    return config


def find_adapter_folder(path: Path) -> Path:
    """The folder of an adapter that is given as the file of its weights."""
    return path.parent if path.is_file() else path


def read_weights(folder: Path) -> StateDict:
    """An adapter's weights by the names that peft writes today. Code in a `.bin` file is never run.

    Args:
        folder: of an adapter, or a file of LoRA weights.

    Raises:
        ModelError: no weight file, a broken one, or weights that are not finite.
    """
    bare = find_bare_weights(folder)
    names = (WEIGHTS, OLD_WEIGHTS)
    for path in [bare] if bare else [find_adapter_folder(folder) / name for name in names]:
        if path.is_file():
            state = normalize_names(path, read_bare_weights(path) if bare else _read_weight_file(path))
            require_finite_weights(path, state)
            return state
    raise ModelError(f"{folder}: the adapter has no weights ({' or '.join(names)}).", _COPY_AGAIN)


def list_stored_names(folder: Path) -> list[str]:
    """The names in an adapter's file as they are, where `read_weights` gives those of today.

    Raises:
        ModelError: no weight file, or a broken one.
    """
    for name in (WEIGHTS, OLD_WEIGHTS):
        if (folder / name).is_file():
            return list(_read_weight_file(folder / name))
    raise ModelError(f"{folder}: the adapter has no weights ({WEIGHTS} or {OLD_WEIGHTS}).", _COPY_AGAIN)


def _read_weight_file(path: Path) -> StateDict:
    file = require_readable(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ModelError(f"{path}: cut short or corrupt ({summarize_error(error, 120)}).", _COPY_AGAIN) from None
    except Exception as error:  # pickle's own errors: the file holds something other than tensors
        raise ModelError(f"{path}: not plain weights ({summarize_error(error, 120)}).", _COPY_AGAIN) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path}: holds something other than named tensors.", _COPY_AGAIN)
    return state


def make_peft_config(raw: dict[str, Any], *, trainable: bool) -> PeftLoraConfig:
    """A config as today's peft takes it. Keys that peft no longer has are left out where they ask for nothing.

    Raises:
        ModelError: peft finds a contradiction in it.
    """
    defaults = PeftLoraConfig().to_dict()
    values = {key: value for key, value in raw.items() if key in defaults or value}
    values |= {"task_type": "CAUSAL_LM", "inference_mode": not trainable}
    try:
        config = PeftLoraConfig.from_peft_type(**values)  # warns of keys that ask for something it does not have
    except (ValueError, TypeError) as error:
        raise ModelError(f"{CONFIG}: {summarize_error(error, 120)}", _COPY_AGAIN) from None
    assert isinstance(config, PeftLoraConfig)
    return config


def write_files(folder: Path, config: PeftLoraConfig, state: StateDict) -> None:
    """Write the two files that peft reads."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = copy.deepcopy(config)
    stored.inference_mode = True
    stored.save_pretrained(str(folder))
    write_weights(folder, state)


def write_weights(folder: Path, state: StateDict) -> None:
    """Write the weights alone."""
    # A copy of each, for safetensors refuses tensors that share memory.
    copies = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    save_file(copies, folder / WEIGHTS, metadata={"format": "pt"})


def select_adapter_state(model: PeftModel, name: str = "default", state: StateDict | None = None) -> StateDict:
    """All that adapter `name` trains, under the names of its file.

    Args:
        model: with adapters.
        name: of the adapter.
        state: the model's whole state dict where processes share it out; read from `model` when None.
    """
    # peft would compare the vocabulary with a config it cannot read and add both embeddings.
    return get_peft_model_state_dict(model, state_dict=state, adapter_name=name, save_embedding_layers=False)


def load_state(model: PeftModel, state: StateDict, name: str = "default") -> list[str]:
    """Copy weights onto adapter `name`, all of them or none.

    Returns:
        What does not fit, in words; empty when the weights were copied.
    """
    expected = select_adapter_state(model, name)
    by_plain = {_strip_wrapper(key): key for key in expected}
    native_state = {by_plain.get(_strip_wrapper(key), key): value for key, value in state.items()}
    faults = {
        "missing": [key for key in expected if key not in native_state],
        "left over": _list_unused(model, {key: value for key, value in native_state.items() if key not in expected}),
        "wrong shape": [
            f"{key} is {_format_shape(native_state[key])} instead of {_format_shape(value)}"
            for key, value in expected.items()
            if key in native_state and native_state[key].shape != value.shape
        ],
    }
    problems = [f"{what}: {_join_names(keys)}" for what, keys in faults.items() if keys]
    if not problems:
        set_peft_model_state_dict(model, {key: native_state[key] for key in expected}, adapter_name=name)
    return problems


def _list_unused(model: PeftModel, unknown: StateDict) -> list[str]:
    """Names that no module of the adapter takes; unchanged embeddings that peft stored with it are not counted."""
    base = model.state_dict() if unknown else {}
    return [
        key
        for key, value in unknown.items()
        if key not in base
        or base[key].shape != value.shape
        or not torch.equal(base[key].cpu().to(value.dtype), value.cpu())
    ]


def _strip_wrapper(key: str) -> str:
    """Older files name a trained bias without the wrapper around its module."""
    return key.replace(".base_layer.", ".")


def _format_shape(tensor: torch.Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape)


def _join_names(names: list[str], limit: int = 3) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
