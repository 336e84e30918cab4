"""The forgetting probe: the verdict, why, what to do, and what was asked."""

from __future__ import annotations

from typing import Any

from glmtune.html.i18n import has_text
from glmtune.report.bars import key, share_pair
from glmtune.report.gather import Json, at, several
from glmtune.report.markup import Html, el, join, loss, note, number, say, table
from glmtune.report.parts import (
    callout,
    column,
    facts,
    few_and_more,
    from_to,
    model_names,
    pairs,
    repeat_command,
    reply_card,
    section,
    tile,
    unbroken,
)

_SHOWN = 4
"""Examples before the rest is folded."""
_MOODS = {"pass": "good", "warn": "warn", "fail": "bad"}
_SIGNS = {"pass": "✓", "warn": "!", "fail": "✗"}


def headline(probe: Json) -> Html:
    """Whether the tuned model has forgotten, in one sentence."""
    base, tuned = _names(probe)
    return say("forget.headline", base=unbroken(base), tuned=unbroken(tuned), items=number(probe.get("items")))


def verdict_tile(probe: Json) -> Html | None:
    """The verdict as a big word."""
    name = str(probe.get("verdict"))
    shares = [number(at(probe, "accuracy", side), ".0%") for side in ("base", "tuned")]
    small = say("forget.tile", base=shares[0], tuned=shares[1])
    return tile("forget.verdict", _verdict(name), small, _MOODS.get(name, ""))


def tiles(probe: Json) -> list[Html | None]:
    """The verdict and what it rests on."""
    return [
        verdict_tile(probe),
        tile("forget.accuracy", _from_to(probe, "accuracy", ".1%")),
        tile("forget.loss", _from_to(probe, "loss", ".3f")),
        tile("forget.reply_loss", _from_to(probe, "reply_loss", ".3f")),
        tile("forget.kl", number(probe.get("kl"), ".3f"), say("unit.kl")),
    ]


def result(probe: Json) -> Html:
    """Verdict, reasons, advice; the numbers; a bar for each kind of question."""
    name = str(probe.get("verdict"))
    return section(
        "forget.title",
        callout(
            _MOODS.get(name, ""),
            el("span", _verdict(name), class_=f"badge {_MOODS.get(name, '')}".strip()),
            _listed("forget.reasons", several(probe, "reasons")),
            _listed("forget.advice", several(probe, "advice")),
        ),
        _numbers(probe),
        _bars("forget.by_category", at(probe, "accuracy", "by_category"), "category"),
        _bars("forget.by_language", at(probe, "accuracy", "by_language"), "language"),
        note(say("forget.note")),
    )


def examples(probe: Json) -> Html | None:
    """Questions with both answers."""
    found = [item for item in several(probe, "examples") if isinstance(item, dict)]
    if not found:
        return None
    return section("forget.examples", few_and_more([_card(item) for item in found], _SHOWN))


def how(probe: Json) -> Html:
    """The command, the models and the thresholds."""
    known = [
        ("how.base", at(probe, "base", "path")),
        ("how.tuned", at(probe, "tuned", "adapter") or at(probe, "tuned", "path")),
        ("repeat.fingerprint", at(probe, "base", "fingerprint")),
        ("forget.thresholds", pairs(probe.get("thresholds"))),
        ("repeat.finished", probe.get("finished_at")),
    ]
    return section("repeat.title", repeat_command(probe), facts(known))


def _names(probe: Json) -> list[str]:
    return model_names([{"model": probe.get(side)} for side in ("base", "tuned")])


def _verdict(name: str) -> Html:
    said = say(f"verdict.{name}") if name in _MOODS else say("verdict.unknown")
    return el("span", f"{_SIGNS[name]} " if name in _SIGNS else "", said)


def _from_to(probe: Json, name: str, form: str) -> Html:
    return from_to(at(probe, name, "base"), at(probe, name, "tuned"), form)


def _listed(title: str, lines: list[Any]) -> Html | None:
    return join([el("h3", say(title)), el("ul", *(el("li", line) for line in lines))]) if lines else None


def _numbers(probe: Json) -> Html:
    rows: list[list[object]] = [
        [_explained(f"forget.{name}"), *(loss(at(probe, name, side)) for side in ("base", "tuned"))]
        for name in ("loss", "reply_loss")
    ]
    rows += [
        [say(f"forget.{name}"), *(number(at(probe, "degenerate", side, name)) for side in ("base", "tuned"))]
        for name in ("loop", "unk", "empty")
    ]
    rows.append([_explained("forget.kl"), "", number(probe.get("kl"), ".4f")])
    return table(["", say("forget.base"), say("forget.tuned")], rows)


def _explained(name: str) -> Html:
    return el("span", say(name), el("small", say(f"{name}.says")), class_="score-name")


def _bars(title: str, shares: Any, kind: str) -> Html | None:
    if not isinstance(shares, dict) or not shares:
        return None
    rows = [share_pair(_named(kind, name), at(each, "base"), at(each, "tuned")) for name, each in shares.items()]
    return join([el("h3", say(title)), key(("base", "forget.base"), ("tuned", "forget.tuned")), el("div", *rows)])


def _named(kind: str, name: str) -> Html:
    return say(f"{kind}.{name}") if has_text(f"report.{kind}.{name}") else el("span", name)


def _card(item: Json) -> Html:
    columns = [
        column(
            say(f"forget.{side}"), item.get(side), _right(item.get(f"{side}_right")), "tuned" if side == "tuned" else ""
        )
        for side in ("base", "tuned")
    ]
    return reply_card(item.get("id"), item.get("prompt"), *columns)


def _right(right: Any) -> Html | None:
    if not isinstance(right, bool):
        return None
    return el(
        "span",
        "✓ " if right else "✗ ",
        say("forget.right" if right else "forget.wrong"),
        class_=("better" if right else "worse"),
    )
