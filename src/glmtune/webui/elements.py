"""Small pieces of the page that several templates show."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterable

import psutil

from glmtune.html.builder import Html, el
from glmtune.html.pages import NO_VALUE, is_number

_GPU_SECONDS = 2.0
_gpu_lock = threading.Lock()
_gpu_readings: list[tuple[float, str]] = []


def make_facts(rows: Iterable[tuple[str, object]]) -> Html:
    """A table of names and values."""
    body = el("tbody", *(el("tr", el("th", name, scope="row"), el("td", value)) for name, value in rows))
    return el("table", body, class_="facts")


def make_figures(items: Iterable[tuple[str, object]]) -> Html:
    """Numbers in a row, each under its name."""
    return el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in items), class_="figures")


def make_note(line: str) -> Html:
    """A quiet remark."""
    return el("p", line, class_="note")


def format_number(value: object, form: str = ".4f") -> str:
    """A number as it is read; a dash where it is not known."""
    return f"{value:{form}}" if is_number(value) else NO_VALUE


def describe_gpu_memory() -> str:
    """Memory in use and in all of every GPU; empty without one. It is read once for all browsers that ask within
    `_GPU_SECONDS`."""
    with _gpu_lock:
        if not _gpu_readings or time.monotonic() - _gpu_readings[0][0] > _GPU_SECONDS:
            _gpu_readings[:] = [(time.monotonic(), _read_gpu_memory())]
        return _gpu_readings[0][1]


def _read_gpu_memory() -> str:
    """The driver's own tool is asked, for this process is to hold nothing on a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=5, check=True)
    except (subprocess.SubprocessError, OSError):  # a driver that does not answer
        return ""
    pairs = [line.split(",") for line in result.stdout.splitlines() if "," in line]
    return ", ".join(f"{float(used) / 1024:.1f} / {float(total) / 1024:.1f} GiB" for used, total in pairs)


def measure_main_memory() -> dict[str, int]:
    """Bytes of main memory in use and in all."""
    memory = psutil.virtual_memory()
    return {"used": memory.total - memory.available, "total": memory.total}
