"""The official quantised layout of the ChatGLM repositories, as plain functions on tensors.

A matrix (O, I) becomes integers and one scale per row: `weight = number * scale`, numbers in -127..127 (int8) or
-7..7 (int4). int4 packs two columns into a byte, the even column in the high nibble. Checked bit for bit against the
official quantiser; see THUDM/ChatGLM-6B's `quantization.py` for the original.

Shapes: O rows (outputs), I columns (inputs).
"""

from __future__ import annotations

import torch

from glmtune.errors import ModelError

BITS = (4, 8)
_CHUNK = 1 << 20  # numbers


def quantize(weight_OI: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a matrix row by row, as the official quantiser does.

    Scales and the division are computed in the matrix's own precision, as the official code
    does, and fp16 weights give the bytes of the published repositories. bf16 is the exception: its 8 bits would
    round quotients near 127 by a quarter of a step, so there both are fp32.

    Args:
        weight_OI: fp32, fp16 or bf16.
        bits: 4 or 8.

    Returns:
        int8 of (O, I), or (O, I / 2) for 4 bits; and the scales, (O,).

    Raises:
        ModelError: 4 bits and an odd number of columns.
    """
    packed_OJ = weight_OI.new_empty(len(weight_OI), count_packed_columns(weight_OI.shape[1], bits), dtype=torch.int8)
    scales = []
    # Some rows at a time: what fits the cache is quantised several times as fast as a complete matrix.
    rows = max(_CHUNK // weight_OI.shape[1], 1)
    for start in range(0, len(weight_OI), rows):
        part = weight_OI[start : start + rows]
        numbers, scale = _round_rows(part.float() if part.dtype == torch.bfloat16 else part, 2 ** (bits - 1) - 1)
        packed_OJ[start : start + rows] = pack_int4(numbers) if bits == 4 else numbers
        scales.append(scale)
    return packed_OJ, torch.cat(scales)


def _round_rows(weight_OI: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers in -most..most, int8, and scales."""
    scale_O = weight_OI.abs().amax(dim=1) / most
    # A row of zeros has scale 0; and next to fp16's smallest number a scale can be off by half of itself.
    divisor_O = torch.where(scale_O == 0, 1, scale_O)
    return (weight_OI / divisor_O[:, None]).round_().clamp_(-most, most).to(torch.int8), scale_O


def count_packed_columns(columns: int, bits: int) -> int:
    """Bytes that a row of `columns` numbers takes.

    Raises:
        ModelError: another number of bits than 4 or 8, or an odd number of columns in 4.
    """
    if bits not in BITS:
        raise ModelError(f"{bits} bits: the official layout has 4 and 8.", "Choose packed4 or packed8.")
    if bits == 8:
        return columns
    if columns % 2:
        raise ModelError(f"A matrix of {columns} columns cannot be int4: a byte holds two of them.", "Use 8 bits.")
    return columns // 2


def pack_int4(numbers_OI: torch.Tensor) -> torch.Tensor:
    """(O, I) int8 within -8..7 to (O, I / 2) int8: even columns in the high nibble."""
    return (numbers_OI[:, 0::2] << 4) | (numbers_OI[:, 1::2] & 0x0F)


def unpack_int4(packed_OJ: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_int4`: (O, I / 2) int8 to (O, I) int8."""
    # Shifting right keeps the sign, which is why the low nibble goes up first.
    return torch.stack((packed_OJ >> 4, (packed_OJ << 4) >> 4), dim=-1).flatten(1)


def dequantize(packed: torch.Tensor, scale_O: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix (O, I) of packed weights; the product is computed in fp32 and rounded to `dtype` once."""
    if packed.device.type == "cpu" or torch.compiler.is_compiling():
        # On a CPU separate steps are vectorised, which one with a cast inside is not; a compiler fuses them.
        return scale_rows(unpack_int4(packed) if bits == 4 else packed, scale_O, dtype)
    return dequantize_into(packed, scale_O, bits, dtype)


def dequantize_into(packed: torch.Tensor, scale_O: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """As `dequantize`, with every product written into the result: little memory beside it, and few bytes moved (6 per
    weight for int4, 3 for int8, at 16 bits)."""
    weight_OI = torch.empty(len(packed), packed.shape[1] * 8 // bits, dtype=dtype, device=packed.device)
    scale_O1 = scale_O.float()[:, None]
    if bits == 8:
        return torch.mul(packed, scale_O1, out=weight_OI)
    torch.mul(packed >> 4, scale_O1, out=weight_OI[:, 0::2])
    torch.mul((packed << 4) >> 4, scale_O1, out=weight_OI[:, 1::2])
    return weight_OI


def scale_rows(numbers_OI: torch.Tensor, scale_O: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`number * scale`, made in fp32 and rounded to `dtype` once."""
    return numbers_OI.float().mul_(scale_O.float()[:, None]).to(dtype)
