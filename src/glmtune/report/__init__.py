"""report.html: one page about a run, an evaluation, a comparison or a forgetting probe, and its charts as PNG files."""

from __future__ import annotations

from pathlib import Path

from glmtune.errors import ConfigError
from glmtune.evaluation.output_folders import require_no_model
from glmtune.html.i18n import LANGUAGES, default_language
from glmtune.report.contents import read_contents
from glmtune.report.page import render_page
from glmtune.report.pictures import draw_pictures
from glmtune.utils.io import explain_write_errors, write_text

__all__ = ["write_pictures", "write_report"]


def write_report(folder: str | Path, lang: str | None = None) -> Path:
    """Write report.html of whatever a folder is, and its charts as PNG files beside it.

    The page holds both languages and needs no network.

    Args:
        folder: a run, an evaluation, a comparison or a forgetting probe; of a run, the evaluations, comparisons and
            the probe inside it are shown too.
        lang: zh or en, the language that is shown first; that of the locale when None.

    Returns:
        The page.

    Raises:
        ConfigError: an unknown language.
        RunError: the folder is none of these, or holds a model too; one of its files cannot be read, or the page cannot
            be written.
    """
    lang = lang or default_language()
    if lang not in LANGUAGES:
        raise ConfigError(f"The report has no language {lang!r}.", f"It has {' and '.join(LANGUAGES)}.")
    page = Path(folder) / "report.html"
    contents = read_contents(Path(folder))
    require_no_model(Path(folder))
    with explain_write_errors(page, "folder"):
        write_text(page, render_page(contents, lang))
        draw_pictures(contents)
    return page


def write_pictures(folder: str | Path) -> list[Path]:
    """Draw the charts of a folder as PNG files only; see `write_report`."""
    contents = read_contents(Path(folder))
    require_no_model(Path(folder))
    return draw_pictures(contents)
