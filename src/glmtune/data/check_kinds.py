"""Checks of single rows: one function per kind of problem, over a `Conversation`.

An error stops training, or trains on something wrong; a warning should be looked at. Checks that need more than the row
itself (duplicates, evaluation data, length limits) are in `check_rows`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from glmtune.data.conversation import SKIPPED_KINDS, Conversation, InvalidRow

ERROR, WARNING = "error", "warning"
MAX_EXCERPT = 60
"""Maximum number of characters of a row in a finding."""

# Kinds of problems with their severity and description. The kinds of invalid rows (`InvalidRow.kind`) are kinds too,
# always errors.
KINDS: dict[str, tuple[str, str]] = {
    "unreadable": (ERROR, "the rest of the file cannot be read"),
    "empty-answer": (ERROR, "a trained answer is empty"),
    "no-target": (ERROR, "nothing in the row is trained on"),
    "call-without-result": (ERROR, "a tool call without a result after it"),
    "result-without-call": (ERROR, "the result of a tool without a call before it"),
    "refused-by-model": (ERROR, "this generation cannot be trained on the row"),
    "eval-overlap": (ERROR, "the evaluation data has the same question and answer"),
    "eval-same-prompt": (WARNING, "the evaluation data has the same question with another answer"),
    "duplicate": (WARNING, "a duplicate of an earlier row"),
    "answer-is-question": (WARNING, "an answer repeats its question"),
    "over-limit": (WARNING, "longer than the length limits"),
    "same-role-twice": (WARNING, "two messages of the same role in a row (not supported by some generations)"),
    "assistant-first": (
        WARNING,
        "an assistant message before the first user message (not supported by some generations)",
    ),
    "no-final-answer": (WARNING, "messages after the last answer are not used"),
    "replacement-character": (WARNING, "U+FFFD: a character was lost when the file was made"),
    "mojibake": (WARNING, "text decoded with the wrong encoding"),
    "special-token": (WARNING, "a special token typed in the text; it is trained on as text"),
}

# `sop` and `eop` without brackets are special tokens of ChatGLM2 and ChatGLM3 too, but also ordinary letters.
_SPECIAL_TOKEN = re.compile(r"<\|[A-Za-z]\w*\|>|\[[gs]?MASK\]|</s>|<[se]op>")


@dataclass(frozen=True)
class Problem:
    """A problem of a row. `severity` is that of its kind unless given."""

    kind: str
    message: str
    excerpt: str = ""
    severity: str = ""
    hint: str | None = None


@dataclass(frozen=True)
class Finding:
    """A problem with the place of its row; `row` counts from 1 over all rows."""

    severity: str
    kind: str
    where: str
    row: int
    message: str
    excerpt: str
    hint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON. `line` is None where rows have no lines (parquet, hub data)."""
        file, _, line = self.where.rpartition(":")
        return {
            "severity": self.severity,
            "kind": self.kind,
            "where": self.where,
            "file": file or self.where,
            "line": int(line) if line.isdigit() else None,
            "row": self.row,
            "message": self.message,
            "excerpt": self.excerpt,
            "hint": self.hint,
        }


def describe_kind(kind: str) -> str:
    """The description of a kind of findings."""
    if kind in KINDS:
        return KINDS[kind][1]
    if kind in SKIPPED_KINDS:
        return "the line cannot be read; training skips it"
    return "the row cannot be used; training stops there"


def make_finding(problem: Problem, where: str, row: int) -> Finding:
    """Make the finding for a problem of a row."""
    severity = problem.severity or KINDS[problem.kind][0]
    return Finding(severity, problem.kind, where, row, problem.message, problem.excerpt, problem.hint)


def make_invalid_row_finding(invalid: InvalidRow, row: int) -> Finding:
    """Make the finding for an invalid row."""
    return Finding(ERROR, invalid.kind, invalid.where, row, invalid.message, "", invalid.hint)


def check_conversation(conversation: Conversation) -> list[Problem]:
    """Find all problems of a single row."""
    return [problem for check in CHECKS for problem in check(conversation)]


def find_empty_answers(conversation: Conversation) -> Iterator[Problem]:
    """Trained answers that are empty or white space."""
    for number, message in _number_answers(conversation):
        if message.get("loss", True) and not message["content"].strip():
            question = conversation.messages[number - 2] if number > 1 else {}
            excerpt = make_excerpt(question.get("content", ""))
            yield Problem("empty-answer", f"message {number}, an answer, is empty", excerpt)


def find_repeated_questions(conversation: Conversation) -> Iterator[Problem]:
    """Answers that equal the question right before them."""
    for number, message in _number_answers(conversation):
        question = conversation.messages[number - 2] if number > 1 else {"role": ""}
        text = message["content"].strip()
        if text and question["role"] == "user" and question["content"].strip() == text:
            yield Problem("answer-is-question", f"message {number} repeats the question", make_excerpt(text))


