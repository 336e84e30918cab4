"""P-Tuning v2 on disk: our own folder, and that of the published training scripts.

Ours holds `prefix_encoder.safetensors`, with the published names, and `prefix_config.json`. The published one is a
`pytorch_model.bin` with the same names and a `config.json` that may say `pre_seq_len` and `prefix_projection`
(THUDM/ChatGLM-6B, `ptuning/`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from glmtune.errors import ModelError
from glmtune.methods.lora_files import CONFIG as LORA_CONFIG
from glmtune.methods.prefix_encoder import PrefixEncoder, PrefixShape
from glmtune.models.weight_files import read_inventory
from glmtune.utils.io import write_json

WEIGHTS = "prefix_encoder.safetensors"
CONFIG = "prefix_config.json"
PUBLISHED = "transformer.prefix_encoder."
"""What the published names begin with."""

_PUBLISHED_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PUBLISHED_DROPOUT = 0.1
_FOLDER_HINT = "Give a folder that glmtune train --method ptuning or the published P-Tuning scripts wrote."


@dataclass
class StoredPrefix:
    """A prefix read from disk."""

    state: dict[str, torch.Tensor]
    """By the names of `PrefixEncoder.state_dict`."""
    dropout: float
    shape: PrefixShape | None
    """What it was made for; None where the folder does not say."""


def is_prefix_folder(folder: Path) -> bool:
    """Whether a folder holds a prefix and no base: ours, or a published checkpoint. Reads headers at most.

    Raises:
        ModelError: its one file of weights is corrupt.
    """
    if (folder / CONFIG).is_file() or (folder / WEIGHTS).is_file():
        return True
    if not any((folder / name).is_file() for name in _PUBLISHED_WEIGHTS):
        return False
    names = read_inventory(folder).weights
    return bool(names) and all(name.startswith(PUBLISHED) for name in names)


def find_official_base(folder: Path) -> str:
    """The path of the base when a published checkpoint was made; empty if it is not named."""
    return str(_read_json(folder / "config.json").get("_name_or_path") or "")


def read_prefix(folder: Path) -> StoredPrefix:
    """Read a prefix of either kind.

    Raises:
        ModelError: no prefix here, or a file that is missing, corrupt or does not say what it should.
    """
    if not (folder / CONFIG).is_file() and not (folder / WEIGHTS).is_file():
        return StoredPrefix(_read_published(folder), _PUBLISHED_DROPOUT, None)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: {name} is missing.", "Copy the whole folder of the prefix.")
    config = _read_json(folder / CONFIG)
    try:
        shape = PrefixShape(*(int(config[key]) for key in ("layers", "kv_heads", "head_dim")))
        dropout = float(config["dropout"])
    except (KeyError, TypeError, ValueError) as error:
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
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder.", _FOLDER_HINT)
    if (folder / LORA_CONFIG).is_file():
        raise ModelError(f"{folder}: holds a LoRA adapter and no prefix.", _FOLDER_HINT)
    inventory = read_inventory(folder)
    others = [name for name in inventory.weights if not name.startswith(PUBLISHED)]
    if others:
        kind = "also other weights" if len(others) < len(inventory.weights) else "no prefix"
        raise ModelError(f"{folder}: holds {kind} ({others[0]} and so on).", _FOLDER_HINT)
    files = {weight.file for weight in inventory.weights.values()}
    if not files:
        raise ModelError(f"{folder}: holds no prefix.", _FOLDER_HINT)
    return _convert_names({name: value for file in files for name, value in _load_weights(file).items()}, folder)


def _convert_names(state: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    wrong = [name for name in state if not name.startswith(PUBLISHED)]
    if wrong or not state:
        raise ModelError(f"{folder}: holds no prefix ({', '.join(wrong[:4]) or 'no weights at all'}).", _FOLDER_HINT)
    return {name.removeprefix(PUBLISHED): value for name, value in state.items()}


def _load_weights(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".bin":  # its header has been read, so it is whole and holds tensors alone
        state: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return state
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: cut short or corrupt ({error}).", "Copy the file again.") from None


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON file's keys; none where there is no file."""
    if not file.is_file():
        return {}
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: not JSON ({error}).", "Copy the file again.") from None
    return read if isinstance(read, dict) else {}


def _copy_to_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
