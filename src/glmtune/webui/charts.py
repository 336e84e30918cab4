"""The lengths of rows as a drawing: no script, no font, legible in both themes."""

from __future__ import annotations

from collections.abc import Sequence

from glmtune.data.histogram import Bin
from glmtune.report.charts import tick_text, ticks
from glmtune.report.markup import Html, el, join

_WIDTH, _HEIGHT = 960.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 20.0, 40.0


def histogram(found: Sequence[Bin], title: str, unit: str, limit: int | None = None) -> Html:
    """How many rows have which length; empty without rows. A limit is a line, unless it is far above all rows."""
    if not found:
        return Html("")
    width = found[0].last - found[0].first + 1
    low, high = found[0].first, found[-1].first + width  # the open last bin is drawn as wide as the others
    near = limit is not None and limit <= 1.5 * high
    if limit is not None and near:
        high = max(high, round(limit * 1.05))
    most = max(item.count for item in found)

    def x(length: float) -> float:
        return _LEFT + (length - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(count: float) -> float:
        return _HEIGHT - _BOTTOM - count / most * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_across(y(count), tick_text(count)) for count in ticks(0, most, 4)]
    parts += [_below(x(length), tick_text(length)) for length in ticks(low, high, 8)]
    parts += [_bar(x(item.first), x(item.first + width), y(item.count), y(0), item) for item in found]
    if limit is not None and near:
        parts.append(_limit(x(limit), y(0), limit))
    parts.append(el("text", unit, x=_WIDTH / 2, y=_HEIGHT - 6, text_anchor="middle"))
    view = f"0 0 {_WIDTH:g} {_HEIGHT:g}"
    return el("svg", el("title", title), join(parts), class_="chart", viewBox=view, role="img", aria_label=title)


def _across(y: float, text: Html) -> Html:
    line = el("line", class_="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y)
    return join([line, el("text", text, x=_LEFT - 6, y=y + 4, text_anchor="end")])


def _below(x: float, text: Html) -> Html:
    return el("text", text, x=x, y=_HEIGHT - _BOTTOM + 16, text_anchor="middle")


def _bar(left: float, right: float, top: float, bottom: float, item: Bin) -> Html:
    wide = max(right - left - 1, 1.0)
    attributes = {"x": f"{left:.1f}", "y": f"{top:.1f}", "width": f"{wide:.1f}", "height": f"{bottom - top:.1f}"}
    return el(
        "g", el("title", f"{item.first:,}-{item.last:,}: {item.count:,}"), el("rect", class_="rows", **attributes)
    )


def _limit(x: float, bottom: float, limit: int) -> Html:
    line = el("line", class_="limit", x1=x, x2=x, y1=_TOP, y2=bottom)
    return join([line, el("text", f"{limit:,}", x=x, y=_TOP - 5, text_anchor="middle")])
