"""Around all routes: who may ask, how much and how slowly; and what is measured.

Plain ASGI, since wrappers of Starlette's own would hide a client that leaves.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import traceback
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune.serve.api_errors import ApiError
from glmtune.serve.context import ServeContext
from glmtune.serve.http_messages import ClientDisconnectError
from glmtune.utils.network import get_hostname, is_loopback, parse_content_length

LOGGER = logging.getLogger("glmtune.serve")
CLIENT_CLOSED = 499
"""Status under which requests are counted whose client left (nginx's number)."""
# A larger body is dropped up to this many times the limit.
_DROPPED_SHARE = 16
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


@dataclass(frozen=True)
class AccessRules:
    """Who may ask.

    Attributes:
        api_key: that requests have to name; None: everybody who reaches the server may ask.
        is_local: only this machine's own names are answered. A page elsewhere whose name is made to point to 127.0.0.1
            (DNS rebinding) is refused.
        open_paths: answered without a key: the page, which asks for it, and what load balancers look at.
    """

    api_key: str | None = None
    is_local: bool = True
    open_paths: frozenset[tuple[str, str]] = frozenset({("GET", "/"), ("GET", "/health")})


class BodyLimitError(ApiError):
    """A body that is too large or too slow; the connection is closed after the answer."""


class RequestGuard:
    """An ASGI application around another.

    Args:
        app: what is guarded.
        context: its limits and metrics.
        rules: who may ask.
    """

    def __init__(self, app: ASGIApp, context: ServeContext, rules: AccessRules):
        self._app = app
        self._context = context
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, is_complete = time.monotonic(), CLIENT_CLOSED, False

        async def send_guarded(message: Message) -> None:
            nonlocal status, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            self._check_access(scope)
            await self._app(scope, _LimitedBody(scope, receive, self._context), send_guarded)
        except ClientDisconnectError:
            status = CLIENT_CLOSED
        except ApiError as error:  # raised before the routes
            await error.to_response()(scope, receive, send_guarded)
        except Exception:
            # Answered by the routes' handler. One request's failure is logged; the server and the others continue.
            LOGGER.error("%s %s failed:\n%s", scope["method"], scope["path"], traceback.format_exc())
            if not is_complete:
                raise  # the connection is closed, so that the client does not wait
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._context.metrics.count_request(route, status, time.monotonic() - start)

    def _check_access(self, scope: Scope) -> None:
        headers = {name: value for name, value in scope["headers"] if name in (b"host", b"authorization")}
        rules = self._rules
        if rules.is_local and not is_loopback(get_hostname(headers.get(b"host", b"").decode("latin-1"))):
            raise ApiError(421, "This server answers to 127.0.0.1 and localhost only.", code="wrong_host")
        if rules.api_key is None or (scope["method"], scope["path"]) in rules.open_paths:
            return
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        is_same = hmac.compare_digest(key.strip(), rules.api_key.encode())
        if scheme.lower() != b"bearer" or not is_same:
            raise ApiError(
                401,
                "The API key is missing or wrong. Send it in the header: Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


class _LimitedBody:
    """Receives a request's body in limited size and time.

    What is too much is read and dropped before the answer, up to a limit: a client that is still sending when the
    connection is closed would see that alone, and not the answer.
    """

    def __init__(self, scope: Scope, receive: Receive, context: ServeContext):
        self._receive = receive
        self._limits = context.limits
        self._deadline = time.monotonic() + self._limits.body_timeout_s
        self._size = 0
        self._is_complete = False
        headers = dict(scope["headers"])
        declared = parse_content_length(headers.get(b"content-length", b"").decode("latin-1"))
        is_large = declared > self._limits.body_bytes
        if is_large and headers.get(b"expect", b"").lower() == b"100-continue":  # the client asks before it sends
            raise self._make_size_error()

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()
        message = await self._receive_part()
        if self._size <= self._limits.body_bytes:
            return message
        while not self._is_complete and self._size < _DROPPED_SHARE * self._limits.body_bytes:
            await self._receive_part()
        raise self._make_size_error()

    async def _receive_part(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), max(self._deadline - time.monotonic(), 0.001))
        except asyncio.TimeoutError:
            raise BodyLimitError(
                408,
                f"The body did not arrive within {self._limits.body_timeout_s:g} seconds.",
                headers={"Connection": "close"},
            ) from None
        if message["type"] != "http.request":
            raise ClientDisconnectError
        self._size += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        return message

    def _make_size_error(self) -> BodyLimitError:
        return BodyLimitError(
            413,
            f"The body is larger than {self._limits.body_bytes:,} bytes.",
            code="request_too_large",
            headers={"Connection": "close"},
        )
