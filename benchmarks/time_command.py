"""Run a command and measure its time and peak memory: `python time_command.py REPORT.json COMMAND...`.

A small process of its own, for two reasons: a `--prefix` that waits before it starts the command is not timed, and
Linux gives a child the peak memory of the process that it was forked from.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time


def main() -> int:
    """Write `wall_s`, `cpu_s` (all threads), `peak_bytes` (of the largest process) and `code`."""
    report, command = sys.argv[1], sys.argv[2:]
    start = time.perf_counter()
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = code = os.waitstatus_to_exitcode(status)
    result = {
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "code": code,
    }
    with open(report, "w", encoding="utf-8") as file:
        json.dump(result, file)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
