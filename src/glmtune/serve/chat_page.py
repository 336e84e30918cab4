"""The page with a chat: one file that needs no other host."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files

from markupsafe import Markup
from starlette.responses import HTMLResponse

from glmtune.html.i18n import LANGUAGES, load_texts
from glmtune.html.pages import load_styles, render_template


def make_page_response(lang: str) -> HTMLResponse:
    """The page, with the browser's permission to run its own script and to ask this server, and nothing else.

    Args:
        lang: that it shows first.
    """
    script = _load_script()
    digest = base64.b64encode(hashlib.sha256(f"\n{script}".encode()).digest()).decode()
    rules = [
        "default-src 'none'",
        f"script-src 'sha256-{digest}'",
        "style-src 'unsafe-inline'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return HTMLResponse(_render_page(lang), headers={"Content-Security-Policy": "; ".join(rules)})


@cache
def _render_page(lang: str) -> str:
    texts = {
        code: {key: value for key, value in load_texts(code).items() if key.startswith("serve.chat.")}
        for code in LANGUAGES
    }
    return render_template(
        *("glmtune.serve", "chat.html.j2"),
        lang=lang,
        style=load_styles("glmtune.serve", "chat.css"),
        texts=Markup(json.dumps(texts, ensure_ascii=False).replace("<", "\\u003c")),
        script=Markup(_load_script()),
    )


@cache
def _load_script() -> str:
    return files("glmtune.serve").joinpath("templates").joinpath("chat.js").read_text("utf-8")
