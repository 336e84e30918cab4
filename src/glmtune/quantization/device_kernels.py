"""Choose how packed weights are multiplied and unpacked on a GPU: Triton kernels, or plain operations of torch.

A kernel serves if it gives the right numbers on this card and is faster there. Both are measured once for each
device, number of bits and precision, on a matrix of a 6B model's size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional as F

from glmtune.quantization.packed import count_packed_columns, dequantize
from glmtune.utils.console import print_warning
from glmtune.utils.optional_packages import is_installed

_OUTPUTS, _INPUTS = 4096, 4096
_REPEATS = 10


@dataclass(frozen=True)
class PackedPath:
    """Which kernels serve on a device."""

    multiply: bool
    """Whether a few rows are multiplied with packed bytes."""
    dequantize: bool
    """Whether a kernel unpacks for everything else."""
    reason: str
    """Why, with the measured ratios."""


def is_product_fused(inputs_MI: torch.Tensor, bits: int) -> bool:
    """Whether a kernel multiplies these rows; it has no backward, and fake tensors are not measured."""
    if type(inputs_MI) is not torch.Tensor or inputs_MI.device.type != "cuda":
        return False
    if torch.is_grad_enabled() and inputs_MI.requires_grad:
        return False
    if not pick_path(inputs_MI.device, bits, inputs_MI.dtype).multiply:
        return False
    from glmtune.quantization.triton_kernels import MOST_ROWS

    return len(inputs_MI) <= MOST_ROWS


def multiply_packed(inputs_MI: torch.Tensor, packed_OJ: torch.Tensor, scale_O: torch.Tensor, bits: int) -> torch.Tensor:
    """`inputs @ weight.T`, (M, O), where `is_product_fused`."""
    from glmtune.quantization import triton_kernels

    return triton_kernels.multiply_packed(inputs_MI, packed_OJ, scale_O, bits)


def dequantize_on_device(packed_OJ: torch.Tensor, scale_O: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """`packed.dequantize`, by the kernel that `pick_path` has chosen."""
    is_real = type(packed_OJ.data) is torch.Tensor and packed_OJ.device.type == "cuda"
    if is_real and not torch.compiler.is_compiling() and pick_path(packed_OJ.device, bits, dtype).dequantize:
        from glmtune.quantization import triton_kernels

        return triton_kernels.dequantize_packed(packed_OJ, scale_O, bits, dtype)
    return dequantize(packed_OJ, scale_O, bits, dtype)


@cache
def pick_path(device: torch.device, bits: int, dtype: torch.dtype) -> PackedPath:
    """Check and time the kernels on `device`.

    Args:
        device: a GPU.
        bits: 4 or 8.
        dtype: of inputs and unpacked weights.
    """
    if not is_installed("triton"):
        return PackedPath(False, False, "Triton is not installed")
    try:
        return _measure_kernels(device, bits, dtype)
    except Exception as error:  # Triton raises its own kinds for cards and compilers that it does not support
        problem = (
            f"Triton's kernels do not run here ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
        )
        print_warning(f"packed{bits}: {problem}; torch's operations are used, which are slower.")
        return PackedPath(False, False, problem)


def _measure_kernels(device: torch.device, bits: int, dtype: torch.dtype) -> PackedPath:
    from glmtune.quantization import triton_kernels

    generator = torch.Generator().manual_seed(0)
    shape = _OUTPUTS, count_packed_columns(_INPUTS, bits)
    packed_OJ = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator).to(device)
    scale_O = (torch.rand(_OUTPUTS, generator=generator) * 1e-2).to(device)
    inputs_MI = torch.randn(1, _INPUTS, generator=generator).to(device, dtype)

    expected_OI = dequantize(packed_OJ, scale_O, bits, dtype)
    is_equal = torch.equal(triton_kernels.dequantize_packed(packed_OJ, scale_O, bits, dtype), expected_OI)
    exact_MO = inputs_MI.float() @ dequantize(packed_OJ, scale_O, bits, torch.float32).T
    product_MO = triton_kernels.multiply_packed(inputs_MI, packed_OJ, scale_O, bits).float()
    # Rounded once to `dtype`; sums of 4,096 products in another order.
    tolerance = max(torch.finfo(dtype).eps, 1e-5)
    is_close = bool((product_MO - exact_MO).abs().max() <= tolerance * exact_MO.abs().max())
    if not (is_equal and is_close):
        problem = "Triton's kernels give other numbers on this card"
        print_warning(f"packed{bits}: {problem}; torch's operations are used, which are slower.")
        return PackedPath(False, False, problem)

    def multiply_plain() -> torch.Tensor:
        return F.linear(inputs_MI, dequantize(packed_OJ, scale_O, bits, dtype))

    multiply_ratio = _time_best(device, multiply_plain) / _time_best(
        device, lambda: triton_kernels.multiply_packed(inputs_MI, packed_OJ, scale_O, bits)
    )
    unpack_ratio = _time_best(device, lambda: dequantize(packed_OJ, scale_O, bits, dtype)) / _time_best(
        device, lambda: triton_kernels.dequantize_packed(packed_OJ, scale_O, bits, dtype)
    )
    return PackedPath(
        multiply_ratio > 1,
        unpack_ratio > 1,
        f"Triton against torch's operations: {multiply_ratio:.1f} x in a product, {unpack_ratio:.1f} x in unpacking",
    )


def _time_best(device: torch.device, compute: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(_REPEATS):
        _synchronize(device)
        start = time.perf_counter()
        compute()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
