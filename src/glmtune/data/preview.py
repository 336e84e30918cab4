"""A row as the model sees it: every token, which of them are learnt, and what the limits took away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from glmtune.data.check import escaped
from glmtune.data.check_rows import describe_cut
from glmtune.data.conversation import Conversation, Fault
from glmtune.data.encoding import Counts, EncodedRow, EncodingRules, encode_conversations
from glmtune.data.sources import Source
from glmtune.errors import DataError
from glmtune.families import IGNORE, Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEARNT, SEEN = "green", "dim"
SPECIAL, SPECIAL_LEARNT, MARKER = "bold magenta", "bold white on green", "bold yellow"
OPEN, CLOSE = "⟦", "⟧"
"""Where there are no colours, what is learnt stands between these."""
# Bytes of one character may be spread over so many tokens.
_LONGEST_CHARACTER = 4
# U+FFFD as SentencePiece and byte-level vocabularies spell its three bytes.
_LOST_CHARACTER = ("<0xEF><0xBF><0xBD>", "ï¿½")


@dataclass(frozen=True)
class Token:
    """One token. A character that is spread over several shows with the last of them; the others have no text."""

    id: int
    text: str | None
    learnt: bool
    special: bool
    label_only: str | None = None
    """The token that the labels want here, where the input goes on with another one."""


@dataclass(frozen=True)
class PreviewRow:
    """A row that the model sees."""

    tokens: list[Token]

    @property
    def targets(self) -> int:
        """How many tokens are learnt."""
        return sum(token.learnt or token.label_only is not None for token in self.tokens)


@dataclass(frozen=True)
class Preview:
    """A row of a file with all that the model sees of it."""

    format: str
    where: str
    family: str
    rows: list[PreviewRow]
    cut: str
    """What the length limits took away; empty if nothing."""
    notes: list[str] = field(default_factory=list)
    """What the user should know of the file."""

    def heading(self) -> list[str]:
        """Lines that stand above the rows."""
        tokens = sum(len(row.tokens) for row in self.rows)
        targets = sum(row.targets for row in self.rows)
        rows = f", {len(self.rows)} rows" if len(self.rows) != 1 else ""
        return [
            f"{self.where}   {self.format}, as {self.family} sees it",
            f"{tokens:,} tokens, {targets:,} of them learnt{rows}",
            f"over the length limits: {self.cut}" if self.cut else "within the length limits, nothing is cut",
            *self.notes,
        ]


def find_row(sources: Iterable[Source], number: int, name: str) -> tuple[Source, Conversation]:
    """Row `number`, counted from 1 over all sources; broken lines count too, as they do in `data check`.

    Raises:
        DataError: there is no such row, or it cannot be used.
    """
    count = 0
    for source in sources:
        for row in source.scan():
            count += 1
            if count < number:
                continue
            if isinstance(row, Fault):
                raise row.error()
            return source, row
    rows = f"{count:,} row{'' if count == 1 else 's'}"
    raise DataError(f"{name}: there is no row {number}; it has {rows}.", f"Give --row 1 to {count}.")


def preview(
    source: Source, conversation: Conversation, family: Family, tokenizer: PreTrainedTokenizerBase, rules: EncodingRules
) -> Preview:
    """Encode a conversation as training does and spell it out.

    Raises:
        DataError: it cannot be encoded.
    """
    counts = Counts()
    encoded = encode_conversations([conversation], family, tokenizer, rules, counts)
    rows = [PreviewRow(spell(row, tokenizer)) for row in encoded]
    return Preview(source.format, conversation.where, family.title, rows, describe_cut(counts), source.notes)


def spell(row: EncodedRow, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """The tokens of a row with their texts."""
    ids = [int(token) for token in row.input_ids]
    shown = token_texts(ids, tokenizer)
    specials = set(tokenizer.all_special_ids)
    tokens = []
    for token, label, text in zip(ids, map(int, row.labels), shown, strict=True):
        other = None if label in (IGNORE, token) else _piece(label, tokenizer)
        tokens.append(Token(token, text, label == token, token in specials, other))
    return tokens


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """What each token adds to the text; None for one whose character is finished by a later token."""
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]  # alone, a token's leading space would be stripped
    before = len(tokenizer.decode(anchor))
    specials = set(tokenizer.all_special_ids)
    found: list[str | None] = []
    open_ids: list[int] = []
    for i, token in enumerate(ids):
        if token in specials:
            found.append(_piece(token, tokenizer))
            continue
        open_ids.append(token)
        text = str(tokenizer.decode([*anchor, *open_ids]))[before:]
        last = i + 1 == len(ids) or ids[i + 1] in specials
        unfinished = text.endswith("\ufffd") and not last and len(open_ids) < _LONGEST_CHARACTER
        if unfinished and "".join(_piece(part, tokenizer) for part in open_ids).endswith(_LOST_CHARACTER):
            unfinished = False  # the text itself holds U+FFFD
        found.append(None if unfinished else text)
        if not unfinished:
            open_ids = []
    return found


def print_preview(shown: Preview, console: Console, ids: bool = False) -> None:
    """The heading, then each row as running text; with `ids` also a line per token."""
    colours = console.is_terminal and not console.no_color and console.color_system is not None
    console.print("\n".join(shown.heading()), highlight=False, markup=False)
    console.print(_legend(colours, any(token.label_only for row in shown.rows for token in row.tokens)))
    for number, row in enumerate(shown.rows, start=1):
        if len(shown.rows) > 1:
            sizes = f"{len(row.tokens):,} tokens, {row.targets:,} learnt"
            console.print(f"\nrow {number} of {len(shown.rows)}: {sizes}", highlight=False, style="bold")
        console.print()
        console.print(running_text(row, colours), soft_wrap=True)
        if ids:
            console.print()
            for line in id_lines(row, colours):
                console.print(line, soft_wrap=True)


def running_text(row: PreviewRow, colours: bool) -> Text:
    """The row's text: in colours, or with `OPEN` and `CLOSE` around what is learnt."""
    text, inside = Text(), False
    for token in row.tokens:
        if token.label_only is not None:
            text.append(f"→{token.label_only}", MARKER)
        if token.text is None:
            continue
        if not colours and inside != token.learnt:
            text.append(OPEN if token.learnt else CLOSE)
            inside = token.learnt
        text.append(spelt(token), style(token))
    if inside:
        text.append(CLOSE)
    return text


