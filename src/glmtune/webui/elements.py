"""Small pieces of the page that several templates show."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable

import psutil

from glmtune.html.builder import Html, el
from glmtune.html.pages import NO_VALUE, is_number


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


def make_progress(share: float, name: str) -> Html:
    """A progress bar.

    Args:
        share: 0 to 1.
        name: for screen readers.
    """
    percent = max(0.0, min(1.0, share)) * 100
    return el(
        "div",
        el("div", style=f"width:{percent:.1f}%"),
        class_="progress",
        role="progressbar",
        aria_label=name,
        aria_valuemin="0",
        aria_valuemax="100",
        aria_valuenow=f"{percent:.0f}",
    )


def format_number(value: object, form: str = ".4f") -> str:
    """A number as it is read; a dash where it is not known."""
    return f"{value:{form}}" if is_number(value) else NO_VALUE


def describe_gpu_memory() -> str:
    """Memory in use and in all of every GPU; empty without one. The driver's own tool is asked, for this process is
    to hold nothing there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (subprocess.SubprocessError, OSError):  # a driver that does not answer
        return ""
    pairs = [line.split(",") for line in output.splitlines() if "," in line]
    return ", ".join(f"{float(used) / 1024:.1f} / {float(total) / 1024:.1f} GiB" for used, total in pairs)


def measure_main_memory() -> dict[str, int]:
    """Bytes of main memory in use and in all."""
    memory = psutil.virtual_memory()
    return {"used": memory.total - memory.available, "total": memory.total}
