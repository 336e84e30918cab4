"""Curves of several runs in one drawing."""

from __future__ import annotations

from dataclasses import dataclass

from glmtune.report.charts import tick_text, ticks
from glmtune.report.markup import Html, el, join
from glmtune.report.series import Points, smoothed, thinned

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
"""Okabe and Ito's, told apart by everybody; the yellow is darker, to be seen on white."""
_DASHES = (None, "7 4", "2 3")
"""A second and a third round of colours."""
_WIDTH, _HEIGHT = 960.0, 320.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 16.0, 12.0, 40.0


@dataclass(frozen=True)
class Curve:
    """What one run logged: (step, value)."""

    name: str
    points: Points


def overlay(curves: list[Curve], unit: str, step: str) -> Html:
    """The curves over steps, with a legend below. Long ones are smoothed, with what was logged pale behind.

    Args:
        curves: those without points are left out; at least one must have some.
        unit: what the numbers mean.
        step: the word under the axis.
    """
    drawn = [curve for curve in curves if curve.points]
    frame = _Frame.around([point for curve in drawn for point in curve.points])
    lines = join(_line(curve.points, frame, number) for number, curve in enumerate(drawn))
    words = el("text", step, x=_WIDTH / 2, y=_HEIGHT - 4, text_anchor="middle", fill="currentColor", font_size="13")
    picture = el(
        "svg",
        _axes(frame),
        lines,
        words,
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        role="img",
        aria_label=unit,
        style="width:100%;height:auto;display:block",
    )
    return el("figure", el("figcaption", unit), picture, _legend(drawn), style="margin:0")


@dataclass(frozen=True)
class _Frame:
    """Where steps and values lie on the drawing."""

    steps: tuple[float, float]
    values: tuple[float, float]

    @classmethod
    def around(cls, points: Points) -> _Frame:
        return cls(_room([step for step, _ in points], 0.0), _room([value for _, value in points], 0.05))

    def x(self, step: float) -> float:
        low, high = self.steps
        return _LEFT + (step - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.values
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _room(values: list[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    spare = (high - low) * share if high > low else abs(high) * 0.1 or 1.0
    return low - spare, high + spare


def _axes(frame: _Frame) -> Html:
    parts = []
    for value in ticks(*frame.values, 5):
        y = frame.y(value)
        parts.append(el("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, stroke="currentColor", stroke_opacity="0.15"))
        parts.append(_mark(tick_text(value), _LEFT - 8, y + 4, "end"))
    for step in ticks(*frame.steps, 8):
        if step == int(step):
            parts.append(_mark(tick_text(step), frame.x(step), _HEIGHT - _BOTTOM + 18, "middle"))
    return join(parts)


def _mark(text: Html, x: float, y: float, anchor: str) -> Html:
    return el("text", text, x=x, y=y, text_anchor=anchor, fill="currentColor", fill_opacity="0.7", font_size="12")


def _line(points: Points, frame: _Frame, number: int) -> Html:
    smooth = smoothed(points)
    behind = _path(points, frame, number, "0.25", "1") if smooth else None
    dots = [
        el("circle", cx=frame.x(step), cy=frame.y(value), r="3.5", fill=_colour(number))
        for step, value in (points if len(points) < 12 else [])
    ]
    return join([behind, _path(smooth or points, frame, number, "1", "2"), *dots])


def _path(points: Points, frame: _Frame, number: int, opacity: str, width: str) -> Html:
    places = "L".join(f"{frame.x(step):.1f} {frame.y(value):.1f}" for step, value in thinned(points))
    return el(
        "path",
        d=f"M{places}",
        fill="none",
        stroke=_colour(number),
        stroke_opacity=opacity,
        stroke_width=width,
        stroke_dasharray=_dash(number),
        stroke_linejoin="round",
    )


def _legend(curves: list[Curve]) -> Html:
    return el(
        "div",
        *(_entry(curve.name, number) for number, curve in enumerate(curves)),
        style="display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px",
    )


def _entry(name: str, number: int) -> Html:
    line = el(
        "line",
        x1="0",
        x2="26",
        y1="5",
        y2="5",
        stroke=_colour(number),
        stroke_width="3",
        stroke_dasharray=_dash(number),
    )
    swatch = el("svg", line, viewBox="0 0 26 10", width="26", height="10", aria_hidden="true", style="display:inline")
    return el("span", swatch, f" {name}", style="overflow-wrap:anywhere")


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _dash(number: int) -> str | None:
    return _DASHES[number // len(_COLOURS) % len(_DASHES)]
