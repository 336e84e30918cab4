"""Tensors of GGUF files, written and read some rows at a time, so that no model is in memory twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glmtune.errors import ModelError
from glmtune.export.gguf_types import choose_tensor_type
from glmtune.utils.optional_packages import import_extra

FLOAT_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_CHUNK = 16_000_000
"""Numbers that are converted at a time."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file and the number format that it gets there."""

    name: str
    value: torch.Tensor
    type: str

    @property
    def bytes_shape(self) -> tuple[int, ...]:
        """Shape of the stored bytes."""
        gguf = import_extra("gguf")
        columns, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.type.upper()]]
        return (*self.value.shape[:-1], self.value.shape[-1] // columns * size)

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.bytes_shape))

    def encode(self) -> np.ndarray:
        """The stored bytes, in their shape.

        Raises:
            ModelError: a value is too large for the format.
        """
        gguf = import_extra("gguf")
        kind = gguf.GGMLQuantizationType[self.type.upper()]
        dtype = FLOAT_TYPES.get(self.type)
        stored = np.empty(self.bytes_shape, np.uint8)
        for rows in _split_rows(self.value.shape):
            part = self.value[rows].detach()
            if dtype is None:
                stored[rows] = gguf.quantize(part.float().cpu().contiguous().numpy(), kind)
                continue
            converted = part.to(dtype).cpu().contiguous()
            if dtype == torch.float16 and not torch.isfinite(converted).all():
                raise ModelError(
                    f"{self.name}: has values beyond the range of f16 (65504).", "Use --type bf16, f32 or q8_0."
                )
            stored[rows] = converted.view(torch.uint8).numpy()
        return stored


def _split_rows(shape: torch.Size | tuple[int, ...]) -> Iterator[slice]:
    if len(shape) == 1:
        yield slice(None)
        return
    step = max(1, _CHUNK // shape[1])
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def make_name_map(architecture: str, layers: int) -> Callable[[str], str]:
    """The function from transformers' weight names to those of GGUF.

    Args:
        architecture: llama.cpp's name.
        layers: number of layers.
    """
    gguf = import_extra("gguf")
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(arch, layers)

    def convert(native: str) -> str:
        name = names.get_name(native, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"{native}: no weight of llama.cpp's architecture {architecture}.", "Use --format hf.")
        return name

    return convert


def list_tensors(state: Mapping[str, torch.Tensor], convert: Callable[[str], str], file_type: str) -> list[GgufTensor]:
    """The weights of a model as they are to be written.

    Args:
        state: transformers' names and values.
        convert: see `make_name_map`.
        file_type: the file's type, one of `PACKAGE_TYPES`.
    """
    tensors = []
    for native, value in state.items():
        name = convert(native)
        tensors.append(GgufTensor(name, value, choose_tensor_type(name, tuple(value.shape), file_type)))
    return tensors


def write_gguf(writer: Any, tensors: list[GgufTensor], path: Path, on_written: Callable[[int], Any]) -> None:
    """Write a file: keys, table of tensors, then tensor by tensor.

    Args:
        writer: a `gguf.GGUFWriter` that has all keys.
        tensors: in the order of the file.
        path: of the file.
        on_written: called with the bytes of every written tensor.
    """
    gguf = import_extra("gguf")
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.type.upper()]
        writer.add_tensor_info(tensor.name, tensor.bytes_shape, np.dtype(np.uint8), tensor.size, raw_dtype=kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.encode())
        on_written(tensor.size)
    writer.close()


def read_gguf_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a file by name, mapped from disk: `gguf.ReaderTensor` objects."""
    gguf = import_extra("gguf")
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def copy_gguf_tensor(tensor: Any, target: torch.Tensor) -> None:
    """Read a tensor of a file into `target` of the same shape, in its precision."""
    gguf = import_extra("gguf")
    shape = tuple(reversed(tensor.shape.tolist()))
    if shape != tuple(target.shape):
        raise ModelError(f"{tensor.name} has shape {shape} in the file, {tuple(target.shape)} in the model.")
    for rows in _split_rows(shape):
        values = gguf.dequantize(tensor.data[rows], tensor.tensor_type)
        target[rows].copy_(torch.from_numpy(np.array(values)).reshape(target[rows].shape))
