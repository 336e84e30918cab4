"""Convert LoRA adapters between the module names of the published code and those of the native model.

The published code keeps q, k and v in one matrix W of stacked rows. An update B A of it is three updates with the same
A and a part of B's rows each: exact, bit for bit. Back, three updates with their own A are one of three times the rank:
the A stacked, the B along a diagonal of blocks. DoRA's magnitudes and biases belong to rows, so they are split and
stacked like them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from torch import nn

from glmtune.errors import ModelError
from glmtune.methods.base_info import read_base_info, write_base_info
from glmtune.methods.lora_files import CONFIG, read_config, read_weights, write_weights
from glmtune.methods.lora_sources import expand_merged_matrices
from glmtune.methods.lora_targets import shorten_names
from glmtune.methods.lora_tokens import CONFIG_KEY, ROWS, rename_token_modules
from glmtune.methods.method import StateDict
from glmtune.models.weight_names import FUSED, group_by_published
from glmtune.utils.io import write_json

A, B = "lora_A.weight", "lora_B.weight"
_PREFIX = "base_model.model."
_KEY = re.compile(
    r"^base_model\.model\.(.+?)\."
    r"((?:lora_[AB]|base_layer)\.(?:weight|bias)|lora_magnitude_vector|token_adapter\.trainable_tokens_delta|weight|bias)$"
)
_MODULE_KEYS = ("layers_to_transform", "layers_pattern", "exclude_modules", "rank_pattern", "alpha_pattern")
"""Keys of a config that name modules; the target's names say all of it here."""
_REQUIRED_KEYS = (
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
)
"""Keys that old releases of peft want to find; a default that they may not know is left out."""

Rows = Mapping[str, int]
"""How many rows the weight of each native module has."""


def list_module_rows(model: nn.Module) -> dict[str, int]:
    """Rows of every module with a weight. A quantised weight does not have them in its shape."""
    return {
        path: getattr(module, "out_features", module.weight.shape[0])
        for path, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    }


def convert_to_native(raw: dict[str, Any], state: StateDict, rows: Rows) -> tuple[dict[str, Any], StateDict]:
    """An adapter for the native model; one that is for it already, or for neither, is returned unchanged.

    Args:
        raw: adapter_config.json.
        state: its weights.
        rows: see `list_module_rows`.

    Raises:
        ModelError: a fused weight has another number of rows than the model's parts together.
    """
    raw, state = expand_merged_matrices(raw, state)
    keys = _parse_names(state)
    published = group_by_published(rows)
    paths = {path for path, _ in keys.values()}
    if paths <= rows.keys() or not paths <= published.keys():
        return raw, state
    native: StateDict = {}
    for name, (path, kind) in keys.items():
        for part, value in zip(
            published[path], _split_update(name, state[name], published[path], kind, rows), strict=True
        ):
            native[f"{_PREFIX}{part}.{kind}"] = value
    adapted = {path for path, kind in keys.values() if kind == A}
    config = _strip_layer_numbers(raw)
    config["target_modules"] = shorten_names({part for path in adapted for part in published[path]}, rows.keys())
    saved_modules = _select_whole_modules(raw, paths - adapted)
    token_modules = {path: published[path][0] for path, kind in keys.values() if kind == ROWS}
    config[CONFIG_KEY] = rename_token_modules(raw, token_modules)
    config["modules_to_save"] = sorted({part for path in saved_modules for part in published[path]}) or None
    for pattern, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        if raw.get(pattern):
            values = {path: _find_pattern_value(raw[pattern], path, raw[default]) for path in adapted}
            config[pattern] = {part: value for path, value in values.items() for part in published[path]}
    return config, native


