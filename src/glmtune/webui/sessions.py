"""The password of the page: its login form, logins that survive a restart, logout.

A login is a cookie that names when it expires, signed by the server's key and the password: with another password, or
another state folder, nobody is logged in. The password itself is compared by scrypt (RFC 7914) and stored nowhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode

from starlette.types import ASGIApp, Receive, Scope, Send

from glmtune.html.i18n import LANGUAGES
from glmtune.utils.file_access import set_file_limit
from glmtune.utils.io import find_json_object, write_json
from glmtune.webui.entry_pages import render_login
from glmtune.webui.guard import (
    PageGuard,
    PageVisitor,
    RefusedRequestError,
    read_cookies,
    read_headers,
    visitor_of,
)
from glmtune.webui.login_attempts import LoginAttempts
from glmtune.webui.page_rules import PageRules, RouteRule
from glmtune.webui.server_key import is_signature, load_server_key, sign

LOGIN_PATH = "/login"
LOGOUT_PATH = "/logout"
HEALTH_PATH = "/health"
"""Answered without a login: containers ask it whether the server is alive, and it says nothing else."""
LOGIN_ROUTE = RouteRule(LOGIN_PATH, body_bytes=16 * 1024, body_seconds=20.0, needs_token=False)
"""The login is a plain form: its token is in the body and checked here."""
LIFETIME_SECONDS = 7 * 24 * 3600
_LOGOUTS_FILE = "logouts.json"
# 2**15 blocks of 1 KiB: 32 MiB and about 0.1 s for each attempt.
_SCRYPT = {"n": 2**15, "r": 8, "p": 1, "maxmem": 2**26, "dklen": 32}
_LOGIN = re.compile(r"([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")


class PasswordSessions:
    """Who is logged in.

    Args:
        password: of the server.
        key: of the server, see `server_key.load_server_key`.
        folder: of the page's state; logouts are kept there until their logins would have expired.
        clock: seconds since 1970.
    """

    def __init__(self, password: str, key: bytes, folder: Path, clock: Callable[[], float] = time.time):
        self._salt = bytes.fromhex(sign(key, "password-salt", ""))
        self._digest = self._hash(password)
        self._signing_key = bytes.fromhex(sign(key, "login-key", self._digest.hex()))
        self._folder = folder
        self._clock = clock
        # Cookies do not tell ports apart: two servers on one machine need two names.
        self.cookie = f"glmtune_login_{sign(key, 'cookie-name', '')[:8]}"
        self.attempts = LoginAttempts()
        self._bearer_tag = ""
        self._scrypt_turn = asyncio.Semaphore(1)

    async def check_password(self, password: str) -> bool:
        """Compare a password, one at a time, so that many attempts take one core and 32 MiB."""
        async with self._scrypt_turn:
            digest = await asyncio.to_thread(self._hash, password)
        return hmac.compare_digest(digest, self._digest)

    async def try_bearer(self, password: str, address: str) -> bool:
        """Compare the password that a program sends with every request; only the first time by scrypt.

        Args:
            password: as it was sent.
            address: of the client, for the count of attempts.
        """
        tag = sign(self._signing_key, "bearer", password)
        if self._bearer_tag and hmac.compare_digest(tag, self._bearer_tag):
            return True
        if self.attempts.begin(address) or not await self.check_password(password):
            return False
        self.attempts.succeed(address)
        self._bearer_tag = tag
        return True

    def make_login(self) -> str:
        """The value of a new login's cookie: `EXPIRY.ID.SIGNATURE`."""
        text = f"{int(self._clock()) + LIFETIME_SECONDS}.{secrets.token_hex(16)}"
        return f"{text}.{sign(self._signing_key, 'login', text)}"

    def is_login(self, value: str) -> bool:
        """Whether a cookie's value is a login of this server and password that has neither expired nor logged out."""
        return self._read_id(value) is not None

    def end_login(self, value: str) -> None:
        """Log out: the value is a login no more, here and after a restart."""
        id = self._read_id(value)
        if id is None:
            return
        now = self._clock()
        ends = {key: end for key, end in self._read_logouts().items() if end > now}
        ends[id] = now + LIFETIME_SECONDS
        write_json(self._folder / _LOGOUTS_FILE, ends)

    def _read_id(self, value: str) -> str | None:
        match = _LOGIN.fullmatch(value)
        if match is None:
            return None
        expiry, id, signature = match.groups()
        if not is_signature(signature, self._signing_key, "login", f"{expiry}.{id}"):
            return None
        if int(expiry) <= self._clock() or id in self._read_logouts():
            return None
        return id

    def _read_logouts(self) -> dict[str, float]:
        ends = find_json_object(self._folder / _LOGOUTS_FILE) or {}
        return {id: end for id, end in ends.items() if isinstance(end, (int, float))}

    def _hash(self, password: str) -> bytes:
        return hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=self._salt, **_SCRYPT)


