"""The order of metrics in tables, and whether more of them is better."""

from __future__ import annotations

from collections.abc import Iterable

from glmtune.training.best_metric import FAULTS, QUALITY

RATIO = "length_ratio"
"""Neither more nor less is better."""
SIGNIFICANT = 0.05


def sort_metrics(names: Iterable[str]) -> list[str]:
    """Quality first, then faults; unknown names last."""
    order = (*QUALITY, *FAULTS, RATIO)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def find_direction(name: str) -> int:
    """1: more is better; -1: less is; 0: neither."""
    return -1 if name in FAULTS else int(name in QUALITY)
