"""Around the whole page: whose requests are answered, how large they may be, and what the browser is to refuse.

Plain ASGI, outside of every route, so that a new route is guarded without a line of its own:

- host names: this machine's own and the trusted ones (DNS rebinding);
- requests that change something: the origin of the page that sent them (`Origin`, `Sec-Fetch-Site`; another port of
  localhost is another origin) and a CSRF token in the header `X-CSRF-Token`, which only this page can read;
- requests from other sites for parts of the page (pictures, scripts, frames): refused;
- bodies: limited in size and time before a route reads them;
- answers: Content-Security-Policy and the like.

The token is signed by the server's key over a random cookie of the browser (OWASP, Cross-Site Request Forgery
Prevention Cheat Sheet: signed double-submit cookie).
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glmtune.html.i18n import LANGUAGES
from glmtune.utils.network import get_hostname, is_loopback, parse_content_length
from glmtune.webui.entry_pages import RefusalReason, render_refusal
from glmtune.webui.page_rules import PageRules, RouteRule
from glmtune.webui.server_key import is_signature, sign

SESSION_COOKIE = "glmtune_session"
LANGUAGE_COOKIE = "glmtune_lang"
TOKEN_HEADER = "X-CSRF-Token"
_VISITOR = "glmtune.visitor"
_SAFE_METHODS = ("GET", "HEAD")
_SESSION_BYTES = 16
_COOKIE_SECONDS = 365 * 24 * 3600
_PART_SECONDS = 60.0
# A body that is too large is read and dropped up to here, so that the client sees the answer and not only a closed
# connection.
_DROPPED_BYTES = 64 * 2**20
CONTENT_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # widths of bars and places of points are style attributes
        "img-src 'self' data:",
        "connect-src 'self'",
        "frame-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    ]
)
_HEADERS = {
    b"content-security-policy": CONTENT_POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"SAMEORIGIN",
    # Nothing goes to other hosts, as with no-referrer. With that, browsers send `Origin: null` with a plain form, such
    # as the login, so that it could not be checked.
    b"referrer-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}


@dataclass(frozen=True)
class PageVisitor:
    """Who a request comes from.

    Attributes:
        session: random text that this server gave the browser, in an HttpOnly cookie.
        owner: name of the browser for lists of jobs; the same after a reload and a restart, and no secret.
        csrf_token: that changing requests of this browser carry.
        lang: a code of `LANGUAGES`: chosen on the page, or of the browser.
        cookie_path: for cookies of the page.
        is_secure: whether cookies are for https alone.
    """

    session: str
    owner: str
    csrf_token: str
    lang: str
    cookie_path: str
    is_secure: bool

    def format_cookie(self, name: str, value: str, max_age: int) -> tuple[bytes, bytes]:
        """A header that sets a cookie which no script can read; `max_age` 0 deletes it."""
        secure = "; Secure" if self.is_secure else ""
        cookie = f"{name}={value}; Path={self.cookie_path}; Max-Age={max_age}; HttpOnly; SameSite=Lax{secure}"
        return b"set-cookie", cookie.encode("latin-1")

    def format_language_cookie(self, lang: str) -> tuple[bytes, bytes]:
        """A header that keeps the language that was chosen, see `find_chosen_language`."""
        return self.format_cookie(LANGUAGE_COOKIE, lang, _COOKIE_SECONDS)


class RefusedRequestError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        reason: in the texts of the page: `ui.refused.REASON`.
        values: of the text's placeholders.
    """

    def __init__(self, status: int, reason: RefusalReason, **values: object):
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason: RefusalReason = reason
        self.values = values


def visitor_of(connection: Any) -> PageVisitor:
    """The visitor of a request.

    Args:
        connection: a request of Starlette, or its scope.
    """
    scope = connection if isinstance(connection, dict) else connection.scope
    visitor: PageVisitor = scope[_VISITOR]
    return visitor


def csrf_token(connection: Any) -> str:
    """The token that the page sends with changing requests, in the header `X-CSRF-Token`; see `visitor_of`."""
    return visitor_of(connection).csrf_token


def owner_of(connection: Any) -> str:
    """The name of the browser that sent a request, the same after a reload; see `visitor_of`."""
    return visitor_of(connection).owner


