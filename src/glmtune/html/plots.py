"""Charts: one description, drawn as SVG into a page and by matplotlib as PNG beside it.

SVG is written by templates of our own, because an axis in two languages, dark mode and 5 KB per chart are not what
matplotlib's SVG backend gives. PNG files have English words, since not every machine has Chinese fonts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from glmtune.html.i18n import LANGUAGES, text
from glmtune.html.pages import is_number, render_template
from glmtune.utils.io import open_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[float, float]]
"""(step, value) in the order of steps."""

COLOURS = ("#0a66ad", "#c24e00", "#00735a", "#8a5a9e", "#8a6d00", "#5a6572")
"""Distinguishable with colour blindness (after Okabe and Ito), dark enough on white; further series are dashed too."""
PALE_BLUE = "#9cc6e6"
_PLACES = {"second": 1, "third": 2}  # of styles in COLOURS
_DASHES = ("", "7 4", "2 3")

SMALL_SIZE, WIDE_SIZE = (340, 210), (1000, 300)
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 34
_LABEL_WIDTH = 46  # right of the axes, for the last value of a labelled series
_LABEL_DISTANCE = 14
_SMOOTHING_SHARE = 15  # a smoothed point is the mean over one part in this many of the run
_THINNED_SPANS = 300  # of each span of steps the lowest and the highest point are drawn


@dataclass(frozen=True)
class Series:
    """A curve of a chart."""

    name: str
    """A key of the locales, or any text."""
    points: Points
    style: str = ""
    """CSS class that a page may give its own colour and dashes."""
    has_dots: bool = False
    has_label: bool = False
    """Whether the last value is written at its end."""

    def title(self, lang: str) -> str:
        """The name in a language."""
        return _translate(self.name, lang)


@dataclass(frozen=True)
class LineChart:
    """Curves over steps; series without points are left out."""

    title: str
    """A key of the locales, or any text."""
    unit: str
    """Of the values; a key, or any text."""
    series: list[Series] = field(default_factory=list)
    axis: str = ""
    """Label of the values in PNG files, where a long unit is cut off; `unit` if empty."""

    def drawn_series(self) -> list[Series]:
        """The series that have points."""
        return [series for series in self.series if series.points]


# --- SVG --------------------------------------------------------------------------------------------------------------


def draw_line_chart(chart: LineChart, *, is_wide: bool = False, lang: str | None = None) -> Markup:
    """Draw a chart as a `<figure>`; an empty text if no series has points.

    Args:
        chart: what to draw.
        is_wide: over the whole width where there is room, with a small drawing for narrow screens.
        lang: of the words; all languages when None, for a page that shows one of them.
    """
    series = chart.drawn_series()
    if not series:
        return Markup("")
    languages = [lang] if lang else list(LANGUAGES)
    drawings = [(WIDE_SIZE, "wide"), (SMALL_SIZE, "narrow")] if is_wide else [(SMALL_SIZE, "")]
    frames = [_layout_chart(series, size, css_class) for size, css_class in drawings]
    figure = render_template(
        *("glmtune.html", "line_chart.html.j2"),
        title={each: _translate(chart.title, each) for each in languages},
        unit={each: _translate(chart.unit, each) for each in languages},
        axis={each: text("report.axis.step", each) for each in languages},
        legend=[
            {
                "name": {each: one.title(each) for each in languages},
                "style": one.style,
                "has_dots": one.has_dots,
                **_colour_series(i, one),
            }
            for i, one in enumerate(series)
        ],
        frames=frames,
        lang=lang,
    )
    return Markup(figure)


def draw_histogram(
    bins: Sequence[tuple[int, int, int]],
    title: str,
    unit: str,
    limit: int | None = None,
    size: tuple[int, int] = (960, 260),
) -> Markup:
    """Draw how many rows have which length; an empty text without rows.

    Args:
        bins: (first length, last length, rows) each, of equal widths but for the last one.
        title: for screen readers.
        unit: under the axis.
        limit: a line at this length, unless it is far above all rows.
        size: width and height.
    """
    if not bins:
        return Markup("")
    width, height = size
    bin_width = bins[0][1] - bins[0][0] + 1
    low, high = bins[0][0], bins[-1][0] + bin_width  # the open last bin is drawn as wide as the others
    if limit is not None and limit <= 1.5 * high:
        high = max(high, round(limit * 1.05))
    else:
        limit = None
    highest = max(count for _, _, count in bins)

    def x(length: float) -> float:
        return round(_LEFT + (length - low) / (high - low) * (width - _LEFT - _RIGHT), 1)

    def y(count: float) -> float:
        return round(height - _BOTTOM - count / highest * (height - _TOP - _BOTTOM), 1)

    drawing = render_template(
        *("glmtune.html", "histogram.svg.j2"),
        title=title,
        unit=unit,
        width=width,
        height=height,
        left=_LEFT,
        right=width - _RIGHT,
        top=_TOP,
        bottom=height - _BOTTOM,
        y_ticks=[(y(count), format_tick(count)) for count in pick_ticks(0, highest, 4)],
        x_ticks=[(x(length), format_tick(length)) for length in pick_ticks(low, high, 8)],
        bars=[
            {
                "x": x(first),
                "y": y(count),
                "width": max(round(x(first + bin_width) - x(first) - 1, 1), 1.0),
                "height": round(y(0) - y(count), 1),
                "title": f"{first:,}-{last:,}: {count:,}",
            }
            for first, last, count in bins
        ],
        limit=None if limit is None else {"x": x(limit), "text": f"{limit:,}"},
    )
    return Markup(drawing)


def _layout_chart(series: list[Series], size: tuple[int, int], css_class: str) -> dict[str, Any]:
    """Coordinates of everything in a drawing."""
    width, height = size
    right = width - (_LABEL_WIDTH if any(one.has_label for one in series) else _RIGHT)
    bottom = height - _BOTTOM
    steps = _widen(min(s for one in series for s, _ in one.points), max(s for one in series for s, _ in one.points))
    values = _widen(min(v for one in series for _, v in one.points), max(v for one in series for _, v in one.points))
    # The axis begins at zero where that costs little height, because heights are compared by eye.
    margin = (values[1] - values[0]) * 0.06
    values = (0.0, values[1] * 1.04) if 0 <= values[0] < 0.5 * values[1] else (values[0] - margin, values[1] + margin)

    def x(step: float) -> float:
        return _LEFT + (step - steps[0]) / (steps[1] - steps[0]) * (right - _LEFT)

    def y(value: float) -> float:
        return bottom - (value - values[0]) / (values[1] - values[0]) * (bottom - _TOP)

    curves = []
    for i, one in enumerate(series):
        places = [(x(step), y(value)) for step, value in thin_points(one.points)]
        dots = [(round(a, 2), round(b, 2)) for a, b in places] if one.has_dots or len(places) == 1 else []
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
        curves.append({"style": one.style, "path": path, "dots": dots, **_colour_series(i, one)})

    labels, last_y = [], -math.inf  # labels are pushed apart where they would meet
    for label_y, value in sorted((y(one.points[-1][1]), one.points[-1][1]) for one in series if one.has_label):
        last_y = max(label_y, last_y + _LABEL_DISTANCE)
        labels.append((round(last_y + 4, 2), f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"))

    step_ticks = pick_ticks(*steps, 4 if width < WIDE_SIZE[0] else 9)
    return {
        "width": width,
        "height": height,
        "css_class": css_class,
        "left": _LEFT,
        "right": right,
        "bottom": bottom,
        "y_ticks": [(round(y(value), 2), format_tick(value)) for value in pick_ticks(*values, 4)],
        "x_ticks": [(round(x(step), 2), format_tick(step)) for step in step_ticks if step == int(step)],
        "curves": curves,
        "labels": labels,
    }


def _colour_series(index: int, series: Series) -> dict[str, str]:
    colour = PALE_BLUE if series.style == "raw" else COLOURS[index % len(COLOURS)]
    return {"colour": colour, "dash": _DASHES[index // len(COLOURS) % len(_DASHES)]}


def _widen(low: float, high: float) -> tuple[float, float]:
    margin = (abs(high) * 0.1 or 1.0) if high == low else 0.0
    return low - margin, high + margin


def pick_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between `low` and `high`, about `count` of them."""
    distance = (high - low) / count
    size = 10.0 ** math.floor(math.log10(distance))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= distance * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def format_tick(value: float) -> str:
    """A number at an axis: 0.5, 20k, 1e-4."""
    size = abs(value)
    if size and size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if size >= 1e4 else f"{value:g}"