def write_official_adapter(adapter: Path, native_shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Write a peft adapter for the published code of ChatGLM-6B, ChatGLM2, ChatGLM3 or GLM-4.

    Where q, k and v have the same A, as an adapter from `load_adapter` that was not trained further has them, the
    result is that adapter's own weights; else the rank grows and the scale alpha / rank stays.

    Args:
        adapter: a folder of the native model's adapter.
        native_shapes: of the base, as `Checkpoint.native_shapes` has them.
        folder: where to; new or empty.

    Raises:
        ModelError: the adapter is for other modules, or has no published names: magnitudes (DoRA) or
            biases of some of q, k and v only, or ranks that differ between modules.
    """
    raw, state = read_config(adapter), read_weights(adapter)
    rows = {name.removesuffix(".weight"): shape[0] for name, shape in native_shapes.items() if name.endswith(".weight")}
    raw, state = convert_to_native(raw, state, rows)
    if raw.get("rank_pattern") or raw.get("alpha_pattern"):
        raise ModelError(
            f"{adapter}: its ranks or alphas differ between modules (rank_pattern, alpha_pattern).",
            "Merge it and export the whole model instead.",
        )
    keys = _parse_names(state)
    foreign = sorted({path for path, _ in keys.values()} - rows.keys())
    if foreign:
        raise ModelError(f"{adapter}: this base has no module {foreign[0]}.", "Give the adapter's own base.")
    entries = set(keys.values())
    adapted = [path for path, kind in entries if kind == A and (path, B) in entries]
    if not adapted or any(kind in (A, B) and path not in adapted for path, kind in entries):
        raise ModelError(f"{adapter}: an A without its B, or none at all.", "Copy or download the adapter again.")
    if any(_is_part(path) for path in rows):
        config, state = _convert_to_published(raw, state, keys, rows, adapter)
    else:  # a model that has the published names itself
        config = raw
    folder.mkdir(parents=True, exist_ok=True)
    default = PeftLoraConfig().to_dict() | dict.fromkeys(_REQUIRED_KEYS)
    settings = {key: value for key, value in config.items() if value != default.get(key) and value not in ([], {})}
    write_json(folder / CONFIG, settings)
    write_weights(folder, state)
    base_info = read_base_info(adapter)
    if base_info:
        write_base_info(folder, base_info)


def _convert_to_published(
    raw: dict[str, Any], state: StateDict, keys: dict[str, tuple[str, str]], rows: Rows, adapter: Path
) -> tuple[dict[str, Any], StateDict]:
    """Config and weights under the published names."""
    groups = group_by_published(rows)
    values = {(path, kind.removeprefix("base_layer.")): state[name] for name, (path, kind) in keys.items()}
    kinds = {
        path: {kind for part, kind in values if part in parts}
        for path, parts in groups.items()
        if any(part in parts for part, _ in values)
    }
    fused = {path for path, present_kinds in kinds.items() if len(groups[path]) > 1 and A in present_kinds}
    has_shared_a = all(_are_equal([values[part, A] for part in groups[path] if (part, A) in values]) for path in fused)
    published: StateDict = {}
    for path, present_kinds in kinds.items():
        if path in fused:
            published |= _fuse_updates(path, groups[path], values, rows, has_shared_a)
        for kind in sorted(present_kinds - ({A, B} if path in fused else set())):
            stored = "base_layer.bias" if kind == "bias" and A in present_kinds else kind
            published[f"{_PREFIX}{path}.{stored}"] = _stack_rows(groups[path], kind, values, adapter)
    return _make_published_config(raw, kinds, groups, published), published


def _stack_rows(
    parts: list[str], kind: str, values: Mapping[tuple[str, str], torch.Tensor], adapter: Path
) -> torch.Tensor:
    """The rows of one weight of all parts of a published module."""
    if any((part, kind) not in values for part in parts):
        raise ModelError(
            f"{adapter}: has the {kind.replace('lora_', '').replace('_', ' ')} of some of {', '.join(parts)} only, "
            "which the published matrix cannot hold.",
            "Train with all of them in lora.targets, or merge it and export the whole model.",
        )
    return torch.cat([values[part, kind] for part in parts])


def _make_published_config(
    raw: dict[str, Any], kinds: Mapping[str, set[str]], groups: Mapping[str, list[str]], published: StateDict
) -> dict[str, Any]:
    """The config of what `_convert_to_published` made, with ranks and alphas as they became."""
    ranks = {path: len(published[f"{_PREFIX}{path}.{A}"]) for path in kinds if A in kinds[path]}
    usual = Counter(ranks.values()).most_common(1)[0][0]

    def alpha(rank: int) -> float:
        grown = rank / raw["r"]
        return raw["lora_alpha"] * (math.sqrt(grown) if raw.get("use_rslora") else grown)

    config = _strip_layer_numbers(raw)
    config |= {"r": usual, "lora_alpha": alpha(usual)}
    config["target_modules"] = shorten_names(ranks.keys(), groups.keys())
    config["modules_to_save"] = sorted(path for path in kinds if "weight" in kinds[path]) or None
    token_modules = {parts[0]: path for path, parts in groups.items() if ROWS in kinds.get(path, ())}
    config[CONFIG_KEY] = rename_token_modules(raw, token_modules)
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    config["rank_pattern"] = others
    config["alpha_pattern"] = {path: alpha(rank) for path, rank in others.items()}
    return config


def _fuse_updates(
    path: str, parts: list[str], values: Mapping[tuple[str, str], torch.Tensor], rows: Rows, has_shared_a: bool
) -> StateDict:
    """A (rank, columns) and B (rows, rank) of a fused matrix; rows of a part without adapter are zero in B.

    Args:
        path: the published name.
        parts: its native modules, in the order of their rows.
        values: by native module and kind.
        rows: of the native modules.
        has_shared_a: whether the parts' A are equal, so that one is enough.
    """
    present = [part for part in parts if (part, A) in values]
    first = values[present[0], A]
    rank = len(first)
    a = first if has_shared_a else torch.cat([values[part, A] for part in present])
    b = first.new_zeros((sum(rows[part] for part in parts), len(a)))
    row = column = 0
    for part in parts:
        if part in present:
            b[row : row + rows[part], column : column + rank] = values[part, B]
            column += 0 if has_shared_a else rank
        row += rows[part]
    return {f"{_PREFIX}{path}.{A}": a, f"{_PREFIX}{path}.{B}": b}


def _split_update(name: str, value: torch.Tensor, parts: list[str], kind: str, rows: Rows) -> list[torch.Tensor]:
    """What each native part of a published module has of one of its weights."""
    if len(parts) == 1 or kind == A:
        return [value] * len(parts)
    sizes = [rows[part] for part in parts]
    if len(value) != sum(sizes):
        raise ModelError(
            f"{name} has {len(value)} rows; this base's {', '.join(part.rpartition('.')[2] for part in parts)} "
            f"have {' + '.join(map(str, sizes))}.",
            "The adapter was trained on another base; give its own with --base.",
        )
    return list(value.split(sizes))


def _parse_names(state: StateDict) -> dict[str, tuple[str, str]]:
    """Module and kind of every weight; a name that is none of an adapter's counts as a module, which no model has."""
    matches = {name: _KEY.match(name) for name in state}
    return {name: (match[1], match[2]) if match else (name, "") for name, match in matches.items()}


def _strip_layer_numbers(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in _MODULE_KEYS}


def _is_part(path: str) -> bool:
    return any(path.endswith(part) for _, parts in FUSED for part in parts)


def _are_equal(tensors: list[torch.Tensor]) -> bool:
    return all(torch.equal(tensors[0], other) for other in tensors[1:])


def _select_whole_modules(raw: dict[str, Any], paths: set[str]) -> set[str]:
    modules = raw.get("modules_to_save") or []
    return {path for path in paths if any(path.endswith(name) for name in modules)}


def _find_pattern_value(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value of the first pattern that fits, as peft reads them."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)
