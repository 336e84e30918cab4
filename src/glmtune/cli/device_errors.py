"""Errors of GPUs, drivers and native libraries, told apart from those of this project."""

from __future__ import annotations

_TYPES = ("AcceleratorError", "CompilationError", "OutOfResources", "DistBackendError")
"""Of torch, Triton and NCCL."""

# Where the machine or the installation is at fault: the message says enough.
_CAUSES = (
    "no kernel image",
    "device kernel image is invalid",
    "driver on your system is too old",
    "Found no NVIDIA driver",
    "Torch not compiled with CUDA enabled",
    "CUDA unknown error",
    "No CUDA GPUs are available",
    "invalid device ordinal",
    "device(s) is/are busy or unavailable",
    "unsupported toolchain",
    "Failed to find C compiler",
    "CUDA_HOME",
    "CUDA Setup failed",
    "libbitsandbytes",
    "CPU-only version of bitsandbytes",
    "cannot open shared object file",
    "undefined symbol",
    "DLL load failed",
    "[WinError 126]",
    "torchvision::nms does not exist",
    "Failed to initialize NVML",
    "Illegal instruction",
)
# A GPU failed: kernels of ours may be at fault too, so that the traceback is worth having.
_FAILURES = (
    "CUDA error",
    "CUDA driver error",
    "CUBLAS_STATUS",
    "CUDNN_STATUS",
    "cuDNN error",
    "NCCL error",
    "HIP error",
)


def find_device_error(error: BaseException) -> str:
    """The line of an error, or of what caused it, that speaks of the device or a native library; empty if none does.

    Args:
        error: any exception.
    """
    while True:
        line = next((line for line in str(error).splitlines() if _has_part(line, (*_CAUSES, *_FAILURES))), "")
        if line:
            return line.strip()
        if any(kind.__name__ in _TYPES for kind in type(error).__mro__):
            return (str(error).strip() or type(error).__name__).splitlines()[0]
        if error.__cause__ is None:
            return ""
        error = error.__cause__


def is_cause_known(line: str) -> bool:
    """Whether the message alone says that machine or installation is at fault.

    Args:
        line: from `find_device_error`.
    """
    return _has_part(line, _CAUSES)


def _has_part(line: str, parts: tuple[str, ...]) -> bool:
    return any(part in line for part in parts)