def guard_page(app: ASGIApp, rules: PageRules, folder: Path, password: str | None, *, roots: Sequence[Path]) -> ASGIApp:
    """Put the guard and, with a password, the login around the page, and limit this process to the page's roots.

    Args:
        app: the page.
        rules: whose requests are answered.
        folder: of the page's state.
        password: None or empty: everybody whom the rules let in may use the page.
        roots: folders whose files this process, and the jobs that it starts, may read and write from now on.

    Raises:
        ServerError: the folder cannot be written to.
    """
    set_file_limit(roots)
    key = load_server_key(folder)
    if password:
        app = LoginGate(app, PasswordSessions(password, key, folder))
        rules = replace(rules, routes=(*rules.routes, LOGIN_ROUTE))
    return PageGuard(app, rules, key)


class LoginGate:
    """An ASGI application around the page, inside of `guard.PageGuard`: lets in who is logged in.

    Args:
        app: for those who are logged in.
        sessions: who that is.
    """

    def __init__(self, app: ASGIApp, sessions: PasswordSessions):
        self._app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = read_headers(scope)
        root_path = scope.get("root_path", "")
        path = scope["path"].removeprefix(root_path)
        logins = [value for value in read_cookies(headers, self._sessions.cookie) if self._sessions.is_login(value)]
        if path == LOGIN_PATH:
            await self._login(scope, receive, send, headers)
        elif path != HEALTH_PATH and not logins and not await self._has_password(scope, headers):
            await self._ask_for_login(scope, send, headers)
        elif path == LOGOUT_PATH and scope["method"] == "POST":  # the guard has checked its token
            for value in logins:
                self._sessions.end_login(value)
            expired = visitor_of(scope).format_cookie(self._sessions.cookie, "", 0)
            await _answer(send, HTTPStatus.NO_CONTENT, [expired, (b"hx-redirect", f"{root_path}{LOGIN_PATH}".encode())])
        else:
            await self._app(scope, receive, send)

    async def _has_password(self, scope: Scope, headers: dict[str, str]) -> bool:
        """Whether a program names the password in each request (`Authorization: Bearer`), as API keys are."""
        scheme, _, password = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not password.strip():
            return False
        return await self._sessions.try_bearer(password.strip(), _get_address(scope))

    async def _ask_for_login(self, scope: Scope, send: Send, headers: dict[str, str]) -> None:
        root_path = scope.get("root_path", "")
        login = f"{root_path}{LOGIN_PATH}?next="
        if "hx-request" in headers:
            # The page on which the person was: what htmx asks for is a part of it.
            page = re.sub(r"^[a-z]+://[^/]*", "", headers.get("hx-current-url", ""))
            address = login + quote(page.partition("#")[0], safe="")
            await _answer(send, HTTPStatus.UNAUTHORIZED, [(b"hx-redirect", address.encode())])
        elif scope["method"] in ("GET", "HEAD") and "text/html" in headers.get("accept", ""):
            query = scope.get("query_string", b"").decode("latin-1")
            path = quote(scope["path"])
            await _redirect(send, login + quote(f"{path}?{query}" if query else path, safe=""))
        else:
            raise RefusedRequestError(HTTPStatus.UNAUTHORIZED, "login")

    async def _login(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        if scope["method"] in ("GET", "HEAD"):
            fields = _parse_fields(scope.get("query_string", b""))
            lang = fields.get("lang", "")
            cookies = []
            if lang in LANGUAGES:
                cookies = [visitor_of(scope).format_language_cookie(lang)]
            await self._show_form(scope, send, HTTPStatus.OK, fields.get("next", ""), headers=cookies, lang=lang)
        elif scope["method"] == "POST":
            await self._try_password(scope, receive, send)
        else:
            await _answer(send, HTTPStatus.METHOD_NOT_ALLOWED, [(b"allow", b"GET, HEAD, POST")])

    async def _try_password(self, scope: Scope, receive: Receive, send: Send) -> None:
        visitor = visitor_of(scope)
        fields = _parse_fields(await _read_body(receive))
        target = fields.get("next", "")
        if not hmac.compare_digest(fields.get("csrf_token", "").encode(), visitor.csrf_token.encode()):
            await self._show_form(scope, send, HTTPStatus.FORBIDDEN, target, "expired")
            return
        address = _get_address(scope)
        seconds = self._sessions.attempts.begin(address)
        if seconds:
            await self._show_form(scope, send, HTTPStatus.TOO_MANY_REQUESTS, target, "wait", seconds)
        elif await self._sessions.check_password(fields.get("password", "")):
            self._sessions.attempts.succeed(address)
            cookie = visitor.format_cookie(self._sessions.cookie, self._sessions.make_login(), LIFETIME_SECONDS)
            await _redirect(send, _choose_target(target, scope.get("root_path", "")), [cookie])
        else:
            await self._show_form(scope, send, HTTPStatus.FORBIDDEN, target, "wrong")

    async def _show_form(
        self,
        scope: Scope,
        send: Send,
        status: HTTPStatus,
        target: str,
        problem: str = "",
        seconds: int = 0,
        *,
        lang: str = "",
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        visitor: PageVisitor = visitor_of(scope)
        action = f"{scope.get('root_path', '')}{LOGIN_PATH}"
        target = _choose_target(target, scope.get("root_path", ""))
        page = render_login(
            lang if lang in LANGUAGES else visitor.lang,
            action=action,
            token=visitor.csrf_token,
            target=target,
            languages={code: f"{action}?{urlencode({'lang': code, 'next': target})}" for code in LANGUAGES},
            problem=problem,
            wait_seconds=seconds,
        )
        extra = [(b"retry-after", str(seconds).encode())] if seconds else []
        body = b"" if scope["method"] == "HEAD" else page.encode()
        await _answer(send, status, [*(headers or []), *extra, (b"content-type", b"text/html; charset=utf-8")], body)


def _get_address(scope: Scope) -> str:
    return str((scope.get("client") or ("", 0))[0])


def _choose_target(target: str, root_path: str) -> str:
    """Where the browser goes after the login: a path of this server, never another host."""
    home = f"{root_path}/"
    path = target.partition("?")[0]
    # Browsers drop control characters and read a backslash as a slash: `/\host` and `//host` are other hosts.
    is_odd = re.search(r"[\x00-\x20\\\x7f-\uffff]", target) is not None
    if is_odd or len(target) > 2000 or not target.startswith(home) or "//" in path:
        return home
    return home if path.removeprefix(root_path) in (LOGIN_PATH, LOGOUT_PATH) else target


async def _read_body(receive: Receive) -> bytes:
    """The body, which the guard limits to that of `LOGIN_ROUTE`."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _parse_fields(data: bytes) -> dict[str, str]:
    """Fields of a form or query; of one that is present several times, the first. Nothing where there are too many."""
    try:
        fields = parse_qs(data.decode("ascii"), keep_blank_values=True, max_num_fields=20)
    except ValueError:  # also not ASCII
        return {}
    return {name: values[0] for name, values in fields.items()}


async def _redirect(send: Send, address: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await _answer(send, HTTPStatus.SEE_OTHER, [*(headers or []), (b"location", address.encode("latin-1", "replace"))])


async def _answer(send: Send, status: HTTPStatus, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> None:
    length = [] if status == HTTPStatus.NO_CONTENT else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": int(status), "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})
