"""Ctrl-C that Python would drop."""

from __future__ import annotations

import _thread
import sys
import threading
from typing import Any

_DELAY_S = 0.05  # long enough to leave the code in which an exception cannot be raised


def repeat_lost_interrupts() -> None:
    """Raise `KeyboardInterrupt` again where it came inside a `__del__` or a callback of a weak reference.

    Python prints and drops an exception that is raised there: the program would continue as if nothing had happened.
    """
    report = sys.unraisablehook
    if getattr(report, "repeats_interrupts", False):
        return

    def repeat(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            threading.Timer(_DELAY_S, _thread.interrupt_main).start()
        else:
            report(unraisable)

    repeat.repeats_interrupts = True  # type: ignore[attr-defined]
    sys.unraisablehook = repeat
