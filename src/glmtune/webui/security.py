"""Who may reach the page, and what the page may reach."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from http.cookies import SimpleCookie
from typing import Any

import gradio as gr

from glmtune.errors import ServerError
from glmtune.utils.network import get_hostname, is_loopback

OWNER_COOKIE = "glmtune_owner"
MAX_UPLOAD = "1gb"
# Whatever a library or a row of data would fetch from elsewhere, the browser refuses to.
_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "frame-ancestors 'self'",
        "base-uri 'self'",
        "form-action 'self'",
    ]
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
Asgi = Callable[..., Any]


def owner_of(request: gr.Request) -> str:
    """Who a request comes from: a random name that the server gave this browser, the same after a reload."""
    return str(request.cookies.get(OWNER_COOKIE) or request.session_hash or "")


def require_password(host: str, password: str | None) -> None:
    """Raises:
    ServerError: others could reach the page, and no password keeps them out.
    """
    if not is_loopback(host) and not password:
        raise ServerError(
            f"--host {host}: whoever reaches this machine could read and delete files in the roots and start work.",
            "Set a password: GLMTUNE_UI_PASSWORD=... glmtune ui --host ..., or stay on 127.0.0.1.",
        )


def login(password: str) -> Callable[[str, str], bool]:
    """A check of the login page's fields. The user's name is free: there is one password."""

    def check(user: str, given: str) -> bool:
        return hmac.compare_digest(given.encode(), password.encode())

    return check


class Guard:
    """Around the whole server: names each browser, and sends what the browser is to refuse.

    Args:
        app: what is guarded.
        local: whether only this machine's own names are answered. A page elsewhere whose name is made to point to
            127.0.0.1 (DNS rebinding) is then refused.
    """

    def __init__(self, app: Asgi, *, local: bool):
        self._app = app
        self._local = local

    async def __call__(self, scope: dict[str, Any], receive: Asgi, send: Asgi) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._local and not is_loopback(get_hostname(headers.get(b"host", ""))):
            await _refuse(send)
            return
        cookies: SimpleCookie = SimpleCookie(headers.get(b"cookie", ""))
        added = list(_HEADERS) if OWNER_COOKIE in cookies else [*_HEADERS, _new_owner()]

        async def send_guarded(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        await self._app(scope, receive, send_guarded)


def _new_owner() -> tuple[bytes, bytes]:
    value = f"{OWNER_COOKIE}={secrets.token_hex(16)}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Strict"
    return b"set-cookie", value.encode()


async def _refuse(send: Asgi) -> None:
    body = b"This server answers to 127.0.0.1 and localhost only.\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 421, "headers": headers})
    await send({"type": "http.response.body", "body": body})
