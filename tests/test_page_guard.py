"""The guard around the page: names of the server, requests from elsewhere, tokens, sizes, proxies."""

from __future__ import annotations

import asyncio
import os
import re
import shlex

import pytest

pytest.importorskip("starlette", reason="the page's extra is not installed")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from glmtune.errors import ServerError
from glmtune.webui.guard import SESSION_COOKIE, PageGuard, csrf_token, owner_of, visitor_of
from glmtune.webui.page_rules import PageRules, RouteRule, parse_root_path, parse_trusted_host, require_password
from glmtune.webui.server_key import KEY_FILE, load_server_key

HERE = "http://127.0.0.1:7860"
KEY = bytes(range(32))
DELETED = []


async def show_home(request: Request):
    return HTMLResponse(f"<p>{csrf_token(request)}</p>")


async def show_visitor(request: Request):
    return JSONResponse({"owner": owner_of(request), "lang": visitor_of(request).lang, "path": request.url.path})


async def delete_something(request: Request):
    try:
        body = await request.body()
    except Exception:  # a route that catches everything changes nothing about the refusal
        return PlainTextResponse("caught")
    DELETED.append(body)
    return PlainTextResponse("deleted")


async def show_report(request: Request):
    return HTMLResponse("<h1>report</h1>", headers={"content-security-policy": "sandbox", "referrer-policy": "origin"})


async def stream_lines(request: Request):
    async def produce():
        for number in range(3):
            yield f"data: {number}\n\n"

    return StreamingResponse(produce(), media_type="text/event-stream")


async def talk(websocket):
    await websocket.accept()


async def go_home(request: Request):
    return RedirectResponse(str(request.url_for("home")))


PAGE = Starlette(
    routes=[
        Route("/", show_home, name="home"),
        Route("/visitor", show_visitor),
        Route("/report", show_report),
        Route("/events", stream_lines),
        Route("/go", go_home),
        Route("/delete", delete_something, methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
        Route("/v1/chat", delete_something, methods=["POST"]),
        WebSocketRoute("/socket", talk),
    ]
)


def open_page(base_url=HERE, **rules):
    DELETED.clear()
    return TestClient(PageGuard(PAGE, PageRules(**rules), KEY), base_url=base_url, follow_redirects=False)


def read_token(client, path="/"):
    return re.search("<p>(.*)</p>", client.get(path).text)[1]


# Names


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "localhost.:80", "[::1]:7860", "127.8.8.8"]
)
def test_own_names_are_answered(host):
    assert open_page().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:7860",
        "0.0.0.0:7860",
        "",
        "[::2]",
        "évil",
        "a b",
    ],
)
def test_other_names_are_refused(host):
    answer = open_page().get("/", headers={"host": host.encode("latin-1"), "accept": "text/html"})
    assert answer.status_code == 421
    assert "home" not in answer.text


def test_trusted_names_are_answered_at_any_port_or_at_the_given_one():
    client = open_page(trusted_hosts=frozenset({"hub.example.org", "u1.example.com:8443"}))
    for host, status in {
        "hub.example.org": 200,
        "Hub.Example.ORG:443": 200,
        "u1.example.com:8443": 200,
        "u1.example.com": 421,
        "x.hub.example.org": 421,
        "hub.example.org.evil.example": 421,
    }.items():
        assert client.get("/", headers={"host": host}).status_code == status, host