def find_missing_targets(conversation: Conversation) -> Iterator[Problem]:
    """Rows with `loss: false` for every answer."""
    answers = [message for message in conversation.messages if message["role"] in ("assistant", "tool")]
    if conversation.text is None and not any(message.get("loss", True) for message in answers):
        excerpt = make_excerpt(next((text for _, text in list_texts(conversation)), ""))
        yield Problem("no-target", "nothing to train on: loss is false for every answer", excerpt)


def find_role_errors(conversation: Conversation) -> Iterator[Problem]:
    """Two user or assistant messages in a row, an assistant message first, no answer at the end."""
    messages = conversation.messages
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        return
    if turns[0]["role"] in ("assistant", "tool"):
        problem = "the first message is the assistant's"
        yield Problem("assistant-first", problem, make_excerpt(_get_message_text(turns[0])))
    for number, (first, second) in enumerate(pairwise(messages), start=2):
        if first["role"] == second["role"] and second["role"] in ("user", "assistant"):
            problem = f"messages {number - 1} and {number} are both the {second['role']}'s"
            yield Problem("same-role-twice", problem, make_excerpt(_get_message_text(second)))
    last = turns[-1]
    if last["role"] in ("user", "observation") or (last["role"] == "tool" and "observation" in last):
        end = "a user message" if last["role"] == "user" else "the result of a tool"
        problem = f"the row ends with {end}, not with an answer"
        yield Problem("no-final-answer", problem, make_excerpt(_get_message_text(last)))


def find_unpaired_calls(conversation: Conversation) -> Iterator[Problem]:
    """Tool calls without a result (allowed at the end of a row), and results without a call."""
    messages = conversation.messages
    for i, message in enumerate(messages):
        following = messages[i + 1]["role"] if i + 1 < len(messages) else "observation"
        call = ""
        if message["role"] == "tool" and "observation" not in message:
            call = message["name"]
        elif message["role"] == "assistant":
            call = message.get("metadata") or ""
        if call and following != "observation":
            problem = f"message {i + 1} calls {call!r}, but no result follows"
            yield Problem("call-without-result", problem, make_excerpt(_get_message_text(message)))
        elif message["role"] == "observation" and not _has_call(messages[:i]):
            problem = f"message {i + 1} is the result of a tool, but there is no call before it"
            yield Problem("result-without-call", problem, make_excerpt(_get_message_text(message)))


def find_replacement_characters(conversation: Conversation) -> Iterator[Problem]:
    """U+FFFD anywhere in the row."""
    for name, text in list_texts(conversation):
        if (position := text.find("\ufffd")) >= 0:
            count = text.count("\ufffd")
            problem = f"{name} has {count} replacement character{'s' if count > 1 else ''} (U+FFFD)"
            yield Problem("replacement-character", problem, make_excerpt(text, position))


def find_wrong_encoding(conversation: Conversation) -> Iterator[Problem]:
    """Text decoded with the wrong encoding, see `find_mojibake`."""
    for name, text in list_texts(conversation):
        if (position := find_mojibake(text)) is not None:
            problem = f"{name} looks like text decoded with the wrong encoding"
            yield Problem("mojibake", problem, make_excerpt(text, position))


def find_special_tokens(conversation: Conversation) -> Iterator[Problem]:
    """Special tokens in brackets, typed in the text, except `</s>` that closes an HTML `<s>`."""
    for name, text in list_texts(conversation):
        for match in _SPECIAL_TOKEN.finditer(text):
            if match.group() == "</s>" and text.find("<s>", 1, match.start()) > 0:
                continue
            yield Problem("special-token", f"{name} contains {match.group()}", make_excerpt(text, match.start()))
            break


Check = Callable[[Conversation], Iterator[Problem]]
CHECKS: tuple[Check, ...] = (
    find_empty_answers,
    find_repeated_questions,
    find_missing_targets,
    find_role_errors,
    find_unpaired_calls,
    find_replacement_characters,
    find_wrong_encoding,
    find_special_tokens,
)


