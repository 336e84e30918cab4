"""Ctrl-C ends a command, says so, and is not lost."""

import subprocess
import sys

import pytest

from glmtune.errors import ReportedInterrupt

# Ctrl-C inside a `__del__`, where Python drops the exception.
LOST = """
import signal, sys, time
from glmtune.cli.interrupts import repeat_lost_interrupts

class Garbage:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
repeat_lost_interrupts()
try:
    garbage = Garbage()
    del garbage
    for _ in range(100):
        time.sleep(0.05)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_inside_a_destructor_is_not_lost():
    result = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=60)
    assert result.stdout == "interrupted\n", result.stderr


@pytest.mark.parametrize(("interrupt", "message"), [(KeyboardInterrupt, "Interrupted.\n"), (ReportedInterrupt, "")])
def test_an_interrupt_is_reported_once(interrupt, message, monkeypatch, glmtune_command):
    def stop():
        raise interrupt

    monkeypatch.setattr("glmtune.utils.installation.collect_versions", stop)
    result = glmtune_command("version")
    assert (result.code, result.err) == (130, message)
