"""Line charts as SVG: axes, units and a legend, readable small, in print and without telling colours apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

from glmtune.report.markup import Html, el, join, safe, say, say_svg
from glmtune.report.series import Points, thinned

SMALL = (340, 210)
WIDE = (1000, 300)
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 34
_LABEL = 46
"""Room at the right for the last value of a labelled line."""
_GAP = 14
"""Labels do not come nearer to one another than this."""


@dataclass(frozen=True)
class Line:
    """A curve: its points, its CSS class (which also decides dashes), its name in the legend."""

    points: Points
    kind: str
    name: Html
    marked: bool = False
    """Whether each point gets a dot."""
    labelled: bool = False
    """Whether the last value stands at its end."""


def line_chart(title: str, unit: str, lines: list[Line], *, wide: bool = False) -> Html:
    """A figure of curves over steps.

    Args:
        title: text key of the heading.
        unit: text key of what the numbers mean.
        lines: at least one of them with points.
        wide: drawn over the whole width where there is room.
    """
    lines = [line for line in lines if line.points]
    legend = [_legend(line) for line in lines] if len(lines) > 1 else []
    caption = el("figcaption", say(title), el("small", say(unit)), *legend)
    if not wide:
        return el("figure", caption, _drawing(lines, SMALL, ""))
    return el("figure", caption, _drawing(lines, WIDE, "wide"), _drawing(lines, SMALL, "narrow"))


def _legend(line: Line) -> Html:
    swatch = [el("line", class_=f"curve {line.kind}", x1=1, x2=25, y1=5, y2=5)]
    if line.marked:
        swatch.append(el("circle", class_=f"dot {line.kind}", cx=13, cy=5, r=3.5))
    return el("span", el("svg", *swatch, viewBox="0 0 26 10", aria_hidden="true"), line.name, class_="legend")


@dataclass(frozen=True)
class _Frame:
    """Where steps and values lie on the drawing."""

    width: float
    height: float
    right: float
    steps: tuple[float, float]
    values: tuple[float, float]

    def x(self, step: float) -> float:
        low, high = self.steps
        return _LEFT + (step - low) / (high - low) * (self.width - _LEFT - self.right)

    def y(self, value: float) -> float:
        low, high = self.values
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM)


def _drawing(lines: list[Line], size: tuple[int, int], kind: str) -> Html:
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    right = _LABEL if any(line.labelled for line in lines) else _RIGHT
    frame = _Frame(*size, right, _room(steps), _from_zero(*_room(values)))
    parts = [_axes(frame), *(_curve(line, frame) for line in lines), _labels(lines, frame)]
    return el("svg", *parts, viewBox=f"0 0 {size[0]} {size[1]}", role="img", class_=kind or None)


def _room(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    spare = (abs(high) * 0.1 or 1.0) if high == low else 0.0
    return low - spare, high + spare


def _from_zero(low: float, high: float) -> tuple[float, float]:
    """Begin at zero where that costs little height, for heights are compared by eye."""
    if 0 <= low < 0.5 * high:
        return 0.0, high * 1.04
    spare = (high - low) * 0.06
    return low - spare, high + spare


def _axes(frame: _Frame) -> Html:
    low, high = _LEFT, frame.width - frame.right
    bottom = frame.height - _BOTTOM
    parts = []
    for value in ticks(*frame.values, 4):
        y = frame.y(value)
        parts.append(el("line", class_="grid", x1=low, x2=high, y1=y, y2=y))
        parts.append(el("text", tick_text(value), x=low - 7, y=y + 4, text_anchor="end"))
    parts.append(el("line", class_="axis", x1=low, x2=high, y1=bottom, y2=bottom))
    for step in ticks(*frame.steps, 4 if frame.width < WIDE[0] else 9):
        if step == int(step):
            parts.append(el("text", tick_text(step), x=frame.x(step), y=bottom + 16, text_anchor="middle"))
    parts.append(say_svg("axis.step", (low + high) / 2, frame.height - 3.0, text_anchor="middle"))
    return join(parts)


def _curve(line: Line, frame: _Frame) -> Html:
    shown = [(frame.x(step), frame.y(value)) for step, value in thinned(line.points)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shown)
    parts = [el("path", class_=f"curve {line.kind}", d=path)]
    if line.marked or len(shown) == 1:
        parts += [el("circle", class_=f"dot {line.kind}", cx=x, cy=y, r=3.5) for x, y in shown]
    return join(parts)


def _labels(lines: list[Line], frame: _Frame) -> Html:
    """The last values at the ends of their lines, pushed apart where they would meet."""
    ends = sorted((frame.y(line.points[-1][1]), line.points[-1][1]) for line in lines if line.labelled)
    parts, last = [], -math.inf
    for y, value in ends:
        last = max(y, last + _GAP)
        x = frame.width - frame.right + 6.0
        parts.append(el("text", el("tspan", end_text(value)), class_="mark", x=x, y=last + 4))
    return join(parts)


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers between `low` and `high`, about as many as `wanted`."""
    rough = (high - low) / wanted
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_text(value: float) -> Html:
    """A number for an axis: 0.5, 20k, 1e-4."""
    size = abs(value)
    if size and size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return safe(f"{float(mantissa):g}e{int(exponent)}")
    if size >= 1e6:
        return safe(f"{value / 1e6:g}M")
    return safe(f"{value / 1e3:g}k" if size >= 1e4 else f"{value:g}")


def end_text(value: float) -> str:
    """The last value of a curve, three digits."""
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