def list_texts(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """All texts of a row with their names for messages."""
    if conversation.text is not None:
        yield "the text", conversation.text
    for number, message in enumerate(conversation.messages, start=1):
        yield f"message {number} ({message['role']})", _get_message_text(message)
    if conversation.tools:
        yield "the list of tools", json.dumps(conversation.tools, ensure_ascii=False)


def make_excerpt(text: str, position: int = 0) -> str:
    """At most `MAX_EXCERPT` characters of a text around a position, on one line and with control characters escaped."""
    start = max(0, min(position - MAX_EXCERPT // 3, len(text) - MAX_EXCERPT))
    excerpt = ("…" if start else "") + escape_controls(text[start : start + MAX_EXCERPT])
    if len(excerpt) > MAX_EXCERPT or start + MAX_EXCERPT < len(text):
        excerpt = excerpt[: MAX_EXCERPT - 1] + "…"
    return excerpt


def escape_controls(text: str) -> str:
    """Escape characters that move the cursor, colour the terminal or change the direction of writing."""
    return "".join(char.encode("unicode_escape").decode() if _is_control(char) else char for char in text)


def _is_control(char: str) -> bool:
    is_direction_mark = char in "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return is_direction_mark or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def find_last_answer(conversation: Conversation) -> int:
    """The index of the last answer; -1 without one."""
    roles = [message["role"] for message in conversation.messages]
    return max((i for i, role in enumerate(roles) if role in ("assistant", "tool")), default=-1)


def _get_message_text(message: dict[str, Any]) -> str:
    if message["role"] != "tool":
        return message["content"]
    parts = [message["name"], json.dumps(message["parameters"], ensure_ascii=False)]
    if "observation" in message:
        result = message["observation"]
        parts.append(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False))
    return "\n".join(parts)


def _number_answers(conversation: Conversation) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((i, message) for i, message in enumerate(conversation.messages, start=1) if message["role"] == "assistant")


def _has_call(messages: list[dict[str, Any]]) -> bool:
    """Whether a result may follow: one message may have several results, and a call may be plain text."""
    for message in reversed(messages):
        if message["role"] != "observation":
            return message["role"] == "assistant" or (message["role"] == "tool" and "observation" not in message)
    return False


# From the characters that Windows-1252 and Latin-1 have for the bytes from 0x80 on, back to these bytes.
_AS_BYTES = str.maketrans(
    {bytes([b]).decode("cp1252"): chr(b) for b in range(0x80, 0xA0) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
)
_SEQUENCE = re.compile("[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_WIDE_RUN = re.compile("(?:[\xe3-\xed][\x80-\xbf]{2}){2,}")
_GB_RUN = re.compile("(?:[\xb0-\xd7][\xa1-\xfe]){4,}")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]{6,}")
_ASIAN = re.compile("[\u3001-\u303f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff5e]+")
_PUNCTUATION = re.compile("[\u2010-\u203a\u20ac\u2122\uff01-\uff5e\U0001f300-\U0001faff]")
_ACCENTED = re.compile("[\u00a1-\u00ff\u0400-\u045f]")


def find_mojibake(text: str) -> int | None:
    """Find text that was decoded with the wrong encoding; return its first position, or None.

    Three mistakes are detected by reversing them: the characters are converted back to the bytes they came from, which
    must be text in the right encoding. Normal text passes such a test by chance now and then (`É»` or, in French, `é` +
    no-break space + `»`), so there are further conditions:

    1. UTF-8 read as Latin-1 or Windows-1252 (`ä½\xa0å¥½`, `cafÃ©`, `donâ€™t`): two Chinese, Japanese or Korean
       characters in a row; or one punctuation character or emoji; or an accented or Cyrillic letter, either right after
       a lower-case letter or twice.
    2. UTF-8 read as GBK (`浣犲ソ锛屼笘鐣`): six characters without ASCII between them that become four or more Chinese,
       Japanese or Korean ones. With real Chinese text the chance of that is about 10^-9.
    3. GBK read as Latin-1 (`ÄãºÃÊÀ½ç`): four or more common Chinese characters in a row, not all the same.

    Short damage (a word of two characters) is therefore missed, in favour of fewer false positives.
    """
    if text.isascii():
        return None
    positions = (_find_utf8_as_latin1(text), _find_utf8_as_gbk(text), _find_gbk_as_latin1(text))
    return min((position for position in positions if position is not None), default=None)


def _find_utf8_as_latin1(text: str) -> int | None:
    raw = text.translate(_AS_BYTES)  # one character each, so the positions stay the same
    for match in _WIDE_RUN.finditer(raw):
        decoded = _decode_bytes(match.group(), "utf-8")
        if decoded and _ASIAN.fullmatch(decoded):
            return match.start()
    letters: list[int] = []
    for match in _SEQUENCE.finditer(raw):
        decoded = _decode_bytes(match.group(), "utf-8")
        if decoded and len(match.group()) > 2 and _PUNCTUATION.fullmatch(decoded):
            return match.start()
        if decoded and len(match.group()) == 2 and _ACCENTED.fullmatch(decoded):
            before = text[match.start() - 1 : match.start()]
            if before.isascii() and before.islower() and match.group() > "\xc3":
                return match.start()
            letters.append(match.start())
    return letters[0] if len(letters) > 1 else None


def _find_utf8_as_gbk(text: str) -> int | None:
    for match in _NOT_ASCII.finditer(text):
        raw = match.group().encode("gb18030", "replace")
        try:
            decoded = raw.decode("utf-8")
        except UnicodeDecodeError as error:  # the end of a run is often part of a character
            decoded = raw[: error.start].decode("utf-8")
        if len(decoded) >= 4 and _ASIAN.fullmatch(decoded):
            return match.start()
    return None


def _find_gbk_as_latin1(text: str) -> int | None:
    for match in _GB_RUN.finditer(text):
        decoded = _decode_bytes(match.group(), "gb2312")
        letters = sum(char >= "\xc0" for char in match.group())
        if decoded and len(set(decoded)) >= 3 and 2 * letters >= len(match.group()):
            return match.start()
    return None


def _decode_bytes(characters: str, encoding: str) -> str | None:
    try:
        return characters.encode("latin-1").decode(encoding)
    except UnicodeDecodeError:
        return None
