"""How often a password may be tried: by each address, and by all addresses together."""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FREE_FAILURES = 5
"""Failures of an address before it has to wait; then 1 s, 2 s, 4 s and so on."""
MAX_WAIT_SECONDS = 900
TOTAL_FAILURES = 50
"""Failures of all addresses together before everybody waits; one more every `TOTAL_INTERVAL_SECONDS`."""
TOTAL_INTERVAL_SECONDS = 3.0
_FORGET_SECONDS = 3600.0
_MAX_ADDRESSES = 1000


@dataclass
class _Failures:
    count: int = 0
    last: float = 0.0
    wait_until: float = 0.0


class LoginAttempts:
    """Counts attempts in bounded memory.

    The count of all addresses holds against many addresses, and against a proxy that lets a client choose the one that
    it names. An attempt counts as a failure from its start, so that many at the same time gain nothing.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._addresses: OrderedDict[str, _Failures] = OrderedDict()
        self._total = 0.0
        self._total_time = clock()

    def begin(self, address: str) -> int:
        """Count an attempt.

        Args:
            address: of the client; those of one IPv6 network (/64) are one.

        Returns:
            0, or the seconds until the next attempt is allowed; the attempt is then not counted.
        """
        with self._lock:
            now = self._clock()
            self._total = max(0.0, self._total - (now - self._total_time) / TOTAL_INTERVAL_SECONDS)
            self._total_time = now
            failures = self._find(_group_address(address), now)
            wait = max(failures.wait_until - now, (self._total + 1 - TOTAL_FAILURES) * TOTAL_INTERVAL_SECONDS)
            if wait > 0:
                return math.ceil(wait)
            self._total += 1
            failures.count += 1
            failures.last = now
            extra = failures.count - FREE_FAILURES
            if extra >= 0:
                failures.wait_until = now + min(2.0 ** min(extra, 30), MAX_WAIT_SECONDS)
            return 0

    def succeed(self, address: str) -> None:
        """The attempt that was counted last was right: the address starts from zero."""
        with self._lock:
            self._addresses.pop(_group_address(address), None)
            self._total = max(0.0, self._total - 1)

    def _find(self, address: str, now: float) -> _Failures:
        failures = self._addresses.pop(address, None)
        if failures is None or now - failures.last > _FORGET_SECONDS:
            failures = _Failures()
        self._addresses[address] = failures  # the newest is last
        while len(self._addresses) > _MAX_ADDRESSES:
            self._addresses.popitem(last=False)
        return failures


def _group_address(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
