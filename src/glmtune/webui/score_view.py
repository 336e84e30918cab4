"""Rewards that `glmtune score` has written, as a table: they have no report of their own."""

from __future__ import annotations

from pathlib import Path

from glmtune.evaluation.reward_scores import METRICS_FILE, SCORES_FILE
from glmtune.html.builder import Html
from glmtune.html.i18n import has_text
from glmtune.html.pages import is_number
from glmtune.utils.io import find_json_object
from glmtune.webui.elements import make_facts
from glmtune.webui.texts import text

_SHOWN = ("model", "data", "finished_at", "command")


def render_scores(folder: Path, lang: str) -> Html | None:
    """The numbers of a scoring; None if the folder holds none."""
    content = find_json_object(folder / METRICS_FILE)
    if content is None or not (folder / SCORES_FILE).is_file():
        return None
    rows = []
    for name, value in content.items():
        if not is_number(value) and name not in _SHOWN:
            continue
        key = f"ui.score.{name}"
        rows.append(
            (text(f"score.{name}", lang) if has_text(key) else name, f"{value:,.4g}" if is_number(value) else value)
        )
    return make_facts(rows)
