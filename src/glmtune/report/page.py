"""The page of a report, from its contents to HTML."""

from __future__ import annotations

import re
from html import unescape

from glmtune.html.i18n import LANGUAGES
from glmtune.html.pages import load_styles, render_template
from glmtune.report.contents import ReportContents
from glmtune.report.view_parts import list_turns, show_clipped
from glmtune.report.views import CUTS, VIEWS
from glmtune.report.vote_views import view_votes

_VIEWS = {**VIEWS, "votes": view_votes}


def render_page(contents: ReportContents, lang: str) -> str:
    """Render the page of what a folder holds; `lang` is shown first."""
    view = {"lede": [], **_VIEWS[contents.kind](contents)}
    return render_template(
        *("glmtune.report", "page.html.j2"),
        **view,
        kind=contents.kind,
        lang=lang,
        page_title=_strip_markup(view["headline"], lang),
        style=load_styles("glmtune.report", "report.css"),
        cuts=list(CUTS),
        clip=show_clipped,
        list_turns=list_turns,
        get=_get_nested,
    )


def _strip_markup(text: str, lang: str) -> str:
    """The text in one language, without tags."""
    for other in LANGUAGES:
        if other == lang:
            continue
        parts, depth = [], 0  # spans of the other language may hold spans
        for part in re.split(r"(<span[^>]*>|</span>)", text):
            if depth or part == f'<span lang="{other}">':
                depth += part.startswith("<span") - (part == "</span>")
            else:
                parts.append(part)
        text = "".join(parts)
    return unescape(re.sub(r"<[^>]*>", "", text))


def _get_nested(tree: object, *keys: str) -> object:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