def test_a_server_with_a_password_answers_any_name_unless_some_are_trusted():
    assert open_page(is_local=False).get("/", headers={"host": "gpu-box:7860"}).status_code == 200
    limited = open_page(is_local=False, trusted_hosts=frozenset({"gpu-box"}))
    assert limited.get("/", headers={"host": "gpu-box:7860"}).status_code == 200
    assert limited.get("/", headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize(("language", "word"), [("zh-CN,zh;q=0.9,en;q=0.5", "代理"), ("de, en;q=0.3", "proxy")])
def test_the_page_for_a_wrong_name_says_how_to_reach_the_server(language, word):
    headers = {
        "host": "hub.example.org",
        "accept": "text/html,*/*",
        "accept-language": language,
        "x-forwarded-prefix": "/user/me/proxy/7860/",
    }
    answer = open_page().get("/", headers=headers)
    assert word in answer.text
    assert f'<html lang="{"zh-CN" if word != "proxy" else "en"}">' in answer.text
    commands = re.findall("<code>(.*)</code>", answer.text)
    assert commands[0].startswith("ssh -L ")
    words = shlex.split(commands[2])
    assert words[-4:] == ["--trusted-host", "hub.example.org", "--root-path", "/user/me/proxy/7860"]
    assert parse_trusted_host(words[-3]) == "hub.example.org"
    assert parse_root_path(words[-1]) == "/user/me/proxy/7860"


def test_what_a_wrong_name_holds_is_neither_markup_nor_part_of_a_command():
    headers = {"host": "<b>;rm -rf ~</b>", "accept": "text/html", "x-forwarded-prefix": "/x;reboot"}
    text = open_page().get("/", headers=headers).text
    assert "<b>" not in text
    assert "reboot" not in text
    assert "--trusted-host NAME" in text


# Requests that change something


def test_a_request_with_the_token_is_answered():
    client = open_page()
    token = read_token(client)
    assert client.post("/delete", headers={"x-csrf-token": token}).text == "deleted"
    ours = {"x-csrf-token": token, "origin": HERE, "sec-fetch-site": "same-origin"}
    assert client.delete("/delete", headers=ours).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://localhost:7860"},
        {"origin": "http://127.0.0.1"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://[::"},
        {"origin": "file://127.0.0.1:7860"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "none"},
        {"origin": HERE, "sec-fetch-site": "cross-site"},
    ],
)
def test_a_request_of_another_page_changes_nothing(method, headers):
    client = open_page()
    # Even with a token: that of a browser whose cookie another page on this machine has set, say.
    token = read_token(client)
    answer = client.request(method, "/delete", headers={**headers, "x-csrf-token": token})
    assert answer.status_code == 403
    assert DELETED == []


@pytest.mark.parametrize("kind", ["none", "empty", "other browser", "other key", "wrong", "not ascii"])
def test_a_request_without_the_right_token_changes_nothing(kind):
    client = open_page()
    read_token(client)
    other = TestClient(PageGuard(PAGE, PageRules(), bytes(32)), base_url=HERE)
    other.cookies.set(SESSION_COOKIE, client.cookies[SESSION_COOKIE])
    headers = {
        "none": {},
        "empty": {"x-csrf-token": ""},
        "other browser": {"x-csrf-token": read_token(open_page())},
        "other key": {"x-csrf-token": read_token(other)},
        "wrong": {"x-csrf-token": "0" * 64},
        "not ascii": {"x-csrf-token": "é" * 64},
    }[kind]
    for extra in ({}, {"origin": HERE, "sec-fetch-site": "same-origin"}):
        raw = {name: value.encode("latin-1") for name, value in {**headers, **extra}.items()}
        answer = client.post("/delete", headers=raw)
        assert answer.status_code == 403
        assert "token" in answer.text
    assert DELETED == []


def test_a_made_up_session_gets_a_new_one():
    client = open_page()
    for value in ("", "x" * 32, "0" * 31, "0" * 33):
        answer = client.get("/", headers={"cookie": f"{SESSION_COOKIE}={value}"})
        assert SESSION_COOKIE in answer.headers["set-cookie"]


def test_an_interface_for_programs_needs_no_token_and_still_no_other_page():
    client = open_page(routes=(RouteRule("/v1", needs_token=False),))
    assert client.post("/v1/chat").status_code == 200
    assert client.post("/v1/chat", headers={"origin": "http://127.0.0.1:9999"}).status_code == 403
    assert client.post("/v1/chat", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.post("/delete").status_code == 403


@pytest.mark.parametrize(
    ("fetch", "status"),
    [
        ({"site": "cross-site", "mode": "navigate", "dest": "document"}, 200),  # a link
        ({"site": "same-site", "mode": "navigate", "dest": "iframe"}, 403),
        ({"site": "cross-site", "mode": "no-cors", "dest": "image"}, 403),
        ({"site": "same-site", "mode": "cors", "dest": "empty"}, 403),
        ({"site": "same-origin", "mode": "cors", "dest": "empty"}, 200),
        ({"site": "none", "mode": "navigate", "dest": "document"}, 200),
    ],
)
def test_other_pages_may_link_here_and_load_nothing(fetch, status):
    headers = {f"sec-fetch-{name}": value for name, value in fetch.items()}
    assert open_page().get("/", headers=headers).status_code == status


def test_a_web_socket_is_refused():
    with pytest.raises(WebSocketDisconnect), open_page().websocket_connect("/socket"):
        pass


# What a browser is sent


def test_every_answer_has_the_headers():
    client = open_page()
    for answer in (
        client.get("/"),
        client.get("/nothing"),
        client.get("/report"),
        client.get("/events"),
        client.post("/delete"),
        client.get("/", headers={"host": "evil.example"}),
    ):
        policies = answer.headers.get_list("content-security-policy")
        policy = policies[-1]
        assert "default-src 'self'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'self'" in policy
        assert "unsafe-eval" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers.get_list("referrer-policy") == ["same-origin"]
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert client.get("/report").headers.get_list("content-security-policy")[0] == "sandbox"
    assert client.get("/").headers["cross-origin-opener-policy"] == "same-origin"


def test_the_session_is_the_same_after_a_reload_and_hidden_from_scripts():
    client = open_page()
    first = client.get("/visitor")
    cookie = first.headers["set-cookie"]
    assert re.fullmatch(rf"{SESSION_COOKIE}=[0-9a-f]{{32}}; Path=/; Max-Age=\d+; HttpOnly; SameSite=Lax", cookie)
    second = client.get("/visitor", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate",
                                             "sec-fetch-dest": "document"})  # fmt: skip
    assert second.json()["owner"] == first.json()["owner"]
    assert "set-cookie" not in second.headers
    assert first.json()["owner"] not in cookie
    assert open_page().get("/visitor").json()["owner"] != first.json()["owner"]


