"""What this machine can do at best: matmul rates and memory bandwidth, next to which the other figures are shares.

    python benchmarks/machine.py [--device cuda] [--json OUT]

The matmul is a 2048-cube in each precision; bandwidth is that of reading (a matrix times a vector, which is what
decoding does with every weight) and of copying a buffer far larger than the caches. Each is the best of several: a
limit is what the machine reaches when nothing else runs.
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
BUFFER = 2**29  # bytes; caches are smaller by far


def measure(device: str) -> dict[str, Any]:
    """Limits of `cpu` (all cores that torch uses) or `cuda`: FLOP/s by precision, bytes per second."""
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "matmul_flops": {name: matmul_rate(dtypes[name], device) for name in PRECISIONS},
        "read_bytes": read_rate(device),
        "copy_bytes": copy_rate(device),
    }


def matmul_rate(dtype: Any, device: str, size: int = CUBE) -> float:
    """FLOP/s of a (size, size) times (size, size) product: 2 size^3 operations."""
    import torch

    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / best_seconds(lambda: torch.mm(left, right, out=out), device)


def read_rate(device: str, size: int = BUFFER, least: float = 1.0) -> float:
    """Bytes per second that a matrix of `size` bytes is read at in a product with one vector, over `least` seconds."""
    import torch

    matrix = torch.ones(size // 2 // 4096, 4096, dtype=torch.bfloat16, device=device)
    if device == "cpu":  # the widest road that there is: plain fp32 sums, no conversion in between
        matrix = torch.ones(size // 4, dtype=torch.float32)
        return size / best_seconds(lambda: matrix.sum(), device, least)
    vector = torch.ones(4096, dtype=torch.bfloat16, device=device)
    return size / best_seconds(lambda: torch.mv(matrix, vector), device, least)


def copy_rate(device: str, size: int = BUFFER) -> float:
    """Bytes per second, read and written together, of copying `size` bytes."""
    import torch

    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_seconds(lambda: target.copy_(source), device)


def best_seconds(work: Callable[[], object], device: str, least: float = 1.0) -> float:
    """The quickest of as many repetitions as fit into `least` seconds, five at the fewest."""
    work()
    times: list[float] = []
    while len(times) < 5 or sum(times) < least:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def synchronize(device: str) -> None:
    """Wait for the GPU: its work is only queued when a call returns."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def main() -> None:
    from sitting import circumstances, finish, small_print

    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--json", type=Path, help="write the figures here")
    made.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = made.parse_args()
    measured = measure(args.device)
    if args.child:
        print(json.dumps(measured))
        return
    result = {**circumstances("machine.py"), "machine": measured}
    finish(result, args.json, lambda result: "\n".join(small_print(result)))


if __name__ == "__main__":
    main()
