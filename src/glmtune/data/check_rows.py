"""Check rows in one pass: each by itself, against duplicates and evaluation data, and against a model's limits."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from glmtune.data.check_kinds import (
    ERROR,
    WARNING,
    Finding,
    Problem,
    check_conversation,
    find_last_answer,
    list_texts,
    make_excerpt,
    make_finding,
    make_invalid_row_finding,
)
from glmtune.data.conversation import Conversation, InvalidRow
from glmtune.data.encoding import EncodingCounts, EncodingRules, encode_conversations, encode_examples
from glmtune.data.histogram import LengthCounts
from glmtune.data.pair_checks import PairLengths, check_pair, describe_pair_cut, read_answers
from glmtune.data.sources import DataSource
from glmtune.errors import DataError
from glmtune.families import IGNORE_INDEX, EncodedSequence, Family
from glmtune.utils.console import count_noun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FINDINGS_SHOWN = 5
"""Number of findings of each kind in the terminal."""
_40_BITS = (1 << 40) - 1


@dataclass
class CheckReport:
    """The result of a check. `findings` holds all findings, or the first `FINDINGS_SHOWN` of each kind."""

    unit: str
    keep_all: bool
    rows: int = 0
    conversations: int = 0
    texts: int = 0
    unusable: int = 0
    with_tools: int = 0
    messages: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    """Trained answers."""
    training_rows: int = 0
    """Rows of the model: a conversation may become several."""
    targets: int = 0
    eval_rows: int | None = None
    total: LengthCounts = field(default_factory=LengthCounts)
    prompts: LengthCounts = field(default_factory=LengthCounts)
    last_answers: LengthCounts = field(default_factory=LengthCounts)
    """Of a pair, the better answer."""
    worse_answers: LengthCounts = field(default_factory=LengthCounts)
    pair_lengths: PairLengths = field(default_factory=PairLengths)
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Numbers of findings by severity and kind."""
    findings: list[Finding] = field(default_factory=list)

    def add_finding(self, finding: Finding) -> None:
        key = (finding.severity, finding.kind)
        self.kinds[key] += 1
        if self.keep_all or self.kinds[key] <= FINDINGS_SHOWN:
            self.findings.append(finding)

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(count for (severity, _), count in self.kinds.items() if severity == ERROR)

    @property
    def warnings(self) -> int:
        """Number of warnings."""
        return sum(count for (severity, _), count in self.kinds.items() if severity == WARNING)


@dataclass(frozen=True)
class RowLength:
    """Length of a row before truncation: its prompt and its last answer, and the number of target tokens."""

    prompt: int
    answer: int
    targets: int = 0


