"""`glmtune ui`: the web page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import allow_values, number_option
from glmtune.config_ranges import NumberRange
from glmtune.errors import ConfigError
from glmtune.html.i18n import LANGUAGES, default_language
from glmtune.utils.optional_packages import require_extra


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
    root_path: Annotated[
        str,
        typer.Option(help="What a proxy puts before the page's paths: /user/me/proxy/7860 in a JupyterHub."),
    ] = "",
    trusted_host: Annotated[
        list[str] | None,
        typer.Option(help="Name by which a proxy is reached, several times: hub.example.org, or NAME:PORT."),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            help="Address that gets a message when a job ends: a robot of DingTalk, Feishu, WeCom or Slack, or any "
            "other that takes JSON."
        ),
    ] = None,
    serve_: Annotated[
        str | None,
        typer.Option(
            "--serve",
            help="Run or model that OpenAI's API below /api answers with, as in `glmtune serve`.",
            metavar="RUN_OR_MODEL",
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="GLMTUNE_API_KEY", help="With --serve: the key that clients have to send.")
    ] = None,
    stop_jobs: Annotated[
        bool,
        typer.Option(
            "--stop-jobs", help="At the end, stop running jobs with a checkpoint, as containers need; else they go on."
        ),
    ] = False,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="GLMTUNE_UI_PASSWORD",
            help="Asked for on the page. In the environment variable other users cannot see it.",
        ),
    ] = None,
) -> None:
    """A web page: model, data, training, runs, chat, evaluation, export. Nothing leaves this machine."""
    require_extra("ui", "glmtune ui")
    from glmtune.utils.network import is_loopback
    from glmtune.webui.app import PAGE_PATHS, serve
    from glmtune.webui.page_rules import PageRules, parse_root_path, parse_trusted_host

    rules = PageRules(
        is_loopback(host),
        frozenset(map(parse_trusted_host, trusted_host or [])),
        parse_root_path(root_path, PAGE_PATHS),
        lang or default_language(),
    )
    if api_key is not None and serve_ is None and api_key != os.environ.get("GLMTUNE_API_KEY"):
        raise ConfigError("--api-key is for --serve, which is not given.", "For the page: --password.")
    serve(
        root or [Path.cwd()],
        rules,
        host=host,
        port=port,
        password=password,
        webhook=webhook,
        served_model=serve_,
        api_key=api_key,
        stop_jobs=stop_jobs,
    )