# --- points -----------------------------------------------------------------------------------------------------------


def select_points(entries: Iterable[dict[str, Any]], key: str) -> Points:
    """(step, value) of every line of metrics.jsonl that has the number."""
    return [
        (entry["step"], entry[key]) for entry in entries if is_number(entry.get("step")) and is_number(entry.get(key))
    ]


def smooth_points(points: Points) -> Points:
    """Means of each point and its neighbours, as many before as after, so that the curve has no lag and keeps its
    ends. Empty for few points, which can be read as they are."""
    half = len(points) // (2 * _SMOOTHING_SHARE)
    if not half:
        return []
    sums = list(accumulate((value for _, value in points), initial=0.0))
    result = []
    for i, (step, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        result.append((step, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


def thin_points(points: Points) -> Points:
    """At most 600 points that keep every peak."""
    if len(points) <= 2 * _THINNED_SPANS:
        return points
    size = -(-len(points) // _THINNED_SPANS)
    result: Points = []
    for start in range(0, len(points), size):
        span = points[start : start + size]
        result += sorted({min(span, key=lambda point: point[1]), max(span, key=lambda point: point[1])})
    return result


def make_loss_chart(entries: Sequence[dict[str, Any]], stage: str = "sft") -> LineChart:
    """Training loss, smoothed where there are many steps, and evaluation loss; the stage names what is averaged."""
    train, evaluation = select_points(entries, "loss"), select_points(entries, "eval_loss")
    smooth = smooth_points(train)
    raw_name = "report.curve.train_raw" if smooth else "report.curve.train"
    return LineChart(
        "report.chart.loss",
        "report.unit.loss" if stage == "sft" else "report.unit.preference_loss",
        [
            Series(raw_name, train, "raw" if smooth else "first", has_label=not smooth),
            Series("report.curve.train_smooth", smooth, "first", has_label=True),
            Series("report.curve.eval", evaluation, "second", has_dots=True, has_label=True),
        ],
        axis="loss per target token" if stage == "sft" else "loss",
    )


# --- PNG --------------------------------------------------------------------------------------------------------------


def save_line_charts(charts: Sequence[LineChart], path: Path, title: str = "") -> Path:
    """Draw charts as a PNG file, in two columns if there are several; charts without points are empty."""
    columns = 1 if len(charts) == 1 else 2
    rows = -(-len(charts) // columns)
    figure, all_axes = _make_figure(rows, columns, (7, 4) if columns == 1 else (10, 3 * rows))
    for axes, chart in zip(all_axes, charts, strict=False):
        series = chart.drawn_series()
        for one in series:
            colour = PALE_BLUE if one.style == "raw" else COLOURS[_PLACES.get(one.style, 0)]
            style: dict[str, Any] = {"marker": "o", "linestyle": "--"} if one.has_dots else {}
            axes.plot(*zip(*one.points, strict=True), color=colour, label=one.title("en"), **style)
        axes.set_xlabel("step")
        axes.set_ylabel(_translate(chart.axis or chart.unit, "en"))
        if len(series) > 1:
            axes.legend(frameon=False)
    for axes in all_axes[len(charts) :]:
        axes.set_visible(False)
    if title:
        all_axes[0].set_title(title)
    return save_figure(figure, path)


def save_bar_chart(
    names: Sequence[str],
    groups: Mapping[str, Sequence[float | None]],
    path: Path,
    axis: str,
    errors: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    maximum: float | None = None,
) -> Path:
    """Draw horizontal bars as a PNG file.

    Args:
        names: of the rows.
        groups: name in the legend -> a value for each row; None is drawn as 0. The last group is the emphasised one.
        path: where to.
        axis: meaning of the values.
        errors: name of a group -> lengths of the error bars below and above each value.
        maximum: end of the axis.
    """
    height = 0.8 / len(groups)
    figure, (axes,) = _make_figure(1, 1, (8, 0.8 + 0.32 * len(names) * (1 + len(groups))))
    for i, (name, values) in enumerate(groups.items()):
        places = [row + (i - (len(groups) - 1) / 2) * height for row in range(len(names))]
        widths = [value if is_number(value) else 0.0 for value in values]
        whiskers = [list(side) for side in zip(*errors[name], strict=True)] if errors else None
        others = (PALE_BLUE, *COLOURS[1:])
        colour = COLOURS[0] if i == len(groups) - 1 else others[i % len(others)]
        axes.barh(places, widths, height * 0.9, xerr=whiskers, color=colour, label=name)
    axes.set_yticks(range(len(names)), list(names))
    axes.invert_yaxis()
    if maximum is not None:
        axes.set_xlim(0, maximum)
    axes.set_xlabel(axis)
    if len(groups) > 1:
        axes.legend(frameon=False)
    return save_figure(figure, path)


def save_histogram(
    bars: Sequence[tuple[float, float, int]], path: Path, axis: str, title: str, lines: dict[str, float]
) -> Path:
    """Draw a histogram as a PNG file.

    Args:
        bars: (left edge, width, rows) each.
        path: where to.
        axis: meaning of the lengths.
        title: above the picture.
        lines: label -> position of vertical lines.
    """
    figure, (axes,) = _make_figure(1, 1, (8, 4.5))
    lefts, widths, counts = zip(*bars, strict=True) if bars else ((), (), ())
    axes.bar(lefts, counts, widths, align="edge", edgecolor="white", color=COLOURS[0])
    for i, (label, position) in enumerate(lines.items()):
        axes.axvline(position, color=COLOURS[(i + 1) % len(COLOURS)], linestyle="--", label=label)
    axes.set(xlabel=axis, ylabel="rows", title=title)
    if lines:
        axes.legend(frameon=False)
    return save_figure(figure, path)


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure without a window; size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a complete PNG file."""
    with open_atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _make_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = new_figure(size)
    all_axes = [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for axes in all_axes:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def _translate(name: str, lang: str) -> str:
    try:
        return text(name, lang)
    except KeyError:
        return name