class PageGuard:
    """An ASGI application around the page.

    Args:
        app: what is guarded.
        rules: whose requests are answered.
        key: of the server, see `load_server_key`.
    """

    def __init__(self, app: ASGIApp, rules: PageRules, key: bytes):
        self._app = app
        self._rules = rules
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        scope = {**scope, **_place_below(self._rules.root_path, scope)}
        headers = read_headers(scope)
        visitor, is_new = self._identify(scope, headers)
        scope[_VISITOR] = visitor
        rule = self._rules.find_route(scope["path"].removeprefix(self._rules.root_path))
        body = _LimitedPageBody(receive, rule, headers.get("content-length", ""))
        answer = _GuardedAnswer(send, scope, headers, visitor if is_new else None)
        try:
            self._check_request(scope, headers, rule, visitor)
            body.check_declared_size()
            answer.body = body
            await self._app(scope, body, answer)
        except RefusedRequestError as error:
            answer.body = None
            await body.drop()
            await answer.refuse(error)

    def _identify(self, scope: Scope, headers: dict[str, str]) -> tuple[PageVisitor, bool]:
        """Returns: the visitor, and whether the browser has no session of this server yet."""
        sessions = [value for value in read_cookies(headers, SESSION_COOKIE) if _is_session(value)]
        session = sessions[0] if sessions else secrets.token_hex(_SESSION_BYTES)
        owner = sign(self._key, "owner", session)[:16]
        token = sign(self._key, "csrf", session)
        lang = choose_language(headers, self._rules.lang)
        is_secure = scope.get("scheme") == "https"
        return PageVisitor(session, owner, token, lang, self._rules.cookie_path, is_secure), not sessions

    def _check_request(self, scope: Scope, headers: dict[str, str], rule: RouteRule, visitor: PageVisitor) -> None:
        host = headers.get("host", "")
        if not self._rules.allows_host(host):
            port = (scope.get("server") or ("", 0))[1]
            raise RefusedRequestError(421, "host", host=host, port=port, prefix=headers.get("x-forwarded-prefix", ""))
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if scope["method"] in _SAFE_METHODS:
            is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            if site in ("cross-site", "same-site") and not is_link:
                raise RefusedRequestError(403, "embedded")
            return
        scheme = scope.get("scheme", "http")
        if origin is not None and not self._rules.allows_origin(origin, host, scheme):
            raise RefusedRequestError(403, "origin", origin=origin[:200])
        if site not in (None, "same-origin"):
            raise RefusedRequestError(403, "origin", origin=origin or site)
        if rule.needs_token and not is_signature(
            headers.get(TOKEN_HEADER.lower(), ""), self._key, "csrf", visitor.session
        ):
            raise RefusedRequestError(403, "token")


def read_headers(scope: Scope) -> dict[str, str]:
    """Headers by their names in lower case. Of one that is present several times the values are joined by `; `."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}; {text}" if key in headers else text
    return headers


def read_cookies(headers: Mapping[str, str], name: str) -> list[str]:
    """The values of a cookie: several where a browser has it for several paths."""
    pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    return [value for key, _, value in pairs if key == name]


def find_chosen_language(headers: Mapping[str, str]) -> str | None:
    """The language that was chosen on the page; None where none was."""
    return next((lang for lang in read_cookies(headers, LANGUAGE_COOKIE) if lang in LANGUAGES), None)


def choose_language(headers: Mapping[str, str], default: str) -> str:
    """The language that was chosen on the page, or the first one of the browser's that the page has."""
    chosen = find_chosen_language(headers)
    if chosen is not None:
        return chosen
    weights: dict[str, float] = {}
    for part in headers.get("accept-language", "")[:500].split(","):
        tag, _, quality = part.strip().partition(";")
        code = tag.strip().lower().partition("-")[0]
        try:
            weight = float(quality.strip().removeprefix("q=") or 1.0)
        except ValueError:
            weight = 0.0
        if code in LANGUAGES and 0 < weight <= 1:
            weights[code] = max(weight, weights.get(code, 0.0))
    return max(weights, key=lambda code: weights[code], default=default)


def _is_session(value: str) -> bool:
    return len(value) == 2 * _SESSION_BYTES and set(value) <= set("0123456789abcdef")


def _place_below(root_path: str, scope: Scope) -> dict[str, Any]:
    """The scope's paths with the root path, whether the proxy stripped it or not (ASGI: `path` includes it)."""
    path: str = scope["path"]
    if not root_path:
        return {}
    if path == root_path:
        path += "/"  # relative addresses of the page begin there
    elif not path.startswith(f"{root_path}/"):
        path = root_path + path
    raw: bytes = scope.get("raw_path") or b""
    if not raw.startswith(root_path.encode()):
        raw = root_path.encode() + raw
    return {"path": path, "raw_path": raw, "root_path": root_path}


