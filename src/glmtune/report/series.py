"""Curves out of metrics.jsonl, for the page and the PNGs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from glmtune.report.markup import is_number

Points = list[tuple[float, float]]
_WINDOW = 15
"""A point of the smoothed curve is the mean over one part in so many of the run."""
_DRAWN = 300
"""Spans of steps that a curve is thinned to; each keeps its lowest and highest point."""
_GROWTH = 1.02
"""An evaluation loss this much over its lowest has risen."""


@dataclass(frozen=True)
class Rise:
    """An evaluation loss that fell and rose again."""

    step: float
    lowest: float
    last: float


def points(entries: list[dict[str, Any]], key: str) -> Points:
    """(step, value) of every line that has the number."""
    return [
        (entry["step"], entry[key]) for entry in entries if is_number(entry.get("step")) and is_number(entry.get(key))
    ]


def smoothed(raw: Points) -> Points:
    """The mean of each point and its neighbours, as many before as after, so that the curve does not lag; its ends are
    the logged ones. Empty for a few points, which are read as they are."""
    half = len(raw) // (2 * _WINDOW)
    if not half:
        return []
    sums = list(accumulate((value for _, value in raw), initial=0.0))
    result = []
    for i, (step, _) in enumerate(raw):
        reach = min(half, i, len(raw) - 1 - i)
        result.append((step, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


def thinned(raw: Points) -> Points:
    """At most 600 points that keep every peak."""
    if len(raw) <= 2 * _DRAWN:
        return raw
    size = -(-len(raw) // _DRAWN)
    kept: Points = []
    for start in range(0, len(raw), size):
        part = raw[start : start + size]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept


def rise(evaluated: Points) -> Rise | None:
    """Where the evaluation loss was lowest, if it has risen since."""
    if len(evaluated) < 2:
        return None
    step, lowest = min(evaluated, key=lambda point: point[1])
    last = evaluated[-1][1]
    return Rise(step, lowest, last) if last > lowest * _GROWTH else None


def generated_scores(entries: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Points]:
    """Scores of generated replies during training, by name, of those that were logged."""
    found = {name: points(entries, f"eval_{name}") for name in names}
    return {name: line for name, line in found.items() if line}
