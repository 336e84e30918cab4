"""`glmtune ui`: the web page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import allow_values, number_option
from glmtune.config_ranges import NumberRange
from glmtune.errors import ConfigError
from glmtune.html.i18n import LANGUAGES, default_language


def ui(
    port: Annotated[int, number_option("Port of the page.", NumberRange(0, 65535))] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need a password.")
    ] = "127.0.0.1",
    lang: Annotated[
        str | None,
        typer.Option(
            help="Language of the page at first: zh or en. Default: from the locale.",
            callback=allow_values(tuple(LANGUAGES)),
        ),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that the page may use, several times; runs go to the first. Default: this one."),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="GLMTUNE_UI_PASSWORD",
            help="Asked for on the page. In the environment variable other users cannot see it.",
        ),
    ] = None,
) -> None:
    """A web page: model, data, training, runs, chat, evaluation, export. Nothing leaves this machine."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("glmtune ui needs Gradio, which is not installed.", "Install it: pip install 'glmtune[ui]'")
    lang = lang or default_language()
    from glmtune.webui.app import serve

    serve(root or [Path.cwd()], host=host, port=port, lang=lang, password=password)
