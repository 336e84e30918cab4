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
from glmtune.data.mojibake import find_mojibake
from glmtune.html.i18n import text as localize

ERROR, WARNING = "error", "warning"
MAX_EXCERPT = 60
"""Maximum number of characters of a row in a finding."""

# Kinds of problems with their severity; the texts `check.kind.KIND` describe them. The kinds of invalid rows
# (`InvalidRow.kind`) are kinds too; those that are not listed are errors.
KINDS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("unreadable", "empty-answer", "no-target", "call-without-result"),
            *("result-without-call", "refused-by-model", "eval-overlap"),
        ),
        ERROR,
    ),
    **dict.fromkeys(
        (
            *("eval-same-prompt", "empty-question", "chat-template", "placeholder"),
            *("duplicate", "answer-is-question", "over-limit", "same-role-twice"),
            *("assistant-first", "no-final-answer", "replacement-character", "mojibake"),
            *("unread-key", "worse-answer", "special-token", "similar-answers"),
            *("same-after-cut", "contradicting-pair", "length-bias", "left-out"),
        ),
        WARNING,
    ),
}

# `sop` and `eop` without brackets are special tokens of ChatGLM2 and ChatGLM3 too, but also ordinary letters.
_SPECIAL_TOKEN = re.compile(r"<\|[A-Za-z]\w*\|>|\[[gs]?MASK\]|</s>|<[se]op>")

# Prompt formats of chat models and trainers: what begins a line in them, how they end, and pairs of roles.
_TEMPLATE_MARK = re.compile(
    r"^\[Round \d+\]|^<\|(?:user|assistant|system|observation|im_start|start_header_id|endofprompt)\|>"
    r"|^<(?:user|assistant|start_of_turn)>\s*(?:[:：]|$)|<(?:bot|human)>\s*[:：]"
    r"|^\[INST\]|^<s>\s*\[INST\]|<<SYS>>|^#{2,3} ?(?:Instruction|Response|Human|Assistant|User|指令|问题|回答)\s*[:：]",
    re.MULTILINE,
)
_TEMPLATE_ENDS = ("Assistant:", "ASSISTANT:", "Assistant：", "Bot:", "助手：", "助手:")
_TEMPLATE_PAIRS = tuple(
    (re.compile(first, re.MULTILINE), re.compile(second, re.MULTILINE))
    for first, second in (
        (r"^(?:Human|User|USER|用户) ?[:：]", r"^(?:Assistant|ASSISTANT|AI|Bot|助手) ?[:：]"),
        (r"^问[：:]", r"^答[：:]\Z"),
    )
)
_PLACEHOLDER = re.compile(
    # The characters before it are those of LaTeX, where two braces are nothing unusual.
    r"(?<![\\A-Za-z0-9{}^_$])\{\{ ?[A-Za-z\u4e00-\u9fff][\w .-]{0,38} ?\}\}(?!\})"
    r"|(?<![\\A-Za-z0-9{}^_$])\{(?:name|author|姓名|名字|作者)\}"
    r"|(?<![A-Za-z0-9_<])<(?P<tag>[A-Z][A-Z_]{1,30})>"
)
_CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_MARKUP_TAGS = frozenset(
    (
        *("HTML", "HEAD", "BODY", "TITLE", "TABLE", "TR", "TD", "TH", "DIV", "SPAN", "FORM", "IMG", "BR", "HR", "LI"),
        *("UL", "OL", "PRE", "CODE", "CENTER", "FONT", "SCRIPT", "STYLE", "INPUT", "META", "LINK", "BUTTON", "EM"),
        *("UNK", "PAD", "MASK", "BOS", "EOS", "SEP", "CLS"),  # published data sets have words replaced by <UNK>
    )
)


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


def describe_kind(kind: str, lang: str = "en") -> str:
    """The description of a kind of findings."""
    if kind in KINDS:
        return localize(f"check.kind.{kind}", lang)
    return localize("check.invalid.skipped" if kind in SKIPPED_KINDS else "check.invalid.stops", lang)


def make_finding(problem: Problem, where: str, row: int) -> Finding:
    """Make the finding for a problem of a row."""
    severity = problem.severity or KINDS[problem.kind]
    return Finding(severity, problem.kind, where, row, problem.message, problem.excerpt, problem.hint)


def make_invalid_row_finding(invalid: InvalidRow, row: int) -> Finding:
    """Make the finding for an invalid row."""
    severity = KINDS.get(invalid.kind, ERROR)
    return Finding(severity, invalid.kind, invalid.where, row, invalid.message, "", invalid.hint)


def check_conversation(conversation: Conversation) -> list[Problem]:
    """Find all problems of a single row."""
    return [problem for check in CHECKS for problem in check(conversation)]


def find_empty_answers(conversation: Conversation) -> Iterator[Problem]:
    """Trained answers that are empty or white space; those of questions for stage grpo were taken out."""
    if conversation.columns is not None:
        return
    for number, message in _number_answers(conversation):
        if message.get("loss", True) and is_blank(message["content"]):
            question = conversation.messages[number - 2] if number > 1 else {}
            excerpt = make_excerpt(question.get("content", ""))
            yield Problem("empty-answer", f"message {number}, an answer, is empty", excerpt)


def find_empty_questions(conversation: Conversation) -> Iterator[Problem]:
    """Questions without a visible character."""
    for number, message in enumerate(conversation.messages, start=1):
        if message["role"] == "user" and is_blank(message["content"]):
            answer = conversation.messages[number] if number < len(conversation.messages) else {}
            excerpt = make_excerpt(read_message_text(answer)) if answer else ""
            yield Problem("empty-question", f"message {number}, a question, is empty", excerpt)


