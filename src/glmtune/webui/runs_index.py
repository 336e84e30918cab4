"""All runs under the roots, for a table of thousands: found by name and time first, read where a page or an order needs
them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.errors import RunError
from glmtune.html.pages import is_number
from glmtune.webui.context import Context
from glmtune.webui.root_walk import walk_roots
from glmtune.webui.run_files import TAGS, RunFacts, read_run, read_tags

PAGE_RUNS = 50
SORT_KEYS = ("name", "state", "model", "method", "steps", "loss", "eval_loss", "speed", "time", "ended")
_cache: dict[str, tuple[tuple[int, ...], RunRow]] = {}


@dataclass(frozen=True)
class RunRow:
    """A run as the table shows it; what is not known is None."""

    path: str
    name: str
    state: str
    model: str = ""
    method: str = ""
    steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    speed: float | None = None
    time: float | None = None
    """Seconds of training."""
    ended: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunQuery:
    """What a browser asks the table for.

    Attributes:
        search: part of the name, a tag, the model or the method.
        state: only runs of this state; empty: all.
        sort: one of `SORT_KEYS`.
        is_descending: the largest first.
        page: from 1.
    """

    search: str = ""
    state: str = ""
    sort: str = "ended"
    is_descending: bool = True
    page: int = 1


@dataclass(frozen=True)
class RunsPage:
    """A page of the table.

    Attributes:
        rows: up to `PAGE_RUNS` runs.
        count: all that match.
        cut_roots: roots of which some folders were not looked at, see `root_walk.RootContents`.
    """

    rows: list[RunRow]
    count: int
    cut_roots: list[Path]


def find_page(context: Context, query: RunQuery) -> RunsPage:
    """The runs that a browser asks for."""
    contents = walk_roots(context.roots)
    paths = contents.runs  # the newest first
    start = (query.page - 1) * PAGE_RUNS
    if not query.search and not query.state and query.sort in ("ended", "name"):
        if query.sort == "name":
            paths.sort(key=context.shorten, reverse=query.is_descending)
        elif not query.is_descending:
            paths.reverse()
        rows = [read_row(context, path) for path in paths[start : start + PAGE_RUNS]]
        return RunsPage(rows, len(paths), contents.cut_roots)
    rows = [row for row in (read_row(context, path) for path in paths) if _matches(row, query)]
    if query.sort != "ended":
        rows = _sort_rows(rows, query)
    elif not query.is_descending:
        rows.reverse()
    return RunsPage(rows[start : start + PAGE_RUNS], len(rows), contents.cut_roots)


def read_row(context: Context, path: Path) -> RunRow:
    """A run's row; read again only if its files changed. A run that cannot be read is shown as such."""
    stamp = _read_stamp(path)
    key = str(path)
    if key in _cache and _cache[key][0] == stamp and _cache[key][1].state != "running":
        return _cache[key][1]
    try:
        row = _make_row(context, read_run(path))
    except RunError:  # deleted since it was listed, or not ours to read; the others are shown all the same
        row = RunRow(key, context.shorten(path), "unreadable")
    _cache[key] = (stamp, row)
    return row


def _make_row(context: Context, facts: RunFacts) -> RunRow:
    summary, last = facts.summary, facts.last
    model = facts.config.get("model")
    model_path = model.get("path") if isinstance(model, dict) else model
    return RunRow(
        str(facts.path),
        context.shorten(facts.path),
        facts.state,
        Path(str(model_path)).name if model_path else "",
        str(facts.config.get("method", "")),
        _get_number(summary.get("steps", last.get("step"))),
        _get_number(last.get("loss")),
        _get_number(last.get("eval_loss")),
        _get_number(summary.get("tokens_per_second", last.get("tokens_per_second"))),
        _get_number(summary.get("seconds")),
        str(summary.get("finished_at") or "")[:16].replace("T", " "),
        read_tags(facts.path),
    )


def _matches(row: RunRow, query: RunQuery) -> bool:
    if query.state and row.state != query.state:
        return False
    words = query.search.casefold().split()
    content = " ".join([row.name, row.model, row.method, *row.tags]).casefold()
    return all(word in content for word in words)


def _sort_rows(rows: Iterable[RunRow], query: RunQuery) -> list[RunRow]:
    """Rows without a value come last, whichever way the others are sorted."""
    get: Callable[[RunRow], Any] = lambda row: getattr(row, query.sort)  # noqa: E731
    known = [row for row in rows if get(row) not in (None, "")]
    unknown = [row for row in rows if get(row) in (None, "")]
    return [*sorted(known, key=get, reverse=query.is_descending), *unknown]


def _get_number(value: Any) -> Any:
    return value if is_number(value) else None


def _read_stamp(path: Path) -> tuple[int, ...]:
    """Changes whenever a file that the row is made of does."""
    stamps = []
    for name in ("config.yaml", "summary.json", "metrics.jsonl", TAGS):
        try:
            stamps.append((path / name).stat().st_mtime_ns)
        except OSError:
            stamps.append(0)
    return tuple(stamps)
