"""The charts of a report as PNG files, for slides and chats."""

from __future__ import annotations

from pathlib import Path

from glmtune.evaluation.metric_order import QUALITY
from glmtune.evaluation.statistics import ScoreSummary
from glmtune.html.pages import is_number
from glmtune.html.plots import LineChart, Series, make_loss_chart, save_bar_chart, save_line_charts, select_points
from glmtune.report.answer_views import make_answer_charts
from glmtune.report.contents import ReportContents
from glmtune.report.view_parts import list_model_names


def draw_pictures(contents: ReportContents) -> list[Path]:
    """Draw curves.png of a run, scores.png of an evaluation or comparison, and forgetting.png of a probe.

    Returns:
        The files; those without numbers to draw are left out.
    """
    paths, folder = [], contents.folder
    if contents.metrics:
        others = [
            LineChart(label, label, [Series(label, select_points(contents.metrics, key))])
            for key, label in (
                ("learning_rate", "learning rate"),
                ("grad_norm", "gradient norm"),
                ("tokens_per_second", "tokens/s"),
            )
        ]
        loss = make_loss_chart(contents.metrics, contents.config.get("stage") or "sft")
        charts = [loss, *make_answer_charts(contents.metrics), *others]
        paths.append(save_line_charts(charts, folder / "curves.png"))

    results = [model for comparison in contents.comparisons[:1] for model in comparison.models]
    results = results or [evaluation.result for evaluation in contents.evaluations[:1]]
    names = [name for name in QUALITY if any(_has_mean(result.scores.get(name)) for result in results)]
    if names:
        titles = list_model_names([result.model for result in results])
        groups, errors = {}, {}
        for i, result in enumerate(results):
            title = titles[i] if titles[i].isascii() else f"model {i + 1}"
            scores = [result.scores.get(name) for name in names]
            groups[title] = [score.mean if score else None for score in scores]
            errors[title] = [_measure_errors(score) for score in scores]
        axis = "score, 0 to 100, with 95 % intervals"
        paths.append(save_bar_chart(names, groups, folder / "scores.png", axis, errors))

    shares = contents.forgetting.accuracy.by_category if contents.forgetting else {}
    if shares:
        sides = {
            side: [100 * value if is_number(value := getattr(share, side)) else None for share in shares.values()]
            for side in ("base", "tuned")
        }
        paths.append(save_bar_chart(list(shares), sides, folder / "forgetting.png", "right answers, %", maximum=100))
    return paths


def _has_mean(score: ScoreSummary | None) -> bool:
    return score is not None and is_number(score.mean)


def _measure_errors(score: ScoreSummary | None) -> tuple[float, float]:
    """Lengths of the interval below and above the mean."""
    if score is None or not all(is_number(value) for value in (score.low, score.mean, score.high)):
        return 0.0, 0.0
    return score.mean - score.low, score.high - score.mean
