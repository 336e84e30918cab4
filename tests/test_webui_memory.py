"""The strip of the page: who holds memory, and what is given back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import psutil
import pytest

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from page_client import PageClient

from glmtune.webui import gpu_memory
from glmtune.webui import jobs as jobs_module
from glmtune.webui import memory_holders as holders_module
from glmtune.webui.app import make_context
from glmtune.webui.gpu_memory import Gpu, GpuProcess, describe_gpu_memory, read_gpus
from glmtune.webui.memory_holders import list_holders

GIB = 2**30
DRIVER = """#!/bin/sh
case "$1" in
  --query-gpu=*) echo "GPU-1, 5120, 15360, NVIDIA T4"; echo "GPU-2, [N/A], 15360, Card, with a comma" ;;
  *) echo "GPU-1, 77, 1024, /usr/bin/python3"; echo "GPU-2, 78, [N/A], C:\\\\game, part two.exe" ;;
esac
"""
LEAVING = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_memory, "_readings", [])
    monkeypatch.setattr(gpu_memory, "_read_gpus", tuple)
    monkeypatch.setattr(holders_module, "_scans", [])
    return make_context([tmp_path], "en")


def set_gpu(monkeypatch, *processes: GpuProcess, used: int = 0) -> None:
    monkeypatch.setattr(gpu_memory, "_readings", [])
    monkeypatch.setattr(gpu_memory, "_read_gpus", lambda: (Gpu("NVIDIA T4", used, 15 * GIB, processes),))


def wait_until(is_true, seconds=20.0):
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(os.name == "nt", reason="the driver's tool is imitated by a shell script")
def test_cards_and_processes_are_read_from_the_drivers_tool(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(DRIVER)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(gpu_memory, "_readings", [])
    first, second = read_gpus()
    assert (first.name, first.used, first.total) == ("NVIDIA T4", 5 * GIB, 15 * GIB)
    assert first.processes == (GpuProcess(77, "/usr/bin/python3", GIB),)
    assert (second.name, second.used) == ("Card, with a comma", 0)
    assert second.processes[0].bytes is None
    assert describe_gpu_memory().startswith("5.0 / 15.0 GiB")


def test_every_holder_of_a_gpu_is_named_with_its_process(context, monkeypatch):
    """A browser that plays video, this page, and what the driver names no process for."""
    own = GpuProcess(os.getpid(), "python", 2 * GIB)
    set_gpu(monkeypatch, own, GpuProcess(4_000_001, "/opt/browser, old/firefox", GIB), used=5 * GIB)
    html = PageClient(context).get("/strip").text
    rows = [re.sub(r"<[^>]+>|\s+", " ", row) for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL)]
    assert any("this page" in row and str(os.getpid()) in row and "2.0 GiB" in row for row in rows)
    assert any("firefox" in row and "4000001" in row and "1.0 GiB" in row for row in rows)
    assert any("not told by the driver" in row and "2.0 GiB" in row for row in rows)
    assert "strip-free" not in html, "nothing of this is the page's to free"


def test_a_driver_that_does_not_say_how_much_is_no_error(context, monkeypatch):
    set_gpu(monkeypatch, GpuProcess(4_000_001, "firefox", None), used=GIB)
    assert ">?</td>" in PageClient(context).get("/strip").text


def test_the_chats_models_are_freed_and_what_is_not_is_said(context, monkeypatch):
    set_gpu(monkeypatch, GpuProcess(4_000_001, "firefox", GIB), used=GIB)
    names = ["runs/a"]
    monkeypatch.setattr(context.models, "list_targets", lambda: names)
    monkeypatch.setattr(context.models, "clear", names.clear)
    page = PageClient(context)
    assert 'hx-confirm="Free the memory of runs/a?' in page.get("/strip").text
    answer = page.post("/strip/free").text
    assert "Freed: runs/a." in answer
    assert "Not freed: firefox (process 4000001)" in answer
    assert names == []
    set_gpu(monkeypatch)
    monkeypatch.setattr(holders_module, "_is_glmtune", lambda line: False)  # of this machine's other users
    assert "There was nothing to free." in page.post("/strip/free").text


@pytest.mark.skipif(not hasattr(os, "getsid"), reason="needs sessions of processes")
def test_what_an_ended_job_has_left_is_found_and_ended(context, monkeypatch):
    monkeypatch.setattr(jobs_module, "COMMAND", (sys.executable, "-c", LEAVING))
    job = context.jobs.submit("export", [], str(context.roots[0] / "exports" / "x"), "me")
    wait_until(lambda: not context.jobs.get(job.id).alive)
    left = [holder for holder in list_holders(context) if holder.kind == "leftover"]
    assert [holder.name for holder in left] == ["export x"]
    process = left[0].processes[0]
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        answer = PageClient(context).post("/strip/free").text
        assert "Freed: export x" in answer
        wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_command_line_is_shown_without_the_values_of_its_options():
    line = ["/usr/bin/python", "/usr/bin/glmtune", "serve", "runs/a", "--api-key", "secret"]
    assert holders_module._is_glmtune(line)
    assert holders_module._shorten(line) == "glmtune serve a"
    assert holders_module._shorten(["glmtune", "ui", "--password", "secret"]) == "glmtune ui"
    assert holders_module._is_glmtune(["python", "-m", "glmtune", "train", "x.yaml"])
    assert not holders_module._is_glmtune(["vim", "notes", "glmtune"])
