"""The whole page under attack: what nobody should send to it, to every route."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="the page's extra is not installed")

from page_client import PageClient
from page_fuzz import SECRET, fuzz_page, link_secrets, list_routes, write_secrets

from glmtune.webui import app as app_module
from glmtune.webui import commands
from glmtune.webui import jobs as jobs_module
from glmtune.webui.app import make_app, make_context
from glmtune.webui.context import STATE
from glmtune.webui.server_key import load_server_key

GOOD = ("rows.jsonl", "runs/a", "runs", "1", "3", "0.5", "on", "lora", "chatglm3", "zh", "alpaca", "bf16")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A root with a run and rows, links that lead out of it, and what they lead to. Jobs do nothing."""
    root, outside = tmp_path / "root", write_secrets(tmp_path / "outside")
    run = root / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("model:\n  path: x\n")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (root / "rows.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    link_secrets(root, outside)
    monkeypatch.setattr(jobs_module, "COMMAND", (sys.executable, "-c", "pass"))
    monkeypatch.setattr(commands, "sys", SimpleNamespace(executable=shutil.which("false")))
    return root, outside


def test_no_route_fails_or_leads_out(place, monkeypatch):
    """Run it longer with another seed and more rounds: 60 rounds are 3,000 requests and a quarter of a minute."""
    root, outside = place
    pages = []
    guard_page = app_module.guard_page

    def keep_page(page, *rest, **named):
        pages.append(page)
        return guard_page(page, *rest, **named)

    monkeypatch.setattr(app_module, "guard_page", keep_page)
    app = make_app(make_context([root], "en"))
    routes = pages[0].routes
    key = load_server_key(root / STATE)
    result = fuzz_page(app, key=key, root=root, outside=outside, routes=routes, good=GOOD, rounds=5)
    assert result.failures == [], result
    assert len(result.requests) == len(list(list_routes(routes))) > 40


@pytest.mark.parametrize(
    "name", ["../../outside/rows.jsonl", "../../outside/*.jsonl", "{outside}/rows.jsonl", "../linked/a/b"]
)
def test_an_uploaded_list_of_data_sets_shows_nothing_from_outside(place, name):
    root, outside = place
    page = PageClient(make_context([root], "en"))
    content = json.dumps({"mine": {"file_name": name.format(outside=outside)}})
    answer = page.client.put("/uploads?name=dataset_info.json", content=content, headers={"x-csrf-token": page.token})
    assert answer.status_code == 201
    for path in ("/data/rows", "/data/columns", "/train/check"):
        answer = page.post(path, {"data.train": "uploads:mine", "path": "uploads:mine", "model.path": "x"})
        assert SECRET not in answer.text
        assert answer.status_code < 500


def test_a_run_whose_config_leads_out_is_not_shown(place):
    root, outside = place
    (root / "runs" / "a" / "config.yaml").unlink()
    (root / "runs" / "a" / "config.yaml").symlink_to(outside / "config.yaml")
    page = PageClient(make_context([root], "en"))
    for path in ("/runs", f"/runs/show?path={root}/runs/a", "/runs/show?path=runs/a", "/runs/download?path=runs/a"):
        assert SECRET not in page.get(path).text