def test_cookies_are_for_https_alone_where_that_is_spoken():
    assert open_page("https://127.0.0.1:7860").get("/").headers["set-cookie"].endswith("; Secure")


@pytest.mark.parametrize(
    ("header", "cookie", "lang"),
    [
        ("zh-CN", "", "zh"),
        ("fr, zh;q=0.4, en;q=0.6", "", "en"),
        ("fr", "", "en"),
        (";;q=,zh;q=x", "", "en"),
        ("en", "glmtune_lang=zh", "zh"),
        ("zh", "glmtune_lang=<x>", "zh"),
    ],
)
def test_the_language_is_the_chosen_one_or_that_of_the_browser(header, cookie, lang):
    headers = {"accept-language": header, "cookie": cookie}
    assert open_page().get("/visitor", headers=headers).json()["lang"] == lang


# Sizes


def test_a_body_that_is_too_large_is_refused_whatever_the_route_does():
    client = open_page(routes=(RouteRule("/delete", body_bytes=10),))
    ours = {"x-csrf-token": read_token(client)}
    assert client.post("/delete", content=b"0123456789", headers=ours).text == "deleted"
    declared = client.post("/delete", content=b"0123456789x", headers=ours)
    assert declared.status_code == 413
    assert "10 bytes" in declared.text
    streamed = client.post("/delete", content=iter([b"01234", b"56789", b"x"]), headers=ours)
    assert streamed.status_code == 413
    assert DELETED == [b"0123456789"]


def ask_directly(rule, receive, *headers):
    """A POST with the token, part by part: status, headers of the answer and the bodies that the route read."""
    client = open_page()
    token = read_token(client)
    session = client.cookies["glmtune_session"]
    own = {"host": "127.0.0.1:7860", "x-csrf-token": token, "cookie": f"glmtune_session={session}", **dict(headers)}
    scope = {"type": "http", "method": "POST", "path": "/delete", "raw_path": b"/delete", "query_string": b""}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in own.items()]
    answer = []

    async def send(message):
        answer.append(message)

    guard = PageGuard(PAGE, PageRules(routes=(rule,)), KEY)
    asyncio.run(asyncio.wait_for(guard(scope, receive, send), 20))
    return answer[0]["status"], dict(answer[0]["headers"]), list(DELETED)


def test_a_body_that_is_announced_as_too_large_is_not_read():
    async def receive():
        raise AssertionError("read")

    status, headers, bodies = ask_directly(RouteRule("/delete", 10), receive, ("content-length", str(10**12)))
    assert (status, headers[b"connection"], bodies) == (413, b"close", [])


@pytest.mark.parametrize("parts", [0, 1])
def test_a_body_that_does_not_arrive_is_refused_in_time(parts):
    left = [{"type": "http.request", "body": b"0", "more_body": True}] * parts

    async def receive():
        if left:
            return left.pop()
        await asyncio.sleep(3600)

    status, headers, bodies = ask_directly(RouteRule("/delete", 10, body_seconds=0.05), receive)
    assert (status, headers[b"connection"], bodies) == (408, b"close", [])


def test_what_is_refused_is_read_so_that_the_client_sees_the_answer():
    parts = [b"012345", b"6789ab", b"c"]

    async def receive():
        body = parts.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(parts)}

    assert ask_directly(RouteRule("/delete", 10), receive)[0] == 413
    assert not parts


