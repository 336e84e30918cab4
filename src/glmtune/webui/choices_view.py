"""What fields for models and data offer to choose from, found by what a user types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from glmtune.webui.context import Context
from glmtune.webui.lists import FoundChoices, RootLists
from glmtune.webui.rendering import get_language, render_part
from glmtune.webui.root_walk import MAX_FOLDERS
from glmtune.webui.texts import text

_FIND: dict[str, Callable[[RootLists, str], FoundChoices]] = {
    "runs": RootLists.find_runs,
    "models": RootLists.find_models,
    "targets": RootLists.find_targets,
    "datasets": RootLists.find_datasets,
}
_MAX_SEARCH = 300


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the route of the choices."""

    @app.get("/choices/{kind}")
    def show_choices(request: Request, kind: str, field: str = "", id: str = "") -> Response:
        if kind not in _FIND:
            return Response(status_code=404)
        matches = _FIND[kind](RootLists(context), request.query_params.get(field, "")[:_MAX_SEARCH])
        note = describe_limits(matches, get_language(request, context))
        return render_part(request, context, "choices", choices=matches.choices, note=note, id=id)


def describe_limits(matches: FoundChoices, lang: str) -> str:
    """What a list does not show; empty if it is complete."""
    lines = []
    if matches.count > len(matches.choices):
        lines.append(text("choices.more", lang, shown=len(matches.choices), count=f"{matches.count:,}"))
    return " ".join([*lines, *describe_cut(matches.cut_roots, lang)])


def describe_cut(cut_roots: list[Path], lang: str) -> list[str]:
    """Which roots were not searched to their end."""
    return [text("choices.cut", lang, count=f"{MAX_FOLDERS:,}", root=str(root)) for root in cut_roots]