class _LimitedPageBody:
    """Receives a request's body in limited size and time.

    Raises:
        RefusedRequestError: from `check_declared_size` and from receiving. Routes that catch it do no harm: the answer
            is replaced.
    """

    def __init__(self, receive: Receive, rule: RouteRule, declared: str):
        self._receive = receive
        self._rule = rule
        self._declared = parse_content_length(declared)
        self._deadline = None if rule.body_seconds is None else time.monotonic() + rule.body_seconds
        self._size = 0
        self._is_complete = False
        self.refusal: RefusedRequestError | None = None

    def check_declared_size(self) -> None:
        if self._declared > self._rule.body_bytes:
            raise self._refuse(413, "size", limit=self._rule.body_bytes)

    async def __call__(self) -> Message:
        if self.refusal is not None:
            raise self.refusal
        if self._is_complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._remaining_seconds())
        except asyncio.TimeoutError:
            raise self._refuse(408, "slow") from None
        if message["type"] != "http.request":
            return message
        self._size += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._size > self._rule.body_bytes:
            raise self._refuse(413, "size", limit=self._rule.body_bytes)
        return message

    async def drop(self) -> None:
        """Read what is left of a body that is refused, if that is little."""
        if self._declared > self._rule.body_bytes + _DROPPED_BYTES or (self.refusal and self.refusal.status == 408):
            return
        end = time.monotonic() + _PART_SECONDS
        while not self._is_complete and self._size < self._rule.body_bytes + _DROPPED_BYTES:
            try:
                message = await asyncio.wait_for(self._receive(), max(end - time.monotonic(), 0.001))
            except asyncio.TimeoutError:
                return
            self._size += len(message.get("body", b""))
            self._is_complete = message["type"] != "http.request" or not message.get("more_body", False)

    def _remaining_seconds(self) -> float:
        if self._deadline is None:
            return _PART_SECONDS
        return max(self._deadline - time.monotonic(), 0.001)

    def _refuse(self, status: int, reason: RefusalReason, **values: object) -> RefusedRequestError:
        self.refusal = RefusedRequestError(status, reason, **values)
        return self.refusal


class _GuardedAnswer:
    """Sends an answer with the guard's headers.

    Args:
        send: of the server.
        scope: of the request.
        headers: of the request.
        new_visitor: whose session cookie the answer sets.
    """

    def __init__(self, send: Send, scope: Scope, headers: dict[str, str], new_visitor: PageVisitor | None):
        self._send = send
        self._scope = scope
        self._request_headers = headers
        self._new_visitor = new_visitor
        self._has_started = False
        # Browsers ignore the header elsewhere, and say so in their console.
        self._is_trustworthy = scope.get("scheme") == "https" or is_loopback(get_hostname(headers.get("host", "")))
        self.body: _LimitedPageBody | None = None
        """Whose refusal replaces the answer of a route that caught it."""

    async def __call__(self, message: Message) -> None:
        if self.body is not None and self.body.refusal is not None and not self._has_started:
            raise self.body.refusal
        if message["type"] == "http.response.start":
            self._has_started = True
            message = {**message, "headers": self._add_headers(message.get("headers", []))}
        await self._send(message)

    async def refuse(self, error: RefusedRequestError) -> None:
        """Answer with the reason: a page for a person, lines for a script, JSON for a program. Nothing if an answer has
        begun."""
        if self._has_started:
            return
        visitor = visitor_of(self._scope)
        accepted = self._request_headers.get("accept", "")
        is_page = "text/html" in accepted and "hx-request" not in self._request_headers
        home = "" if error.reason == "host" else f"{self._scope.get('root_path', '')}/"
        text = render_refusal(error.reason, visitor.lang, is_page=is_page, home=home, **error.values)
        kind = "text/html" if is_page else "text/plain"
        if "application/json" in accepted and not is_page:
            message, _, hint = text.strip().partition("\n")
            kind, text = "application/json", json.dumps({"error": {"message": message, "hint": hint}})
        body = text.encode("utf-8", "replace")
        headers = [
            (b"content-type", f"{kind}; charset=utf-8".encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        if error.status in (408, 413):
            headers.append((b"connection", b"close"))
        await self({"type": "http.response.start", "status": error.status, "headers": headers})
        await self({"type": "http.response.body", "body": b"" if self._scope["method"] == "HEAD" else body})

    def _add_headers(self, headers: Any) -> list[tuple[bytes, bytes]]:
        result = [(bytes(name).lower(), bytes(value)) for name, value in headers]
        names = {name for name, _ in result}
        # A stricter policy of a route (a report's sandbox) stays: the browser applies all of them.
        fixed = {name for name in _HEADERS if name != b"content-security-policy"}
        result = [(name, value) for name, value in result if name not in fixed]
        result += _HEADERS.items()
        if self._is_trustworthy:
            result.append((b"cross-origin-opener-policy", b"same-origin"))
        if b"cache-control" not in names:
            result.append((b"cache-control", b"no-store"))
        if self._new_visitor is not None:
            result.append(self._new_visitor.format_cookie(SESSION_COOKIE, self._new_visitor.session, _COOKIE_SECONDS))
        return [self._shorten_location(name, value) for name, value in result]

    def _shorten_location(self, name: bytes, value: bytes) -> tuple[bytes, bytes]:
        """Redirects to this server without its name: behind a proxy the scheme of the server is not the browser's."""
        host = self._request_headers.get("host", "")
        start = f"{self._scope.get('scheme', 'http')}://{host}/".encode("latin-1")
        if name == b"location" and value.startswith(start):
            value = b"/" + value[len(start) :].lstrip(b"/")
        return name, value
