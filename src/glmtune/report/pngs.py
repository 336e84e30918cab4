"""The charts as pictures for slides and chats; Latin letters, since not every machine has Chinese fonts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.evaluation.metric_order import QUALITY
from glmtune.report.compare_sections import models_of
from glmtune.report.gather import Found, Json, at, below
from glmtune.report.markup import is_number
from glmtune.report.parts import model_names
from glmtune.report.series import points, smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _PALE = "#0a66ad", "#c24e00", "#9cc6e6"


def draw_pngs(found: Found) -> list[Path]:
    """curves.png of a run; scores.png of an evaluation or comparison; forgetting.png of a probe."""
    drawn = []
    if found.entries:
        drawn.append(_save(_curves(found.entries), found.folder / "curves.png"))
    models = [model for comparison in found.comparisons[:1] for model in models_of(comparison)]
    models = models or [evaluation.metrics for evaluation in found.evaluations[:1]]
    names = [name for name in QUALITY if any(is_number(at(model, "scores", name, "mean")) for model in models)]
    if names:
        drawn.append(_save(_scores(models, names), found.folder / "scores.png"))
    shares = at(found.forgetting, "accuracy", "by_category")
    if isinstance(shares, dict) and shares:
        drawn.append(_save(_forgetting(shares), found.folder / "forgetting.png"))
    return drawn


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for each in axes:
        each.grid(alpha=0.25)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary)
    temporary.replace(path)
    return path


def _curves(entries: list[Json]) -> Figure:
    figure, (losses, rate, norm, speed) = _figure(2, 2, (10, 6))
    train, evaluated = points(entries, "loss"), points(entries, "eval_loss")
    smooth = smoothed(train)
    _plot(losses, train, color=_PALE if smooth else _BLUE, label="training")
    _plot(losses, smooth, color=_BLUE, label="training, smoothed")
    _plot(losses, evaluated, color=_ORANGE, marker="o", linestyle="--", label="evaluation")
    losses.set_ylabel("loss per target token")
    if train or evaluated:
        losses.legend(frameon=False)
    for axes, key, label in (
        (rate, "learning_rate", "learning rate"),
        (norm, "grad_norm", "gradient norm"),
        (speed, "tokens_per_second", "tokens/s"),
    ):
        _plot(axes, points(entries, key), color=_BLUE)
        axes.set_ylabel(label)
        axes.set_xlabel("step")
    losses.set_xlabel("step")
    return figure


def _plot(axes: Axes, line: list[tuple[float, float]], **style: Any) -> None:
    if line:
        axes.plot(*zip(*line, strict=True), **style)


def _scores(models: list[Json], names: list[str]) -> Figure:
    figure, (axes,) = _figure(1, 1, (8, 0.6 + 0.32 * len(names) * (1 + len(models))))
    height = 0.8 / len(models)
    labels = [name if name.isascii() else f"model {i + 1}" for i, name in enumerate(model_names(models))]
    for i, model in enumerate(models):
        scores = [below(model, "scores", name) for name in names]
        means = [score["mean"] if is_number(score.get("mean")) else 0.0 for score in scores]
        places = [row + (i - (len(models) - 1) / 2) * height for row in range(len(names))]
        axes.barh(places, means, height * 0.9, xerr=_errors(scores), color=_colour(i, len(models)), label=labels[i])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("score, 0 to 100, with 95 % intervals")
    if len(models) > 1:
        axes.legend(frameon=False)
    return figure


def _errors(scores: list[Json]) -> list[list[float]]:
    """How far the ends of the intervals lie below and above the means."""
    known = [score if all(is_number(score.get(key)) for key in ("low", "mean", "high")) else None for score in scores]
    return [
        [score["mean"] - score["low"] if score else 0.0 for score in known],
        [score["high"] - score["mean"] if score else 0.0 for score in known],
    ]


def _colour(i: int, count: int) -> str:
    return _BLUE if i == count - 1 else (_PALE, _ORANGE, "#00735a", "#8a8f98")[i % 4]


def _forgetting(shares: Json) -> Figure:
    figure, (axes,) = _figure(1, 1, (8, 0.8 + 0.6 * len(shares)))
    for i, (side, colour) in enumerate((("base", _PALE), ("tuned", _BLUE))):
        values = [at(each, side) for each in shares.values()]
        widths = [100 * value if is_number(value) else 0.0 for value in values]
        axes.barh([row + (i - 0.5) * 0.36 for row in range(len(shares))], widths, 0.34, color=colour, label=side)
    axes.set_yticks(range(len(shares)), list(shares))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("right answers, %")
    axes.legend(frameon=False)
    return figure
