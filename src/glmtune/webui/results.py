"""Evaluations, comparisons and forgetting probes under the roots, and the report of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.evaluation.results import COMPARISON_FILE, EVALUATION_FILE, FORGETTING_FILE
from glmtune.html.builder import Html, el
from glmtune.report.contents import read_contents
from glmtune.report.page import render_page
from glmtune.utils.io import find_json_object
from glmtune.webui.context import Context
from glmtune.webui.paths import listed

_KINDS = {EVALUATION_FILE: "eval", COMPARISON_FILE: "comparison", FORGETTING_FILE: "forgetting"}


@dataclass(frozen=True)
class Result:
    """A finished evaluation."""

    folder: Path
    kind: str
    """eval, comparison or forgetting."""
    content: dict[str, Any]
    written: float
    """Seconds since 1970."""


def results(context: Context) -> list[Result]:
    """What was evaluated inside runs and in `evals` of each root, the newest first."""
    found = [result for folder in _folders(context) for result in _in(folder)]
    return sorted(found, key=lambda result: result.written, reverse=True)


def _folders(context: Context) -> Iterator[Path]:
    for run in map(Path, listed(context.roots, "runs")):
        yield run
        yield from sorted(run.glob("eval/*/"))
    for root in context.roots:
        yield from sorted(root.glob("evals/*/"))


def _in(folder: Path) -> Iterator[Result]:
    for name, kind in _KINDS.items():
        path = folder / name
        content = find_json_object(path)  # None: not there, or being written by another hand
        if content is not None and content.get("kind") == kind:
            yield Result(folder, kind, content, path.stat().st_mtime)


def report_frame(folder: Path, lang: str) -> Html:
    """The report of a folder as it is now, in a frame that may run no script and reach no network.

    Raises:
        RunError: there is nothing to report on, or a file cannot be read.
    """
    # Made anew, not read from report.html: what lies in a folder may have come from anywhere.
    page = render_page(read_contents(folder), lang)
    return el(
        "iframe",
        srcdoc=page,
        sandbox="",
        title=f"report: {folder.name}",
        class_="report",
        style="width:100%;height:75vh;border:1px solid var(--border-color-primary);border-radius:12px",
    )
