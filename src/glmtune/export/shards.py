"""Safetensors files written tensor by tensor, so that nothing is in memory twice.

The writers of the libraries need a whole shard in addition to the model. The format is a line of JSON and the
numbers, so here each tensor is made, written and freed (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from glmtune.errors import ConfigError
from glmtune.models.weight_names import group_by_published
from glmtune.utils.io import write_json

INDEX = "model.safetensors.index.json"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class TensorPiece:
    """One tensor of the written folder: parts of the model, stacked by rows when there are several."""

    name: str
    parts: tuple[torch.Tensor, ...]

    @property
    def shape(self) -> list[int]:
        first = self.parts[0].shape
        return list(first) if len(self.parts) == 1 else [sum(len(part) for part in self.parts), *first[1:]]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.numel() * part.element_size() for part in self.parts)

    def write(self, stream: BinaryIO) -> None:
        """Write the numbers part by part: rows are contiguous, so stacking them costs nothing."""
        for part in self.parts:
            flat = part.detach().contiguous().cpu().reshape(-1)
            stream.write(flat.view(torch.uint8).numpy().data)


def list_native_pieces(state: Mapping[str, torch.Tensor]) -> list[TensorPiece]:
    """Every weight under its own name."""
    return [TensorPiece(name, (value,)) for name, value in state.items()]


def list_published_pieces(state: Mapping[str, torch.Tensor]) -> list[TensorPiece]:
    """The weights of a `glm` model under the published names, fused as they are published."""
    groups = group_by_published(state)
    return [TensorPiece(name, tuple(state[native] for native in natives)) for name, natives in groups.items()]


def parse_shard_size(text: str) -> int:
    """Bytes of a size such as `5GB` or `500MB` (powers of ten; `GiB` and `MiB` are powers of two).

    Raises:
        ConfigError: no such size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]i?B)", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise ConfigError(f"--max-shard-size {text}: not a size.", "Write it like 5GB or 500MB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def write_shards(
    pieces: list[TensorPiece], folder: Path, max_bytes: int, on_written: Callable[[int], Any]
) -> list[str]:
    """Write `model.safetensors`, or numbered shards and their index.

    Args:
        pieces: what to write, in this order.
        folder: where to.
        max_bytes: of a shard; a single larger tensor gets one of its own.
        on_written: called with the bytes of every written tensor.

    Returns:
        The names of the files.
    """
    shards = _plan_shards(pieces, max_bytes)
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(shard, folder / name, on_written)
    if len(shards) > 1:
        weight_map = {piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard}
        total = sum(piece.size for piece in pieces)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return names


def _plan_shards(pieces: list[TensorPiece], max_bytes: int) -> list[list[TensorPiece]]:
    shards: list[list[TensorPiece]] = [[]]
    filled = 0
    for piece in pieces:
        if shards[-1] and filled + piece.size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(piece)
        filled += piece.size
    return shards


def _write_shard(pieces: list[TensorPiece], path: Path, on_written: Callable[[int], Any]) -> None:
    # Wide types first: readers map the file, and a number must be aligned to its own size.
    ordered = sorted(pieces, key=lambda piece: -piece.parts[0].element_size())
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for piece in ordered:
        code = _CODES[piece.parts[0].dtype]
        header[piece.name] = {"dtype": code, "shape": piece.shape, "data_offsets": [start, start + piece.size]}
        start += piece.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for piece in ordered:
            piece.write(stream)
            on_written(piece.size)
