"""The password of the page: login, logout, attempts, and what others see without it."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("starlette", reason="the page's extra is not installed")

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from glmtune.webui import sessions
from glmtune.webui.app import make_app, make_context
from glmtune.webui.login_attempts import (
    FREE_FAILURES,
    MAX_WAIT_SECONDS,
    TOTAL_FAILURES,
    TOTAL_INTERVAL_SECONDS,
    LoginAttempts,
)
from glmtune.webui.page_rules import PageRules, RouteRule
from glmtune.webui.server_key import load_server_key
from glmtune.webui.sessions import LIFETIME_SECONDS, PasswordSessions, _choose_target, guard_page

HERE = "http://127.0.0.1:7860"
PASSWORD = "correct horse"


async def show_secret(request):
    return PlainTextResponse("secret")


PAGE = Starlette(
    routes=[
        Route("/", show_secret, methods=["GET", "POST"]),
        Route("/runs", show_secret),
        Route("/v1/chat", show_secret, methods=["POST"]),
    ]
)


def open_page(folder, password=PASSWORD, base_url=HERE, **rules):
    app = guard_page(PAGE, PageRules(**rules), folder, password, roots=[folder])
    return TestClient(app, base_url=base_url, follow_redirects=False)


def find_token(answer):
    return re.search('name="csrf_token" value="([0-9a-f]*)"', answer.text)[1]


def log_in(client, password=PASSWORD, path="/login", target="", **headers):
    token = find_token(client.get(path, headers={"accept": "text/html"}))
    fields = {"password": password, "csrf_token": token, "next": target}
    return client.post(path, data=fields, headers={"accept-language": "en", **headers})


@pytest.fixture(autouse=True)
def quick_scrypt(monkeypatch):
    monkeypatch.setitem(sessions._SCRYPT, "n", 2**8)


@pytest.fixture
def page(tmp_path):
    return open_page(tmp_path)


def test_without_a_password_there_is_no_login(tmp_path):
    client = open_page(tmp_path, password=None)
    assert client.get("/").text == "secret"
    assert client.get("/login").status_code == 404


def test_health_is_answered_without_a_login(tmp_path):
    """Of the real page: a container's health check has no password, and learns nothing but that the page answers."""
    client = TestClient(make_app(make_context([tmp_path], "en", locked=True), password=PASSWORD), base_url=HERE)
    assert client.get("/health").json() == {"status": "ok"}
    assert client.post("/health").status_code in (401, 403, 405)
    assert client.get("/runs", headers={"accept": "application/json"}).status_code == 401


def test_who_is_not_logged_in_sees_the_login_alone(page):
    answer = page.get("/runs?page=2&x=a%26b", headers={"accept": "text/html"})
    assert answer.status_code == 303
    place = urlsplit(answer.headers["location"])
    assert place.path == "/login"
    assert parse_qs(place.query) == {"next": ["/runs?page=2&x=a%26b"]}
    assert page.get("/runs").status_code == 401
    assert page.get("/nothing").status_code == 401
    part = page.get("/runs", headers={"hx-request": "true", "hx-current-url": f"{HERE}/chat?m=1#x"})
    assert part.status_code == 401
    assert part.headers["hx-redirect"] == "/login?next=%2Fchat%3Fm%3D1"
    for path in ("/login/", "/login/../runs", "//login", "/LOGIN", "/login%2f..%2fruns"):
        assert "secret" not in page.get(path).text, path


def test_the_password_lets_in_and_leads_to_where_the_person_was(page):
    answer = log_in(page, target="/runs?page=2")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/runs?page=2"
    cookie = answer.headers["set-cookie"]
    assert "; HttpOnly; SameSite=Lax" in cookie
    assert f"Max-Age={LIFETIME_SECONDS}" in cookie
    assert page.get("/runs").text == "secret"


