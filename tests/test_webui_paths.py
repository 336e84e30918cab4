"""What the page may reach, and who may reach the page."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from glmtune.cli import ui as cli_ui
from glmtune.errors import GlmtuneError, ServerError
from glmtune.utils.network import is_loopback, listen
from glmtune.webui import app as app_module
from glmtune.webui.app import make_app, make_context, serve
from glmtune.webui.errors import PathError
from glmtune.webui.lists import RootLists
from glmtune.webui.page_rules import PageRules
from glmtune.webui.paths import data_entries, inside, model_or_path
from glmtune.webui.rendering import make_problem
from glmtune.webui.root_walk import find_runs, walk_roots


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.json").write_text("[]")
    return folder


def test_paths_inside_are_absolute_and_relative_ones_begin_at_the_first_root(root, tmp_path):
    second = tmp_path / "second"
    second.mkdir()
    assert inside([root, second], " runs/a ") == root / "runs" / "a"
    assert inside([root, second], str(second / "x")) == second / "x"
    assert inside([root], ".") == root


@pytest.mark.parametrize("named", ["../outside", "/etc/passwd", "a/../../outside", "~", "~nobody-of-that-name/x"])
def test_paths_outside_are_refused(root, outside, named):
    with pytest.raises(PathError):
        inside([root], named)


@pytest.mark.parametrize("named", ["", "   ", "a\0b"])
def test_what_is_no_path_is_refused(root, named):
    with pytest.raises(PathError):
        inside([root], named)


def test_links_are_followed_before_a_path_is_judged(root, outside):
    (root / "out").symlink_to(outside)
    (root / "near").symlink_to(root / "real")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(PathError, match="outside"):
        inside([root], "out/secret.json")
    assert inside([root], "near") == root / "real"
    with pytest.raises(GlmtuneError):
        data_entries([root], "out")


def test_a_root_may_be_a_link_itself(root, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(root)
    assert inside([link], "a") == root / "a"


def test_hub_ids_pass_unless_something_of_that_name_is_there(root, outside, monkeypatch):
    assert model_or_path([root], "THUDM/chatglm3-6b") == "THUDM/chatglm3-6b"
    (root / "org").mkdir()
    (root / "org" / "here").mkdir()
    assert model_or_path([root], "org/here") == str(root / "org" / "here")
    (root / "org" / "out").symlink_to(outside)
    with pytest.raises(PathError):
        model_or_path([root], "org/out")
    # The loaders look in the server's own folder too.
    monkeypatch.chdir(outside.parent)
    (outside / "model").mkdir()
    assert model_or_path([root], "outside/model") == str(root / "outside" / "model")


@pytest.mark.parametrize("named", ["../outside", "./x/../../outside", "a/..", "/etc"])
def test_what_only_looks_like_a_hub_id_is_judged_as_a_path(root, named):
    if named == "a/..":
        assert model_or_path([root], named) == str(root)
        return
    with pytest.raises(PathError):
        model_or_path([root], named)


def test_data_may_not_lead_out_through_a_folder_or_a_pattern(root, outside):
    data = root / "data"
    data.mkdir()
    (data / "a.json").write_text("[]")
    assert data_entries([root], "data/*.json") == str(data / "*.json")
    assert data_entries([root], "data\n\n data/a.json\n") == [str(data), str(data / "a.json")]
    (data / "b.json").symlink_to(outside / "secret.json")
    for named in ("data", "data/*.json"):
        with pytest.raises(PathError, match="outside"):
            data_entries([root], named)
    with pytest.raises(PathError, match="No data"):
        data_entries([root], " \n")


def test_lists_show_runs_models_and_data_and_nothing_else(root, outside, tiny):
    run = root / "runs" / "one"
    (run / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    (run / "config.yaml").write_text("method: lora\n")
    (run / "metrics.jsonl").write_text("{}\n")
    (root / "models").mkdir()
    (root / "models" / "base").symlink_to(tiny("chatglm3"))
    model = root / "models" / "copy"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    (root / "train.jsonl").write_text("{}\n")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "secret.json").write_text("[]")
    (root / "out").symlink_to(outside)
    found = walk_roots([root, root / "runs"])
    assert found.runs == [run]
    assert found.models == [model]
    assert found.data == [root / "train.jsonl"]


def test_lists_are_bounded(root):
    deep = root.joinpath(*"abcdefgh")
    deep.mkdir(parents=True)
    (deep / "deep.json").write_text("[]")
    for number in range(300):
        (root / f"{number}.json").write_text("[]")
    lists = RootLists(make_context([root], "en"))
    found = lists.find_datasets()
    assert (len(found.choices), found.count) == (200, 300)
    assert deep / "deep.json" not in lists.contents.data


def test_the_newest_run_is_listed_first(root):
    for number, name in enumerate(("old", "new", "middle")):
        run = root / name
        run.mkdir()
        (run / "config.yaml").write_text("method: lora\n")
        os.utime(run, (1000 + (number == 1) * 10 + (number == 2) * 5,) * 2)
    assert [path.name for path in find_runs([root])] == ["new", "middle", "old"]


def test_an_error_is_shown_as_text():
    problem = make_problem(PathError("<script>alert(1)</script>: no.", "Give <b>another</b>."), "en")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;: no." in problem
    assert "Give &lt;b&gt;another&lt;/b&gt;." in problem


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.1.2.3", True),
        ("0.0.0.0", False),
        ("192.168.1.2", False),
        ("example.org", False),
        ("", False),
        ("localhost.example.org", False),
    ],
)
def test_which_hosts_are_loopback(host, own):
    assert is_loopback(host) is own


def test_another_host_needs_a_password_and_says_why(root):
    with pytest.raises(ServerError, match="read and delete files") as told:
        serve([root], PageRules(is_local=False), host="0.0.0.0", port=0, password=None)
    assert "GLMTUNE_UI_PASSWORD" in told.value.hint
    assert not (root / ".glmtune-ui").exists()


def test_a_port_in_use_is_told(root):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"127.0.0.1:{port}: cannot be listened on") as told:
            serve([root], PageRules(), host="127.0.0.1", port=port, password=None)
        assert f"--port {port + 1}" in told.value.hint
    with pytest.raises(ServerError):
        listen("no-such-host.invalid", 0, "ui")


def test_a_root_that_is_not_there_is_told(root):
    with pytest.raises(ServerError, match="no such folder"):
        make_context([root / "absent"], "en")


def test_the_command_names_what_is_wrong(monkeypatch, glmtune_command):
    assert "--lang cannot be 'fr'" in glmtune_command("ui", "--lang", "fr").err
    monkeypatch.setattr("glmtune.utils.optional_packages.is_installed", lambda module: False)
    with pytest.raises(GlmtuneError, match="needs fastapi"):
        cli_ui.ui()


@pytest.fixture
def client(root):
    """`client(...)`: a client of the page's server, without a socket."""
    clients = []

    def start(host="127.0.0.1", is_local=True, **options):
        context = make_context([root], "zh", locked="password" in options)
        app = make_app(context, PageRules(is_local=is_local, lang="zh"), **options)
        clients.append(TestClient(app, base_url=f"http://{host}:7860"))
        return clients[-1].__enter__()

    yield start
    for each in clients:
        each.__exit__(None, None, None)