@dataclass
class ModelChecker:
    """Checks that need a model's family and tokenizer."""

    family: Family
    tokenizer: PreTrainedTokenizerBase
    rules: EncodingRules

    def measure_rows(self, conversation: Conversation) -> tuple[list[RowLength], list[Problem]]:
        """Lengths in tokens of the rows of a conversation, and problems with the generation or the limits."""
        if conversation.text is not None:
            return [_measure_row(self.family.encode_text(conversation.text, self.tokenizer))], []
        if conversation.rejected is not None:
            return self._measure_pair(conversation, conversation.rejected)
        try:
            examples = encode_examples(conversation, self.family, self.tokenizer, self.rules)
            lengths = [_measure_row(example.row, example.tokens_before) for example in examples]
        except DataError as error:
            problem = error.message.rstrip(".")
            return [], [Problem("refused-by-model", problem, _make_row_excerpt(conversation), hint=error.hint)]
        over = [length for length in lengths if not self.fits(length)]
        if not over:
            return lengths, []

        excerpt = _make_row_excerpt(conversation)
        counts = EncodingCounts()
        try:
            list(encode_conversations([conversation], self.family, self.tokenizer, self.rules, counts))
        except DataError as error:
            problem = error.message.removeprefix(f"{conversation.where}: ").rstrip(".")
            return lengths, [Problem("over-limit", problem, excerpt, ERROR, error.hint)]
        longest = max(over, key=lambda row: row.prompt + row.answer)
        sizes = f"{longest.prompt} tokens of prompt and {longest.answer} of answer"
        return lengths, [Problem("over-limit", f"{sizes}: {describe_truncation(counts)}", excerpt)]

    def _measure_pair(self, better: Conversation, worse: Conversation) -> tuple[list[RowLength], list[Problem]]:
        """Lengths of the two rows of a pair, and what the limits do to them."""
        excerpt, counts = _make_row_excerpt(better), EncodingCounts()
        lengths: list[RowLength] = []
        try:
            for side in (better, worse):
                rules = replace(self.rules, train_on="last") if self.family.one_answer_per_row else self.rules
                for example in encode_examples(side, self.family, self.tokenizer, rules):
                    lengths.append(_measure_row(example.row, example.tokens_before))
            rows = list(encode_conversations([better], self.family, self.tokenizer, self.rules, counts))
        except DataError as error:
            problem = error.message.removeprefix(f"{better.where}: ").rstrip(".")
            kind = "over-limit" if len(lengths) == 2 else "refused-by-model"
            return lengths, [Problem(kind, problem, excerpt, ERROR, error.hint)]
        if len(lengths) != 2 or all(map(self.fits, lengths)):
            return lengths, []
        sizes = f"{lengths[0].prompt} tokens of prompt, {lengths[0].answer} of the better answer and "
        sizes += f"{lengths[1].answer} of the worse one"
        if counts.same_pairs:
            return lengths, [
                Problem("same-after-cut", f"{sizes}: what is left of the two answers is the same", excerpt)
            ]
        return lengths, [Problem("over-limit", f"{sizes}: {describe_pair_cut(lengths[0], lengths[1], rows)}", excerpt)]

    def fits(self, length: RowLength) -> bool:
        """Whether a row is within the limits."""
        if self.rules.max_length is not None:
            return length.prompt + length.answer <= self.rules.max_length
        return length.prompt <= self.rules.max_source_length and length.answer <= self.rules.max_target_length


def describe_truncation(counts: EncodingCounts) -> str:
    """What the length limits removed from the rows of a conversation; empty if nothing."""
    parts = [
        (counts.turns_dropped, "its oldest turns are dropped"),
        (counts.prompts_cut - counts.question_ends_cut, "the start of its question is cut"),
        (counts.question_ends_cut, "the end of its question is cut"),
        (counts.answers_cut, "the end of its answer is cut"),
        (counts.rows_dropped, "it is dropped"),
    ]
    text = ", ".join(part for count, part in parts if count)
    return f"{text} ({count_noun(counts.tokens_cut, 'token')})" if text else ""


def scan_sources(sources: Iterable[DataSource]) -> Iterator[Conversation | InvalidRow]:
    """Read the rows of sources. An error that ends the reading of one becomes an `InvalidRow` of kind `unreadable`."""
    for source in sources:
        try:
            yield from source.scan_rows()
        except DataError as error:
            where, _, message = error.message.partition(": ")
            yield InvalidRow(where, "unreadable", message.rstrip("."), error.hint)


def find_row_problems(row: Conversation | InvalidRow, model: ModelChecker | None = None) -> list[Problem]:
    """All problems of a row by itself."""
    if isinstance(row, InvalidRow):
        finding = make_invalid_row_finding(row, 1)
        return [Problem(finding.kind, finding.message, "", finding.severity, finding.hint)]
    problems = check_conversation(row)
    if row.rejected is not None:
        problems += check_pair(row)
    if model is not None and all(problem.kind != "no-target" for problem in problems):
        problems += model.measure_rows(row)[1]
    return problems


