"""Which device computes: a CUDA GPU, Apple's GPU (Metal, `mps`) or the CPU, and what Apple's GPU cannot do.

Apple's GPU has no 64-bit floats; 16-bit bfloat needs macOS 14 (torch.backends.mps). Operations that torch has no Metal
kernel for are computed on the CPU, and torch says so (`utils/gpu_allocator.py` sets PYTORCH_ENABLE_MPS_FALLBACK).
"""

from __future__ import annotations

import platform

import torch

from glmtune.errors import ModelError
from glmtune.utils.console import print_warning

BITSANDBYTES = ("nf4", "int8")
DEVICE_NAMES = "cpu, cuda, cuda:1 and so on, mps"


def has_mps() -> bool:
    """Whether torch can use Apple's GPU."""
    return torch.backends.mps.is_available()


def find_device() -> torch.device:
    """A CUDA GPU if there is one, else Apple's GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps() else "cpu")


def parse_device(device: str | torch.device | None) -> torch.device:
    """The device to compute on; a GPU if there is one when None.

    Raises:
        ModelError: an unknown name, or a GPU where torch finds none.
    """
    if device is None:
        return find_device()
    try:
        target = torch.device(device)
    except RuntimeError:
        raise ModelError(f"There is no device {str(device)!r}.", f"Known: {DEVICE_NAMES}.") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("torch finds no GPU.", "Find the cause: glmtune doctor; or use --device cpu.")
    if target.type == "mps" and not has_mps():
        reason = "this macOS is too old" if torch.backends.mps.is_built() else "this build of torch has no Metal"
        raise ModelError(f"torch finds no Apple GPU: {reason}.", "Use --device cpu.")
    return target


def choose_device(device: str | torch.device | None, quantization: str | None) -> torch.device:
    """The device for weights of a quantisation; the CPU for those of bitsandbytes where the only GPU is Apple's.

    Args:
        device: that was asked for; None: a GPU if there is one.
        quantization: of the weights, as they are or become.

    Raises:
        ModelError: see `parse_device`; Apple's GPU was asked for, with a quantisation of bitsandbytes.
    """
    target = parse_device(device)
    if target.type != "mps" or quantization not in BITSANDBYTES:
        return target
    problem = f"{quantization} is a format of bitsandbytes, which is not used on Apple's GPU"
    if device is not None:
        raise ModelError(f"{problem}.", "Use --quantization packed4 or packed8, or --device cpu.")
    print_warning(f"{problem}: computing on the CPU. On the GPU: --quantization packed4 or packed8.")
    return torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 without emulation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "mps" or torch.backends.mps.is_macos_or_newer(14, 0)


def fit_dtype(dtype: torch.dtype, device: torch.device, *, is_chosen: bool) -> torch.dtype:
    """A precision that Apple's GPU has: fp16 for bf16 before macOS 14, which is said.

    Args:
        dtype: of the checkpoint, or asked for.
        device: to compute on.
        is_chosen: it was asked for.

    Raises:
        ModelError: it was asked for, and the device does not have it.
    """
    if dtype is not torch.bfloat16 or device.type != "mps" or has_bf16(device):
        return dtype
    if is_chosen:
        raise ModelError("bf16 on Apple's GPU needs macOS 14.", "Use --dtype fp16 or fp32, or --device cpu.")
    print_warning("Computing in fp16: Apple's GPU has bf16 from macOS 14 on. As exact as the weights: --dtype fp32.")
    return torch.float16


def to_double(values: torch.Tensor) -> torch.Tensor:
    """Values in 64-bit floats, on their device, or on the CPU if it has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def find_double_device(device: torch.device) -> torch.device:
    """Where sums in 64-bit floats of a device's values are kept."""
    return torch.device("cpu") if device.type == "mps" else device


def describe_device(device: torch.device) -> str:
    """Its name, for results: `NVIDIA H100 80GB HBM3`, `Apple GPU (arm64)`, `CPU (x86_64)`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{'Apple GPU' if device.type == 'mps' else 'CPU'} ({platform.machine()})"


def free_cached_memory() -> None:
    """Give memory back to the GPU that torch's allocator keeps for later tensors."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif has_mps():
        torch.mps.empty_cache()
