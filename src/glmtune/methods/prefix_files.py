"""P-Tuning v2 on disk: our own folder, those of the published training scripts, and peft's prefix tuning.

Ours holds `prefix_encoder.safetensors`, with the published names, and `prefix_config.json`. The published one is a
`pytorch_model.bin` with the same names and a `config.json` that may say `pre_seq_len` and `prefix_projection`
(THUDM/ChatGLM-6B, `ptuning/`); the earliest of them hold the whole model in it too, of which nothing is read. peft's
has an `adapter_config.json` (PREFIX_TUNING) and the keys and values themselves as `prompt_embeddings`, in the same
order (THUDM/ChatGLM3, `finetune_demo/configs/ptuning_v2.yaml`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from glmtune.errors import ModelError
from glmtune.methods.lora_sources import CONFIG as ADAPTER_CONFIG
from glmtune.methods.lora_sources import OLD_WEIGHTS, require_finite_weights
from glmtune.methods.lora_sources import WEIGHTS as ADAPTER_WEIGHTS
from glmtune.methods.prefix_encoder import PrefixEncoder, PrefixShape
from glmtune.models.weight_files import read_bin, read_inventory
from glmtune.models.weight_names import PREFIX_ENCODER as PUBLISHED
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import find_json_object, read_json_object, write_json

WEIGHTS = "prefix_encoder.safetensors"
CONFIG = "prefix_config.json"
PUBLISHED_DROPOUT = 0.1
"""Of the published scripts, while training."""

_PUBLISHED_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PEFT_TYPE, _PEFT_NAME = "PREFIX_TUNING", "prompt_embeddings"
_FOLDER_HINT = "Give a folder that glmtune train --method ptuning or the published P-Tuning scripts wrote."


@dataclass
class StoredPrefix:
    """A prefix read from disk."""

    state: dict[str, torch.Tensor]
    """By the names of `PrefixEncoder.state_dict`."""
    dropout: float
    shape: PrefixShape | None
    """What it was made for; None where the folder does not say."""
    peft_base: str | None = None
    """The base that peft's prefix tuning names, maybe empty; None for prefixes of other origin."""