def find_chat_templates(conversation: Conversation) -> Iterator[Problem]:
    """Questions in the prompt format of a model."""
    for number, message in enumerate(conversation.messages, start=1):
        mark = _find_template_mark(message["content"].strip()) if message["role"] == "user" else None
        if mark:
            problem = f"message {number}, a question, holds a prompt format: {make_excerpt(mark)}"
            hint = "Give the question alone, and earlier turns as messages or in a column history."
            yield Problem("chat-template", problem, make_excerpt(message["content"]), hint=hint)


def _find_template_mark(text: str) -> str | None:
    if match := _TEMPLATE_MARK.search(text):
        return match.group()
    if text.endswith(_TEMPLATE_ENDS):
        return next(end for end in _TEMPLATE_ENDS if text.endswith(end))
    for first, second in _TEMPLATE_PAIRS:
        match = first.search(text)
        answer = second.search(text, match.end()) if match else None
        if answer:
            return answer.group()
    return None


def find_placeholders(conversation: Conversation) -> Iterator[Problem]:
    """Names in braces or angle brackets that a program should have replaced; not in code."""
    for name, text in list_texts(conversation):
        if name.startswith("the list of tools") or not ("{" in text or "<" in text):
            continue
        prose = _CODE_BLOCK.sub("", text) if "```" in text else text
        for match in _PLACEHOLDER.finditer(prose):
            tag = match.group("tag")
            if tag is None or (tag not in _MARKUP_TAGS and f"</{tag}>" not in text):
                hint = "Replace it in the file, for example with the name that the model should give."
                excerpt = make_excerpt(prose, match.start())
                yield Problem("placeholder", f"{name} contains {match.group()}", excerpt, hint=hint)
                break


def find_repeated_questions(conversation: Conversation) -> Iterator[Problem]:
    """Answers that equal the question right before them."""
    for number, message in _number_answers(conversation):
        question = conversation.messages[number - 2] if number > 1 else {"role": ""}
        text = message["content"].strip()
        if not is_blank(text) and question["role"] == "user" and question["content"].strip() == text:
            yield Problem("answer-is-question", f"message {number} repeats the question", make_excerpt(text))


def find_missing_targets(conversation: Conversation) -> Iterator[Problem]:
    """Rows with `loss: false` for every answer."""
    is_trained = any(
        message.get("loss", message["role"] in ("assistant", "tool")) or message.get("observation_loss")
        for message in conversation.messages
    )
    if conversation.text is None and not is_trained:
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
        yield Problem("assistant-first", problem, make_excerpt(read_message_text(turns[0])))
    for number, (first, second) in enumerate(pairwise(messages), start=2):
        if first["role"] == second["role"] and second["role"] in ("user", "assistant"):
            problem = f"messages {number - 1} and {number} are both the {second['role']}'s"
            yield Problem("same-role-twice", problem, make_excerpt(read_message_text(second)))
    last = turns[-1]
    if last["role"] in ("user", "observation") or (last["role"] == "tool" and "observation" in last):
        end = "a user message" if last["role"] == "user" else "the result of a tool"
        problem = f"the row ends with {end}, not with an answer"
        yield Problem("no-final-answer", problem, make_excerpt(read_message_text(last)))


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
            yield Problem("call-without-result", problem, make_excerpt(read_message_text(message)))
        elif message["role"] == "observation" and not _has_call(messages, i):
            problem = f"message {i + 1} is the result of a tool, but there is no call before it"
            yield Problem("result-without-call", problem, make_excerpt(read_message_text(message)))


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
            if _is_closing_tag(match):
                continue
            yield Problem("special-token", f"{name} contains {match.group()}", make_excerpt(text, match.start()))
            break


def remove_special_tokens(text: str) -> str:
    """The text without what `find_special_tokens` finds."""
    return _SPECIAL_TOKEN.sub(lambda match: match.group() if _is_closing_tag(match) else "", text)


def _is_closing_tag(match: re.Match[str]) -> bool:
    """Whether `</s>` closes an HTML `<s>`."""
    return match.group() == "</s>" and match.string.find("<s>", 1, match.start()) > 0


Check = Callable[[Conversation], Iterator[Problem]]
CHECKS: tuple[Check, ...] = (
    find_empty_answers,
    find_empty_questions,
    find_chat_templates,
    find_placeholders,
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
        yield f"message {number} ({message['role']})", read_message_text(message)
    if conversation.tools:
        yield "the list of tools", json.dumps(conversation.tools, ensure_ascii=False)


def is_blank(text: str) -> bool:
    """Whether a text has no visible character: only spaces, line breaks, zero-width and control characters."""
    return not text.strip() or all(unicodedata.category(char) in ("Cf", "Cc", "Zs", "Zl", "Zp") for char in text)


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


def read_message_text(message: dict[str, Any]) -> str:
    """The text of a message; of a call, its name, arguments and result."""
    if message["role"] != "tool":
        return message["content"]
    parts = [message["name"], json.dumps(message["parameters"], ensure_ascii=False)]
    if "observation" in message:
        result = message["observation"]
        parts.append(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False))
    return "\n".join(parts)


def _number_answers(conversation: Conversation) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((i, message) for i, message in enumerate(conversation.messages, start=1) if message["role"] == "assistant")


def _has_call(messages: list[dict[str, Any]], end: int) -> bool:
    """Whether the message `end` may be a result: a message may have several results, and a call may be plain text."""
    for message in (messages[i] for i in range(end - 1, -1, -1)):
        if message["role"] != "observation":
            return message["role"] == "assistant" or (message["role"] == "tool" and "observation" not in message)
    return False
