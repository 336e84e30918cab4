"""One pass over the rows: what each shows by itself, beside its doubles, and under a model's limits."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glmtune.data.check import (
    ERROR,
    WARNING,
    Finding,
    Problem,
    check_conversation,
    excerpt,
    fault_finding,
    finding,
    last_answer,
    texts,
)
from glmtune.data.conversation import Conversation, Fault
from glmtune.data.encoding import Counts, EncodingRules, encode_conversations, examples, with_prefix
from glmtune.data.histogram import Lengths
from glmtune.data.sources import Source
from glmtune.errors import DataError
from glmtune.families import IGNORE, Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 5
"""Findings of a kind that the terminal lists."""
_40_BITS = (1 << 40) - 1


@dataclass
class Report:
    """What a check found. `findings` holds all of them, or the first `SHOWN` of each kind."""

    unit: str
    keep_all: bool
    rows: int = 0
    conversations: int = 0
    texts: int = 0
    unusable: int = 0
    with_tools: int = 0
    messages: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    """Answers that are learnt."""
    training_rows: int = 0
    """What the model sees: a conversation may be several rows."""
    targets: int = 0
    eval_rows: int | None = None
    total: Lengths = field(default_factory=Lengths)
    prompts: Lengths = field(default_factory=Lengths)
    last_answers: Lengths = field(default_factory=Lengths)
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Findings by severity and kind."""
    findings: list[Finding] = field(default_factory=list)

    def add(self, item: Finding) -> None:
        key = (item.severity, item.kind)
        self.kinds[key] += 1
        if self.keep_all or self.kinds[key] <= SHOWN:
            self.findings.append(item)

    def count(self, severity: str) -> int:
        """How many findings are errors, or warnings."""
        return sum(count for (found, _), count in self.kinds.items() if found == severity)

    @property
    def errors(self) -> int:
        return self.count(ERROR)

    @property
    def warnings(self) -> int:
        return self.count(WARNING)


@dataclass(frozen=True)
class RowLength:
    """Length of a row the model sees, before the limits: `prompt` and `answer`, the last one; `targets` are learnt."""

    prompt: int
    answer: int
    targets: int = 0


@dataclass
class ModelCheck:
    """What a model makes of a conversation."""

    family: Family
    tokenizer: PreTrainedTokenizerBase
    rules: EncodingRules

    def look(self, conversation: Conversation) -> tuple[list[RowLength], list[Problem]]:
        """Lengths in tokens of the conversation's rows, and what the generation or the limits say against it."""
        if conversation.text is not None:
            row = self.family.encode_text(conversation.text, self.tokenizer)
            return [_length(row.input_ids, row.labels, row.prompt_length)], []
        try:
            found = examples(conversation.messages, self.family, self.rules)
            shown = [with_prefix(messages, self.rules.prefix) for messages in found]
            rows = [self.family.encode(messages, self.tokenizer, conversation.tools) for messages in shown]
        except DataError as error:
            said = error.message.rstrip(".")
            return [], [Problem("refused-by-model", said, _first_words(conversation), hint=error.hint)]
        lengths = [_length(row.input_ids, row.labels, row.prompt_length) for row in rows]
        return lengths, [] if all(map(self.fits, lengths)) else [self._over(conversation, lengths)]

    def fits(self, length: RowLength) -> bool:
        """Whether a row is within the limits."""
        if self.rules.max_length is not None:
            return length.prompt + length.answer <= self.rules.max_length
        return length.prompt <= self.rules.max_source_length and length.answer <= self.rules.max_target_length

    def _over(self, conversation: Conversation, lengths: list[RowLength]) -> Problem:
        longest = max((length for length in lengths if not self.fits(length)), key=lambda row: row.prompt + row.answer)
        sizes = f"{longest.prompt} tokens of prompt and {longest.answer} of answer"
        counts = Counts()
        try:
            list(encode_conversations([conversation], self.family, self.tokenizer, self.rules, counts))
        except DataError as error:
            said = error.message.removeprefix(f"{conversation.where}: ").rstrip(".")
            return Problem("over-limit", said, _first_words(conversation), ERROR, error.hint)
        return Problem("over-limit", f"{sizes}: {describe_cut(counts)}", _first_words(conversation))


def describe_cut(counts: Counts) -> str:
    """What the length limits took from the rows of a conversation; empty if nothing."""
    lost = [
        (counts.turns_dropped, "its oldest turns are left out"),
        (counts.prompts_cut, "the start of its question is cut"),
        (counts.answers_cut, "the end of its answer is cut"),
        (counts.rows_dropped, "it is left out"),
    ]
    said = ", ".join(words for count, words in lost if count)
    return f"{said} ({counts.tokens_cut} tokens)" if said else ""


def read(sources: Iterable[Source]) -> Iterator[Conversation | Fault]:
    """The rows of sources; an error that ends the reading of one becomes its last fault.

    Such a fault's kind is `unreadable`.
    """
    for source in sources:
        try:
            yield from source.scan()
        except DataError as error:
            where, _, message = error.message.partition(": ")
            yield Fault(where, "unreadable", message.rstrip("."), error.hint)


