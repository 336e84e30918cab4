"""Pages and parts of pages from templates, in the language of the browser that asks."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

from jinja2 import Environment
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from glmtune.errors import GlmtuneError
from glmtune.html.pages import make_environment
from glmtune.utils.console import format_bytes, format_duration
from glmtune.webui.context import Context
from glmtune.webui.error_texts import localize_message, translate_message
from glmtune.webui.guard import csrf_token, find_chosen_language
from glmtune.webui.pruning import CHATS, JOBS, UPLOADS
from glmtune.webui.texts import text

TABS = ("data", "train", "runs", "chat", "evaluate", "export", "model", "migrate")
"""In the order in which a person needs them."""
UNPROCESSABLE = 422
"""Status of a request that a user can correct; its part of the page is shown in place of the result."""


def get_language(request: Request, context: Context) -> str:
    """The language that this browser chose, else the server's."""
    return find_chosen_language(request.headers) or context.lang


def render_page(request: Request, context: Context, name: str, /, *, tab: str, **values: Any) -> HTMLResponse:
    """A whole page.

    Args:
        request: that asks for it.
        context: the server's settings.
        name: of the template, without its suffix.
        tab: the tab that is marked as current; its text is the title, unless `values` has a `title`.
        values: of the template.
    """
    lang = get_language(request, context)
    values.setdefault("title", text(f"tab.{tab}", lang))
    return HTMLResponse(_render(request, context, name, {"tab": tab, **values}))


def render_part(request: Request, context: Context, name: str, /, **values: Any) -> HTMLResponse:
    """A part of a page, which the browser puts into its place."""
    return HTMLResponse(_render(request, context, name, values))


def render_markup(request: Request, context: Context, name: str, /, **values: Any) -> Markup:
    """A part of a page for another template."""
    return Markup(_render(request, context, name, values))


def make_problem(error: GlmtuneError, lang: str) -> Markup:
    """The lines of an error, under a headline in the page's language; see `render_problem`."""
    return render_problem("\n".join(filter(None, [error.message, error.hint])), lang)


def render_problem(message: str, lang: str, title: str = "app.problem") -> Markup:
    """An error as the page shows it: its lines in the page's language, the words of the command line folded below.
    Lines without a translation stand under a remark that they are in English.

    Args:
        message: lines as the command line prints them.
        lang: of the page.
        title: key of the words before the first line.
    """
    lines = [line for line in message.splitlines() if line.strip()]
    translations = [line if lang == "en" else translate_message(line, lang) for line in lines]
    template = _environment().get_template("problem.html.j2")
    values = {"lines": list(zip(lines, translations, strict=True)), "is_english": lang == "en"}
    return Markup(template.render(**values, title=title, original=message, t=_translator(lang)))


def redirect(request: Request, path: str) -> Response:
    """Send the browser to another page of ours; also where htmx asks."""
    url = f"{request.scope.get('root_path', '')}{path}"
    if "hx-request" in request.headers:
        return Response(status_code=204, headers={"HX-Redirect": url})
    return Response(status_code=303, headers={"Location": url})


def _render(request: Request, context: Context, name: str, values: dict[str, Any]) -> str:
    lang = get_language(request, context)
    root = request.scope.get("root_path", "")
    shared = {
        "lang": lang,
        "html_lang": {"zh": "zh-CN"}.get(lang, lang),
        "t": _translator(lang),
        "url": lambda path: f"{root}{path}",
        "csrf": csrf_token(request),
        "tabs": TABS,
        "is_locked": context.locked,
        "shorten": context.shorten,
    }
    return _environment().get_template(f"{name}.html.j2").render({**shared, **values})


def format_moment(seconds: float) -> str:
    """A time of the machine's clock: 2026-11-27 09:30."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _translator(lang: str) -> Any:
    return lambda key, **named: text(key, lang, **named)


@cache
def _environment() -> Environment:
    environment = make_environment("glmtune.webui")
    environment.filters |= {
        "size": format_bytes,
        "duration": format_duration,
        "moment": format_moment,
        "localize": localize_message,
    }
    environment.globals["keep"] = {"chats": CHATS, "jobs": JOBS, "uploads": UPLOADS}
    return environment
