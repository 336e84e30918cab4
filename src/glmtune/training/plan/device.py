"""How much memory there is, and what is taken before the first tensor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from glmtune.errors import ConfigError

GIB = 2**30

LATER = 30 * 2**20
"""On a CPU: libraries that a training imports after its plan, and what torch's threads and products keep.
From `benchmarks/plan.py`, which compares plans with runs."""

KEPT_LAYERS = 2.0
"""On a CPU: what the C library's allocator holds beyond what is alive, as a multiple of a layer's working set. Its
tensors come and go between others that stay, and so leave holes. From `benchmarks/plan.py` too."""

KEPT_ELSEWHERE = 0.15
"""On a CPU: the part of that which is kept without checkpointing and without LoRA. From the same table."""

KEPT_IN_16_BITS = 3.0
"""On a CPU: so many times more in 16 bits, where more tensors are small enough for the C library's heap. From one cell
of the same table."""

CUDA_OWN = 800 * 2**20
"""On a GPU: CUDA's context with torch's and cuBLAS' kernels and workspaces. Stated, not measured here: PyTorch's
notes on CUDA semantics give 32 MiB of cuBLAS workspace on Hopper, 8 MiB before; contexts take 300 to 700 MiB."""

CUDA_KEPT_BACK = 0.05
"""On a GPU: the same share, for the caching allocator's rounding and splits. Stated, not measured here."""

_UNITS = {"": GIB, "g": GIB, "gb": GIB, "gib": GIB, "m": 2**20, "mb": 2**20, "mib": 2**20, "t": 2**40, "tb": 2**40}


@dataclass(frozen=True)
class Device:
    """What a plan is made for."""

    name: str
    memory: int
    """Bytes that this run may take."""
    gpu: bool
    here: bool
    """Whether it is in this machine."""
    own: int
    """Bytes taken by the process or the CUDA context itself."""
    kept_back: float
    """What the allocator adds: a share of short-lived bytes on a GPU, a multiple of a layer's working set on a CPU."""


def parse_memory(text: str) -> int:
    """Bytes of `12GB`, `11.5`, `8000MiB`. A card's gigabyte is 2**30 bytes, whatever it is called.

    Raises:
        ConfigError: not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS or not float(match[1]):
        raise ConfigError(f"--gpu-memory {text}: not a size of memory.", "For example: --gpu-memory 12GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def pick_device(gpu_memory: str | None, use_cpu: bool = False) -> Device:
    """The GPU that is described, else the one here, else this machine.

    Raises:
        ConfigError: `gpu_memory` is not a size.
    """
    if gpu_memory is not None:
        memory = parse_memory(gpu_memory)
        return Device(f"a GPU of {_gib(memory)}", memory, True, False, CUDA_OWN, CUDA_KEPT_BACK)
    if torch.cuda.is_available() and not use_cpu:
        free, total = torch.cuda.mem_get_info()
        # The context is in use already and counted in `own`.
        free = min(free + CUDA_OWN + torch.cuda.memory_reserved(), total)
        return Device(torch.cuda.get_device_name(), free, True, True, CUDA_OWN, CUDA_KEPT_BACK)
    own = resident()
    return Device("this machine's free memory", free_memory() + own, False, True, own + LATER, KEPT_LAYERS)


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    import resource

    return pages * resource.getpagesize()


def free_memory() -> int:
    """Bytes that this machine, or the container around this process, has left."""
    free = [_available()]
    try:  # control groups, version 2
        limit = Path("/sys/fs/cgroup/memory.max").read_text("utf-8").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text("utf-8"))
        told = Path("/sys/fs/cgroup/memory.stat").read_text("utf-8")
        cached = re.search(r"^inactive_file (\d+)", told, re.MULTILINE)
        if limit != "max":
            free.append(int(limit) - used + (int(cached[1]) if cached else 0))
    except (OSError, ValueError):
        pass
    return max(min(free), 0)


def _available() -> int:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    import psutil  # of accelerate

    return int(psutil.virtual_memory().available)


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GB"


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """Floating-point operations a second of a square product, the best of a few."""
    import time

    side = 4096 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        c = a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    del c
    return 2 * side**3 / best