class Checker:
    """Takes rows one by one. Besides the report it holds two hashes for every row, and nothing else of it."""

    def __init__(self, report: Report, model: ModelCheck | None = None):
        self.report = report
        self.model = model
        self._places = _Places()
        self._seen: dict[bytes, int] = {}
        self._eval_pairs: dict[bytes, int] = {}
        self._eval_prompts: dict[bytes, int] = {}

    def add_evaluation(self, rows: Iterable[Conversation | Fault]) -> None:
        """Remember the evaluation rows; its unusable rows are passed over."""
        self.report.eval_rows = 0
        for row in rows:
            if isinstance(row, Conversation):
                self.report.eval_rows += 1
                place = self._places.pack(row.where, self.report.eval_rows)
                prompt, pair = _overlap_keys(row)
                self._eval_pairs.setdefault(pair, place)
                if prompt is not None:
                    self._eval_prompts.setdefault(prompt, place)

    def check(self, row: Conversation | Fault) -> list[Finding]:
        """Everything that is to be said of the next row; the report counts it too."""
        self.report.rows += 1
        number = self.report.rows
        if isinstance(row, Fault):
            self.report.unusable += 1
            found = [fault_finding(row, number)]
        else:
            self._count(row)
            problems = [*check_conversation(row), *self._compare(row)]
            problems += self._measure(row, nothing_learnt=any(problem.kind == "no-target" for problem in problems))
            found = [finding(problem, row.where, number) for problem in problems]
        for item in found:
            self.report.add(item)
        return found

    def _count(self, row: Conversation) -> None:
        report = self.report
        report.texts += row.text is not None
        report.conversations += row.text is None
        report.with_tools += bool(row.tools)
        report.messages.update(message["role"] for message in row.messages)
        report.answers += sum(m["role"] in ("assistant", "tool") and m.get("loss", True) for m in row.messages)

    def _compare(self, row: Conversation) -> Iterator[Problem]:
        shown = _first_words(row)
        key = _hash([_plain(row), [message.get("loss", True) for message in row.messages]])
        if key not in self._seen:
            self._seen[key] = self._places.pack(row.where, self.report.rows)
        else:
            yield Problem("duplicate", f"the same as {self._places.unpack(self._seen[key], row.where)}", shown)
        if not self._eval_pairs:
            return
        prompt, pair = _overlap_keys(row)
        if pair in self._eval_pairs:
            said = (
                f"the evaluation data has the same question and answer in {self._places.unpack(self._eval_pairs[pair])}"
            )
            yield Problem("eval-overlap", said, shown)
        elif prompt in self._eval_prompts:
            said = f"the evaluation data asks the same in {self._places.unpack(self._eval_prompts[prompt])}"
            yield Problem("eval-same-prompt", said, shown)

    def _measure(self, row: Conversation, nothing_learnt: bool) -> list[Problem]:
        problems: list[Problem] = []
        if self.model is None:
            lengths = [characters(row)]
        else:
            lengths, problems = ([], []) if nothing_learnt else self.model.look(row)
        for length in lengths:
            self.report.training_rows += 1
            self.report.targets += length.targets
            self.report.total.add(length.prompt + length.answer)
            self.report.prompts.add(length.prompt)
            self.report.last_answers.add(length.answer)
        return problems


def characters(conversation: Conversation) -> RowLength:
    """Characters of a row before its last answer, and in it."""
    if conversation.text is not None:
        return RowLength(0, len(conversation.text))
    answer = f"message {last_answer(conversation) + 1} "
    sizes = [(name.startswith(answer), len(text)) for name, text in texts(conversation)]
    return RowLength(sum(n for is_answer, n in sizes if not is_answer), sum(n for is_answer, n in sizes if is_answer))


class _Places:
    """A row's `file:line` and number packed into one integer: a row costs no text."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}

    def pack(self, where: str, row: int) -> int:
        match = re.fullmatch(r"(.*?)(\d*)", where, re.DOTALL)
        assert match is not None
        name, digits = match.groups()
        index = self._numbers.setdefault(name, len(self._names))
        if index == len(self._names):
            self._names.append(name)
        line = int(digits) + 1 if digits else 0
        return index << 80 | line << 40 | row

    def unpack(self, place: int, here: str = "") -> str:
        """The `file:line`; with the row's number too where that is no different from `here` (a file of one line)."""
        index, line, row = place >> 80, place >> 40 & _40_BITS, place & _40_BITS
        where = self._names[index] + (str(line - 1) if line else "")
        return f"row {row} ({where})" if where == here else where


def _plain(row: Conversation) -> list[Any]:
    """What makes two rows the same: their messages without loss flags, their tools, their text."""
    messages = [{key: value for key, value in m.items() if key != "loss"} for m in row.messages]
    return [messages, row.tools, row.text]


def _overlap_keys(row: Conversation) -> tuple[bytes | None, bytes]:
    """Hashes of what stands before the last answer (None for plain text), and of that with the answer."""
    if row.text is not None:
        return None, _hash([row.text])
    messages, _, _ = _plain(row)
    last = last_answer(row)
    return _hash(messages[:last]), _hash(messages[: last + 1])


def _hash(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _first_words(row: Conversation) -> str:
    return excerpt(next((text for name, text in texts(row) if "(system)" not in name), ""))


def _length(input_ids: list[int], labels: list[int], prompt: int) -> RowLength:
    return RowLength(prompt, len(input_ids) - prompt, sum(label != IGNORE for label in labels))
