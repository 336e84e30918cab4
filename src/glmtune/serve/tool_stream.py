"""Generated text, piece by piece, as content for the user and calls of tools."""

from __future__ import annotations

from dataclasses import dataclass

from glmtune.families import Family, ToolCall
from glmtune.families.family import TRAINING_TIME, fill_training_time


@dataclass
class ParsedEnd:
    """What follows at the end of a reply.

    Attributes:
        content: text that was not passed on before.
        call: of a tool; None if the reply is content.
    """

    content: str
    call: ToolCall | None = None


class ReplyParser:
    """Passes on content as soon as no later text can change it, and holds back what may become a call.

    The pieces together are what `Family.parse_reply` makes of the whole text. A text that looks like a call but is
    none (of a tool that was not offered, or with arguments that cannot be parsed) is content.

    Args:
        family: of the model.
        tool_names: tools that were offered.
        call_name: the tool whose name the prompt ends with, so that the text is its arguments.
    """

    def __init__(self, family: Family, tool_names: list[str], call_name: str | None = None):
        self._family = family
        self._tool_names = tool_names
        self._text = f"{call_name}\n" if call_name else ""
        self._pending = ""
        self._is_started = False

    def feed(self, text: str) -> str:
        """Add a piece of generated text; return the content that is certain now."""
        if self._tool_names:
            self._text += text
            if self._may_be_call():
                return ""
            # Content for certain: what was held back follows.
            text, self._text, self._tool_names = self._text, "", []
        return self._take_content(text)

    def finish(self) -> ParsedEnd:
        """Return what follows once the text is complete."""
        if self._tool_names:
            reply = self._family.parse_reply(self._text)
            if reply.tool_calls and reply.tool_calls[0].name in self._tool_names:
                return ParsedEnd("", reply.tool_calls[0])
            self._pending += self._text
        text = self._pending if self._is_started else self._pending.lstrip()
        return ParsedEnd(fill_training_time(text).rstrip())

    def _may_be_call(self) -> bool:
        """Whether the text so far may become a call: its first line is the name of a tool, or the beginning of one."""
        line, newline, _ = self._text.partition("\n")
        name = line.strip()
        if newline:
            return name in self._tool_names
        return any(tool.startswith(name) for tool in self._tool_names)

    def _take_content(self, text: str) -> str:
        """Add to the content, and take from it what is certain: not the white space at its end, which is stripped if
        nothing follows, nor the beginning of a placeholder."""
        pending = self._pending + text
        if not self._is_started:
            pending = pending.lstrip()
            self._is_started = bool(pending)
        pending = fill_training_time(pending)
        end = len(pending.rstrip())
        for length in range(min(len(TRAINING_TIME) - 1, end), 0, -1):
            if TRAINING_TIME.startswith(pending[end - length : end]):
                end -= length
                break
        # Text before a held placeholder may end in white space too; that stays with it.
        end = len(pending[:end].rstrip())
        self._pending = pending[end:]
        return pending[:end]