def id_lines(row: PreviewRow, colours: bool) -> Iterator[Text]:
    """Position, id, whether it is learnt, and the text of each token."""
    yield Text(f"{'position':>8} {'id':>7}  learnt  token", "bold")
    for position, token in enumerate(row.tokens):
        word = "yes" if token.learnt else f"→{token.label_only}" if token.label_only else ""
        spelling = "⋯" if token.text is None else spelt(token).replace("\n", "")
        line = Text(f"{position:>8} {token.id:>7}  {word:<6}  ")
        yield line.append(spelling.replace(" ", "␣"), style(token) if colours else "")


def spelt(token: Token) -> str:
    """A token's text as it is shown: line breaks as `↵` and a real one, tabs as `⇥`, control characters escaped."""
    parts = (escaped(part).replace("\\t", "⇥") for part in (token.text or "").split("\n"))
    return "↵\n".join(parts)


def style(token: Token) -> str:
    """The colour of a token."""
    if token.special:
        return SPECIAL_LEARNT if token.learnt else SPECIAL
    return LEARNT if token.learnt else SEEN


def _piece(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.convert_ids_to_tokens(token))


def _legend(colours: bool, marker: bool) -> Text:
    if colours:
        parts = [("learnt", LEARNT), ("only read", SEEN), ("special", SPECIAL), ("learnt special", SPECIAL_LEARNT)]
    else:
        parts = [(f"{OPEN}learnt{CLOSE}", "")]
    legend = Text("   ").join(Text(words, style) for words, style in parts)
    if marker:
        legend.append("   ").append("→</s>", MARKER).append(" learnt as what should follow, though the text goes on")
    return legend