def is_prefix_folder(folder: Path) -> bool:
    """Whether a folder holds a prefix: ours, peft's, or a published checkpoint, the whole model beside it or not.

    Headers and indexes are read at most.

    Raises:
        ModelError: its one file of weights is corrupt.
    """
    if (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file() or _is_peft_folder(folder):
        return True
    if any(name.startswith(PUBLISHED) for name in _read_weight_map(folder)):
        return True
    if not any((folder / name).is_file() for name in _PUBLISHED_WEIGHTS):
        return False
    return any(name.startswith(PUBLISHED) for name in read_inventory(folder).weights)


def holds_whole_model(folder: Path) -> bool:
    """Whether a folder of a published prefix holds the model that it was trained on too, as the earliest ones do."""
    if (folder / CONFIG).is_file() or _is_peft_folder(folder):
        return False
    names = _read_weight_map(folder) or read_inventory(folder).weights
    return any(not name.startswith(PUBLISHED) for name in names)


def find_official_base(folder: Path) -> str:
    """The path of the base that the checkpoint of another tool names; empty if it names none."""
    file, key = ("config.json", "_name_or_path")
    if _is_peft_folder(folder):
        file, key = (ADAPTER_CONFIG, "base_model_name_or_path")
    return str((find_json_object(folder / file) or {}).get(key) or "")


def read_prefix(folder: Path) -> StoredPrefix:
    """Read a prefix of any kind.

    Raises:
        ModelError: no prefix here, or a file that is missing, corrupt, not finite, or does not say what it should.
    """
    if _is_peft_folder(folder):
        return _read_peft(folder)
    if not (folder / CONFIG).is_file() and not (folder / WEIGHTS).is_file():
        return StoredPrefix(_read_published(folder), PUBLISHED_DROPOUT, None)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: {name} is missing.", "Copy the whole folder of the prefix.")
    config = read_json_object(folder / CONFIG, ModelError, "Copy the file again.")
    try:
        shape = PrefixShape(*(int(config[key]) for key in ("layers", "kv_heads", "head_dim")))
        dropout = float(config["dropout"])
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{folder / CONFIG}: lacks a number or has something else in its place ({error}).") from None
    return StoredPrefix(_convert_names(_load_weights(folder / WEIGHTS), folder), dropout, shape)


def write_prefix(state: Mapping[str, torch.Tensor], encoder: PrefixEncoder, folder: Path) -> None:
    """Write our folder.

    Args:
        state: weights by the published names.
        encoder: what they belong to.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_copy_to_cpu(state), folder / WEIGHTS, metadata={"format": "pt"})
    settings = {
        "num_virtual_tokens": encoder.tokens,
        "prefix_projection": encoder.trans is not None,
        "dropout": encoder.dropout.p,
    }
    write_json(folder / CONFIG, settings | asdict(encoder.shape))


def write_official(encoder: PrefixEncoder, folder: Path, base_config: Mapping[str, Any]) -> None:
    """Write a checkpoint that the published code loads.

    Args:
        encoder: of a prefix.
        folder: made if it is not there.
        base_config: the base's published config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(_copy_to_cpu(make_published_state(encoder.state_dict())), folder / _PUBLISHED_WEIGHTS[1])
    settings = {"pre_seq_len": encoder.tokens, "prefix_projection": encoder.trans is not None}
    write_json(folder / "config.json", {**base_config, **settings})


def make_published_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An encoder's weights under the published names."""
    return {f"{PUBLISHED}{name}": value for name, value in state.items()}


def _read_published(folder: Path) -> dict[str, torch.Tensor]:
    """The prefix alone; files of a whole model are mapped, and those without a part of the prefix not opened."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder.", _FOLDER_HINT)
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{folder}: holds a LoRA adapter and no prefix.", _FOLDER_HINT)
    weight_map = _read_weight_map(folder)
    if weight_map:
        files = {folder / file for name, file in weight_map.items() if name.startswith(PUBLISHED)}
    else:
        weights = read_inventory(folder).weights
        files = {weight.file for name, weight in weights.items() if name.startswith(PUBLISHED)}
        if not files and weights:
            raise ModelError(f"{folder}: holds no prefix ({next(iter(weights))} and so on).", _FOLDER_HINT)
    state = {name: value for file in sorted(files) for name, value in _load_weights(file).items()}
    return _convert_names({name: value for name, value in state.items() if name.startswith(PUBLISHED)}, folder)


def _is_peft_folder(folder: Path) -> bool:
    return (find_json_object(folder / ADAPTER_CONFIG) or {}).get("peft_type") == _PEFT_TYPE


def _read_peft(folder: Path) -> StoredPrefix:
    path = folder / ADAPTER_CONFIG
    config = read_json_object(path, ModelError, "Copy the file again.")
    if config.get("num_transformer_submodules") not in (None, 1):
        raise ModelError(f"{path}: a prefix for an encoder and a decoder.", "Give one of a ChatGLM model.")
    file = next((folder / name for name in (ADAPTER_WEIGHTS, OLD_WEIGHTS) if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(f"{folder}: has no {ADAPTER_WEIGHTS} and no {OLD_WEIGHTS}.", "Copy the whole folder.")
    stored = _load_weights(file)
    if set(stored) != {_PEFT_NAME} or stored[_PEFT_NAME].ndim != 2:
        raise ModelError(f"{file}: holds {', '.join(list(stored)[:4])}; {_PEFT_NAME} alone was expected.", _FOLDER_HINT)
    shape = None
    try:
        if all(config.get(key) for key in ("num_layers", "num_attention_heads", "token_dim")):
            heads = int(config["num_attention_heads"])
            shape = PrefixShape(int(config["num_layers"]), heads, int(config["token_dim"]) // heads)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{path}: has something else in the place of a number ({error}).") from None
    base = str(config.get("base_model_name_or_path") or "")
    return StoredPrefix({"embedding.weight": stored[_PEFT_NAME]}, 0.0, shape, base)


def _read_weight_map(folder: Path) -> dict[str, str]:
    """Weight names and their files, of an index; empty where there is none that can be read."""
    for name in _PUBLISHED_WEIGHTS:
        weight_map = (find_json_object(folder / f"{name}.index.json") or {}).get("weight_map")
        if isinstance(weight_map, dict) and all(isinstance(file, str) for file in weight_map.values()):
            return weight_map
    return {}


def _convert_names(state: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    wrong = [name for name in state if not name.startswith(PUBLISHED)]
    if wrong or not state:
        raise ModelError(f"{folder}: holds no prefix ({', '.join(wrong[:4]) or 'no weights at all'}).", _FOLDER_HINT)
    return {name.removeprefix(PUBLISHED): value for name, value in state.items()}


def _load_weights(file: Path) -> dict[str, torch.Tensor]:
    """The weights of a file; of a whole model, those of its prefix alone."""
    if not file.is_file():
        raise ModelError(f"{file}: the index names it, but it is not there.", "Copy the missing file.")
    if file.suffix == ".bin":
        state = read_bin(file, "cpu")
        names = _select_names(list(state))
        state = {name: state[name].clone() for name in names}
    else:
        try:
            with safe_open(require_readable(file), "pt") as source:
                names = _select_names(list(source.keys()))
                state = {name: source.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: cut short or corrupt ({error}).", "Copy the file again.") from None
    require_finite_weights(file, state)
    return state


def _select_names(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(PUBLISHED)] or names


def _copy_to_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
