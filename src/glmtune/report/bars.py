"""Small pictures inside tables and cards: intervals, wins and losses, pairs of shares."""

from __future__ import annotations

from typing import Any

from glmtune.report.markup import NOTHING, Html, el, is_number, number, say


def whisker(score: dict[str, Any]) -> Html | None:
    """A 95 % interval on a scale from 0 to 100; None where a number is missing."""
    low, mean, high = (score.get(name) for name in ("low", "mean", "high"))
    if not (is_number(low) and is_number(mean) and is_number(high)):
        return None
    return el(
        "svg",
        el("rect", class_="track", x=0, y=6, width=170, height=6, rx=3),
        el("line", class_="range", x1=_on(low), x2=_on(high), y1=9, y2=9),
        *(el("line", class_="range", x1=_on(end), x2=_on(end), y1=5, y2=13) for end in (low, high)),
        el("circle", class_="mean", cx=_on(mean), cy=9, r=4),
        viewBox="0 0 170 18",
        class_="whisker",
        aria_hidden="true",
    )


def _on(value: float) -> float:
    """A score's place on the scale; the dot at either end stays inside."""
    return 4 + min(max(float(value), 0.0), 100.0) / 100 * 162


def wins_and_losses(difference: dict[str, Any]) -> Html | None:
    """Rows won, tied and lost as one bar, each with its number; None where they are not known."""
    counts: dict[str, Any] = {
        kind: difference.get(key) for kind, key in (("win", "wins"), ("tie", "ties"), ("loss", "losses"))
    }
    if not all(is_number(count) for count in counts.values()) or not sum(counts.values()):
        return None
    parts = [
        el("span", number(count), class_=kind, style=f"flex: {count} 1 {1.9 if count else 0}em")
        for kind, count in counts.items()
        if count
    ]
    return el("div", *parts, class_="split")


def share_pair(name: object, base: Any, tuned: Any) -> Html:
    """Two shares (0 to 1) below each other as bars."""
    bars = (_bar("base", base), _bar("tuned", tuned))
    return el("div", el("div", name), el("div", *bars, class_="bars"), class_="pair")


def _bar(kind: str, share: Any) -> Html:
    if not is_number(share):
        return el("div", el("span", NOTHING, class_="none"))
    fill = el("div", class_=f"fill {kind}", style=f"width: {100 * min(max(share, 0), 1):.1f}%")
    return el("div", el("div", fill, class_="track"), number(share, ".1%"))


def key(*kinds_and_texts: tuple[str, str]) -> Html:
    """What the colours of bars mean: (CSS class, text key) each."""
    return el(
        "p", *(el("span", el("i", class_=f"key {kind}"), say(text)) for kind, text in kinds_and_texts), class_="keys"
    )
