"""Bodies in, answers and streams out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from glmtune.serve.api_errors import ApiError
from glmtune.serve.openai_schema import parse_body
from glmtune.utils.documents import DocumentError, parse_json

Result = TypeVar("Result")
Body = TypeVar("Body", bound=BaseModel)

# A writer that the client does not read from ends this long after its request's own limit.
_WRITE_GRACE_S = 10.0
# Proxies end connections on which nothing comes, after a minute commonly; a request may wait longer in the queue.
_COMMENT_INTERVAL_S = 15.0
# `json.dumps` would make one for every event.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class ClientDisconnectError(Exception):
    """The client left before its answer."""


async def read_json(request: Request) -> Any:
    """The JSON value of a request's body.

    Raises:
        ApiError: another content type, or not JSON.
    """
    # Another type needs no permission from a browser, so that any page could send it (cross-site request forgery).
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "The body must be JSON, with the header Content-Type: application/json.")
    try:
        return parse_json((await request.body()).decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ApiError(400, "The body is not UTF-8.", code="invalid_json") from None
    except DocumentError as error:
        place = f" (line {error.line})" if error.line else ""
        raise ApiError(400, f"The body cannot be read: {error.problem}{place}.", code="invalid_json") from None


async def read_body(request: Request, kind: type[Body]) -> tuple[Body, list[str]]:
    """The checked body of a request, and the names of its keys without effect.

    Raises:
        ApiError: see `read_json` and `parse_body`.
    """
    return parse_body(await read_json(request), kind)


def make_warning_headers(unused: Sequence[str]) -> dict[str, str]:
    """The header that names keys without effect; nothing if there are none."""
    return {"Warning": f'299 glmtune "no effect: {", ".join(unused)}"'} if unused else {}


def make_json_response(value: Any, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer of status 200."""
    return JSONResponse(value, headers=headers)


async def run_until_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await the work on an answer, and cancel it if the client leaves.

    Raises:
        ClientDisconnectError: it left.
    """
    return await _race_disconnect(request.receive, work, None)


async def _race_disconnect(receive: Receive, work: Coroutine[Any, Any, Result], timeout_s: float | None) -> Result:
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED, timeout=timeout_s)
        if task.done():
            return task.result()
        raise ClientDisconnectError
    finally:
        for future in (task, watcher):
            future.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, each a JSON value, ended by `[DONE]`; an error in the middle is an event too.

    Args:
        values: of the events. Closed when the client leaves, so that generation stops.
        timeout_s: of the request.
        headers: of the answer.
    """

    media_type = "text/event-stream"

    def __init__(self, values: AsyncIterator[Any], timeout_s: float, headers: dict[str, str] | None = None):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._values = values
        self._timeout_s = timeout_s + _WRITE_GRACE_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # Too late for another status: the connection ends, and generation has stopped.
        with contextlib.suppress(ClientDisconnectError):
            await _race_disconnect(receive, self._send_events(send), self._timeout_s)

    async def _send_events(self, send: Send) -> None:
        comments = asyncio.ensure_future(_send_comments(send))
        try:
            async for value in self._values:
                await _send_event(send, value)
        except ApiError as error:
            await _send_event(send, error.to_dict())
        finally:
            comments.cancel()
            await self._values.aclose()  # type: ignore[attr-defined]
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def _send_comments(send: Send) -> None:
    """Send lines that clients skip, until cancelled."""
    with contextlib.suppress(OSError):  # the client left, which is noticed elsewhere
        while True:
            await asyncio.sleep(_COMMENT_INTERVAL_S)
            await send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})


async def _send_event(send: Send, value: Any) -> None:
    data = _ENCODER.encode(value)
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})