class RowChecker:
    """Checks rows one by one. In memory it keeps the report and, per row, two hashes with its place."""

    def __init__(self, report: CheckReport, model: ModelChecker | None = None):
        self.report = report
        self.model = model
        self._locations = _LocationIndex()
        self._row_hashes: dict[bytes, int] = {}
        self._exchanged_pairs: dict[bytes, int] = {}
        self._eval_pairs: dict[bytes, int] = {}
        self._eval_prompts: dict[bytes, int] = {}

    def add_evaluation_rows(self, rows: Iterable[Conversation | InvalidRow]) -> None:
        """Store hashes of the evaluation rows; invalid rows are skipped."""
        self.report.eval_rows = 0
        for row in rows:
            if isinstance(row, Conversation):
                self.report.eval_rows += 1
                location = self._locations.pack_location(row.where, self.report.eval_rows)
                prompt, pair = _hash_prompt_and_pair(row)
                self._eval_pairs.setdefault(pair, location)
                if prompt is not None:
                    self._eval_prompts.setdefault(prompt, location)

    def check_row(self, row: Conversation | InvalidRow) -> list[Finding]:
        """Check the next row, and add it to the report."""
        self.report.rows += 1
        number = self.report.rows
        if isinstance(row, InvalidRow):
            self.report.unusable += 1
            findings = [make_invalid_row_finding(row, number)]
        else:
            self._count_row(row)
            problems = [*check_conversation(row), *self._find_overlap(row)]
            if row.rejected is not None:
                problems += [*check_pair(row), *self._find_contradiction(row, row.rejected)]
            problems += self._measure_row(row, has_targets=all(problem.kind != "no-target" for problem in problems))
            findings = [make_finding(problem, row.where, number) for problem in problems]
        for finding in findings:
            self.report.add_finding(finding)
        return findings

    def find_overlap(self, row: Conversation) -> list[Problem]:
        """Compare the next row with those before it, and with the evaluation data, without further checks."""
        self.report.rows += 1
        problems = list(self._find_overlap(row))
        if row.rejected is not None:
            problems += self._find_contradiction(row, row.rejected)
        return problems

    def make_successor(self) -> RowChecker:
        """A checker of other rows with the same evaluation data."""
        successor = RowChecker(CheckReport(self.report.unit, keep_all=False), self.model)
        successor._eval_pairs, successor._eval_prompts = self._eval_pairs, self._eval_prompts
        successor._locations = self._locations
        return successor

    def add_findings_of_all_rows(self, sources: Iterable[DataSource]) -> None:
        """Add findings that no single row shows: unread columns, and lengths of the answers of pairs. Call it after the
        rows."""
        sources = list(sources)
        self.add_unread_keys(sources)
        bias = self.report.pair_lengths.find_bias()
        if bias is not None:
            self.report.add_finding(make_finding(bias, ", ".join(source.name for source in sources), 1))

    def add_unread_keys(self, sources: Iterable[DataSource]) -> None:
        """Add a finding for each source with columns or keys of messages that were not read. Call it after the rows."""
        rows_before = 0
        for source in sources:
            unread = source.unread_keys
            if unread.where:
                row = rows_before + unread.row
                self.report.add_finding(Finding(WARNING, "unread-key", unread.where, row, unread.describe(), ""))
            rows_before += source.row_count

    def _count_row(self, row: Conversation) -> None:
        report = self.report
        report.texts += row.text is not None
        report.conversations += row.text is None
        report.with_tools += bool(row.tools)
        report.messages.update(message["role"] for message in row.messages)
        report.answers += sum(m["role"] in ("assistant", "tool") and m.get("loss", True) for m in row.messages)
        if row.rejected is not None:
            report.pair_lengths.add_pair(*map(len, read_answers(row)))

    def _find_overlap(self, row: Conversation) -> Iterator[Problem]:
        """Duplicates, and overlap with the evaluation data."""
        excerpt = _make_row_excerpt(row)
        sides = [row] if row.rejected is None else [row, row.rejected]
        key = _hash_value([[_get_content(side), list(map(_is_trained, side.messages))] for side in sides])
        if key not in self._row_hashes:
            self._row_hashes[key] = self._locations.pack_location(row.where, self.report.rows)
        else:
            where = self._locations.describe_location(self._row_hashes[key], row.where)
            yield Problem("duplicate", f"the same as {where}", excerpt)
        if not self._eval_pairs:
            return
        prompt, pair = _hash_prompt_and_pair(row)
        if pair in self._eval_pairs:
            where = self._locations.describe_location(self._eval_pairs[pair])
            yield Problem("eval-overlap", f"the evaluation data has the same question and answer in {where}", excerpt)
        elif prompt in self._eval_prompts:
            where = self._locations.describe_location(self._eval_prompts[prompt])
            yield Problem("eval-same-prompt", f"the evaluation data has the same question in {where}", excerpt)

    def _find_contradiction(self, better: Conversation, worse: Conversation) -> Iterator[Problem]:
        """An earlier pair with the same two answers the other way round."""
        sides = [_get_content(better), _get_content(worse)]
        exchanged = self._exchanged_pairs.get(_hash_value(sides))
        if exchanged is not None:
            where = self._locations.describe_location(exchanged, better.where)
            hint = "Decide which answer is the better one; --fix keeps the first of the two pairs."
            problem = f"{where} prefers the other answer to the same question"
            yield Problem("contradicting-pair", problem, _make_row_excerpt(better), hint=hint)
        location = self._locations.pack_location(better.where, self.report.rows)
        self._exchanged_pairs.setdefault(_hash_value(sides[::-1]), location)

    def _measure_row(self, row: Conversation, has_targets: bool) -> list[Problem]:
        lengths: list[RowLength] = []
        problems: list[Problem] = []
        if self.model is None:
            lengths = [count_characters(side) for side in (row, row.rejected) if side is not None]
        elif has_targets:
            lengths, problems = self.model.measure_rows(row)
        for number, length in enumerate(lengths):
            self.report.training_rows += 1
            self.report.targets += length.targets
            self.report.total.add_length(length.prompt + length.answer)
            self.report.prompts.add_length(length.prompt)
            is_worse = row.rejected is not None and number == 1
            (self.report.worse_answers if is_worse else self.report.last_answers).add_length(length.answer)
        return problems


