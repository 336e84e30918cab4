"""Small parts that the views of several reports share: tiles, names, verdicts and changes of scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from glmtune.evaluation.metric_order import SIGNIFICANT, find_direction
from glmtune.evaluation.model_info import ModelInfo
from glmtune.evaluation.statistics import ScoreDifference
from glmtune.html.pages import NO_VALUE, is_number, show_number, show_text

MAIN_SCORES = ("rouge_l", "bleu4_characters", "exact_match")
_MAX_CHARACTERS = 4000  # of a text; a model in a loop writes more than anybody reads


@dataclass(frozen=True)
class Tile:
    """One big number with its name and a small line below."""

    title: str
    value: Markup
    small: object = None
    mood: str = ""


def show_verdict(name: str, difference: ScoreDifference | None) -> Markup:
    """Better, worse, changed or not significant, with a sign, so that colour is not needed."""
    mean, p = (difference.mean, difference.p) if difference else (None, None)
    if not (is_number(mean) and is_number(p)):
        return show_text("report.compare.unknown")
    if p >= SIGNIFICANT or mean == 0:
        return Markup('<span class="unclear">{}</span>').format(show_text("report.compare.unclear"))
    gain = find_direction(name) * mean
    if gain == 0:
        return Markup("<span>{}</span>").format(show_text("report.compare.different"))
    kind = "better" if gain > 0 else "worse"
    sign = "▲ " if mean > 0 else "▼ "
    return Markup('<span class="{}">{}{}</span>').format(kind, sign, show_text(f"report.compare.{kind}"))


def show_change(before: Any, after: Any, form: str) -> Markup:
    """Two numbers with an arrow; `NO_VALUE` if the second is not known."""
    if not is_number(after):
        return Markup(NO_VALUE)
    return Markup('<span class="was">{} → </span>{}').format(show_number(before, form), show_number(after, form))


def show_clipped(content: Any) -> Markup:
    """A text; of a very long one, the start and the number of characters not shown."""
    content = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    content = content.encode("utf-8", "replace").decode("utf-8")
    if len(content) <= _MAX_CHARACTERS:
        return Markup("<span>{}</span>").format(content)
    rest = show_text("report.reply.clipped", n=show_number(len(content) - _MAX_CHARACTERS))
    return Markup("{} <em>{}</em>").format(content[:_MAX_CHARACTERS], rest)


def list_turns(prompt: Any) -> list[dict[str, Any]]:
    """The turns of a prompt, at least one; a bare text is one."""
    turns = [turn for turn in prompt if isinstance(turn, dict)] if isinstance(prompt, list) else []
    turns = [{"role": turn.get("role", "?"), "content": turn.get("content") or ""} for turn in turns]
    return turns or [{"role": "user", "content": prompt if isinstance(prompt, str) else ""}]


def list_model_names(models: Sequence[ModelInfo]) -> list[str]:
    """A name for each model; equal names are told apart by the adapter, else by a number."""
    names = [model.name or Path(model.path or "?").name for model in models]
    return [
        name
        if names.count(name) == 1
        else f"{name} + {Path(model.adapter).name}"
        if model.adapter
        else f"{name} ({i + 1})"
        for i, (name, model) in enumerate(zip(names, models, strict=True))
    ]


def keep_together(name: object) -> Markup:
    """A name in running text, which does not break at its hyphens while it fits on a line."""
    return Markup('<span class="name">{}</span>').format(name)


def format_data_name(path: Any) -> str:
    """The short name of a data file, or of several."""
    if isinstance(path, list):
        return ", ".join(format_data_name(each) for each in path)
    return Path(str(path)).name if path else "?"


def format_pairs(values: Any) -> str | None:
    """Names with their values on one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items()) if isinstance(values, dict) else None
