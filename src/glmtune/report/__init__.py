"""report.html: one page about a run, an evaluation, a comparison or a forgetting probe, and its charts as PNGs."""

from __future__ import annotations

from pathlib import Path

from glmtune.errors import ConfigError
from glmtune.html.i18n import LANGUAGES, default_language
from glmtune.report.gather import gather
from glmtune.report.page import render
from glmtune.report.pngs import draw_pngs
from glmtune.utils.io import write_text

__all__ = ["write_pngs", "write_report"]


def write_report(folder: str | Path, lang: str | None = None) -> Path:
    """Write report.html of whatever the folder is, and its charts as PNGs beside it. The page holds both languages and
    needs no network.

    Args:
        folder: a run, an evaluation, a comparison or a forgetting probe; of a run, the evaluations, comparisons and
            the probe inside it are shown too.
        lang: zh or en: the language that is shown first; None: that of the locale.

    Returns:
        The page.

    Raises:
        ConfigError: an unknown language.
        RunError: the folder is none of these, or one of its files cannot be read.
    """
    lang = lang or default_language()
    if lang not in LANGUAGES:
        raise ConfigError(f"The report has no language {lang!r}.", f"It has {' and '.join(LANGUAGES)}.")
    page = Path(folder) / "report.html"
    found = gather(Path(folder))
    write_text(page, render(found, lang))
    draw_pngs(found)
    return page


def write_pngs(folder: str | Path) -> list[Path]:
    """Draw the charts of the folder as PNGs alone; their letters are Latin.

    Returns:
        The pictures; those without numbers to draw are left out.

    Raises:
        RunError: as `write_report`.
    """
    return draw_pngs(gather(Path(folder)))
