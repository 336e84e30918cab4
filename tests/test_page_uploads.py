"""Files that a browser sends to the page, and that jobs are limited as the page is."""

from __future__ import annotations

import json
import os
import re
import sys
import time

import pytest

pytest.importorskip("starlette", reason="the page's extra is not installed")

from fastapi import FastAPI
from starlette.testclient import TestClient

from glmtune.data.sources import open_source
from glmtune.utils.file_access import FileAccessError
from glmtune.webui import jobs as jobs_module
from glmtune.webui import uploads
from glmtune.webui.context import STATE, Context
from glmtune.webui.guard import csrf_token
from glmtune.webui.jobs import Jobs
from glmtune.webui.page_rules import PageRules
from glmtune.webui.sessions import guard_page
from glmtune.webui.uploads import UploadError, UploadLimits, add_routes, make_safe_name

ROW = b'{"instruction": "a", "output": "b"}\n'


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def open_page(root):
    """`open_page(limit=...)`: a page with the route for uploads alone, and a browser that has its token."""

    def make(**limits):
        context = Context([root], "en", Jobs(root / STATE / "jobs", root), False)
        app = FastAPI()

        @app.get("/token")
        async def show_token(request: uploads.Request):
            return csrf_token(request)

        rule = add_routes(app, context, UploadLimits(**{"free_bytes": 0, **limits}))
        guarded = guard_page(app, PageRules(routes=(rule,)), context.state(), None, roots=[root])
        client = TestClient(guarded, base_url="http://localhost")
        client.headers["x-csrf-token"] = client.get("/token").json()
        return client

    return make


def list_parts(root):
    return list((root / STATE / "uploads").iterdir())


def test_a_file_is_taken_as_it_is(open_page, root):
    client = open_page()
    parts = [ROW * 1000] * 30
    answer = client.put("/uploads?name=rows.jsonl", content=iter(parts))
    assert answer.status_code == 201
    assert answer.json() == {"path": "uploads/rows.jsonl", "bytes": 30_000 * len(ROW)}
    assert (root / "uploads" / "rows.jsonl").read_bytes() == b"".join(parts)
    assert list_parts(root) == []
    assert client.put("/uploads", content=ROW, headers={"x-file-name": "%E6%95%B0%E6%8D%AE.json"}).status_code == 201
    assert (root / "uploads" / "数据.json").is_file()


def test_a_name_that_is_taken_gets_a_number(open_page, root):
    client = open_page()
    (root / "uploads").mkdir()
    (root / "secret.json").write_text("secret")
    (root / "uploads" / "rows-2.jsonl.gz").symlink_to(root / "secret.json")
    places = [client.put("/uploads?name=rows.jsonl.gz", content=ROW).json()["path"] for _ in range(3)]
    assert places == ["uploads/rows.jsonl.gz", "uploads/rows-3.jsonl.gz", "uploads/rows-4.jsonl.gz"]
    assert (root / "secret.json").read_text() == "secret"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/rows.json", "rows.json"),
        ("..\\..\\rows.json", "rows.json"),
        ("C:\\data\\rows.json", "rows.json"),
        (".hidden.json", "hidden.json"),
        ("a b;$(reboot)<x>.json", "a-b-reboot-x-.json"),
        ("a\0b\n.csv", "a-b-.csv"),
        ("数据 集.JSONL", "数据-集.JSONL"),
        ("dataset_info.json", "dataset_info.json"),
        ("settings.yaml", "settings.yaml"),
        ("\ud800.json", "json"),
    ],
)
def test_names_are_safe(name, safe):
    if safe == "json":
        with pytest.raises(UploadError):
            make_safe_name(name)
    else:
        assert make_safe_name(name) == safe


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "x", "x.py", "x.html", "x.exe", ".json", "-.json", "x.json.sh", "x.gz"]
)
def test_other_names_are_refused(open_page, root, name):
    answer = open_page().put("/uploads", params={"name": name}, content=ROW)
    assert answer.status_code == 415
    assert "not a file of rows or settings" in answer.json()["error"]
    assert not (root / "uploads").exists()


def test_long_names_are_cut():
    for name in ("数" * 500 + ".jsonl.gz", "x" * 10_000 + ".json"):
        safe = make_safe_name(name)
        assert len(safe.encode()) <= 130
        assert safe.endswith(name[-5:])


