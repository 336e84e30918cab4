"""Results under the roots: evaluations, comparisons by scores and by votes, forgetting probes, and scored rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.evaluation.results import COMPARISON_FILE, EVALUATION_FILE, FORGETTING_FILE
from glmtune.evaluation.votes import VOTES_FILE
from glmtune.html.pages import is_number
from glmtune.utils.io import find_json_object
from glmtune.webui.context import Context
from glmtune.webui.root_walk import find_runs

KINDS = ("eval", "comparison", "votes", "forgetting", "score")
SORT_KEYS = ("written", "model", "rows", "bleu", "rouge", "loss")
PAGE_ROWS = 50
_FILES = {
    COMPARISON_FILE: ("comparison",),
    EVALUATION_FILE: ("eval", "pairs", "labels", "rows"),
    FORGETTING_FILE: ("forgetting",),
    VOTES_FILE: ("votes",),
}
"""Files of results, and the kinds that they name in themselves: `glmtune score` writes pairs, labels and rows."""
_read_results: dict[str, tuple[int, EvaluationEntry | None]] = {}
"""By path, with the time of the file: thousands are not read for every request."""


@dataclass(frozen=True)
class EvaluationRow:
    """A row of the table: a comparison has one for each model. What is not known is None or empty."""

    folder: Path
    kind: str
    """One of `KINDS`."""
    model: str
    rows: int | None = None
    bleu: float | None = None
    rouge: float | None = None
    loss: float | None = None
    verdict: str = ""
    """pass, warn or fail; empty: none."""
    measure: str = ""
    """What `value` is: win_rate (percent), accuracy (percent) or reward."""
    value: float | None = None
    interval: tuple[float, float] | None = None
    """95 % interval of `value`."""
    written: float = 0.0
    """Seconds since 1970."""


@dataclass(frozen=True)
class EvaluationEntry:
    """A finished evaluation.

    Attributes:
        folder: of the result.
        kind: one of `KINDS`.
        command: that wrote it; empty: none did.
        written: seconds since 1970.
        rows: of the table.
    """

    folder: Path
    kind: str
    command: str
    written: float
    rows: tuple[EvaluationRow, ...]


@dataclass(frozen=True)
class EvaluationQuery:
    """What a browser asks the table for.

    Attributes:
        search: words of the folder or the model.
        kind: one of `KINDS`; empty: all.
        sort: one of `SORT_KEYS`.
        is_descending: the largest first.
        page: from 1.
    """

    search: str = ""
    kind: str = ""
    sort: str = "written"
    is_descending: bool = True
    page: int = 1


def find_rows(context: Context, query: EvaluationQuery) -> tuple[list[EvaluationRow], int]:
    """A page of the table.

    Returns:
        Up to `PAGE_ROWS` rows, and the number of all that match.
    """
    words = query.search.casefold().split()
    found = []
    for row in (row for entry in list_evaluations(context) for row in entry.rows):
        content = f"{context.shorten(row.folder)} {row.model}".casefold()
        if query.kind in ("", row.kind) and all(word in content for word in words):
            found.append(row)
    get: Callable[[EvaluationRow], Any] = lambda row: getattr(row, query.sort)  # noqa: E731
    # Rows without a value come last, whichever way the others are sorted. Rows of a comparison stay in their order.
    known = sorted((row for row in found if get(row) not in (None, "")), key=get, reverse=query.is_descending)
    found = [*known, *(row for row in found if get(row) in (None, ""))]
    start = (query.page - 1) * PAGE_ROWS
    return found[start : start + PAGE_ROWS], len(found)


def list_evaluations(context: Context) -> list[EvaluationEntry]:
    """What was evaluated inside runs and in `evals` and `scores` of each root, the newest first."""
    entries = [entry for folder in _list_folders(context) for entry in _read_folder(folder)]
    return sorted(entries, key=lambda entry: entry.written, reverse=True)


def list_run_evaluations(run: Path) -> list[EvaluationEntry]:
    """What was evaluated inside a run, the newest first."""
    entries = [entry for folder in _list_run_folders(run) for entry in _read_folder(folder)]
    return sorted(entries, key=lambda entry: entry.written, reverse=True)


def find_result(context: Context, command: str) -> EvaluationEntry | None:
    """The newest result that a command has written."""
    return next((entry for entry in list_evaluations(context) if entry.command == command), None)


def get_nested(tree: Any, *keys: str) -> Any:
    """A value in nested dicts; None where any of it is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _list_folders(context: Context) -> Iterator[Path]:
    for run in find_runs(context.roots):
        yield from _list_run_folders(run)
    for root in context.roots:
        for part in ("evals", "scores"):
            yield from sorted(root.glob(f"{part}/*/"))


