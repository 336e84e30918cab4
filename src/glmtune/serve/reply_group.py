"""Requests to the engine, whose thread calls back, as events of the server's loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

from glmtune.generation.batch_requests import BatchRequest, FinishEvent, TokenEvent
from glmtune.serve.api_errors import ApiError, make_submit_error
from glmtune.serve.context import ServeContext

_Event = TokenEvent | FinishEvent


class EventMailbox:
    """Takes the engine's events to the server's loop, those of a step at one wake-up: each costs the engine time."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self._events: deque[tuple[asyncio.Queue[tuple[int, _Event]], int, _Event]] = deque()
        self._is_scheduled = False

    def put(self, target: asyncio.Queue[tuple[int, _Event]], index: int, event: _Event) -> None:
        """Put (index, event) into a queue of the loop. From the engine's thread."""
        self._events.append((target, index, event))
        if self._is_scheduled:
            return
        self._is_scheduled = True
        # The loop is closed once the server has given up waiting; the engine's thread must not fail then.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_scheduled = False  # first: what is put from here on is delivered now or wakes the loop again
        while self._events:
            target, index, event = self._events.popleft()
            target.put_nowait((index, event))


class ReplyGroup:
    """The replies to one HTTP request (`n` of them), generated at the same time.

    Args:
        context: of the server.
        requests: to the engine.

    Raises:
        ApiError: the engine does not take one of them; none is generated then.
    """

    def __init__(self, context: ServeContext, requests: Sequence[BatchRequest]):
        self._metrics = context.metrics
        self._timeout_s = context.limits.request_timeout_s
        self._start = time.monotonic()
        self._events: asyncio.Queue[tuple[int, _Event]] = asyncio.Queue()
        self._mailbox = _find_mailbox(context)
        self._handles: list = []
        self._unfinished = len(requests)
        if context.is_draining:
            raise ApiError(503, "The server is shutting down.", code="shutting_down")
        try:
            for index, request in enumerate(requests):
                self._handles.append(context.engine.submit(request, self._make_callback(index)))
        except Exception as error:
            self.cancel()
            if isinstance(error, ValueError):  # what the engine says of a request
                raise ApiError(400, f"{error}.", code="invalid_value") from error
            raise make_submit_error(error) from error

    def cancel(self) -> None:
        """Stop generating."""
        for handle in self._handles:
            handle.cancel()

    async def iterate(self) -> AsyncIterator[tuple[int, _Event]]:
        """Yield the number of a reply and its next event until all are finished.

        Raises:
            ApiError: a reply failed or took too long; the others are cancelled.
        """
        previous: dict[int, float] = {}
        try:
            while self._unfinished:
                index, event = await self._take_event()
                now = time.monotonic()
                if isinstance(event, TokenEvent):
                    if index in previous:
                        self._metrics.token_interval.observe(now - previous[index])
                    else:
                        self._metrics.first_token.observe(now - self._start)
                    previous[index] = now
                else:
                    self._unfinished -= 1
                    _require_success(event)
                yield index, event
        finally:
            if self._unfinished:
                self.cancel()

    async def _take_event(self) -> tuple[int, _Event]:
        remaining = self._start + self._timeout_s - time.monotonic()
        try:
            if remaining > 0 and not self._events.empty():  # without the timer's cost
                return self._events.get_nowait()
            return await asyncio.wait_for(self._events.get(), remaining)
        except asyncio.TimeoutError:
            raise ApiError(504, f"The reply took longer than {self._timeout_s:g} seconds.", code="timeout") from None

    def _make_callback(self, index: int):
        def on_event(event: _Event) -> None:
            self._mailbox.put(self._events, index, event)

        return on_event


def _find_mailbox(context: ServeContext) -> EventMailbox:
    loop = asyncio.get_running_loop()
    if context.mailbox is None or context.mailbox.loop is not loop:
        context.mailbox = EventMailbox(loop)
    return context.mailbox


def _require_success(event: FinishEvent) -> None:
    if event.reason == "error":
        raise ApiError(500, event.error or "The model failed.", code="generation_failed")
    if event.reason == "cancelled":
        raise ApiError(503, "The reply was cancelled: the server is shutting down.", code="cancelled")
