"""Evaluations, comparisons and forgetting probes under the roots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.evaluation.results import COMPARISON_FILE, EVALUATION_FILE, FORGETTING_FILE
from glmtune.utils.io import find_json_object
from glmtune.webui.context import Context
from glmtune.webui.elements import format_number
from glmtune.webui.lists import MAX_PATHS
from glmtune.webui.root_walk import find_runs

_KINDS = {EVALUATION_FILE: "eval", COMPARISON_FILE: "comparison", FORGETTING_FILE: "forgetting"}


@dataclass(frozen=True)
class EvaluationEntry:
    """A finished evaluation.

    Attributes:
        folder: of the result.
        kind: eval, comparison or forgetting.
        content: of its file.
        written: seconds since 1970.
    """

    folder: Path
    kind: str
    content: dict[str, Any]
    written: float


@dataclass(frozen=True)
class EvaluationRow:
    """A row of the table: a comparison has one for each model. Numbers are as they are read."""

    folder: Path
    kind: str
    model: str
    rows: str
    bleu: str
    rouge: str
    loss: str
    verdict: str
    """pass, warn or fail; empty: none."""


def list_evaluations(context: Context) -> list[EvaluationEntry]:
    """What was evaluated inside runs and in `evals` of each root, the newest first."""
    entries = [entry for folder in _list_folders(context) for entry in _read_folder(folder)]
    return sorted(entries, key=lambda entry: entry.written, reverse=True)


def make_rows(entry: EvaluationEntry) -> Iterator[EvaluationRow]:
    """The rows of an evaluation."""
    content = entry.content
    if entry.kind == "forgetting":
        items, loss = get_nested(content, "items"), format_number(get_nested(content, "loss", "tuned"))
        name = get_nested(content, "tuned", "name") or "–"
        yield EvaluationRow(entry.folder, entry.kind, name, _show(items), "–", "–", loss, _get_verdict(content))
        return
    models = content.get("models") or [] if entry.kind == "comparison" else [content]
    probes = content.get("forgetting") or []
    for place, metrics in enumerate(models):
        scores = [get_nested(metrics, "scores", name, "mean") for name in ("bleu4_characters", "rouge_l")]
        yield EvaluationRow(
            folder=entry.folder,
            kind=entry.kind,
            model=get_nested(metrics, "model", "name") or "–",
            rows=_show(get_nested(metrics, "data", "rows")),
            bleu=format_number(scores[0], ".2f"),
            rouge=format_number(scores[1], ".2f"),
            loss=format_number(get_nested(metrics, "loss")),
            verdict=_get_verdict(probes[place]) if place < len(probes) else "",
        )


def get_nested(tree: Any, *keys: str) -> Any:
    """A value in nested dicts; None where any of it is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _list_folders(context: Context) -> Iterator[Path]:
    for run in find_runs(context.roots)[:MAX_PATHS]:
        yield run
        yield from sorted(run.glob("eval/*/"))
    for root in context.roots:
        yield from sorted(root.glob("evals/*/"))


def _read_folder(folder: Path) -> Iterator[EvaluationEntry]:
    for name, kind in _KINDS.items():
        path = folder / name
        content = find_json_object(path)  # None: not there, or being written by another process
        if content is not None and content.get("kind") == kind:
            yield EvaluationEntry(folder, kind, content, path.stat().st_mtime)


def _get_verdict(probe: Any) -> str:
    verdict = get_nested(probe, "verdict")
    return verdict if verdict in ("pass", "warn", "fail") else ""


def _show(value: Any) -> str:
    return "–" if value is None else str(value)
