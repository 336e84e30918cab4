"""HTML pages from Jinja2 templates: text is escaped, texts are shown in both languages, numbers keep their exact value.

A page holds every text in all languages, each in a `<span lang=...>`; CSS shows the one that is chosen.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files
from typing import Any, TypeGuard

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from glmtune.html.i18n import LANGUAGES, format_message, has_text, load_texts
from glmtune.utils.console import format_bytes

NO_VALUE = "–"
"""Shown in place of a number that is not known."""


def render_template(package: str, name: str, **context: Any) -> str:
    """Render a template.

    Args:
        package: whose folder `templates` holds it, such as `glmtune.report`. Templates of `glmtune.html` can be
            included from it.
        name: of the file, such as `page.html.j2`.
        context: its variables; text is escaped unless it is `Markup`.
    """
    return make_environment(package).get_template(name).render(context)


@cache
def load_styles(package: str, name: str) -> Markup:
    """The style sheet that all pages begin with (colours, fonts, the bar with the languages), and that of a page.

    Args:
        package: whose folder `templates` holds the page's own sheet.
        name: of that file.
    """
    sheets = (("glmtune.html", "base.css"), (package, name))
    return Markup(
        "".join(files(place).joinpath("templates").joinpath(sheet).read_text("utf-8") for place, sheet in sheets)
    )


@cache
def make_environment(package: str) -> Environment:
    """The environment of a package's folder `templates`: text is escaped, a misspelt variable is an error."""
    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt variable is an error
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.globals |= {
        "t": show_text,
        "has_text": has_text,
        "number": show_number,
        "memory": show_memory,
        "duration": show_duration,
        "is_number": is_number,
        "languages": LANGUAGES,
        "NO_VALUE": NO_VALUE,
    }
    return environment


def _finalize(value: Any) -> Any:
    """Replace lone surrogates, which no file can hold; None is shown as nothing."""
    if value is None:
        return ""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return value.encode("utf-8", "replace").decode("utf-8")
    return value


def show_text(key: str, **values: object) -> Markup:
    """A text in every language; the page shows one of them.

    Args:
        key: of the locales, such as `report.tile.loss`.
        values: of its placeholders; escaped unless they are `Markup`.
    """
    values = {name: escape(_finalize(value)) for name, value in values.items()}
    spans = []
    for lang in LANGUAGES:
        template = str(Markup.escape(load_texts(lang)[key])).replace("&#34;", '"').replace("&#39;", "'")
        spans.append(f'<span lang="{lang}">{format_message(template, values)}</span>')
    return Markup("".join(spans))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def show_number(value: Any, form: str = ",.0f", unit: str = "") -> Markup:
    """A number as it is read, with its exact value in the markup; `NO_VALUE` if it is none."""
    return _show_data(value, f"{value:{form}}{unit}") if is_number(value) else Markup(NO_VALUE)


def show_memory(value: Any) -> Markup:
    """Bytes as MiB or GiB."""
    return _show_data(value, format_bytes(value)) if is_number(value) else Markup(NO_VALUE)


def show_duration(value: Any) -> Markup:
    """Seconds in the two largest units."""
    if not is_number(value):
        return Markup(NO_VALUE)
    if value < 60:
        return show_text("report.time.seconds", seconds=_show_data(value, f"{value:.1f}"))
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return show_text("report.time.minutes", minutes=_show_data(value, str(minutes)), seconds=f"{seconds:02d}")
    hours = _show_data(value, str(minutes // 60))
    return show_text("report.time.hours", hours=hours, minutes=f"{minutes % 60:02d}")


def _show_data(value: float, text: str) -> Markup:
    return Markup('<data value="{}">{}</data>').format(repr(value), text.replace("-", "\u2212"))
