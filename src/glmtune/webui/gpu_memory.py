"""GPUs of this machine and who holds their memory, as the driver's own tool says: this process is to hold nothing on a
GPU."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field

_READ_SECONDS = 2.0
_MIB = 2**20
_lock = threading.Lock()
_readings: list[tuple[float, tuple[Gpu, ...]]] = []


@dataclass(frozen=True)
class GpuProcess:
    """A process on a GPU."""

    pid: int
    name: str
    bytes: int | None
    """None where the driver does not say (WSL, some containers)."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver sees it; sizes in bytes."""

    name: str
    used: int
    total: int
    processes: tuple[GpuProcess, ...] = field(default_factory=tuple)


def read_gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine, read once for all browsers that ask within `_READ_SECONDS`; none without a driver that
    answers."""
    with _lock:
        if not _readings or time.monotonic() - _readings[0][0] > _READ_SECONDS:
            _readings[:] = [(time.monotonic(), _read_gpus())]
        return _readings[0][1]


def describe_gpu_memory() -> str:
    """Memory in use and in all of every GPU; empty without one."""
    return ", ".join(f"{gpu.used / 2**30:.1f} / {gpu.total / 2**30:.1f} GiB" for gpu in read_gpus())


def _read_gpus() -> tuple[Gpu, ...]:
    cards = _query("--query-gpu=uuid,memory.used,memory.total,name")
    processes = _query("--query-compute-apps=gpu_uuid,pid,used_memory,process_name") if cards else []
    gpus = []
    for uuid, used, total, name in cards:
        own = tuple(
            GpuProcess(int(pid), process_name, _parse_mebibytes(held))
            for gpu_uuid, pid, held, process_name in processes
            if gpu_uuid == uuid and pid.isdigit()
        )
        gpus.append(Gpu(name, _parse_mebibytes(used) or 0, _parse_mebibytes(total) or 0, own))
    return tuple(gpus)


def _query(option: str) -> list[tuple[str, str, str, str]]:
    """Rows of four columns; the last, a name, may hold commas."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, option, "--format=csv,noheader,nounits"]
    try:
        process = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=5, check=True
        )
    except (subprocess.SubprocessError, OSError):  # a driver that does not answer
        return []
    rows = [[cell.strip() for cell in line.split(",", 3)] for line in process.stdout.splitlines()]
    return [(row[0], row[1], row[2], row[3]) for row in rows if len(row) == 4]


def _parse_mebibytes(text: str) -> int | None:
    """Bytes; None for `[N/A]`, which the driver says where it does not know."""
    try:
        return int(float(text) * _MIB)
    except ValueError:
        return None
