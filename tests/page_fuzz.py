"""Send what nobody should to every route of the page: foreign paths, ids and types, from a seeded generator.

    result = fuzz_page(app, key=load_server_key(state), root=root, outside=outside)
    assert result.failures == [], result

The app is the guarded one. Whatever is sent, an answer comes (no exception, no status of 500 and above), nothing that
is outside of the root is in it, listed, opened or changed, and markup that was sent does not come back as markup.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from open_recorder import OpenRecorder

from glmtune.webui.guard import SESSION_COOKIE
from glmtune.webui.server_key import sign

SECRET = "a-secret-of-another-folder"
MARKUP = "<script>fuzz()</script>"
SESSION = "0123456789abcdef" * 2
_TIMEOUT_S = 20.0
_STREAM_PARTS = 3


@dataclass
class FuzzResult:
    """What was sent and what went wrong.

    Attributes:
        requests: number of requests by `METHOD ROUTE`.
        statuses: number of answers by status.
        failures: one line each, with what to send to see it again.
    """

    requests: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{sum(self.requests.values())} requests to {len(self.requests)} routes, {dict(self.statuses)}"
        return "\n".join([head, *self.failures[:20]])


@dataclass
class _Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def write_secrets(outside: Path) -> Path:
    """Fill a folder with files of the kinds that the page reads, each with a secret in it."""
    outside.mkdir(parents=True, exist_ok=True)
    row = json.dumps({"instruction": SECRET, "output": SECRET})
    for name in ("rows.jsonl", "rows.json", "notes.md", "report.html", "metrics.jsonl", "predictions.jsonl"):
        (outside / name).write_text(f"{row}\n")
    for name in ("config.json", "dataset_info.json", "summary.json", "progress.json", "adapter_config.json"):
        (outside / name).write_text(json.dumps({"entry": {"file_name": SECRET}, "model_type": SECRET}))
    (outside / "config.yaml").write_text(f"model:\n  path: {SECRET}\n")
    return outside


def link_secrets(root: Path, outside: Path) -> None:
    """Make links in the root that lead out: a file, a folder, a file far below, a whole run."""
    deep = root / "linked" / "a" / "b"
    deep.mkdir(parents=True, exist_ok=True)
    for path, target in (
        (root / "linked" / "rows.jsonl", outside / "rows.jsonl"),
        (deep / "rows.jsonl", outside / "rows.jsonl"),
        (deep / "folder", outside),
        (root / "linked" / "run", outside),
    ):
        path.symlink_to(target)


def make_foreign_values(root: Path, outside: Path) -> list[str]:
    """Values that no field and no part of a path should take as they are."""
    relative = os.path.relpath(outside, root)
    return [
        *(str(outside), f"{outside}/rows.jsonl", f"{outside}/config.yaml", f"{outside}/*", f"{outside}/**"),
        *(
            relative,
            f"{relative}/rows.jsonl",
            f"x/../{relative}/rows.jsonl",
            f"{relative}/*.json*",
            f"file://{outside}",
        ),
        *("linked", "linked/rows.jsonl", "linked/run", "linked/a/b/folder/rows.jsonl", "linked/**", "linked/a/b/*"),
        *("**/*", "**/folder/*.jsonl", "linked/a/b/folder:entry", f"{outside}:entry"),
        *("..", "../..", "/", "/etc/passwd", "/proc/self/environ", "~", "~root/.bashrc", "....//....//etc/passwd"),
        *("..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e", "..\\..\\etc\\passwd", "C:\\windows\\win.ini", "\\\\host\\share"),
        *(".glmtune-ui/server.key", ".glmtune-ui", ".glmtune-ui/jobs", ".git/config", "/dev/zero", "/dev/null"),
        *("", " ", "\0", "a\0b", "\n", "\r\nSet-Cookie: x=y", "\x1b[2J", "\ud800", "\u202e", "é" * 300, "x" * 5000),
        *("0", "-1", "1e309", "NaN", "Infinity", "9" * 400, "0x10", "1_000", "١٢", "1.5", "true", "null", "None"),
        *(
            MARKUP,
            f'">{MARKUP}',
            f"'>{MARKUP}",
            f"</textarea>{MARKUP}",
            "javascript:fuzz()",
            f"**[x](javascript:{MARKUP})**",
        ),
        *("{{7*7}}", "{0.__class__}", "%s%n", "${jndi:x}", "`reboot`", "; reboot", "--help", "-rf", "@/etc/passwd"),
        *("!!python/object/apply:os.system ['true']", "a: &x [*x]", "[" * 3000, "{" * 3000, '{"a":' * 500, "- " * 3000),
        *("http://127.0.0.1:1/", "http://169.254.169.254/latest", "org/name/../..", "train --resume", "model.path"),
    ]


def fuzz_page(
    app: Any,
    *,
    key: bytes,
    root: Path,
    outside: Path,
    cookies: str = "",
    fields: Collection[str] = (),
    good: Collection[str] = ("1", "on"),
    skip: Collection[str] = (),
    rounds: int = 12,
    seed: int = 0,
    routes: Any = None,
) -> FuzzResult:
    """Send foreign values to every route.

    Args:
        app: the page with its guard.
        key: of the server, for the token.
        root: that the page may use.
        outside: made by `write_secrets`; nothing of it may be opened.
        cookies: further ones, such as that of a login.
        fields: names of form fields, beside those that are found in the pages.
        good: values that the page takes, such as names of files in the root: with them the foreign ones get further.
        skip: paths of routes that are not called, as `METHOD PATH`.
        rounds: requests to each route and method.
        seed: of the generator.
        routes: of the page without its guard; `app.routes` when None.
    """
    fuzzer = _Fuzzer(app, key, root, outside, cookies, list(good), seed)
    return asyncio.run(fuzzer.run(routes or app.routes, fields, skip, rounds))


class _Fuzzer:
    def __init__(self, app: Any, key: bytes, root: Path, outside: Path, cookies: str, good: list[str], seed: int):
        self._app = app
        self._outside = outside
        self._random = random.Random(seed)
        self._values = make_foreign_values(root, outside)
        self._good = good
        self._names: dict[str, list[str]] = {}  # by first part of a path
        self._headers = {
            "host": "localhost",
            "cookie": f"{SESSION_COOKIE}={SESSION}; {cookies}".strip("; "),
            "x-csrf-token": sign(key, "csrf", SESSION),
            "accept": "text/html",
        }
        self._result = FuzzResult()
        self._recorder = OpenRecorder(outside)

    async def run(self, routes: Any, fields: Collection[str], skip: Collection[str], rounds: int) -> FuzzResult:
        all_places = [place for place in list_routes(routes) if f"{place[0]} {place[1]}" not in skip]
        places = [(method, path) for method, path, _ in all_places]
        before = _take_snapshot(self._outside)
        self._recorder.read_names()
        for method, path, endpoint in all_places:
            names = {*fields, *_find_read_names(endpoint)}
            if method == "GET" and "{" not in path:
                names |= set(await self._find_names(path))
            self._names[_first(path)] = sorted(names | set(self._names.get(_first(path), ())))
        for method, path in places:
            for number in range(rounds):
                await self._send_one(method, path, number)
        if _take_snapshot(self._outside) != before:
            self._result.failures.append("a file outside was changed")
        self._recorder.close()
        return self._result

    async def _find_names(self, path: str) -> list[str]:
        """Names of fields on a page."""
        answer = await self._call("GET", path, {}, b"")
        return re.findall(r'\bname="([^"{}]+)"', answer.body.decode("utf-8", "replace"))

    async def _send_one(self, method: str, path: str, number: int) -> None:
        choose = self._random.choice
        target = re.sub(r"\{[^}]*\}", lambda _: self._quote(choose(choose((self._values, self._good)))), path)
        share = choose((0.0, 0.3, 0.8))  # of good values
        values = [self._good if self._random.random() < share else self._values for _ in range(20)]
        pairs = [(name, choose(pool)) for name, pool in zip(self._choose_names(_first(path)), values, strict=False)]
        headers, body = self._make_body(pairs) if method not in ("GET", "HEAD") else ({}, b"")
        if method in ("GET", "HEAD", "DELETE") or number % 4 == 3:
            target += f"?{_encode(pairs)}"
        if number % 3 == 2:
            headers["hx-request"] = "true"
        if number % 5 == 4:
            headers["accept"] = "application/json"
        place = f"{method} {path}"
        self._result.requests[place] += 1
        what = f"{method} {target[:300]} {headers.get('content-type', '')} {body[:300]!r}"
        try:
            answer = await self._call(method, target, headers, body)
        except Exception as error:
            self._fail(what, f"{type(error).__name__}: {str(error)[:200]}")
            return
        self._result.statuses[answer.status] += 1
        self._check(answer, what)
        # The same request without a token, and from another page, changes nothing: it is not even answered.
        if method not in ("GET", "HEAD"):
            for refused in ({"x-csrf-token": ""}, {"origin": "http://localhost:1"}):
                again = await self._call(method, target, {**headers, **refused}, body)
                if again.status != 403:
                    self._fail(what, f"answered with {refused}: {again.status}")

    def _check(self, answer: _Answer, what: str) -> None:
        text = answer.body.decode("utf-8", "replace")
        is_markup = "html" in answer.headers.get("content-type", "html")
        if answer.status >= 500 and answer.status != 507:
            self._fail(what, f"status {answer.status}: {text[:200]}")
        if SECRET in text:
            self._fail(what, "what is outside is in the answer")
        if "Traceback (most recent call last)" in text:
            self._fail(what, "a traceback is in the answer")
        if is_markup and MARKUP in text:
            self._fail(what, "markup comes back as markup")
        if "content-security-policy" not in answer.headers:
            self._fail(what, "the answer has no policy")
        if "x=y" in answer.headers.get("set-cookie", ""):
            self._fail(what, "a header was injected")
        opened = self._recorder.read_names()
        if opened:
            self._fail(what, f"opened outside: {opened[:3]}")

    def _fail(self, what: str, problem: str) -> None:
        self._result.failures.append(f"{problem}\n    {what}")

    def _choose_names(self, place: str) -> list[str]:
        names = self._names.get(place, [])
        count = self._random.randint(0, min(12, len(names)))
        return [*self._random.sample(names, count), self._random.choice(["x", "id", "path", "name", ""])]

    def _make_body(self, pairs: list[tuple[str, str]]) -> tuple[dict[str, str], bytes]:
        kind = self._random.randrange(6)
        if kind < 3:
            return {"content-type": "application/x-www-form-urlencoded"}, _encode(pairs).encode()
        if kind == 3:
            value = self._random.choice([dict(pairs), list(pairs), None, 1, "x", {"messages": [dict(pairs)]}])
            return {"content-type": "application/json"}, json.dumps(value).encode()
        if kind == 4:
            return {"content-type": "multipart/form-data; boundary=x"}, b"--x\r\nbroken\r\n\r\n--x--"
        return {"content-type": self._random.choice(["", "text/plain", "a/b"])}, self._random.randbytes(300)

    def _quote(self, value: str) -> str:
        """A value as a part of a path; now and then as several parts."""
        safe = "/" if self._random.random() < 0.5 else ""
        return quote(value.encode("utf-8", "surrogatepass"), safe=safe) or "-"

    async def _call(self, method: str, target: str, headers: dict[str, str], body: bytes) -> _Answer:
        """Call the application as a server does. Of an endless answer, the first parts are read."""
        raw, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": _unquote(raw),
            "raw_path": raw.encode("ascii", "replace"),
            "query_string": query.encode("ascii", "replace"),
            "root_path": "",
            "headers": [
                (name.encode(), value.encode("latin-1", "replace"))
                for name, value in {**self._headers, "content-length": str(len(body)), **headers}.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        answer = _Answer()
        is_over = asyncio.Event()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])
        parts = 0

        async def receive() -> dict[str, Any]:
            for message in messages:
                return message
            await is_over.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal parts
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                for name, value in message["headers"]:
                    key = name.decode("latin-1").lower()
                    answer.headers[key] = f"{answer.headers.get(key, '')}{value.decode('latin-1')}\n"
                return
            await asyncio.sleep(0)  # as a socket would: an endless answer lets others run
            if is_over.is_set():
                return
            answer.body += message.get("body", b"")
            parts += 1
            is_stream = answer.headers.get("content-type", "").startswith("text/event-stream")
            if not message.get("more_body") or (is_stream and parts >= _STREAM_PARTS):
                is_over.set()

        task = asyncio.create_task(self._app(scope, receive, send))
        done, _ = await asyncio.wait({task}, timeout=_TIMEOUT_S)
        if not done:
            is_over.set()
            done, _ = await asyncio.wait({task}, timeout=_TIMEOUT_S)
        if not done:
            task.cancel()
            raise TimeoutError(f"no end within {2 * _TIMEOUT_S:g} s")
        await task
        return answer


def list_routes(routes: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Method, path and function of all routes, those of mounted applications included."""
    for route in routes:
        path = prefix + getattr(route, "path", "")
        below = getattr(route, "routes", None)
        if below:
            yield from list_routes(below, path)
        elif getattr(route, "methods", None):
            yield from ((method, path, route.endpoint) for method in sorted(route.methods - {"HEAD"}))
        else:  # a folder of files
            yield "GET", f"{path}/{{path}}", None


def _find_read_names(endpoint: Any) -> list[str]:
    """Names of fields that the module of a function reads: `form.get("data")`."""
    module = inspect.getmodule(endpoint) if endpoint is not None else None
    source = inspect.getsource(module) if module is not None else ""
    return re.findall(r"""\.(?:get|get_\w+|has)\(\s*["']([\w.-]+)["']""", source)


def _first(path: str) -> str:
    return path.strip("/").partition("/")[0]


def _encode(pairs: list[tuple[str, str]]) -> str:
    return urlencode([(name, value.encode("utf-8", "surrogatepass")) for name, value in pairs])


def _unquote(path: str) -> str:
    from urllib.parse import unquote

    return unquote(path)


def _take_snapshot(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns, path.lstat().st_size) for path in [folder, *folder.rglob("*")])
