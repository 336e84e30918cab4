"""Rows of data as the tab `Data` shows them: a page of a table, the first row's columns, one row as tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from glmtune.config import RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.data.check_fix import LocatedRow
from glmtune.data.check_kinds import escape_controls, read_message_text
from glmtune.data.check_rows import ModelChecker, scan_sources
from glmtune.data.conversation import Conversation, InvalidRow
from glmtune.data.files import is_encoded_folder
from glmtune.data.preview import UnusedRowError, make_preview, render_html
from glmtune.data.sources import DataSource, open_sources
from glmtune.errors import DataError
from glmtune.families import detect_family, get_family
from glmtune.html.builder import Html, el, join
from glmtune.webui.error_texts import localize_message, translate_message

PAGE_ROWS = 20
_MAX_TEXT = 400


@dataclass(frozen=True)
class TableRow:
    """A row of the table.

    Attributes:
        number: from 1 over all rows.
        where: `file:line`.
        question: the last message before the answer.
        answer: that is trained on; empty for plain text.
        problem: why the row cannot be used; None if it can.
        worse: the worse answer of a pair.
        label: of a single answer: `good` or `bad`; `better` beside a worse one; `reference` of a question.
        is_edited: whether a user changed it.
    """

    number: int
    where: str
    question: str
    answer: str
    problem: str | None = None
    worse: str | None = None
    label: str = ""
    is_edited: bool = False


def make_run(tree: Mapping[str, Any]) -> RunConfig:
    """A config that has data but may be without a model.

    Raises:
        ConfigError: an unknown key or a wrong type.
    """
    run: RunConfig = build_dataclass(RunConfig, dict(tree), "form")
    return run


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


def load_model_checker(run: RunConfig) -> ModelChecker | None:
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


def read_page(
    sources: Sequence[DataSource], page: int, search: str = "", numbers: frozenset[int] | None = None
) -> tuple[list[TableRow], bool]:
    """A page of the table.

    Args:
        sources: of the rows.
        page: from 1.
        search: only rows with this text in question or answer, whatever its case.
        numbers: only rows of these numbers; None: all.

    Returns:
        Up to `PAGE_ROWS` rows, and whether more follow.
    """
    needle = search.strip().casefold()
    rows = (
        row
        for row in _number_rows(sources)
        if (numbers is None or row.number in numbers) and (not needle or _holds(row, needle))
    )
    start = (page - 1) * PAGE_ROWS
    found = list(islice(rows, start, start + PAGE_ROWS + 1))
    return [_shorten_row(row) for row in found[:PAGE_ROWS]], len(found) > PAGE_ROWS


def render_row(located: LocatedRow, checker: ModelChecker | None, with_ids: bool, title: str, lang: str) -> Html | None:
    """A row as the model sees it, in a frame of its own where no script runs; None without a model, and of a row
    that cannot be used."""
    row, source = located.row, located.source
    if checker is None or isinstance(row, InvalidRow):
        return None
    try:
        preview = make_preview(source, row, checker.family, checker.tokenizer, checker.rules)
    except UnusedRowError as error:
        effect, problem = (localize_message(line, lang) for line in (error.effect, error.message))
        page = str(join([el("p", effect, ": ", problem), el("pre", error.row_text)]))
    else:
        html_lang = {"zh": "zh-CN"}.get(lang, lang)
        page = render_html(preview, with_ids, html_lang, lambda line: translate_message(line, lang) or line)
    size = "frame" if row.rejected is not None else "frame short"
    return el("iframe", srcdoc=page, sandbox="", title=title, class_=size)


def _number_rows(sources: Sequence[DataSource]) -> Iterator[TableRow]:
    number = 0
    for source in sources:
        for in_source, row in enumerate(scan_sources([source]), start=1):
            number += 1
            is_edited = in_source in source.edits
            if isinstance(row, InvalidRow):
                yield TableRow(number, row.where, "", "", row.message, is_edited=is_edited)
                continue
            question, answer = _split_row(row)
            worse = _split_row(row.rejected)[1] if row.rejected is not None else None
            label = "better" if worse is not None else ""
            if worse is None and row.is_desirable is not None:
                label = "good" if row.is_desirable else "bad"
            if row.columns is not None:  # a question, which the model answers itself
                label, answer = "reference", "" if row.reference is None else _to_text(row.reference)
            yield TableRow(number, row.where, question, answer, None, worse, label, is_edited)


def _holds(row: TableRow, needle: str) -> bool:
    texts = (row.question, row.answer, row.worse or "", row.problem or "")
    return any(needle in content.casefold() for content in texts)


def _shorten_row(row: TableRow) -> TableRow:
    worse = None if row.worse is None else _shorten(row.worse)
    return replace(row, question=_shorten(row.question), answer=_shorten(row.answer), worse=worse)


def _split_row(row: Conversation) -> tuple[str, str]:
    """The last question and its answer."""
    if row.text is not None:
        return row.text, ""
    contents = [(message["role"], read_message_text(message)) for message in row.messages]
    last = max((i for i, (role, _) in enumerate(contents) if role in ("assistant", "tool")), default=len(contents))
    question = next((content for role, content in reversed(contents[:last]) if role == "user"), "")
    return question, contents[last][1] if last < len(contents) else ""


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _shorten(content: str) -> str:
    return escape_controls(content if len(content) <= _MAX_TEXT else f"{content[:_MAX_TEXT]}…")
