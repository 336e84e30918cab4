"""The most memory that this process held at once."""

from __future__ import annotations

import sys
from pathlib import Path


def highest_resident() -> int | None:
    """Bytes; None where the system does not tell.

    On Linux not `ru_maxrss`: a new process begins with that of the one that started it, which may have been larger.
    """
    try:
        facts = Path("/proc/self/status").read_text("ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in facts if line.startswith("VmHWM:"))  # kibibytes
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024