def _list_run_folders(run: Path) -> Iterator[Path]:
    names = _list_names(run)
    if FORGETTING_FILE in names:
        yield run
    for part in ("eval", "score"):
        if part in names:
            yield from sorted(run.glob(f"{part}/*/"))


def _list_names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # deleted since it was listed, or not ours to read
        return []


def _read_folder(folder: Path) -> Iterator[EvaluationEntry]:
    for name, kinds in _FILES.items():
        path = folder / name
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            continue
        known = _read_results.get(str(path))
        if known is None or known[0] != changed:
            content = find_json_object(path)  # None: being written by another process, or damaged
            fits = content is not None and content.get("kind") in kinds
            known = (changed, _make_entry(folder, content, changed / 1e9) if content is not None and fits else None)
            _read_results[str(path)] = known
        if known[1] is not None:
            yield known[1]


def _make_entry(folder: Path, content: dict[str, Any], written: float) -> EvaluationEntry:
    kind = content["kind"] if content["kind"] in KINDS else "score"
    rows = tuple(_MAKE_ROWS[kind](folder, content, written))
    return EvaluationEntry(folder, kind, str(content.get("command") or ""), written, rows)


def _make_evaluation_rows(folder: Path, content: dict[str, Any], written: float) -> Iterator[EvaluationRow]:
    """A row of an evaluation, or one for each model of a comparison."""
    is_comparison = content["kind"] == "comparison"
    models = content.get("models") if is_comparison else [content]
    probes, wins = (_get_list(content, name) for name in ("forgetting", "win_rates"))
    for place, metrics in enumerate(models if isinstance(models, list) else []):
        win = next((each for each in wins if get_nested(each, "b") == place), None)
        scores = [_get_number(metrics, "scores", name, "mean") for name in ("bleu4_characters", "rouge_l")]
        yield EvaluationRow(
            *(folder, str(content["kind"]), str(get_nested(metrics, "model", "name") or "–")),
            rows=_get_number(metrics, "data", "rows"),
            bleu=scores[0],
            rouge=scores[1],
            loss=_get_number(metrics, "loss"),
            verdict=_get_verdict(probes[place]) if place < len(probes) else "",
            written=written,
            **(_describe_rate(get_nested(win, "rate")) if win else {}),
        )


def _make_vote_rows(folder: Path, content: dict[str, Any], written: float) -> Iterator[EvaluationRow]:
    models = " · ".join(map(str, _get_list(content, "models"))) or "–"
    rate = content.get("rate")
    yield EvaluationRow(
        *(folder, "votes", models), rows=_get_number(rate, "rows"), written=written, **_describe_rate(rate)
    )


def _make_forgetting_rows(folder: Path, content: dict[str, Any], written: float) -> Iterator[EvaluationRow]:
    yield EvaluationRow(
        *(folder, "forgetting", str(get_nested(content, "tuned", "name") or "–")),
        rows=_get_number(content, "items"),
        loss=_get_number(content, "loss", "tuned"),
        verdict=_get_verdict(content),
        written=written,
    )


def _make_score_rows(folder: Path, content: dict[str, Any], written: float) -> Iterator[EvaluationRow]:
    name = "accuracy" if content["kind"] == "pairs" else "mean_reward"
    scale = 100 if name == "accuracy" else 1
    value, low, high = (_get_number(content, f"{name}{end}") for end in ("", "_low", "_high"))
    yield EvaluationRow(
        *(folder, "score", Path(str(content.get("model") or "–")).parent.name or "–"),
        rows=_get_number(content, "pairs" if name == "accuracy" else "rows"),
        measure="accuracy" if name == "accuracy" else "reward",
        value=None if value is None else scale * value,
        interval=None if low is None or high is None else (scale * low, scale * high),
        written=written,
    )


_MAKE_ROWS: dict[str, Callable[[Path, dict[str, Any], float], Iterator[EvaluationRow]]] = {
    "eval": _make_evaluation_rows,
    "comparison": _make_evaluation_rows,
    "votes": _make_vote_rows,
    "forgetting": _make_forgetting_rows,
    "score": _make_score_rows,
}


def _describe_rate(rate: Any) -> dict[str, Any]:
    mean, low, high = (_get_number(rate, name) for name in ("mean", "low", "high"))
    interval = None if low is None or high is None else (low, high)
    return {"measure": "win_rate", "value": mean, "interval": interval}


def _get_list(tree: dict[str, Any], key: str) -> list[Any]:
    value = tree.get(key)
    return value if isinstance(value, list) else []


def _get_number(tree: Any, *keys: str) -> Any:
    value = get_nested(tree, *keys)
    return value if is_number(value) else None


def _get_verdict(probe: Any) -> str:
    verdict = get_nested(probe, "verdict")
    return verdict if verdict in ("pass", "warn", "fail") else ""
