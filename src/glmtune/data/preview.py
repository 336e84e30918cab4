"""Show a row as the model sees it: all tokens, which of them are targets, and what the length limits removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich.text import Text

from glmtune.data.check_fix import scan_raw_rows
from glmtune.data.check_kinds import escape_controls
from glmtune.data.check_rows import describe_truncation
from glmtune.data.conversation import Conversation, InvalidRow, RawRow
from glmtune.data.encoding import (
    EncodedRow,
    EncodingCounts,
    EncodingRules,
    encode_conversations,
    encode_examples,
    fit_example,
)
from glmtune.data.sources import DataSource
from glmtune.data.unread_keys import describe_unread_keys
from glmtune.errors import DataError
from glmtune.families import IGNORE_INDEX, EncodedSequence, Family
from glmtune.utils.console import count_noun, get_console, print_message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TARGET_STYLE, INPUT_STYLE = "green", "dim"
SPECIAL_STYLE, SPECIAL_TARGET_STYLE, MARKER_STYLE = "bold magenta", "bold white on green", "bold yellow"
WORSE_STYLE, SPECIAL_WORSE_STYLE = "red", "bold white on red"
"""Of the targets of a worse answer."""
OPEN, CLOSE = "⟦", "⟧"
"""Marks around the targets where there are no colours."""
MAX_TEXT = 20_000
"""Maximum number of characters of a row that is not trained on."""
# Maximum number of tokens of one character: its bytes.
_MAX_CHARACTER_TOKENS = 4
# U+FFFD in SentencePiece and byte-level vocabularies.
_REPLACEMENT_CHARACTER = ("<0xEF><0xBF><0xBD>", "ï¿½")


@dataclass(frozen=True)
class TokenView:
    """One token for display.

    Attributes:
        id: of the token.
        text: that it adds; None for a character of several tokens, which is shown with the last of them.
        is_target: whether it is trained on.
        is_special: whether it is a special token.
        label_only: the label here, if it is another token than the input.
    """

    id: int
    text: str | None
    is_target: bool
    is_special: bool
    label_only: str | None = None


class UnusedRowError(DataError):
    """A row that is not trained on: `effect` is what training does there, `row_text` the row as in the file."""

    def __init__(self, message: str, hint: str | None, effect: str, row_text: str):
        super().__init__(message, hint)
        self.effect = effect
        self.row_text = row_text


@dataclass(frozen=True)
class PreviewRow:
    """A training row.

    Attributes:
        tokens: of it.
        left_out: the reason if it is not trained on because of the length limits.
        side: of a pair, `better` or `worse`; of an answer with a label, `good` or `bad`.
    """

    tokens: list[TokenView]
    left_out: str = ""
    side: str = ""

    @property
    def name(self) -> str:
        """The side for the heading, with a space before it."""
        return f" ({self.side} answer)" if self.side else ""

    @property
    def is_worse(self) -> bool:
        """Whether its answer is one that becomes less likely."""
        return self.side in ("worse", "bad")

    @property
    def targets(self) -> int:
        """Number of targets."""
        return 0 if self.left_out else sum(token.is_target or token.label_only is not None for token in self.tokens)


@dataclass(frozen=True)
class Preview:
    """A row of a file with its training rows."""

    format: str
    where: str
    family: str
    rows: list[PreviewRow]
    cut: str
    """What the length limits removed; empty if nothing."""
    notes: list[str] = field(default_factory=list)
    """Of the file, for the user."""

    def make_heading(self) -> list[str]:
        """Lines above the rows."""
        tokens = sum(len(row.tokens) for row in self.rows)
        targets = sum(row.targets for row in self.rows)
        rows = f", {len(self.rows)} rows" if len(self.rows) != 1 else ""
        left_out = [row for row in self.rows if row.left_out]
        if len(left_out) == len(self.rows) and left_out:
            return [
                f"{self.where}   {self.format}, as {self.family} sees it",
                f"left out of training: {left_out[0].left_out}",
                f"{count_noun(tokens, 'token')}{rows}, shown uncut",
                *self.notes,
            ]
        return [
            f"{self.where}   {self.format}, as {self.family} sees it",
            f"{count_noun(tokens, 'token')}, {targets:,} of them trained on{rows}",
            f"over the length limits: {self.cut}" if self.cut else "within the length limits",
            *self.notes,
        ]

    @property
    def has_markers(self) -> bool:
        """Whether a token is in the labels only."""
        return any(token.label_only for row in self.rows for token in row.tokens)


def find_row(sources: Iterable[DataSource], number: int, name: str) -> tuple[DataSource, Conversation]:
    """Find row `number`, counted from 1 over all sources, including invalid lines as in `data check`.

    Raises:
        UnusedRowError: it cannot be used; the error has its text.
        DataError: there is no such row.
    """
    count = 0
    for source in sources:
        for row, raw_row, line in _scan_source(source):
            count += 1
            if count < number:
                continue
            if isinstance(row, InvalidRow):
                raise _make_unused_row_error(row, raw_row, line)
            return source, row
    rows = count_noun(count, "row")
    raise DataError(f"{name}: there is no row {number}; it has {rows}.", f"Give --row 1 to {count}.")


def make_preview(
    source: DataSource,
    conversation: Conversation,
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    rules: EncodingRules,
) -> Preview:
    """Encode a conversation as in training, and decode its tokens for display.

    Raises:
        UnusedRowError: it cannot be encoded; the error has its messages.
    """
    counts = EncodingCounts()
    rows: list[PreviewRow] = []
    worse = conversation.rejected
    if conversation.text is not None or worse is not None:
        encoded = encode_conversations([conversation], family, tokenizer, rules, counts)
        rows = [PreviewRow(make_token_views(row, tokenizer)) for row in encoded]
    if not rows:
        try:
            for side in [conversation] if worse is None else [conversation, worse]:
                for example in encode_examples(side, family, tokenizer, rules):
                    row = fit_example(example, side, family, tokenizer, rules, EncodingCounts() if worse else counts)
                    left_out = _describe_excess(example.row, example.tokens_before, rules) if row is None else ""
                    shown = example.row if row is None or counts.same_pairs else row
                    rows.append(PreviewRow(make_token_views(shown, tokenizer), left_out))
        except DataError as error:
            problem = f"{conversation.where}: {error.message}"
            effect = _describe_effect(conversation.where, is_skipped=False)
            raise UnusedRowError(problem, error.hint, effect, _format_row(conversation.messages)) from None
    unread = describe_unread_keys(conversation)
    notes = [*source.notes, *([unread] if unread else [])]
    if worse is not None:
        left_out = next((row.left_out for row in rows if row.left_out), "")
        if counts.same_pairs:
            left_out = "what is left of the two answers is the same"
        sides = ["better", "worse"] if len(rows) == 2 else [""] * len(rows)
        rows = [replace(row, left_out=left_out, side=side) for row, side in zip(rows, sides, strict=True)]
        notes.append("row 1 has the better answer, row 2 the worse one")
    elif conversation.is_desirable is not None:
        label = "good" if conversation.is_desirable else "bad"
        rows = [replace(row, side=label) for row in rows]
        notes.append(f"its label says that this answer is {label}")
    elif conversation.columns is not None:
        rows = [_drop_answer(row) for row in rows]
        notes.append("a question: the model answers it itself, and nothing of the row is trained on")
    return Preview(source.format, conversation.where, family.title, rows, describe_truncation(counts), notes)


def _drop_answer(row: PreviewRow) -> PreviewRow:
    """The prompt alone of a question, whose empty answer was encoded with it."""
    first = next((i for i, token in enumerate(row.tokens) if token.is_target), len(row.tokens))
    return replace(row, tokens=row.tokens[:first])


def _scan_source(
    source: DataSource,
) -> Iterator[tuple[Conversation | InvalidRow, RawRow | InvalidRow | None, str | None]]:
    if source.files:
        return scan_raw_rows([source])
    return ((row, None, None) for row in source.scan_rows())


def _make_unused_row_error(row: InvalidRow, raw_row: RawRow | InvalidRow | None, line: str | None) -> UnusedRowError:
    text = _format_row(raw_row.values) if isinstance(raw_row, RawRow) else (line or "")[:MAX_TEXT]
    effect = _describe_effect(row.where, row.is_skipped)
    return UnusedRowError(f"{row}.", row.hint, effect, text)


def _describe_effect(where: str, is_skipped: bool) -> str:
    return f"{where} is left out of training" if is_skipped else f"training stops at {where}"


def _format_row(values: Any) -> str:
    # default=str: parquet has values that JSON does not have (dates, decimals).
    text = json.dumps(values, ensure_ascii=False, indent=2, default=str)
    more = len(text) - MAX_TEXT
    return text if more <= 0 else f"{text[:MAX_TEXT]}… ({count_noun(more, 'more character')})"


def _describe_excess(row: EncodedSequence, tokens_before: int, rules: EncodingRules) -> str:
    prompt, answer = tokens_before + row.prompt_length, len(row.input_ids) - row.prompt_length
    return f"{prompt:,} tokens of prompt and {answer:,} of answer, more than {rules.limits}"


def make_token_views(row: EncodedRow | EncodedSequence, tokenizer: PreTrainedTokenizerBase) -> list[TokenView]:
    """The tokens of a row with their texts."""
    ids = [int(token) for token in row.input_ids]
    texts = decode_tokens(ids, tokenizer)
    specials = set(tokenizer.all_special_ids)
    views = []
    for token, label, text in zip(ids, map(int, row.labels), texts, strict=True):
        label_only = None if label in (IGNORE_INDEX, token) else str(tokenizer.convert_ids_to_tokens(label))
        views.append(TokenView(token, text, label == token, token in specials, label_only))
    return views


def decode_tokens(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """The text that each token adds; None for one whose character is completed by a later token."""
    # Decoded after another token: alone, a token would lose its leading space.
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    anchor_length = len(tokenizer.decode(anchor))
    specials = set(tokenizer.all_special_ids)
    texts: list[str | None] = []
    open_ids: list[int] = []
    for i, token in enumerate(ids):
        if token in specials:
            texts.append(str(tokenizer.convert_ids_to_tokens(token)))
            continue
        open_ids.append(token)
        text = str(tokenizer.decode([*anchor, *open_ids]))[anchor_length:]
        is_last = i + 1 == len(ids) or ids[i + 1] in specials
        is_incomplete = text.endswith("\ufffd") and not is_last and len(open_ids) < _MAX_CHARACTER_TOKENS
        if is_incomplete:
            pieces = "".join(str(tokenizer.convert_ids_to_tokens(part)) for part in open_ids)
            is_incomplete = not pieces.endswith(_REPLACEMENT_CHARACTER)  # the text itself may contain U+FFFD
        texts.append(None if is_incomplete else text)
        if not is_incomplete:
            open_ids = []
    return texts


def print_preview(preview: Preview, ids: bool = False) -> None:
    """Print the heading and each row as text; with `ids` also a line per token."""
    console = get_console()
    colours = console.is_terminal and not console.no_color and console.color_system is not None
    print_message("\n".join(preview.make_heading()))
    is_pair = any(row.side in ("better", "worse") for row in preview.rows)
    console.print(_render_legend(colours, preview.has_markers, is_pair))
    for number, row in enumerate(preview.rows, start=1):
        if len(preview.rows) > 1:
            sizes = f"{count_noun(len(row.tokens), 'token')}, {row.targets:,} trained on"
            if row.left_out:
                sizes = f"left out of training: {row.left_out}"
            print_message(f"\nrow {number} of {len(preview.rows)}{row.name}: {sizes}", "bold")
        console.print()
        console.print(render_text(row, colours), soft_wrap=True)
        if ids:
            console.print()
            for line in render_token_lines(row, colours):
                console.print(line, soft_wrap=True)


def print_unused_row(error: UnusedRowError) -> None:
    """Print a row that is not trained on, as it is in the file; the error itself says why."""
    print_message(f"{error.effect}{'; the row is:' if error.row_text else '.'}")
    lines = (escape_controls(line) for line in error.row_text.split("\n"))
    get_console().print(Text("\n".join(lines)), soft_wrap=True)


def render_text(row: PreviewRow, colours: bool) -> Text:
    """The text of a row: in colours, or with `OPEN` and `CLOSE` around the targets."""
    text, is_open = Text(), False
    for token in row.tokens:
        if token.label_only is not None:
            text.append(f"→{token.label_only}", MARKER_STYLE)
        if token.text is None:
            continue
        if not colours and is_open != token.is_target:
            text.append(OPEN if token.is_target else CLOSE)
            is_open = token.is_target
        text.append(escape_token(token), get_token_style(token, row.is_worse))
    if is_open:
        text.append(CLOSE)
    return text


def render_token_lines(row: PreviewRow, colours: bool) -> Iterator[Text]:
    """Position, id, label and text of each token."""
    yield Text(f"{'position':>8} {'id':>7}  target  token", "bold")
    for position, token in enumerate(row.tokens):
        target = "yes" if token.is_target else f"→{token.label_only}" if token.label_only else ""
        text = "⋯" if token.text is None else escape_token(token).replace("\n", "")
        line = Text(f"{position:>8} {token.id:>7}  {target:<6}  ")
        yield line.append(text.replace(" ", "␣"), get_token_style(token, row.is_worse) if colours else "")


def escape_token(token: TokenView) -> str:
    """The text of a token for display: line breaks as `↵` and a line break, tabs as `⇥`, control characters escaped."""
    parts = (escape_controls(part).replace("\\t", "⇥") for part in (token.text or "").split("\n"))
    return "↵\n".join(parts)


def get_token_style(token: TokenView, is_worse: bool = False) -> str:
    """The colour of a token; `is_worse`: of a worse answer."""
    if not token.is_target:
        return SPECIAL_STYLE if token.is_special else INPUT_STYLE
    if is_worse:
        return SPECIAL_WORSE_STYLE if token.is_special else WORSE_STYLE
    return SPECIAL_TARGET_STYLE if token.is_special else TARGET_STYLE


def render_html(
    preview: Preview, ids: bool = False, lang: str = "en", localize: Callable[[str], str] | None = None
) -> str:
    """A page without scripts, fonts or network.

    Args:
        preview: of a row.
        ids: whether ids of tokens are shown after each token, and not on hover alone.
        lang: of the page, as HTML names it.
        localize: translates the page's own words and sentences; None: they stay English.
    """
    from glmtune.html.pages import render_template

    rows = []
    for row in preview.rows:
        spans: list[dict[str, str | None]] = []
        token_ids: list[int] = []
        for token in row.tokens:
            if token.label_only is not None:
                spans.append({"text": None, "label_only": token.label_only})
            token_ids.append(token.id)
            if token.text is None:
                continue
            classes = " ".join(name for name, on in (("special", token.is_special), ("target", token.is_target)) if on)
            text, newline, rest = escape_token(token).partition("\n")
            joined_ids = "+".join(map(str, token_ids))
            spans.append({"text": text, "rest": newline + rest, "classes": classes, "ids": joined_ids})
            token_ids = []
        facts_of_row = {"targets": row.targets, "left_out": row.left_out, "side": row.side, "is_worse": row.is_worse}
        rows.append({"tokens": row.tokens, "spans": spans, **facts_of_row})
    localize = localize or str
    title, *facts = (localize(line) for line in preview.make_heading())
    return render_template(
        "glmtune.data",
        "preview.html.j2",
        title=title,
        facts=facts,
        rows=rows,
        has_markers=preview.has_markers,
        show_ids=ids,
        lang=lang,
        localize=localize,
    )


def _render_legend(colours: bool, has_markers: bool, is_pair: bool) -> Text:
    if colours:
        parts = [
            ("better answer" if is_pair else "trained on", TARGET_STYLE),
            *([("worse answer", WORSE_STYLE)] if is_pair else []),
            ("input only", INPUT_STYLE),
            ("special token", SPECIAL_STYLE),
            ("special token trained on", SPECIAL_TARGET_STYLE),
        ]
    else:
        parts = [(f"{OPEN}trained on{CLOSE}", "")]
    legend = Text("   ").join(Text(words, style) for words, style in parts)
    if has_markers:
        legend.append("   ").append("→</s>", MARKER_STYLE).append(" is the label here; the input has another token")
    return legend