def test_the_longest_prefix_rules():
    rules = PageRules(routes=(RouteRule("/a", 1), RouteRule("/a/b", 2)))
    assert [rules.find_route(path).body_bytes for path in ("/a", "/a/c", "/a/b/c", "/a/bc")] == [1, 1, 2, 1]
    assert rules.find_route("/ab") == RouteRule("/")


# Proxies


@pytest.mark.parametrize("path", ["/me/proxy/7860/visitor", "/visitor"])
def test_a_prefix_may_be_stripped_by_the_proxy_or_not(path):
    client = open_page(root_path="/me/proxy/7860")
    answer = client.get(path)
    assert answer.json()["path"] == "/me/proxy/7860/visitor"
    assert "Path=/me/proxy/7860;" in answer.headers["set-cookie"]


def test_a_prefix_alone_is_the_home_page():
    client = open_page(root_path="/me")
    assert client.get("/me").status_code == client.get("/me/").status_code == client.get("/").status_code == 200
    assert client.get("/mexico").status_code == 404


def test_redirects_keep_the_scheme_and_name_of_the_browser():
    client = open_page("http://hub.example.org", trusted_hosts=frozenset({"hub.example.org"}), root_path="/me")
    assert client.get("/go").headers["location"] == "/me/"


def test_a_request_through_a_proxy_has_the_proxy_as_origin():
    rules = {"trusted_hosts": frozenset({"hub.example.org", "u1.example.com:8443"})}
    client = open_page("http://hub.example.org", **rules)
    ours = {"x-csrf-token": read_token(client), "sec-fetch-site": "same-origin"}
    assert client.post("/delete", headers={**ours, "origin": "https://hub.example.org"}).status_code == 200
    assert client.post("/delete", headers={**ours, "origin": "https://hub.example.org:444"}).status_code == 403
    # A proxy that sends the server's own address as Host.
    client = open_page(**rules)
    ours = {"x-csrf-token": read_token(client)}
    assert client.post("/delete", headers={**ours, "origin": "https://hub.example.org"}).status_code == 200
    assert client.post("/delete", headers={**ours, "origin": "https://u1.example.com:8443"}).status_code == 200
    assert client.post("/delete", headers={**ours, "origin": "https://u1.example.com"}).status_code == 403
    assert client.post("/delete", headers={**ours, "origin": "https://hub.example.org:9000"}).status_code == 403


@pytest.mark.parametrize("text", ["https://hub.example.org/user", "*.example.org", "", "a b", "x/y", "é"])
def test_a_trusted_host_is_a_name(text):
    with pytest.raises(ServerError, match="--trusted-host") as error:
        parse_trusted_host(text)
    assert "--trusted-host" in error.value.hint
    assert "hub.example.org" in error.value.hint or text == "x/y"


@pytest.mark.parametrize("text", ["me", "/a/../b", "/a//b", "/a b", "/a?b", "//evil.example", "https://x/y"])
def test_a_root_path_is_a_path(text):
    with pytest.raises(ServerError, match="--root-path"):
        parse_root_path(text)


def test_a_root_path_is_none_of_the_pages_own():
    assert parse_root_path("/a/b/") == "/a/b"
    assert parse_root_path("/") == ""
    with pytest.raises(ServerError, match="has a path of that name"):
        parse_root_path("/runs", frozenset({"/runs"}))


def test_an_open_address_needs_a_password():
    require_password("127.0.0.1", None)
    require_password("0.0.0.0", "x")
    with pytest.raises(ServerError, match="whoever reaches"):
        require_password("0.0.0.0", "")


# The key


def test_the_key_is_kept_and_private(tmp_path):
    key = load_server_key(tmp_path / "state")
    assert len(key) == 32
    assert load_server_key(tmp_path / "state") == key
    assert load_server_key(tmp_path / "other") != key
    assert os.stat(tmp_path / "state" / KEY_FILE).st_mode & 0o077 == 0


@pytest.mark.parametrize("kind", ["link", "short", "long", "folder"])
def test_a_file_that_is_no_key_is_refused(tmp_path, kind):
    path = tmp_path / KEY_FILE
    if kind == "link":
        (tmp_path / "known").write_bytes(bytes(32))
        path.symlink_to(tmp_path / "known")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(bytes(31 if kind == "short" else 33))
    with pytest.raises(ServerError, match=re.escape(str(path))):
        load_server_key(tmp_path)
