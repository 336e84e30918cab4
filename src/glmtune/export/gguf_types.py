"""The number formats of GGUF files: which the `gguf` package writes, and which llama.cpp's own program writes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from typing import Any

from glmtune.errors import ConfigError, ModelError
from glmtune.utils.optional_packages import require_extra

_UNQUANTISED = ("f32", "f16", "bf16")
PACKAGE_TYPES = (*_UNQUANTISED, "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""What the `gguf` package quantises to."""
PROGRAM_TYPES = (
    *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"),
    *("iq4_nl", "iq4_xs"),
)
"""What llama.cpp's `llama-quantize` makes from a file in full precision."""
GGUF_TYPES = (*PACKAGE_TYPES, *PROGRAM_TYPES)
QUANTIZE_PROGRAM = "llama-quantize"

_BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5}
"""Bits per weight, with the scales of the blocks."""
_BLOCK = 32
"""Weights of a row that share a scale, in every type of `PACKAGE_TYPES` that is quantised."""
_HEAD_TYPE = "q8_0"
"""Of embedding and head in files of fewer bits: the two matrices that lose most by rounding."""
_HEADS = ("token_embd.weight", "output.weight")


def require_type(name: str) -> None:
    """Require that a type can be written here.

    Raises:
        ConfigError: no such type.
        ModelError: the package or the program that writes it is not installed.
    """
    if name not in GGUF_TYPES:
        raise ConfigError(f"--type {name}: no such type.", f"Known: {', '.join(GGUF_TYPES)}.")
    require_extra("gguf", "--format gguf", error_class=ModelError)
    if name in PROGRAM_TYPES and shutil.which(QUANTIZE_PROGRAM) is None:
        raise ModelError(
            f"--type {name} is made by llama.cpp's own program {QUANTIZE_PROGRAM}, which is not on PATH.",
            f"Install llama.cpp, or use a type that needs no program: {', '.join(PACKAGE_TYPES)}.",
        )


def choose_tensor_type(name: str, shape: tuple[int, ...], file_type: str) -> str:
    """The type of one tensor in a file of type `file_type`.

    Args:
        name: in the file.
        shape: (rows, columns), or (length,) for norms and biases, which stay in 32 bits as llama.cpp expects.
        file_type: one of `PACKAGE_TYPES`.
    """
    if len(shape) == 1:
        return "f32"
    if file_type in _UNQUANTISED:
        return file_type
    if shape[-1] % _BLOCK:
        return "f16"
    return _HEAD_TYPE if name in _HEADS else file_type


def get_intermediate_type(dtype: Any) -> str:
    """The type without loss for weights of a torch dtype, which `llama-quantize` starts from."""
    return {"float16": "f16", "bfloat16": "bf16"}.get(str(dtype).removeprefix("torch."), "f32")


def estimate_gguf_bytes(shapes: Mapping[str, tuple[int, ...]], file_type: str, dtype: Any) -> int:
    """How much disk a file takes while it is written, from the shapes alone.

    Args:
        shapes: of all weights; packed ones as they are when unpacked.
        file_type: one of `GGUF_TYPES`.
        dtype: of the model in memory.
    """
    numbers = sum(math.prod(shape) for shape in shapes.values())
    if file_type in PROGRAM_TYPES:  # the file in full precision lies beside the result, which has at most 8 bits
        return int(numbers * (_BITS[get_intermediate_type(dtype)] + 8) / 8)
    bits = _BITS[file_type]
    heads = sum(math.prod(shape) for name, shape in shapes.items() if "embed" in name or "lm_head" in name)
    return int((numbers * bits + heads * max(0.0, _BITS[_HEAD_TYPE] - bits)) / 8)