def test_a_wrong_password_and_a_missing_token_do_not(page):
    wrong = log_in(page, "correct hors")
    assert wrong.status_code == 403
    assert "The password is wrong." in wrong.text
    page.get("/login")
    for token in ("", "0" * 64):
        answer = page.post("/login", data={"password": PASSWORD, "csrf_token": token})
        assert answer.status_code == 403
    assert page.post("/login", content=b"\xff\xfe=1&" * 100).status_code == 403
    assert page.post("/login", content=b"a" * 20_000).status_code == 413
    assert page.put("/login").status_code == 405
    assert page.get("/runs").status_code == 401


def test_a_login_form_of_another_site_is_refused(page):
    assert log_in(page, origin="https://evil.example").status_code == 403
    assert log_in(page, origin=HERE, **{"sec-fetch-site": "same-site"}).status_code == 403
    assert log_in(page, origin=HERE, **{"sec-fetch-site": "same-origin"}).status_code == 303


def test_a_login_survives_a_restart_with_the_same_password(tmp_path, page):
    log_in(page)
    restarted = open_page(tmp_path)
    restarted.cookies = page.cookies
    assert restarted.get("/").text == "secret"
    for other in (open_page(tmp_path, password="another"), open_page(tmp_path / "elsewhere")):
        other.cookies = page.cookies
        assert other.get("/").status_code == 401


def test_logout_ends_the_login_also_for_a_copy_and_after_a_restart(tmp_path, page):
    log_in(page)
    copies = dict(page.cookies)
    token = find_token(page.get("/login"))
    assert page.post("/logout").status_code == 403
    assert page.get("/").text == "secret"
    answer = page.post("/logout", headers={"x-csrf-token": token})
    assert answer.status_code == 204
    assert answer.headers["hx-redirect"] == "/login"
    assert "Max-Age=0" in answer.headers["set-cookie"]
    for client in (page, open_page(tmp_path)):
        client.cookies.clear()
        client.cookies.update(copies)
        assert client.get("/").status_code == 401
    assert log_in(page).status_code == 303
    assert page.get("/").text == "secret"


def test_logins_expire_and_are_not_made_up(tmp_path):
    now = [1_000_000.0]
    key = load_server_key(tmp_path)
    logins = PasswordSessions(PASSWORD, key, tmp_path, clock=lambda: now[0])
    login = logins.make_login()
    assert logins.is_login(login)
    expiry, id, signature = login.split(".")
    last = "1" if signature[-1] == "0" else "0"
    for value in (
        f"{int(expiry) + 1}.{id}.{signature}",
        f"{expiry}.{'0' * 32}.{signature}",
        f"{expiry}.{id}.{signature[:-1]}{last}",
        f"{expiry}.{id}.",
        "",
        login + "0",
        f"９{login[1:]}",
    ):
        assert not logins.is_login(value), value
    now[0] += LIFETIME_SECONDS - 1
    assert logins.is_login(login)
    now[0] += 2
    assert not logins.is_login(login)
    logins.end_login(login)  # nothing to end
    assert not (tmp_path / "logouts.json").exists()


