"""Repaired rows of the tab `Data`: what can be done with each kind of findings, and what was changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from glmtune.data.check_fix import EDITED, REMOVED_WARNINGS, FixPlan, FixResult, make_fix_plan
from glmtune.data.check_kinds import ERROR, describe_kind, make_excerpt
from glmtune.data.row_repairs import REPAIRABLE, TRIM
from glmtune.utils.file_access import require_readable
from glmtune.webui.data_checks import DataCheck
from glmtune.webui.requests import FormData
from glmtune.webui.texts import text

ACTIONS = ("repair", "remove", "keep")
"""What a user may have done with the rows of a kind of findings."""
MAX_CHANGES = 20
"""Changed rows that are listed on the page; all are in the file."""
_EXCERPT = 30
_OF_ALL_ROWS = ("unread-key", "length-bias")
"""Findings that are of no single row."""


@dataclass(frozen=True)
class FixChoice:
    """A kind of findings with what can be done about it.

    Attributes:
        kind: of findings.
        title: of the kind, in the language of the page.
        severity: `error` or `warning`.
        count: number of findings.
        actions: those of `ACTIONS` that are possible, the usual one first.
        repair: what the repair does; empty without one.
    """

    kind: str
    title: str
    severity: str
    count: int
    actions: tuple[str, ...]
    repair: str = ""


def list_choices(check: DataCheck | None, lang: str) -> list[FixChoice]:
    """What can be done about the findings of a check, errors first."""
    kinds = check.report.kinds if check is not None else {}
    choices = []
    for severity, kind in sorted(kinds, key=lambda key: (key[0] != ERROR, -kinds[key], key[1])):
        if kind in _OF_ALL_ROWS or kind == "left-out":
            continue
        actions = ["repair"] if kind in REPAIRABLE else []
        is_kept = severity != ERROR and kind not in REMOVED_WARNINGS
        actions += ["keep", "remove"] if is_kept else ["remove", "keep"] if severity != ERROR else ["remove"]
        repair = text(f"repair.{kind}", lang) if kind in REPAIRABLE else ""
        title = describe_kind(kind, lang)
        choices.append(FixChoice(kind, title, severity, kinds[severity, kind], tuple(actions), repair))
    return choices


def parse_plan(data: FormData) -> FixPlan:
    """The plan that a form names: a field `fix.KIND` for each kind.

    Raises:
        ConfigError: an unknown kind, or one without a repair.
    """
    chosen = {name.removeprefix("fix."): value for name, value in data.pairs if name.startswith("fix.")}
    repaired = [kind for kind, action in chosen.items() if action == "repair"]
    removed = {kind for kind, action in chosen.items() if action == "remove"}
    removed |= {kind for kind in REMOVED_WARNINGS if kind not in chosen}
    return make_fix_plan(repaired, sorted(removed), data.has("trim"))


@dataclass(frozen=True)
class ShownChange:
    """A changed row as the page lists it: where, how, and the text around the first difference before and after."""

    where: str
    how: str
    before: str
    after: str


def read_changes(fix: FixResult, lang: str) -> Iterator[ShownChange]:
    """The first changed rows of a new file."""
    if not fix.changed_rows:
        return
    with require_readable(fix.changed).open(encoding="utf-8") as stream:
        for line in islice(stream, MAX_CHANGES):
            change: dict[str, Any] = json.loads(line)
            how = "; ".join(describe_repair(kind, lang) for kind in change["repairs"])
            before, after = (_to_line(change[key]) for key in ("before", "after"))
            position = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
            start = max(0, position - _EXCERPT)
            yield ShownChange(change["where"], how, make_excerpt(before[start:]), make_excerpt(after[start:]))


def describe_repair(kind: str, lang: str) -> str:
    """What a repair does."""
    has_repair = kind in REPAIRABLE or kind in (EDITED, TRIM)
    return text(f"repair.{kind}", lang) if has_repair else kind


def _to_line(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
