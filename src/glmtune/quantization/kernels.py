"""Products with packed weights that read the weights once and never unpack the matrix: torch's CPU kernels for bf16.

Decoding one token is bound by reading weights, so fewer bits are faster (`glmtune bench`, docs/bench.md).
torch has these kernels in fp32 and fp16 too, but there they are slower than unpacking, so they serve bf16 alone.

int8 has a faster way in all precisions: oneDNN's integer products, from weights in a layout of its own. Inputs become
integers of 24 bits (relative to their row's largest), passed as three rows of bytes; the sums of products are exact.
Preparing the inputs costs about the same for every matrix, so that small ones gain nothing.

The int4 kernel wants its nibbles in an order of its own, which depends on the processor. It takes as many bytes as the
official order and is stored block by block, so a matrix is converted in place. The order is found by
packing row numbers, not assumed.

Shapes: M rows of input, O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from glmtune.quantization.packed import pack_int4, unpack_int4

# By bits: above this many rows, unpacking once and multiplying is faster. Unpacking int4 costs more.
MOST_ROWS = {8: 32, 4: 128}
# Every block size of the int4 kernel divides this; below it, the int8 kernel reads past the end of odd shapes.
ROWS, COLUMNS = 64, 32


@dataclass(frozen=True)
class Int4Order:
    """Where the kernel keeps its nibbles: by blocks of rows, then by column, then `slot_rows`."""

    block: int
    """Rows of a block."""
    slot_rows: torch.Tensor
    """(block,): the slots of rows 0, 1, ... of a block; first all low nibbles, then all high ones."""


def is_kernel_available(inputs_MI: torch.Tensor, outputs: int, bits: int) -> bool:
    """Whether a kernel computes this product; it has no backward, so not where a gradient is wanted.

    Plain tensors only: fake ones would be cached here for later products.
    """
    return (
        type(inputs_MI) is torch.Tensor
        and inputs_MI.device.type == "cpu"
        and inputs_MI.dtype == torch.bfloat16
        and inputs_MI.shape[0] <= MOST_ROWS[bits]
        and outputs % ROWS == 0
        and inputs_MI.shape[1] % COLUMNS == 0
        and not (torch.is_grad_enabled() and inputs_MI.requires_grad)
        and (bits == 8 or find_int4_order() is not None)
    )


def multiply_int8(inputs_MI: torch.Tensor, packed_OI: torch.Tensor) -> torch.Tensor:
    """`inputs @ numbers.T` in bf16, (M, O), from the official int8 layout as it is."""
    return torch.ops.aten._weight_int8pack_mm(inputs_MI, packed_OI, _make_ones(packed_OI.shape[0]))


# Elements of a matrix from which on, in bf16, this is faster than torch's own kernel.
LARGE = 1 << 24
# Above this many rows, unpacking and multiplying in bf16 is faster; in fp32 and fp16 it never is.
_MAX_PREPACKED_ROWS_BF16 = 384
# Rows of input at a time: their products take 12 bytes for each output.
_ROW_CHUNK = 128
# What the largest input becomes, a little below the largest number of three signed bytes, for quotients are rounded;
# and what makes the bytes unsigned: 128 in each.
_LARGEST, _OFFSET = 127 << 16, 128 * 0x010101


def prepack_int8(packed_OI: torch.Tensor) -> torch.Tensor:
    """Official int8 numbers in oneDNN's order."""
    return torch.ops.onednn.qlinear_prepack(packed_OI.contiguous(), None)


def unpack_prepacked_int8(prepacked: torch.Tensor) -> torch.Tensor:
    """The inverse of `prepack_int8`, (O, I)."""
    return prepacked.to_dense().t().contiguous()


def is_prepacked_faster(inputs_MI: torch.Tensor) -> bool:
    """Whether `multiply_prepacked_int8` is to compute this product; it has no backward."""
    if torch.is_grad_enabled() and inputs_MI.requires_grad:
        return False
    return inputs_MI.dtype != torch.bfloat16 or inputs_MI.shape[0] <= _MAX_PREPACKED_ROWS_BF16


