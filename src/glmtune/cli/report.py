"""`glmtune report`: the page about a run, an evaluation, a comparison or a forgetting probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import ReportLanguage


def report(
    folder: Annotated[Path, typer.Argument(help="A run, or a folder of eval, compare or forget.", metavar="FOLDER")],
    lang: ReportLanguage = None,
) -> None:
    """Write report.html (one file, no network) and its charts as PNG files; a run may still be training."""
    from glmtune.report import write_report

    typer.echo(f"Report: {write_report(folder, lang)}")
