"""Triton kernels on the official int8 and int4 layout: a product with a few rows, and unpacking.

Decoding is bound by reading weights: the product reads every packed byte once, multiplies integers exactly, adds up in
fp32 and applies a row's scale at the end. Unpacking reads a byte and writes one or two numbers, with the bits of
`packed.dequantize`. `device_kernels` decides where they serve.

Shapes: M rows of input, O outputs, I inputs, J packed bytes of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

MOST_ROWS = 8
"""More rows of input are multiplied by a library after unpacking."""

_OUTPUTS_PER_PROGRAM, _BYTES_PER_STEP = 16, 256
_UNPACK_BYTES = 1024


def multiply_packed(inputs_MI: torch.Tensor, packed_OJ: torch.Tensor, scale_O: torch.Tensor, bits: int) -> torch.Tensor:
    """`inputs @ (numbers * scale).T`, (M, O), in the precision of the inputs.

    Args:
        inputs_MI: fp32, fp16 or bf16; M at most `MOST_ROWS`.
        packed_OJ: int8, contiguous, the official layout.
        scale_O: fp32, fp16 or bf16.
        bits: 4 or 8.
    """
    rows, outputs = len(inputs_MI), len(packed_OJ)
    inputs_MI = inputs_MI.contiguous()
    outputs_MO = inputs_MI.new_empty(rows, outputs)
    _multiply_kernel[(triton.cdiv(outputs, _OUTPUTS_PER_PROGRAM),)](
        *(inputs_MI, packed_OJ, scale_O, outputs_MO, outputs, packed_OJ.shape[1]),
        ROWS=rows,
        BITS=bits,
        BLOCK_O=_OUTPUTS_PER_PROGRAM,
        BLOCK_J=_BYTES_PER_STEP,
    )
    return outputs_MO


def dequantize_packed(packed_OJ: torch.Tensor, scale_O: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix (O, I) in `dtype`, with the bits of `packed.dequantize`."""
    outputs, columns = packed_OJ.shape
    weight_OI = torch.empty(outputs, columns * 8 // bits, dtype=dtype, device=packed_OJ.device)
    grid = (outputs, triton.cdiv(columns, _UNPACK_BYTES))
    _dequantize_kernel[grid](packed_OJ, scale_O, weight_OI, columns, BITS=bits, BLOCK_J=_UNPACK_BYTES)
    return weight_OI


@triton.jit
def _multiply_kernel(
    inputs_ptr,
    packed_ptr,
    scale_ptr,
    outputs_ptr,
    outputs,
    columns,
    ROWS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """BLOCK_O outputs of all ROWS inputs; `columns` are packed bytes of a row."""
    output_O = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    in_range_O = output_O < outputs
    # 64-bit: a head of 150,000 rows of 13,696 bytes is past 2**31.
    row_start_O = output_O.to(tl.int64) * columns
    row_M = tl.arange(0, 8)
    sums_MO = tl.zeros((8, BLOCK_O), dtype=tl.float32)
    for start in range(0, columns, BLOCK_J):
        byte_J = start + tl.arange(0, BLOCK_J)
        mask_J = byte_J < columns
        bytes_OJ = tl.load(
            packed_ptr + row_start_O[:, None] + byte_J[None, :], mask=in_range_O[:, None] & mask_J[None, :], other=0
        )
        if BITS == 4:
            # Arithmetic shifts keep the sign, so the low nibble goes up first.
            high_OJ = (bytes_OJ >> 4).to(tl.float32)
            low_OJ = ((bytes_OJ << 4).to(tl.int8) >> 4).to(tl.float32)
        else:
            high_OJ = bytes_OJ.to(tl.float32)
        for row in tl.static_range(ROWS):
            if BITS == 4:  # even columns are in the high nibble
                even_J = tl.load(inputs_ptr + row * columns * 2 + byte_J * 2, mask=mask_J, other=0).to(tl.float32)
                odd_J = tl.load(inputs_ptr + row * columns * 2 + byte_J * 2 + 1, mask=mask_J, other=0).to(tl.float32)
                part_O = tl.sum(high_OJ * even_J[None, :] + low_OJ * odd_J[None, :], axis=1)
            else:
                input_J = tl.load(inputs_ptr + row * columns + byte_J, mask=mask_J, other=0).to(tl.float32)
                part_O = tl.sum(high_OJ * input_J[None, :], axis=1)
            sums_MO += tl.where(row_M[:, None] == row, part_O[None, :], 0.0)
    scale_O = tl.load(scale_ptr + output_O, mask=in_range_O, other=0).to(tl.float32)
    values_MO = sums_MO * scale_O[None, :]
    tl.store(
        outputs_ptr + row_M[:, None] * outputs + output_O[None, :],
        values_MO.to(outputs_ptr.dtype.element_ty),
        mask=(row_M[:, None] < ROWS) & in_range_O[None, :],
    )


@triton.jit
def _dequantize_kernel(packed_ptr, scale_ptr, weight_ptr, columns, BITS: tl.constexpr, BLOCK_J: tl.constexpr):
    """BLOCK_J bytes of a row."""
    row = tl.program_id(0)
    byte_J = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    mask_J = byte_J < columns
    bytes_J = tl.load(packed_ptr + row.to(tl.int64) * columns + byte_J, mask=mask_J, other=0)
    scale = tl.load(scale_ptr + row).to(tl.float32)
    if BITS == 4:
        weight_start = weight_ptr + row.to(tl.int64) * columns * 2
        high_J = (bytes_J >> 4).to(tl.float32) * scale
        low_J = ((bytes_J << 4).to(tl.int8) >> 4).to(tl.float32) * scale
        tl.store(weight_start + byte_J * 2, high_J.to(weight_ptr.dtype.element_ty), mask=mask_J)
        tl.store(weight_start + byte_J * 2 + 1, low_J.to(weight_ptr.dtype.element_ty), mask=mask_J)
    else:
        values_J = bytes_J.to(tl.float32) * scale
        tl.store(
            weight_ptr + row.to(tl.int64) * columns + byte_J, values_J.to(weight_ptr.dtype.element_ty), mask=mask_J
        )
