"""The small curves of a run's report."""

from __future__ import annotations

from typing import Any

from glmtune.evaluation.metric_order import QUALITY
from glmtune.html.plots import LineChart, Points, Series, select_points

_SERIES_STYLES = ("first", "second", "third", "fourth")
_RISE_FACTOR = 1.02  # an evaluation loss this much above its minimum has risen


def make_small_charts(metrics: list[dict[str, Any]]) -> list[LineChart]:
    """Rewards, learning rate, gradient norm, speed, and scores of generated replies, if they were logged."""
    charts = _make_reward_charts(metrics)
    charts += [
        LineChart(f"report.chart.{name}", f"report.unit.{name}", [Series(f"report.chart.{name}", points, "first")])
        for name, key in (("rate", "learning_rate"), ("norm", "grad_norm"), ("speed", "tokens_per_second"))
        if (points := select_points(metrics, key))
    ]
    scores = [(name, points) for name in QUALITY if (points := select_points(metrics, f"eval_{name}"))]
    series = [
        Series(f"report.score.{name}", points, style, has_dots=True)
        for (name, points), style in zip(scores, _SERIES_STYLES, strict=False)
    ]
    return [*charts, LineChart("report.chart.scores", "report.unit.scores", series)] if series else charts


def _make_reward_charts(metrics: list[dict[str, Any]]) -> list[LineChart]:
    """What the answers of a training by rewards were like; none of other trainings."""
    if not select_points(metrics, "reward"):
        return []
    charts = []
    for name, key in (("reward", "reward"), ("answer_length", "completion_length"), ("reference_kl", "kl")):
        series = [
            Series("report.curve.train", select_points(metrics, key), "first"),
            Series("report.curve.eval", select_points(metrics, f"eval_{key}"), "second", has_dots=True),
        ]
        charts.append(LineChart(f"report.chart.{name}", f"report.unit.{name}", series))
    return [chart for chart in charts if chart.drawn_series()]


def find_rise(points: Points) -> dict[str, float] | None:
    """Where the evaluation loss was lowest, if it has risen since."""
    if len(points) < 2:
        return None
    step, lowest = min(points, key=lambda point: point[1])
    last = points[-1][1]
    return {"step": step, "lowest": lowest, "last": last} if last > lowest * _RISE_FACTOR else None
