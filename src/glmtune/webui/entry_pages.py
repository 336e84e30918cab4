"""The pages that are sent before the page itself: the login, and why a request is not answered.

They are complete without any other file, since whoever sees them may not be allowed to load one.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from glmtune.html.i18n import LANGUAGES, text
from glmtune.html.pages import load_styles, render_template
from glmtune.utils.documents import shorten_path
from glmtune.webui.page_rules import is_host_name, is_root_path

RefusalReason = Literal["host", "origin", "embedded", "token", "size", "slow", "login"]
_PACKAGE = "glmtune.webui"
_EXAMPLE_PREFIX = "/user/NAME/proxy/{port}"


def render_refusal(reason: RefusalReason, lang: str, *, is_page: bool, home: str = "", **values: Any) -> str:
    """Why a request is not answered, and what to do.

    Args:
        reason: the texts are `ui.refused.REASON` and, with what to do, `ui.refused.REASON.hint`.
        lang: a code of `LANGUAGES`.
        is_page: an HTML page for a person; else two lines for a script or a part of the page.
        home: address of the page, for the way back; empty where it would not be answered either.
        values: of the texts. For `host`: `host`, `port` and `prefix` as the request has them.
    """
    commands = _make_commands(**values) if reason == "host" else {}
    values = {
        name: f"{value:,}" if isinstance(value, int) else shorten_path(str(value)) for name, value in values.items()
    }
    lines = [text(f"ui.refused.{part}", lang, **values) for part in (reason, f"{reason}.hint")]
    if not is_page:
        return "\n".join([*lines, *commands.values()]) + "\n"
    return render_template(
        _PACKAGE, "refusal.html.j2", **_make_context(lang), lines=lines, commands=commands, home=home
    )


def render_login(
    lang: str,
    *,
    action: str,
    token: str,
    target: str,
    languages: dict[str, str],
    problem: str = "",
    wait_seconds: int = 0,
) -> str:
    """The page with the password field.

    Args:
        lang: a code of `LANGUAGES`.
        action: address that the form is sent to.
        token: against requests from other pages, see `guard.csrf_token`.
        target: where the browser goes after the login.
        languages: code of a language -> address of this page in it.
        problem: key of a text `ui.login.PROBLEM`, if a login failed.
        wait_seconds: until the next attempt is allowed, for the text.
    """
    message = text(f"ui.login.{problem}", lang, seconds=wait_seconds) if problem else ""
    return render_template(
        _PACKAGE,
        "login.html.j2",
        **_make_context(lang),
        action=action,
        token=token,
        target=target,
        links=languages,
        problem=message,
    )


def _make_context(lang: str) -> dict[str, Any]:
    return {
        "lang": lang,
        "say": partial(text, lang=lang),
        "names": LANGUAGES,
        "styles": load_styles(_PACKAGE, "login.css"),
    }


def _make_commands(host: str, port: int, prefix: str) -> dict[str, str]:
    """Command lines by the text that explains them, with the name by which the browser came."""
    name = host.lower() if is_host_name(host.lower()) else "NAME"
    trust = f"glmtune ui --port {port} --trusted-host {name}"
    prefix = prefix.rstrip("/")
    below = prefix if is_root_path(prefix) else _EXAMPLE_PREFIX.format(port=port)
    return {
        "ui.refused.host.tunnel": f"ssh -L {port}:127.0.0.1:{port} USER@MACHINE",
        "ui.refused.host.proxy": trust,
        "ui.refused.host.prefix": f"{trust} --root-path {below}",
    }
