"""The fuzz test of the page's routes finds what is wrong, and the guard and the uploads pass it."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest

pytest.importorskip("starlette", reason="the page's extra is not installed")

from fastapi import FastAPI
from page_fuzz import fuzz_page, link_secrets, list_routes, write_secrets
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.utils.documents import DocumentError, read_document
from glmtune.webui.app import make_context, make_routes
from glmtune.webui.context import STATE, Context
from glmtune.webui.forms import Field, _number
from glmtune.webui.jobs import Jobs
from glmtune.webui.page_rules import PageRules
from glmtune.webui.paths import data_entries, inside, model_or_path
from glmtune.webui.server_key import load_server_key
from glmtune.webui.sessions import PasswordSessions, guard_page
from glmtune.webui.uploads import add_routes


@pytest.fixture
def place(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    outside = write_secrets(tmp_path / "outside")
    link_secrets(root, outside)
    return root, outside


def run_fuzz(place, add, *, guarded=True, rounds=12, password=None, **options):
    root, outside = place
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def answer_error(request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error).encode("utf-8", "replace"), 400)

    app.add_exception_handler(GlmtuneError, answer_error)
    context = Context([root], "en", Jobs(root / STATE / "jobs", root), False)
    rules = add(app, context)
    page = guard_page(app, rules or PageRules(), context.state(), password, roots=[root])
    return fuzz_page(
        page if guarded else app,
        key=load_server_key(context.state()),
        root=root,
        outside=outside,
        routes=app.routes,
        rounds=rounds,
        **options,
    )


def add_good_routes(app, context):
    """Routes as they should be: names of files from the path, from forms and from JSON."""
    rule = add_routes(app, context)
    app.mount("/static", StaticFiles(packages=[("glmtune.html", "templates")]))

    @app.get("/")
    async def show_form():
        return HTMLResponse('<form><input name="file"><input name="model"></form>')

    @app.get("/files/{name:path}")
    async def show_file(name: str):
        try:
            return PlainTextResponse(read_document(inside(context.roots, name)))
        except DocumentError as error:
            return PlainTextResponse(error.problem, 404)

    @app.post("/check")
    async def check(request: Request):
        from page_fuzz import _unquote

        body = _unquote((await request.body()).decode("utf-8", "replace").replace("+", " "))
        values = [pair.partition("=")[2] for pair in body.split("&")]
        for value in values:
            data_entries(context.roots, value)
            model_or_path(context.roots, value)
        return PlainTextResponse("checked")

    @app.get("/jobs/{id}")
    async def show_job(id: str):
        return PlainTextResponse(context.jobs.get(id).kind)

    @app.delete("/jobs/{id}")
    async def stop_job(id: str):
        return PlainTextResponse(context.jobs.tail(id))

    @app.get("/events")
    async def stream():
        async def produce():
            while True:
                yield "data: x\n\n"

        return StreamingResponse(produce(), media_type="text/event-stream")

    return PageRules(routes=(rule,))


def test_good_routes_pass(place):
    result = run_fuzz(place, add_good_routes, rounds=60)
    assert result.failures == [], result
    assert set(result.requests) == {
        "PUT /uploads",
        "GET /static/{path}",
        "GET /",
        "GET /files/{name:path}",
        "POST /check",
        "GET /jobs/{id}",
        "DELETE /jobs/{id}",
        "GET /events",
    }
    assert {200, 400, 404} <= set(result.statuses)


def test_with_a_password_nobody_else_is_answered(place):
    result = run_fuzz(place, add_good_routes, password="x", rounds=8)
    assert result.failures == [], result
    assert set(result.statuses) <= {303, 401, 413}
    sessions = PasswordSessions("x", load_server_key(place[0] / STATE), place[0] / STATE)
    result = run_fuzz(
        place, add_good_routes, password="x", rounds=8, cookies=f"{sessions.cookie}={sessions.make_login()}"
    )
    assert result.failures == [], result
    assert 200 in result.statuses


async def read_any(name: str):
    with open(name, encoding="utf-8") as stream:
        return PlainTextResponse(stream.read(1000))


async def fail(name: str):
    return PlainTextResponse(str(int(name)))


async def echo(name: str):
    return HTMLResponse(f"<p>{name}</p>".encode("utf-8", "replace"))


async def show_traceback(name: str):
    return PlainTextResponse("Traceback (most recent call last): ...")


async def list_any(name: str):
    with contextlib.suppress(OSError, ValueError):
        os.listdir(name)
    return PlainTextResponse("listed")


async def set_header(request: Request):
    value = request.query_params.get("x", "").encode("latin-1", "replace").decode("latin-1")
    return PlainTextResponse("", headers={"set-cookie": value})


BAD = {
    "what is outside is in the answer": read_any,
    "opened outside": list_any,
    "ValueError": fail,
    "markup comes back as markup": echo,
    "a traceback is in the answer": show_traceback,
    "a header was injected": set_header,
}


@pytest.mark.parametrize("problem", BAD)
def test_what_is_wrong_is_found(place, problem):
    def add(app, context):
        app.add_api_route("/x/{name:path}", BAD[problem], methods=["GET"], response_model=None)

    result = run_fuzz(place, add, rounds=600)
    assert any(failure.startswith(problem) for failure in result.failures), result


def test_a_page_without_the_guard_is_found(place):
    def add(app, context):
        app.add_api_route("/x", lambda: PlainTextResponse("deleted"), methods=["POST"], response_model=None)

    failures = run_fuzz(place, add, guarded=False, rounds=3).failures
    assert any("answered with" in failure for failure in failures)
    assert any("no policy" in failure for failure in failures)


def test_a_change_outside_is_found(place):
    async def write():
        (place[1] / "rows.json").write_text("changed")
        return PlainTextResponse("written")

    def add(app, context):
        app.add_api_route("/x", write, methods=["POST"], response_model=None)

    assert "a file outside was changed" in run_fuzz(place, add, rounds=1).failures


def test_routes_below_a_mount_are_listed():
    app, inner = FastAPI(openapi_url=None), FastAPI(openapi_url=None)
    inner.add_api_route("/x", fail, methods=["POST"], response_model=None)
    app.mount("/api", inner)
    assert list(list_routes(app.routes)) == [("POST", "/api/x", fail)]


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-inf", "1e309", "9" * 400 + ".5", "1.5"])
def test_a_field_for_whole_numbers_takes_no_other(text):
    with pytest.raises(ConfigError, match="must be a whole number"):
        _number(Field("data.max_length", "integer", 1, (), False), text)


def list_page_routes(app):
    return [f"{method} {path}" for method, path, _ in list_routes(app.routes)]


def test_the_whole_page_passes(place, monkeypatch):
    root, outside = place
    monkeypatch.setattr(Jobs, "_start", lambda self, job: None)  # a job that happens to be valid stays in the queue

    async def refuse(*_, **__):
        raise GlmtuneError("no process in this test")

    for name, module in list(sys.modules.items()):
        if name.startswith("glmtune.webui.") and hasattr(module, "run_command"):
            monkeypatch.setattr(module, "run_command", refuse)
    context = make_context([root], "zh")
    app = make_routes(context)
    rule = add_routes(app, context)
    page = guard_page(app, PageRules(routes=(rule,)), context.state(), None, roots=[root])
    result = fuzz_page(
        page, key=load_server_key(context.state()), root=root, outside=outside, routes=app.routes, rounds=8
    )
    assert result.failures == [], result
    assert len(result.requests) == len(set(list_page_routes(app))) > 60, result