def test_too_large_files_leave_nothing(open_page, root):
    client = open_page(file_bytes=1000)
    for content in (b"x" * 1001, iter([b"x" * 600, b"x" * 600])):
        assert client.put("/uploads?name=a.json", content=content).status_code == 413
    assert client.put("/uploads?name=a.json", content=b"").json()["error"] == "The file is empty."
    assert list_parts(root) == []
    assert not (root / "uploads").exists()
    assert client.put("/uploads?name=a.json", content=b"x" * 1000).status_code == 201


def test_too_many_files_are_refused(open_page, root):
    client = open_page(files=2)
    statuses = [client.put("/uploads?name=a.json", content=ROW).status_code for _ in range(3)]
    assert statuses == [201, 201, 507]
    client = open_page(at_once=0)
    assert client.put("/uploads?name=a.json", content=ROW).status_code == 429


def test_a_full_disk_is_said(open_page, root):
    client = open_page(free_bytes=2**60)
    answer = client.put("/uploads?name=a.json", content=ROW, headers={"accept-language": "zh"})
    assert answer.status_code == 507
    assert "磁盘" in answer.json()["error"]
    assert list_parts(root) == []


def test_a_disk_that_fills_while_a_file_arrives(open_page, root, monkeypatch):
    def fail(descriptor, block):
        raise OSError(28, "No space left on device")

    client = open_page()
    monkeypatch.setattr(uploads, "_write_all", fail)
    assert client.put("/uploads?name=a.json", content=ROW).status_code == 507
    assert list_parts(root) == []


def test_leftovers_are_removed_at_the_start_and_before_the_next_file(open_page, root):
    state = root / STATE / "uploads"
    state.mkdir(parents=True)
    for name, age in (("old", 3600), ("new", 1)):
        (state / f"{name}.part").write_bytes(ROW)
        os.utime(state / f"{name}.part", (time.time() - age,) * 2)
    client = open_page()
    assert [path.name for path in list_parts(root)] == ["new.part"]
    os.utime(state / "new.part", (0, 0))
    client.put("/uploads?name=a.json", content=ROW)
    assert list_parts(root) == []


def test_a_folder_that_leads_out_takes_nothing(open_page, root, tmp_path):
    (tmp_path / "outside").mkdir()
    (root / "uploads").symlink_to(tmp_path / "outside")
    with pytest.raises(Exception, match="outside of the folders"):
        open_page().put("/uploads?name=a.json", content=ROW)
    assert list((tmp_path / "outside").iterdir()) == []


def test_another_page_sends_nothing(open_page, root):
    client = open_page()
    del client.headers["x-csrf-token"]
    assert client.put("/uploads?name=a.json", content=ROW).status_code == 403
    assert client.post("/uploads?name=a.json", content=ROW).status_code == 403
    assert not (root / "uploads").exists()


def test_an_uploaded_list_of_data_sets_does_not_lead_out(open_page, root, tmp_path):
    (tmp_path / "private.json").write_bytes(b'{"instruction": "secret", "output": "secret"}\n')
    client = open_page()
    for name in ("../../private.json", str(tmp_path / "private.json"), "../../*.json"):
        content = json.dumps({"mine": {"file_name": name}})
        place = root / client.put("/uploads?name=dataset_info.json", content=content).json()["path"]
        place.replace(place.with_name("dataset_info.json"))
        with pytest.raises(FileAccessError):
            list(open_source(f"{root / 'uploads'}:mine"))


def test_a_job_is_limited_as_the_page_is(open_page, root, tmp_path, monkeypatch):
    code = (
        "import sys; from glmtune.utils.file_access import is_readable; print([is_readable(p) for p in sys.argv[1:]])"
    )
    monkeypatch.setattr(jobs_module, "COMMAND", (sys.executable, "-c", code))
    open_page()
    jobs = Jobs(root / STATE / "jobs", root)
    job = jobs.submit("data", [str(root / "x"), str(tmp_path / "x")], "", "me")
    end = time.monotonic() + 30
    while jobs.get(job.id).alive:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert re.search(r"\[True, False\]", jobs.tail(job.id))