def multiply_prepacked_int8(inputs_MI: torch.Tensor, prepacked: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
    """`inputs @ (numbers * scale).T` in fp32, (M, O).

    Args:
        inputs_MI: any floating precision; rounded to the 8,323,072nd part of each row's largest value.
        prepacked: from `prepack_int8`.
        scale_O: fp32.
    """
    if len(inputs_MI) <= _ROW_CHUNK:
        return _multiply_in_parts(inputs_MI.float(), prepacked, scale_O)
    outputs_MO = inputs_MI.new_empty(len(inputs_MI), len(scale_O), dtype=torch.float32)
    for start in range(0, len(inputs_MI), _ROW_CHUNK):
        rows = slice(start, start + _ROW_CHUNK)
        outputs_MO[rows] = _multiply_in_parts(inputs_MI[rows].float(), prepacked, scale_O)
    return outputs_MO


def _multiply_in_parts(inputs_MI: torch.Tensor, prepacked: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
    rows, columns = inputs_MI.shape
    step_M1 = inputs_MI.abs().amax(-1, keepdim=True).clamp_(min=1e-30).div_(_LARGEST)
    numbers_MI = (inputs_MI / step_M1).round_().int().add_(_OFFSET)
    bytes_3MI = numbers_MI.view(torch.uint8).view(rows, columns, 4)[..., :3].permute(2, 0, 1)
    sums_3MO = torch.ops.onednn.qlinear_pointwise(
        *(bytes_3MI.reshape(3 * rows, columns), 1.0, 128, prepacked, scale_O, _make_zero_offsets(len(scale_O)), None),
        *(1.0, 0, torch.float32, "none", [], ""),
    ).view(3, rows, len(scale_O))
    return sums_3MO[2].mul_(256).add_(sums_3MO[1]).mul_(256).add_(sums_3MO[0]).mul_(step_M1)


@cache
def is_int8_exact() -> bool:
    """Whether this machine's integer products are right: older processors overflow where many large ones meet."""
    numbers_OI = torch.full((64, 128), 127, dtype=torch.int8)
    numbers_OI[::2, ::2] = -127
    inputs_MI = torch.full((1, 128), 1.0)
    expected_MO = inputs_MI.double() @ numbers_OI.double().T
    try:
        prepacked = prepack_int8(numbers_OI)
        product_MO = multiply_prepacked_int8(inputs_MI, prepacked, torch.ones(64))
        is_inverse = torch.equal(unpack_prepacked_int8(prepacked), numbers_OI)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False  # these are not public functions of torch
    return is_inverse and torch.allclose(product_MO.double(), expected_MO, rtol=1e-5)


@cache
def _make_zero_offsets(outputs: int) -> torch.Tensor:
    return torch.zeros(outputs, dtype=torch.int64)


def multiply_int4(inputs_MI: torch.Tensor, kernel_OJ: torch.Tensor) -> torch.Tensor:
    """`inputs @ numbers.T` in bf16, (M, O), from weights in the kernel's order."""
    outputs, inputs = kernel_OJ.shape[0], inputs_MI.shape[1]
    group = next(size for size in (256, 128, 64, 32) if inputs % size == 0)
    return torch.ops.aten._weight_int4pack_mm_for_cpu(
        inputs_MI, kernel_OJ.view(torch.uint8), group, _make_unit_groups(inputs // group, outputs)
    )


def to_kernel_order(packed_OJ: torch.Tensor) -> torch.Tensor:
    """Official int4 bytes in the kernel's order; O must be a multiple of 64."""
    numbers_OI = unpack_int4(packed_OJ).int() + 8
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers_OI, 2).view(torch.int8)


def unpack_kernel_order(kernel_OJ: torch.Tensor) -> torch.Tensor:
    """The numbers (O, I), int8, of weights in the kernel's order."""
    order = find_int4_order()
    assert order is not None  # nothing is in that order otherwise
    return _decode_numbers(kernel_OJ, order)


def from_kernel_order(kernel_OJ: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_kernel_order`."""
    return pack_int4(unpack_kernel_order(kernel_OJ))


def _decode_numbers(kernel_OJ: torch.Tensor, order: Int4Order) -> torch.Tensor:
    outputs, columns = kernel_OJ.shape[0], kernel_OJ.shape[1] * 2
    slots_SBI = _list_slots(kernel_OJ, order.block)
    return slots_SBI[:, order.slot_rows].reshape(outputs, columns) - 8


def _list_slots(kernel_OJ: torch.Tensor, block: int) -> torch.Tensor:
    """(blocks, block, I) int8, 0..15: the low nibbles of each block's bytes, then the high ones."""
    columns = kernel_OJ.shape[1] * 2
    bytes_SIH = kernel_OJ.reshape(-1).view(-1, columns, block // 2)
    bytes_SHI = bytes_SIH.transpose(1, 2).contiguous()
    return torch.cat((bytes_SHI & 15, (bytes_SHI >> 4) & 15), dim=1)


@cache
def find_int4_order() -> Int4Order | None:
    """The kernel's order on this processor; None if its layout is not by blocks, or torch has no such kernel."""
    if not hasattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu"):
        return None
    row_OI = torch.arange(ROWS, dtype=torch.int32)[:, None].expand(ROWS, COLUMNS)
    pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
    low, high = (pack(part.contiguous(), 2).view(torch.int8) for part in (row_OI & 15, row_OI >> 4))
    for block in (64, 32, 16):
        rows_SBI = _list_slots(low, block) + 16 * _list_slots(high, block)
        slot_rows = rows_SBI[0, :, 0].argsort()
        expected = row_OI.reshape(-1, block, COLUMNS)
        if torch.equal(rows_SBI[:, slot_rows].int(), expected):
            return Int4Order(block, slot_rows)
    return None


@cache
def _make_ones(outputs: int) -> torch.Tensor:
    """Scales are applied to the product, in fp32: the kernels would round them to bf16."""
    return torch.ones(outputs, dtype=torch.bfloat16)


@cache
def _make_unit_groups(groups: int, outputs: int) -> torch.Tensor:
    """Scale 1 and zero point 0 for every group of columns, (groups, O, 2)."""
    units = torch.zeros(groups, outputs, 2, dtype=torch.bfloat16)
    units[..., 0] = 1
    return units
