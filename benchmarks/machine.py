"""The limits of this machine: matmul rates and memory bandwidth, which other figures are shares of.

    python benchmarks/machine.py [--device cuda] [--json OUT]

The matmul is a 2048-cube in each precision; bandwidth is that of reading (on a CPU a sum, on a GPU a matrix times a
vector) and of copying a buffer far larger than the caches. Each is the best of several: the limit is what the machine
reaches when nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CUBE = 2048
PRECISIONS = ("fp32", "bf16")
BUFFER = 2**29  # bytes; caches are much smaller


def measure_limits(device: str) -> dict[str, Any]:
    """Limits of `cpu` (all cores that torch uses) or `cuda`: FLOP/s by precision, bytes per second."""
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "matmul_flops": {name: measure_matmul_rate(dtypes[name], device) for name in PRECISIONS},
        "read_bytes": measure_read_rate(device),
        "copy_bytes": measure_copy_rate(device),
    }


def measure_matmul_rate(dtype: Any, device: str, size: int = CUBE) -> float:
    """FLOP/s of a (size, size) times (size, size) product: 2 size^3 operations."""
    import torch

    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / time_best(lambda: torch.mm(left, right, out=out), device)


def measure_read_rate(device: str, size: int = BUFFER, least: float = 1.0) -> float:
    """Bytes per second of reading `size` bytes, the best of at least `least` seconds."""
    import torch

    matrix = torch.ones(size // 2 // 4096, 4096, dtype=torch.bfloat16, device=device)
    if device == "cpu":  # a sum of fp32 is the fastest: no conversion
        matrix = torch.ones(size // 4, dtype=torch.float32)
        return size / time_best(lambda: matrix.sum(), device, least)
    vector = torch.ones(4096, dtype=torch.bfloat16, device=device)
    return size / time_best(lambda: torch.mv(matrix, vector), device, least)


def measure_copy_rate(device: str, size: int = BUFFER) -> float:
    """Bytes per second, read and written together, of copying `size` bytes."""
    import torch

    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / time_best(lambda: target.copy_(source), device)


def time_best(function: Callable[[], object], device: str, least: float = 1.0) -> float:
    """Seconds of the fastest of the calls that fit into `least` seconds, at least five unless they are very slow."""
    function()
    times: list[float] = []
    while sum(times) < least or (len(times) < 5 and sum(times) < 5 * least):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def synchronize(device: str) -> None:
    """Wait for the GPU: its operations are only queued when a call returns."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def main() -> None:
    from harness import describe_environment, format_footer, report_result

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    limits = measure_limits(args.device)
    if args.child:
        print(json.dumps(limits))
        return
    result = {**describe_environment("machine.py"), "machine": limits}
    report_result(result, args.json, lambda result: "\n".join(format_footer(result)))


if __name__ == "__main__":
    main()
