"""Requests that fail: a page with a way back in the page's language, lines for scripts, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import logging
import re

import pytest

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from fastapi.testclient import TestClient
from page_client import PageClient

from glmtune.html.i18n import LANGUAGES
from glmtune.webui import jobs_view
from glmtune.webui.app import make_context, make_routes
from glmtune.webui.jobs import Job
from glmtune.webui.page_rules import PageRules
from glmtune.webui.rendering import TABS
from glmtune.webui.sessions import guard_page
from glmtune.webui.texts import text

BROWSER = "text/html,application/xhtml+xml,*/*;q=0.8"
PROGRAM = "application/json"
LISTS = {
    *("notice", "runs-table", "runs-compare", "runs-selection", "evaluate-results", "evaluate-report", "model-job"),
    *("votes-result", "settings-result", "strip"),
}
"""Places that no form asks for: lists with their own address, and remarks on what was done."""
FAILING = {
    404: ("GET", "/nothing/here"),
    405: ("GET", "/data/check"),
    413: ("POST", "/train/start"),
    422: ("GET", "/runs/show?path=gone"),
    500: ("GET", "/broken"),
}


@pytest.fixture
def context(tmp_path):
    return make_context([tmp_path], "zh")


@pytest.fixture
def client(context):
    app = make_routes(context)

    @app.get("/broken")
    def fail():
        raise ZeroDivisionError("a secret of the code")

    page = guard_page(app, PageRules(lang="zh"), context.state(), None, roots=context.roots)
    return TestClient(page, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


def ask(client, status, accept, **headers):
    method, path = FAILING[status]
    content = b"x" * (9 * 2**20) if status == 413 else None
    token = re.search(r'data-csrf="([^"]+)"', client.get("/train").text).group(1)
    shared = {"Accept": accept, "X-CSRF-Token": token}
    response = client.request(method, path, content=content, headers={**shared, **headers})
    assert response.status_code == status
    return response


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("status", FAILING)
def test_a_browser_gets_a_page_in_its_language_with_a_way_back(client, status, lang):
    client.cookies.set("glmtune_lang", lang)
    response = ask(client, status, BROWSER)
    assert response.headers["content-type"].startswith("text/html")
    assert f'<html lang="{ {"zh": "zh-CN"}.get(lang, lang) }"' in response.text
    assert len(re.findall("<h1[ >]", response.text)) == 1
    backs = (
        text("refused.back", lang),
        *(text("status.back", lang, tab=text(f"tab.{t}", lang)) for t in ("train", "data", "runs")),
    )
    assert re.search(rf'<a[^>]+href="/[a-z]*"[^>]*>({"|".join(backs)})</a>', response.text)
    title = {413: text("refused.title", lang), 422: text("app.problem_title", lang)}.get(status) or text(
        f"status.{status}", lang
    )
    assert title in response.text


@pytest.mark.parametrize("status", FAILING)
def test_a_program_gets_json_and_a_script_lines(client, status):
    error = ask(client, status, PROGRAM).json()["error"]
    assert set(error) == {"message", "hint"}
    part = ask(client, status, "*/*", **{"HX-Request": "true"})
    assert "<html" not in part.text
    assert len(part.text) < 1_500


def write_job(context, job):
    folder = context.state("jobs")
    (folder / f"{job.id}.json").write_text(json.dumps(dataclasses.asdict(job)))


def test_a_fault_is_in_the_log_under_the_number_that_the_page_has(client, caplog):
    with caplog.at_level(logging.ERROR, "glmtune.webui"):
        page = ask(client, 500, BROWSER).text
    number = re.search(text("status.500.number", "zh", number="([0-9a-f]{8})"), page).group(1)
    assert number in caplog.text
    assert "GET /broken" in caplog.text
    assert "a secret of the code" in caplog.text
    assert "Traceback" not in page
    assert "secret" not in page


def test_a_fault_of_a_jobs_page_names_its_log(client, context, monkeypatch):
    job = Job("0123456789ab", "train", ["train"], str(context.roots[0] / "runs/a"), "", "failed", exit_code=1)
    write_job(context, job)

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(jobs_view, "render_job", fail)
    response = client.get(f"/jobs/{job.id}", headers={"Accept": BROWSER})
    assert response.status_code == 500
    assert f".glmtune-ui/jobs/{job.id}.log" in response.text


def test_a_command_that_crashes_names_its_log_and_one_with_an_error_says_it(context):
    job = Job("0123456789ab", "eval", ["eval"], str(context.roots[0] / "evals/a"), "", "failed", exit_code=139)
    write_job(context, job)
    page = PageClient(context)
    log = context.jobs.find_log(job.id)
    log.write_text("Segmentation fault")
    panel = page.get(f"/jobs/{job.id}/panel").text
    assert text("job.crashed", "zh", code=139, path=f".glmtune-ui/jobs/{job.id}.log") in panel
    log.write_text("Error: /d/rows.json: no such file.\nCheck the path; it is relative to the current directory.\n")
    panel = page.get(f"/jobs/{job.id}/panel").text
    assert "/d/rows.json：没有这个文件。" in panel
    assert "请检查路径；它相对于当前目录。" in panel
    assert text("job.crashed", "zh", code=139, path="")[:8] not in panel


@pytest.mark.parametrize("tab", [*TABS, "migrate"])
def test_what_a_form_asked_for_is_cleared_with_its_input(context, tab):
    """A place that an answer is put into: cleared when the form changes, cleared by a failure, or kept on purpose."""
    page = PageClient(context).get(f"/{tab}").text
    targets = set(re.findall(r'hx-target="#([\w-]+)"', page)) - LISTS
    for target in targets:
        tag = re.search(rf'<\w+ [^>]*\bid="{target}"[^>]*>', page)
        assert tag is not None, f"#{target} is not on the page"
        if tag.group().startswith("<datalist"):
            continue
        assert re.search(r"data-(stale-after|result|keeps)\b", tag.group()), f"#{target} may show an older result"
