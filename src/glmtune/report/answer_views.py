"""What a report shows of better and worse answers: curves of preference tuning, scores of pairs, and some pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glmtune.html.pages import is_number, show_number, show_text
from glmtune.html.plots import LineChart, Series, select_points, smooth_points
from glmtune.report.contents import Evaluation
from glmtune.training.answer_curves import find_answer_fall

_CHARTS = (
    ("logp", (("better_logp", "first"), ("worse_logp", "second"))),
    ("reward", (("margin", "first"), ("better_reward", "second"), ("worse_reward", "third"))),
    ("accuracy", (("accuracy", "first"),)),
)
_PAIRS_SHOWN = 4


def make_answer_charts(metrics: Sequence[dict[str, Any]]) -> list[LineChart]:
    """Log-probabilities of both answers, rewards with their margin, and accuracy, over steps, in training and on
    held-out pairs; empty for a run without such numbers."""
    charts = []
    for name, curves in _CHARTS:
        series = []
        for key, style in curves:
            points = select_points(metrics, key)
            series.append(Series(f"report.pairs.train.{key}", smooth_points(points) or points, style, has_label=True))
            held_out = select_points(metrics, f"eval_{key}")
            series.append(Series(f"report.pairs.eval.{key}", held_out, style, has_dots=True))
        chart = LineChart(f"report.chart.pairs.{name}", f"report.unit.pairs.{name}", series)
        if chart.drawn_series():
            charts.append(chart)
    return charts if select_points(metrics, "better_reward") or select_points(metrics, "eval_better_reward") else []


def find_last_numbers(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[float | None, bool]:
    """The last value of a metric, of held-out pairs if there are any, and whether it is of those."""
    for key, is_evaluation in ((f"eval_{name}", True), (name, False)):
        values = [entry[key] for entry in metrics if is_number(entry.get(key))]
        if values:
            return float(values[-1]), is_evaluation
    return None, False


def show_answer_fall(metrics: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> Any:
    """The warning that both answers became less likely, in both languages; None where they did not."""
    fall = find_answer_fall(metrics, config)
    if fall is None:
        return None
    values = {"before": fall.better[0], "after": fall.better[1]}
    values |= {"worse_before": fall.worse[0], "worse_after": fall.worse[1]}
    shown = {name: show_number(value, ",.1f") for name, value in values.items()}
    key = "report.pairs.fall.eval" if fall.is_evaluation else "report.pairs.fall.train"
    return show_text(key, step=show_number(fall.step), advice=show_text(fall.advice_key), **shown)


def view_pair_scores(evaluation: Evaluation) -> dict[str, Any] | None:
    """Scores of pairs, and the pairs that the model gets most right and most wrong; None without pairs."""
    result = evaluation.pairs
    if result is None:
        return None
    rows = [row for row in evaluation.pair_rows if is_number(row.get("margin"))]
    rows.sort(key=lambda row: float(row["margin"]))
    wrong = [row for row in rows if float(row["margin"]) <= 0]
    right = [row for row in reversed(rows) if float(row["margin"]) > 0]
    groups = [("report.pairs.wrong", wrong[:_PAIRS_SHOWN]), ("report.pairs.right", right[:_PAIRS_SHOWN])]
    return {
        "result": result,
        "scores": [(f"report.pairs.{name}", name, score) for name, score in result.scores.items()],
        "groups": [(key, shown) for key, shown in groups if shown],
        "counts": {"right": len(right), "wrong": len(wrong)},
    }
