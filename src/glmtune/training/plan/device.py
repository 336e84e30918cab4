"""The memory of the device that a run is planned for, and the bytes that are in use before the first tensor."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

from glmtune.errors import ConfigError
from glmtune.models.attention_kernels import AMPERE, TURING, Card, find_card
from glmtune.utils.console import format_bytes
from glmtune.utils.operating_system import read_free_memory, read_resident_bytes

# On a CPU: libraries that a training imports after its plan, and buffers of torch's threads and matrix products. From
# `benchmarks/plan.py`, which compares plans with runs.
CPU_LATE_BYTES = 30 * 2**20

# On a CPU: memory that the C library's allocator keeps beyond live tensors, as a multiple of a layer's working set. Its
# short-lived tensors lie between long-lived ones and so leave holes. From `benchmarks/plan.py`.
CPU_HEAP_FACTOR = 2.0

# On a CPU: the share of it that is kept without checkpointing and without LoRA. From the same table.
CPU_HEAP_SHARE_OTHERS = 0.15

# On a CPU: the factor in 16 bits, where more tensors are small enough for the C library's heap. From one cell of the
# same table.
CPU_HEAP_FACTOR_16_BITS = 3.0

# On a GPU: the CUDA context with the kernels and workspaces of torch and cuBLAS. Not measured: PyTorch's notes on CUDA
# semantics give 32 MiB of cuBLAS workspace on Hopper, 8 MiB before; contexts take 300 to 700 MiB.
CUDA_CONTEXT_BYTES = 800 * 2**20

# On a GPU: the share of short-lived bytes that the caching allocator adds by rounding and splitting. Not measured.
CUDA_ALLOCATOR_SHARE = 0.05

_UNIT_BYTES = {"": 2**30, "g": 2**30, "gb": 2**30, "gib": 2**30, "m": 2**20, "mb": 2**20, "mib": 2**20}
_UNIT_BYTES |= {"t": 2**40, "tb": 2**40}


@dataclass(frozen=True)
class PlanDevice:
    """The device that a plan is made for."""

    name: str
    memory: int
    """Bytes that the run may use."""
    is_gpu: bool
    is_local: bool
    """Whether it is in this machine."""
    context_bytes: int
    """Bytes used by the process or the CUDA context itself."""
    allocator_factor: float
    """What the allocator adds: a share of short-lived bytes on a GPU, a multiple of a layer's working set on a CPU."""
    card: Card | None = None
    """What decides the attention kernel; None: a CPU, or a GPU elsewhere."""

    def find_card(self, half: torch.dtype | None) -> Card | None:
        """The card, or the one that is assumed of a GPU elsewhere: with fp16 one before Ampere, which has no bf16.

        Args:
            half: 16-bit precision of the run, if it has one.
        """
        if self.card is None and self.is_gpu:
            return TURING if half is torch.float16 else AMPERE
        return self.card


def parse_memory(text: str) -> int:
    """Bytes of `12GB`, `11.5` or `8000MiB`. On a GPU's label a gigabyte is 2**30 bytes, however it is written.

    Raises:
        ConfigError: not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNIT_BYTES or not float(match[1]):
        raise ConfigError(f"--gpu-memory {text}: not a size of memory.", "For example: --gpu-memory 12GB")
    return int(float(match[1]) * _UNIT_BYTES[match[2].lower()])


def pick_device(gpu_memory: str | None, use_cpu: bool = False) -> PlanDevice:
    """The GPU of the given size, else the GPU of this machine, else its CPU.

    Raises:
        ConfigError: `gpu_memory` is not a size.
    """
    if gpu_memory is not None:
        memory = parse_memory(gpu_memory)
        name = f"a GPU of {format_bytes(memory)}"
        return PlanDevice(name, memory, True, False, CUDA_CONTEXT_BYTES, CUDA_ALLOCATOR_SHARE)
    if torch.cuda.is_available() and not use_cpu:
        free, total = torch.cuda.mem_get_info()
        # The context is in use already and counted in `context_bytes`.
        memory = min(free + CUDA_CONTEXT_BYTES + torch.cuda.memory_reserved(), total)
        name = torch.cuda.get_device_name()
        card = find_card(torch.device("cuda"), try_varlen=True)
        return PlanDevice(name, memory, True, True, CUDA_CONTEXT_BYTES, CUDA_ALLOCATOR_SHARE, card)
    resident = read_resident_bytes()
    memory = read_free_memory() + resident
    return PlanDevice("this machine's free memory", memory, False, True, resident + CPU_LATE_BYTES, CPU_HEAP_FACTOR)


def measure_matmul_rate(dtype: torch.dtype, device: str) -> float:
    """Floating-point operations per second of a square matrix product, the best of four."""
    size = 4096 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        product = a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    del product
    return 2 * size**3 / min(seconds)
