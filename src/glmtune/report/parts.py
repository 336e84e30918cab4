"""Pieces that all kinds of reports are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glmtune.html.i18n import has_text
from glmtune.report.gather import Json, at, below
from glmtune.report.markup import (
    NOTHING,
    Html,
    command,
    el,
    folded,
    is_number,
    join,
    note,
    number,
    say,
    table,
)

_LONGEST = 4000
"""Characters of a text that are shown; a model in a loop writes more than anybody reads."""


def section(title: str, *body: object) -> Html:
    """A card with a heading (a text key)."""
    return el("section", el("h2", say(title)), *body)


def tile(title: str, value: Html, small: object = None, mood: str = "") -> Html | None:
    """One big number with its name and a small line below; None where the number is not known."""
    if value == NOTHING:
        return None
    line = el("small", small) if small else None
    return el("div", el("dt", say(title)), el("dd", value, line), class_=f"tile {mood}".strip())


def from_to(before: Any, after: Any, form: str) -> Html:
    """Two numbers, the first one quietly; a dash where the second is not known."""
    if not is_number(after):
        return Html(NOTHING)
    return join([el("span", number(before, form), " → ", class_="was"), number(after, form)])


def callout(mood: str, *body: object) -> Html:
    """Something to be seen: mood is good, warn or bad."""
    return el("div", *body, class_=f"callout {mood}".strip())


def model_names(models: list[Json]) -> list[str]:
    """A name for each model; those that share one are told apart by their adapter, else by a number."""
    names = [_model_name(model) for model in models]
    return [_unique(i, names, models) for i in range(len(models))]


def _model_name(metrics: Json) -> str:
    model = below(metrics, "model")
    return str(at(model, "name") or Path(str(at(model, "path") or "?")).name)


def _unique(i: int, names: list[str], models: list[Json]) -> str:
    if names.count(names[i]) == 1:
        return names[i]
    adapter = at(models[i], "model", "adapter")
    return f"{names[i]} + {Path(str(adapter)).name}" if adapter else f"{names[i]} ({i + 1})"


def unbroken(text: object) -> Html:
    """A name in running text, which does not break at its hyphens while it fits on a line."""
    return el("span", text, class_="name")


def data_name(path: Any) -> str:
    """The short name of a data file, or of several."""
    if isinstance(path, list):
        return ", ".join(data_name(each) for each in path)
    return Path(str(path)).name if path else "?"


def facts(known: list[tuple[str, Any]]) -> Html:
    """Names (text keys) and values; those without a value are left out."""
    return table([], [[say(key), value] for key, value in known if value not in (None, "", NOTHING)], "facts")


def pairs(values: Any) -> str | None:
    """Names with their values on one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items()) if isinstance(values, dict) else None


def repeat_command(document: Json) -> Html:
    """The command that a result was made with."""
    line = document.get("command")
    return command(str(line)) if line else note(say("repeat.unknown"))


def reply_card(where: Any, prompt: Any, *columns: Html) -> Html:
    """A row of the data: its question and what was answered, side by side."""
    *earlier, question = _messages(prompt)
    return el(
        "article",
        el("header", el("span", where)),
        folded(say("reply.earlier", n=number(len(earlier))), *(_turn(turn) for turn in earlier)) if earlier else None,
        el("p", clipped(question["content"]), class_="text ask"),
        el("div", *columns, class_="side"),
        class_="reply-card",
    )


def column(who: object, text: Any, score: Html | None = None, kind: str = "") -> Html:
    """A reply with its writer and its score."""
    head = el("div", el("span", who), score, class_="who")
    shown = clipped(text) if str(text or "").strip() else el("em", say("reply.empty"))
    return el("div", head, el("p", shown, class_="text"), class_=kind or None)


def rouge(value: Any) -> Html:
    """A reply's ROUGE-L."""
    return el("span", "ROUGE-L ", number(value, ".1f"))


def clipped(text: Any) -> Html:
    """A text; of a very long one, the start and how much is left out."""
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    if len(text) <= _LONGEST:
        return el("span", text)
    return join([text[:_LONGEST], " ", el("em", say("reply.clipped", n=number(len(text) - _LONGEST)))])


def few_and_more(cards: list[Html], shown: int) -> Html:
    """The first cards, the others folded."""
    rest = cards[shown:]
    return join([*cards[:shown], folded(say("reply.more", n=number(len(rest))), *rest) if rest else None])


def _messages(prompt: Any) -> list[Json]:
    """The turns of a prompt, at least one; a bare text is one."""
    turns = [turn for turn in prompt if isinstance(turn, dict)] if isinstance(prompt, list) else []
    known = [{"role": turn.get("role", "?"), "content": turn.get("content") or ""} for turn in turns]
    return known or [{"role": "user", "content": prompt if isinstance(prompt, str) else ""}]


def _turn(turn: Json) -> Html:
    return el("p", el("small", turn["role"]), el("br"), clipped(turn["content"]), class_="text")


def title(name: str) -> Html:
    """A score's name with a line on what it says."""
    if not has_text(f"report.score.{name}"):
        return el("code", name)
    explained = say(f"score.{name}.says")
    return el("span", say(f"score.{name}"), el("small", explained), class_="score-name")
