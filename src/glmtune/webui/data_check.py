"""Checking rows and showing one, as `glmtune data check` and `glmtune data preview` do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

from glmtune.config import RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.data.check_kinds import describe_kind, escape_controls
from glmtune.data.check_rows import FINDINGS_SHOWN, CheckReport, ModelChecker, RowChecker, scan_sources
from glmtune.data.files import is_encoded_folder
from glmtune.data.histogram import make_bins
from glmtune.data.preview import UnusedRowError, find_row, make_preview, render_html
from glmtune.data.sources import DataSource, open_sources
from glmtune.errors import DataError
from glmtune.families import detect_family, get_family
from glmtune.html.builder import Html, el
from glmtune.html.plots import draw_histogram
from glmtune.webui import html
from glmtune.webui.texts import text

_TELL_SECONDS = 0.5


def open_rows(run: RunConfig) -> list[DataSource]:
    """The training rows of a run.

    Raises:
        DataError: they cannot be read, or are encoded already.
    """
    entries = run.data.train if isinstance(run.data.train, list) else [run.data.train]
    for entry in entries:
        if isinstance(entry, str) and is_encoded_folder(Path(entry)):
            raise DataError(f"{entry}: holds encoded rows.", "Give the file that they were made from.")
    data = run.data
    return open_sources(data.train, data.columns, data.format, int(run.training["seed"]), data.preference)


def judge_of(run: RunConfig) -> ModelChecker | None:
    """What counts tokens; None without a model.

    Raises:
        ModelError: it has no tokenizer of a known generation.
    """
    if not run.model.path:
        return None
    from glmtune.methods.run_tokenizer import load_run_tokenizer
    from glmtune.training.training_data import make_encoding_rules
    from glmtune.utils.console import silence_libraries

    silence_libraries()
    model = run.model
    family = get_family(model.family) if model.family else detect_family(model.path, model.hub)
    tokenizer, _ = load_run_tokenizer(run, model.path, family.name)
    return ModelChecker(family, tokenizer, make_encoding_rules(run.data))


def check_rows(run: RunConfig, lang: str) -> Iterator[tuple[str, bool]]:
    """The page's part for a check, anew while it goes on; the second value says whether it is the last.

    Raises:
        GlmtuneError: rows or model cannot be read.
    """
    sources, judge = open_rows(run), judge_of(run)
    report = CheckReport("tokens" if judge else "characters", keep_all=False)
    checker, told = RowChecker(report, judge), time.monotonic()
    for row in scan_sources(sources):
        checker.check_row(row)
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            yield html.note(_counted("data.checking", report, lang)), False
    checker.add_unread_keys(sources)
    yield _result(report, sources, judge, lang), True


def row_frame(run: RunConfig, number: int, ids: bool, lang: str) -> str:
    """A row as the model sees it, in a frame of its own where no script runs.

    Raises:
        GlmtuneError: no such row, or no model to read it.
    """
    judge = judge_of(run)
    if judge is None:
        return html.note(text("data.no_model", lang))
    name = run.data.train if isinstance(run.data.train, str) else ", ".join(map(str, run.data.train))
    try:
        source, conversation = find_row(open_rows(run), number, name)
        page = render_html(make_preview(source, conversation, judge.family, judge.tokenizer, judge.rules), ids)
    except UnusedRowError as error:
        page = f"<p>{escape(error.effect)}: {escape(error.message)}</p><pre>{escape(error.row_text)}</pre>"
    heading = escape(text("data.row_title", lang, row=number))
    return f'<iframe class="rowview" sandbox="" title="{heading}" srcdoc="{escape(page)}"></iframe>'


def data_run(tree: dict[str, object]) -> RunConfig:
    """A config that has data but may be without a model.

    Raises:
        ConfigError: an unknown key or a wrong type.
    """
    run: RunConfig = build_dataclass(RunConfig, tree, "form")
    return run


def _result(report: CheckReport, sources: list[DataSource], judge: ModelChecker | None, lang: str) -> str:
    limit = judge.rules.max_row_length if judge else None
    bins = [(item.first, item.last, item.count) for item in make_bins(report.total, max_bins=30)]
    chart = draw_histogram(bins, text("data.lengths", lang), text(f"data.unit_{report.unit}", lang), limit)
    heads = [html.note(line) for source in sources for line in (f"{source.name}: {source.format}", *source.notes)]
    return "".join([*heads, _numbers(report, judge, lang), _findings(report, lang), chart])


def _numbers(report: CheckReport, judge: ModelChecker | None, lang: str) -> Html:
    tokens = sum(length * count for length, count in report.total.counts.items())
    items = [
        ("data.rows", report.rows),
        ("data.conversations", report.conversations),
        ("data.texts", report.texts),
        ("data.tools", report.with_tools),
        ("data.unusable", report.unusable),
        ("data.answers", report.answers),
        ("data.p95", report.total.percentile(95)),
        ("data.longest", report.total.longest),
    ]
    if judge is not None:
        items += [("data.tokens", tokens), ("data.targets", report.targets)]
    return html.figures((text(name, lang), f"{count:,}") for name, count in items if count)


def _findings(report: CheckReport, lang: str) -> Html:
    if not report.kinds:
        return el("p", text("data.nothing", lang))
    kinds = sorted(report.kinds, key=lambda key: (key[0] != "error", -report.kinds[key], key[1]))
    parts = [el("p", el("strong", _counted("data.found", report, lang)))]
    return html.join([*parts, *(_kind(report, severity, kind, lang) for severity, kind in kinds)])


def _kind(report: CheckReport, severity: str, kind: str, lang: str) -> Html:
    found = [item for item in report.findings if (item.severity, item.kind) == (severity, kind)][:FINDINGS_SHOWN]
    count = report.kinds[severity, kind]
    said = [
        el("li", el("code", item.where), f" {escape_controls(item.message)} ", el("span", item.excerpt, class_="note"))
        for item in found
    ]
    if count > len(found):
        said.append(el("li", text("data.more", lang, count=f"{count - len(found):,}")))
    hint = next((item.hint for item in found if item.hint), None)
    heading = el("strong", f"{text(f'severity.{severity}', lang)} {kind}: {count:,}")
    state = el("summary", heading, f"  {describe_kind(kind)}", class_=severity)
    body = [el("ul", *said, class_="findings"), *([html.note(hint)] if hint else [])]
    return el("details", state, *body, open=severity == "error", class_="finding")


def _counted(key: str, report: CheckReport, lang: str) -> str:
    counts = {"rows": report.rows, "errors": report.errors, "warnings": report.warnings}
    return text(key, lang, **{name: f"{count:,}" for name, count in counts.items()})
