"""`python -m glmtune.webui.runner EXIT_FILE COMMAND...`: run a command and leave its exit code on disk.

A server that was restarted is not the parent of the jobs it finds, so the system would not tell it how they ended.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from glmtune.utils.io import write_json
from glmtune.utils.operating_system import list_stop_signals


def run(exit_file: Path, command: list[str]) -> int:
    """The command's exit code, which is also written to `exit_file`."""
    # Signals go to the whole session; the command decides what they mean. A handler, for an ignored signal would be
    # ignored in the command too.
    for number in list_stop_signals():
        signal.signal(number, _leave_it_to_the_command)
    code = subprocess.Popen(command, stdin=subprocess.DEVNULL).wait()
    write_json(exit_file, {"code": code, "ended": time.time()})
    return code


def _leave_it_to_the_command(number: int, frame: FrameType | None) -> None:
    """Wait on: the command ends when it is ready."""


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