TABS = ("/data", "/train", "/runs", "/chat", "/evaluate", "/export", "/model", "/migrate")


@pytest.mark.parametrize("path", TABS)
def test_no_tab_asks_for_anything_elsewhere(client, path):
    answer = client().get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-eval" not in policy
    assert re.findall(r"(?:src|href|action)=\"(?!/|#|data:,)[^\"]*", answer.text) == []


def test_vendored_scripts_are_what_their_list_says(client):
    """A changed file, or one without its licence, is noticed."""
    folder = Path(app_module.__file__).parent / "static" / "vendor"
    listed_files = json.loads((folder / "vendor.json").read_text())
    assert set(listed_files) | {"vendor.json"} == {path.name for path in folder.iterdir()}
    for name, entry in listed_files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"], name
        assert entry["license"] in ("0BSD", "MIT")
        assert client().get(f"/static/vendor/{name}").status_code == 200


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/vendor/..%2f..%2fapp.py", "/static/app.py", "/{root}/a"]
)
def test_files_are_not_served_by_their_path(client, root, path):
    assert client().get(path.format(root=root)).status_code in (404, 405)


def test_with_a_password_nothing_is_given_before_the_login(client):
    page = client("192.168.0.9", password="open sesame", is_local=False)
    for path in (*TABS, "/strip", "/runs/show?path=x", "/jobs/live?id=x"):
        assert page.get(path, follow_redirects=False).status_code in (303, 401), path


def test_no_command_goes_through_a_shell():
    for file in Path(app_module.__file__).parent.glob("*.py"):
        source = file.read_text(encoding="utf-8")
        assert "shell=True" not in source
        assert "os.system" not in source


def test_the_runner_passes_signals_on_and_writes_the_code(tmp_path):
    out = tmp_path / "x.exit"
    command = [sys.executable, "-m", "glmtune.webui.runner", str(out), sys.executable, "-c", "raise SystemExit(7)"]
    subprocess.run(command, check=True)
    assert '"code": 7' in out.read_text()