def test_the_password_is_in_no_file(tmp_path, page):
    log_in(page)
    assert all(PASSWORD.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_cookies_of_two_servers_on_one_machine_do_not_replace_each_other(tmp_path):
    names = {PasswordSessions("x", load_server_key(tmp_path / name), tmp_path).cookie for name in "ab"}
    assert len(names) == 2


def test_a_program_names_the_password_in_its_requests(tmp_path):
    client = open_page(tmp_path, routes=(RouteRule("/v1", needs_token=False),))
    good, bad = ({"authorization": f"Bearer {word}"} for word in (PASSWORD, "guess"))
    assert client.post("/v1/chat").status_code == 401
    assert client.post("/v1/chat", headers=good).text == "secret"
    for _ in range(FREE_FAILURES + 1):
        assert client.post("/v1/chat", headers=bad).status_code == 401
    assert client.post("/v1/chat", headers=good).text == "secret"  # known already
    assert client.post("/", headers=good).status_code == 403  # no token


def test_behind_a_prefix_the_login_stays_below_it(tmp_path):
    client = open_page(tmp_path, root_path="/me")
    answer = client.get("/me/runs", headers={"accept": "text/html"})
    assert answer.headers["location"] == "/me/login?next=%2Fme%2Fruns"
    assert 'action="/me/login"' in client.get("/login").text
    answer = log_in(client, path="/me/login", target="/me/runs")
    assert answer.headers["location"] == "/me/runs"
    assert "Path=/me;" in answer.headers["set-cookie"]
    assert client.get("/me/runs").text == "secret"


@pytest.mark.parametrize(
    "target",
    ["https://evil.example/", "//evil.example/", "/\\evil.example", "/\t/evil.example", "evil", "/a//b", "javascript:x",
     "/login", "/logout", "/login?next=/login", "/é", "/" + "a" * 3000, ""],
)  # fmt: skip
def test_a_login_leads_to_this_server_alone(target):
    assert _choose_target(target, "") == "/"
    assert _choose_target(target, "/me") == "/me/"


def test_other_places_are_kept():
    assert _choose_target("/runs/a?b=//c", "") == "/runs/a?b=//c"
    assert _choose_target("/me/runs", "/me") == "/me/runs"


@pytest.mark.parametrize(("lang", "word"), [("zh", "登录"), ("en", "Log in")])
def test_the_login_is_in_both_languages(page, lang, word):
    answer = page.get(f"/login?lang={lang}&next=/runs")
    assert word in answer.text
    assert f'<html lang="{ {"zh": "zh-CN"}.get(lang, lang) }">' in answer.text
    assert 'name="next" value="/runs"' in answer.text
    assert "<script" not in answer.text
    assert word in page.get("/login").text  # remembered
    assert page.get("/login?lang=<b>").status_code == 200


def test_the_form_shows_no_markup_of_its_address(page):
    assert "<b>" not in page.get("/login?next=/<b>x</b>").text


def test_too_many_attempts_have_to_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "LoginAttempts", lambda: LoginAttempts(Clock()))
    page = open_page(tmp_path)
    for _ in range(FREE_FAILURES):
        assert log_in(page, "guess").status_code == 403
    answer = log_in(page)  # the right one too: else its answer would tell
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert "Try again in 1 second." in answer.text


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_wait_doubles_and_ends():
    clock = Clock()
    attempts = LoginAttempts(clock)
    waits = []
    for _ in range(FREE_FAILURES + 14):
        clock.now += 10 * TOTAL_INTERVAL_SECONDS
        assert attempts.begin("10.0.0.1") == 0
        wait = attempts.begin("10.0.0.1")
        if wait:
            waits.append(wait)
            clock.now += wait - 0.5
            assert attempts.begin("10.0.0.1") == 1
            clock.now += 0.5
        else:
            attempts.succeed("10.0.0.2")  # of another address: changes nothing about this one
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == MAX_WAIT_SECONDS
    assert attempts.begin("10.0.0.1") == 0
    attempts.succeed("10.0.0.1")
    assert [attempts.begin("10.0.0.1") for _ in range(FREE_FAILURES)] == [0] * FREE_FAILURES


def test_many_addresses_wait_together_in_bounded_memory():
    clock = Clock()
    attempts = LoginAttempts(clock)
    results = [attempts.begin(f"10.{i // 250}.0.{i % 250}") for i in range(5000)]
    assert results.count(0) == TOTAL_FAILURES
    assert len(attempts._addresses) <= 1000
    clock.now += TOTAL_INTERVAL_SECONDS
    assert [attempts.begin(f"10.99.0.{i}") for i in range(3)] == [0, 3, 3]


def test_addresses_of_one_ipv6_network_are_one():
    clock = Clock()
    attempts = LoginAttempts(clock)
    results = [attempts.begin(f"2001:db8::{i:x}") for i in range(1, FREE_FAILURES + 2)]
    assert results == [0] * FREE_FAILURES + [1]
    assert attempts.begin("2001:db8:1::1") == 0
    assert attempts.begin("::ffff:10.0.0.1") == attempts.begin("unix:") == 0