def count_characters(conversation: Conversation) -> RowLength:
    """Number of characters of a row before its last answer, and in it."""
    if conversation.text is not None:
        return RowLength(0, len(conversation.text))
    answer = f"message {find_last_answer(conversation) + 1} "
    sizes = [(name.startswith(answer), len(text)) for name, text in list_texts(conversation)]
    return RowLength(sum(n for is_answer, n in sizes if not is_answer), sum(n for is_answer, n in sizes if is_answer))


class _LocationIndex:
    """Packs `file:line` and number of a row into one integer, to save memory."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}

    def pack_location(self, where: str, row: int) -> int:
        match = re.fullmatch(r"(.*?)(\d*)", where, re.DOTALL)
        assert match is not None
        name, digits = match.groups()
        index = self._numbers.setdefault(name, len(self._names))
        if index == len(self._names):
            self._names.append(name)
        line = int(digits) + 1 if digits else 0
        return index << 80 | line << 40 | row

    def describe_location(self, location: int, current: str = "") -> str:
        """The `file:line`, with the number of the row if it equals `current` (a file of one line)."""
        index, line, row = location >> 80, location >> 40 & _40_BITS, location & _40_BITS
        where = self._names[index] + (str(line - 1) if line else "")
        return f"row {row} ({where})" if where == current else where


def _is_trained(message: dict[str, Any]) -> bool:
    """Whether a message is trained on: its flag, and without one whether it is the assistant's."""
    return bool(message.get("loss", message["role"] in ("assistant", "tool")))


def _get_content(row: Conversation) -> list[Any]:
    """The parts of a row that duplicates share: messages without loss flags, tools and text."""
    messages = [{key: value for key, value in m.items() if key != "loss"} for m in row.messages]
    return [messages, row.tools, row.text]


def _hash_prompt_and_pair(row: Conversation) -> tuple[bytes | None, bytes]:
    """Hashes of the messages before the last answer (None for plain text), and of the same with the answer."""
    if row.text is not None:
        return None, _hash_value([row.text])
    messages, _, _ = _get_content(row)
    last = find_last_answer(row)
    return _hash_value(messages[:last]), _hash_value(messages[: last + 1])


def _hash_value(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _make_row_excerpt(row: Conversation) -> str:
    return make_excerpt(next((text for name, text in list_texts(row) if "(system)" not in name), ""))


def _measure_row(row: EncodedSequence, tokens_before: int = 0) -> RowLength:
    targets = sum(label != IGNORE_INDEX for label in row.labels)
    return RowLength(tokens_before + row.prompt_length, len(row.input_ids) - row.prompt_length, targets)
