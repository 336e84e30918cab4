"""Write a LoRA adapter as a GGUF file, which llama.cpp adds to a model's GGUF file while it runs."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key

from glmtune.errors import ModelError
from glmtune.export.gguf_metadata import add_origin_keys, require_architecture
from glmtune.export.gguf_tensors import GgufTensor, copy_gguf_tensor, make_name_map, read_gguf_tensors, write_gguf
from glmtune.methods.lora_files import read_config, read_weights
from glmtune.methods.lora_official import convert_to_native
from glmtune.methods.method import StateDict
from glmtune.models.checkpoints import Checkpoint
from glmtune.models.loading import load_base
from glmtune.utils.optional_packages import import_extra

ADAPTER_FILE = "adapter.gguf"
_MATRIX = re.compile(r"^base_model\.model\.(.+)\.lora_(?:(embedding)_)?([AB])(?:\.weight)?$")
_MERGE = "Leave out --adapter-only: the merged model has all of it."
_TOLERANCE = {"f32": 1e-6, "f16": 2e-3, "bf16": 2e-2}
"""Largest difference of an update that was read back, relative to its largest number."""


def write_gguf_adapter(adapter: Path, base: Checkpoint, kind: str, path: Path) -> str:
    """Write an adapter of either naming, and compare its updates with those that were meant.

    llama.cpp computes alpha / rank * B A with one alpha for all. Scales that differ between modules, and those of
    rank-stabilised LoRA, are part of B.

    Args:
        adapter: a peft folder.
        base: that it belongs to.
        kind: `f32`, `f16` or `bf16`.
        path: of the file.

    Returns:
        A sentence on the comparison.

    Raises:
        ModelError: it has more than pairs of matrices (DoRA, biases, whole modules), or is broken.
    """
    shapes = base.native_shapes
    rows = {name.removesuffix(".weight"): shape[0] for name, shape in shapes.items() if name.endswith(".weight")}
    config, state = convert_to_native(read_config(adapter), read_weights(adapter), rows)
    pairs = _list_pairs(adapter, config, _drop_unchanged(state, base))
    architecture = require_architecture(base)
    convert = make_name_map(architecture, base.config.num_hidden_layers)
    alpha = float(config["lora_alpha"])
    tensors: list[GgufTensor] = []
    updates: dict[str, torch.Tensor] = {}
    for module, (a, b, transposed) in pairs.items():
        name = convert(f"{module}.weight")
        scale = _compute_scale(config, module, len(a))
        factor = scale * len(a) / alpha
        left, right = (a.T if transposed else a), b * factor
        tensors.append(GgufTensor(f"{name}.lora_a", left.contiguous(), kind))
        tensors.append(GgufTensor(f"{name}.lora_b", right.contiguous(), kind))
        updates[name] = scale * (b @ a)
    _write_file(path, architecture, base, adapter, alpha, tensors)
    return _compare(path, updates, alpha, kind)


def _write_file(
    path: Path, architecture: str, base: Checkpoint, adapter: Path, alpha: float, tensors: list[GgufTensor]
) -> None:
    gguf = import_extra("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    add_origin_keys(writer, base, adapter.name)
    write_gguf(writer, tensors, path, lambda _: None)


def _drop_unchanged(state: StateDict, base: Checkpoint) -> StateDict:
    """Leave out whole weights that are the base's own: peft stores embeddings beside an adapter without training."""
    whole = {
        name: name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        for name in state
        if not _MATRIX.match(name)
    }
    if not whole or not set(whole.values()) <= base.native_shapes.keys():
        return state
    own = load_base(base, device=torch.device("cpu")).state_dict()
    unchanged = {
        name
        for name, native in whole.items()
        if own[native].shape == state[name].shape and torch.equal(own[native].to(state[name].dtype), state[name])
    }
    return {name: value for name, value in state.items() if name not in unchanged}


def _list_pairs(
    adapter: Path, config: dict[str, Any], state: StateDict
) -> dict[str, tuple[torch.Tensor, torch.Tensor, bool]]:
    """A, B and whether they are an embedding's, in fp32, by module."""
    if config.get("use_dora"):
        raise ModelError(f"{adapter}: a DoRA adapter, which llama.cpp does not compute.", _MERGE)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    embeddings = set()
    for name, value in state.items():
        match = _MATRIX.match(name)
        if match is None:
            raise ModelError(f"{adapter}: has {name}; llama.cpp takes the matrices of LoRA only.", _MERGE)
        halves.setdefault(match[1], {})[match[3]] = value.float()
        if match[2]:
            embeddings.add(match[1])
    incomplete = [module for module, parts in halves.items() if parts.keys() != {"A", "B"}]
    if incomplete:
        raise ModelError(f"{adapter}: {incomplete[0]} has one of its two matrices only.", "Copy the adapter again.")
    return {module: (parts["A"], parts["B"], module in embeddings) for module, parts in halves.items()}


def _compute_scale(config: dict[str, Any], module: str, rank: int) -> float:
    """The factor of B A, as peft computes it."""
    alphas = config.get("alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _compare(path: Path, updates: dict[str, torch.Tensor], alpha: float, kind: str) -> str:
    tensors = read_gguf_tensors(path)
    largest = 0.0
    for name, update in updates.items():
        a, b = (_read(tensors[f"{name}.lora_{half}"]) for half in "ab")
        rank = b.shape[-1]
        a = a if a.shape[0] == rank and a.shape[1] == update.shape[1] else a.T
        error = (alpha / rank * (b @ a) - update).abs().max() / update.abs().max().clamp_min(1e-30)
        largest = max(largest, error.item())
    if not largest <= _TOLERANCE[kind]:
        raise ModelError(
            f"Read again, {path.name} is another adapter: its updates differ by {largest:.1e} of the largest number.",
            "Use --type f32.",
        )
    return f"Read again, {path.name}: the updates of {len(updates)} matrices, within {largest:.1e} of the largest."


def _read(tensor: Any) -> torch.Tensor:
    value = torch.empty(tuple(reversed(tensor.shape.tolist())))
    copy_gguf_tensor(tensor, value)
    return value
