"""`glmtune fetch` against a server with faults: it ends with the right bytes, or with an error that says why not."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
from pathlib import Path

import pytest

from faulty_hub import COMMIT, FaultyHub, read_start, run_hub, send_range
from glmtune.download import fetcher, transfer
from glmtune.download.fetcher import FetchRequest, fetch_model
from glmtune.download.repository import read_record
from glmtune.download.transfer import find_part
from glmtune.errors import ModelError
from glmtune.families import detect_family
from glmtune.verification.verifier import verify_folder

WEIGHTS = "model-00001-of-00002.safetensors"
RANDOM = random.Random(0)


def _make_files() -> dict[str, bytes]:
    weights = {f"model-0000{i}-of-00002.safetensors": RANDOM.randbytes(300_000) for i in (1, 2)}
    return weights | {
        "config.json": b'{"model_type": "chatglm"}',
        "tokenizer.model": RANDOM.randbytes(5000),
        "model.safetensors.index.json": b"{}",
        "pytorch_model-00001-of-00001.bin": RANDOM.randbytes(4000),
        "pytorch_model.bin.index.json": b"{}",
        "model.safetensors": RANDOM.randbytes(4000),
        "glmtune-fetch.json": b"{}",
        "modeling_chatglm.py": b"import os",
        "README.md": b"# text",
        "onnx/model.onnx": b"x",
        "figures/loss.json": b"{}",
    }


NEEDED = [WEIGHTS, "model-00002-of-00002.safetensors", "config.json", "tokenizer.model", "model.safetensors.index.json"]


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(transfer, "_wait_scale", 0.0)
    with run_hub(FaultyHub(_make_files())) as running:
        yield running


def _fetch(hub: FaultyHub, folder: Path, kind: str = "huggingface", **options):
    return fetch_model(FetchRequest(hub.name, kind, folder, mirror=hub.url, **options))


def _require_complete(hub: FaultyHub, folder: Path, names=NEEDED) -> None:
    for name in names:
        assert (folder / name).read_bytes() == hub.files[name], name
    assert not list(folder.glob(".*.part"))


@pytest.mark.parametrize("kind", ["huggingface", "modelscope"])
def test_what_a_model_needs_is_downloaded_and_nothing_else(kind, hub, tmp_path):
    result = _fetch(hub, tmp_path, kind)
    _require_complete(hub, tmp_path)
    present = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert present == {*NEEDED, "glmtune-fetch.json"}
    assert result.downloaded_bytes == sum(len(hub.files[name]) for name in NEEDED)
    record = read_record(tmp_path)
    assert (record.hub, record.id, record.mirror) == (kind, hub.name, hub.url)
    assert record.revision == (COMMIT if kind == "huggingface" else "master")
    assert set(record.files) == set(NEEDED)


def test_bin_files_are_taken_where_there_are_no_safetensors(hub, tmp_path):
    hub.files = {name: content for name, content in hub.files.items() if not name.endswith(".safetensors")}
    _fetch(hub, tmp_path)
    assert (tmp_path / "pytorch_model-00001-of-00001.bin").is_file()
    assert (tmp_path / "pytorch_model.bin.index.json").is_file()
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_files_that_are_there_are_not_downloaded_again_and_damaged_ones_are(hub, tmp_path):
    _fetch(hub, tmp_path)
    before = len(hub.requests)
    assert _fetch(hub, tmp_path).downloaded == []
    assert len(hub.requests) == before
    (tmp_path / WEIGHTS).write_bytes(bytes(300_000))  # the right size
    (tmp_path / "config.json").write_bytes(b"{")
    assert _fetch(hub, tmp_path).downloaded == ["config.json", WEIGHTS]
    _require_complete(hub, tmp_path)


def _drop(hub, handler, name, content):
    """Every connection brings 70,000 bytes at most."""
    send_range(handler, content, end=read_start(handler) + 70_000)
    return True


def _announce_less(hub, handler, name, content):
    length = 100_000 if len(content) - read_start(handler) > 100_000 else None
    send_range(handler, content, length=length)
    return True


def _announce_more(hub, handler, name, content):
    send_range(handler, content, length=len(content) - read_start(handler) + 999)
    return True


def _send_more(hub, handler, name, content):
    send_range(handler, content + b"more than there is")
    return True


def _ignore_ranges(hub, handler, name, content):
    drop = hub.count(name) <= 2
    send_range(handler, content, ranges=False, end=50_000 if drop else None)
    return True


def _change_etag(hub, handler, name, content):
    send_range(handler, content, end=read_start(handler) + 70_000, etag=f'"{hub.count(name)}"')
    return True


def _send_other_part(hub, handler, name, content):
    if hub.count(name) == 2:  # the second request: bytes from elsewhere
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 10-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content) - 10))
        handler.end_headers()
        handler.wfile.write(content[10:])
    else:
        send_range(handler, content, end=50_000 if hub.count(name) == 1 else None)
    return True


def _damage_once(hub, handler, name, content):
    send_range(handler, content if hub.count(name) > 1 else bytes(len(content)))
    return True


def _fail_thrice(hub, handler, name, content):
    if hub.count(name) > 3:
        return False
    handler.send_response(503 if hub.count(name) > 1 else 429)
    handler.send_header("Retry-After", "1")
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def _send_login_page_once(hub, handler, name, content):
    if hub.count(name) > 1:
        return False
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html; charset=utf-8")
    handler.send_header("Content-Length", "5")
    handler.end_headers()
    handler.wfile.write(b"<html")
    return True


def _close_at_once(hub, handler, name, content):
    if hub.count(name) > 3:
        return False
    handler.close_connection = True
    handler.connection.close()
    return True


FAULTS = [
    _drop,
    _announce_less,
    _announce_more,
    _send_more,
    _ignore_ranges,
    _change_etag,
    _send_other_part,
    _damage_once,
    _fail_thrice,
    _send_login_page_once,
    _close_at_once,
]


@pytest.mark.parametrize("kind", ["huggingface", "modelscope"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_every_fault_of_the_server_ends_with_the_right_bytes(fault, kind, hub, tmp_path):
    hub.answer = fault
    _fetch(hub, tmp_path, kind)
    _require_complete(hub, tmp_path)


@pytest.mark.parametrize("fault", [_drop, _ignore_ranges, _send_other_part, _fail_thrice, _close_at_once])
def test_without_published_sums_the_bytes_are_right_too(fault, hub, tmp_path):
    hub.answer, hub.has_sums = fault, False
    if fault is _drop:  # nothing says that a part belongs to the same content unless the server has etags
        hub.answer = lambda *arguments: _drop_with_etag(*arguments)
    result = _fetch(hub, tmp_path)
    _require_complete(hub, tmp_path)
    assert result.unproven == result.downloaded


def _drop_with_etag(hub, handler, name, content):
    send_range(handler, content, end=read_start(handler) + 70_000, etag='"same"')
    return True


def test_content_that_changes_while_it_is_downloaded_is_not_mixed(hub, tmp_path):
    """No sum, and another etag at the second request: what came before belongs to another content."""
    hub.has_sums = False
    old, new = bytes(300_000), hub.files[WEIGHTS]

    def answer(hub, handler, name, content):
        if name != WEIGHTS:
            return False
        if hub.count(name) == 1:
            send_range(handler, old, end=100_000, etag='"old"')
        else:
            send_range(handler, new, etag='"new"')
        return True

    hub.answer = answer
    _fetch(hub, tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == new


def _send_wrong(hub, handler, name, content):
    send_range(handler, bytes(len(content)))
    return True


def _send_nothing(hub, handler, name, content):
    send_range(handler, content, end=0)
    return True


def _refuse(hub, handler, name, content):
    handler.send_response(403)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def _miss(hub, handler, name, content):
    handler.send_response(404)
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def _always_start_again(hub, handler, name, content):
    send_range(handler, content, ranges=False, end=60_000)
    return True


def _list_more_than_there_is(hub, handler, name, content):
    send_range(handler, content[:2000])
    return True


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_always_start_again, "stopped 6 times in a row"),
        (_list_more_than_there_is, "stopped 6 times in a row"),
        (_send_wrong, "other content 2 times"),
        (_send_nothing, "stopped 6 times in a row"),
        (_refuse, "refuses it (403)"),
        (_miss, "not there (404)"),
    ],
)
def test_a_server_that_stays_wrong_is_a_clear_error(fault, message, hub, tmp_path):
    hub.answer = fault
    with pytest.raises(ModelError, match=message.replace("(", r"\(").replace(")", r"\)")):
        _fetch(hub, tmp_path)
    assert not (tmp_path / WEIGHTS).exists()


def test_another_process_continues_where_the_first_stopped(hub, tmp_path):
    hub.answer = lambda hub, handler, name, content: name == WEIGHTS and _stop_at(handler, content, 120_000)
    with pytest.raises(ModelError, match="stopped 6 times"):
        _fetch(hub, tmp_path)
    assert [path.stat().st_size for path in tmp_path.glob(f".{WEIGHTS}.*.part")] == [120_000]
    fault = next(fault for fault in verify_folder(tmp_path).faults if fault.file == WEIGHTS)
    assert "0.1 MiB of it are in" in fault.problem

    hub.answer, hub.requests[:] = None, []
    result = _fetch(hub, tmp_path)
    assert (WEIGHTS, "bytes=120000-") in hub.requests
    assert WEIGHTS in result.downloaded
    _require_complete(hub, tmp_path)


def _stop_at(handler, content, end):
    send_range(handler, content, end=end)
    return True


def test_a_token_is_not_sent_to_a_mirror(hub, tmp_path, monkeypatch):
    headers = []

    def answer(hub, handler, name, content):
        headers.append(handler.headers.get("Authorization"))
        return False

    hub.answer = answer
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: "hf_secret")
    _fetch(hub, tmp_path / "mirror", files=["config.json"])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    fetch_model(FetchRequest(hub.name, "huggingface", tmp_path / "own", files=["config.json"]))
    assert headers == [None, "Bearer hf_secret"]


def test_an_interrupt_names_the_command_that_continues(monkeypatch, glmtune_command):
    def interrupt(request):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetcher, "fetch_model", interrupt)
    result = glmtune_command("fetch", "a/b", "--hub", "modelscope")
    assert result.code == 130
    assert result.err == "Interrupted. Continue: glmtune fetch a/b --hub modelscope\n"


def test_a_part_of_content_that_the_hub_replaced_is_dropped(hub, tmp_path):
    stale = tmp_path / f".{WEIGHTS}.000000000000.part"
    stale.write_bytes(b"old")
    _fetch(hub, tmp_path)
    assert not stale.exists()


def test_a_damaged_part_costs_one_more_download(hub, tmp_path):
    from glmtune.download.listing import list_repository

    file = list_repository(hub.name, "huggingface", mirror=hub.url).files[WEIGHTS]
    find_part(tmp_path, file).write_bytes(bytes(100_000))
    _fetch(hub, tmp_path)
    _require_complete(hub, tmp_path)


def test_the_disk_is_measured_before_anything_is_downloaded(hub, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetcher.shutil, "disk_usage", lambda folder: usage._replace(free=70 * 2**20))
    _fetch(hub, tmp_path / "small")
    monkeypatch.setattr(fetcher.shutil, "disk_usage", lambda folder: usage._replace(free=64 * 2**20))
    hub.requests.clear()
    with pytest.raises(ModelError, match=r"0.6 MiB are needed, 64 MiB are free"):
        _fetch(hub, tmp_path / "large")
    assert hub.requests == []
    assert _fetch(hub, tmp_path / "small").downloaded == []  # nothing is needed


@pytest.mark.parametrize("name", ["../outside.json", "/etc/outside.json", "a/../../b.json", "C:\\outside.json"])
def test_a_name_outside_the_folder_is_refused(name, hub, tmp_path):
    hub.listed_names["config.json"] = name
    with pytest.raises(ModelError, match="outside the folder"):
        _fetch(hub, tmp_path, files=[name])


def test_single_files_and_names_that_are_not_there(hub, tmp_path):
    _fetch(hub, tmp_path, files=["README.md", "onnx/model.onnx"])
    assert (tmp_path / "onnx" / "model.onnx").read_bytes() == b"x"
    with pytest.raises(ModelError, match=r"no file weights.bin"):
        _fetch(hub, tmp_path, files=["weights.bin"])
    hub.files = {"model.gguf": b"x"}
    with pytest.raises(ModelError, match=r"holds no model.safetensors"):
        _fetch(hub, tmp_path)


@pytest.mark.parametrize("kind", ["huggingface", "modelscope"])
def test_a_repository_or_hub_that_is_not_there(kind, hub, tmp_path):
    with pytest.raises(ModelError, match=r"not on|does not list it"):
        fetch_model(FetchRequest("no/such", kind, tmp_path, mirror=hub.url))
    name = "ZhipuAI/chatglm3-6b" if kind == "modelscope" else "THUDM/chatglm3-6b"
    with pytest.raises(ModelError, match="cannot be reached") as problem:
        fetch_model(FetchRequest(name, kind, tmp_path, mirror="http://127.0.0.1:9"))
    other = "THUDM/chatglm3-6b --hub huggingface" if kind == "modelscope" else "ZhipuAI/chatglm3-6b --hub modelscope"
    assert other in problem.value.hint


def test_the_command_and_the_repair_that_verify_prints(hub, tmp_path, tiny, glmtune_command, monkeypatch):
    """fetch, damage, verify, and the printed command: the folder is whole again."""
    monkeypatch.chdir(tmp_path)
    hub.files = {path.name: path.read_bytes() for path in tiny("chatglm3", "shards").iterdir()}
    result = glmtune_command("fetch", hub.name, "--mirror", hub.url, "--json")
    assert result.code == 0, result.err
    assert {file["name"] for file in json.loads(result.out)["files"]} == set(hub.files)
    good = glmtune_command("verify", "chatglm3-6b")
    assert (good.code, "Sums: 4 files as in the list of its download" in good.out) == (0, True), good.out
    os.truncate("chatglm3-6b/pytorch_model-00002-of-00002.bin", 5000)
    bad = glmtune_command("verify", "chatglm3-6b")
    command = next(line for line in bad.out.splitlines() if "glmtune fetch" in line).split(": ", 1)[1]
    assert glmtune_command(*shlex.split(command)[1:]).code == 0
    assert glmtune_command("verify", "chatglm3-6b", "--against", hub.name, "--mirror", hub.url).code == 0
    again = glmtune_command("fetch", hub.name, "--mirror", hub.url)
    assert "0 files downloaded" in again.out


def test_the_generation_is_known_by_the_repository_s_name(hub, tmp_path):
    """ChatGLM2 and ChatGLM3 have the same keys; no Python file is downloaded that would tell."""
    hub.files["config.json"] = b'{"model_type": "chatglm", "padded_vocab_size": 65024}'
    _fetch(hub, tmp_path / "mine")
    assert detect_family(tmp_path / "mine").name == "chatglm3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chatglm3-6b"], "no hub id"),
        (["../x"], "no hub id"),
        (["a/b", "--mirror", "hf-mirror.com"], "--mirror"),
        (["a/b", "--hub", "github"], "--hub"),
        (["a/b", "--parallel", "0"], "--parallel"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, glmtune_command):
    result = glmtune_command("fetch", *arguments)
    assert result.code != 0
    assert message in result.err
