"""ChatGLM3-6B: role tokens, tools in a system message, tool calls as Python code (THUDM/ChatGLM3, finetune_demo)."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from glmtune.families.family import Message, Reply, ToolCall
from glmtune.families.roles import RoleFamily

TOOLS_HEADING = "Answer the following questions as best as you can. You have access to the following tools:\n"


class ChatGLM3(RoleFamily):
    name = "chatglm3"
    title = "ChatGLM3-6B"
    lora_targets = ("q_proj", "k_proj", "v_proj")
    stop_tokens = ("</s>", "<|user|>", "<|observation|>")
    start_tokens = ("[gMASK]", "sop")

    def add_tools(self, messages: list[Message], tools: list) -> list[Message]:
        tool_list = json.dumps(tools, indent=4, ensure_ascii=False)
        return [{"role": "system", "content": TOOLS_HEADING + tool_list}, *messages]

    def render_tool_call(self, arguments: dict[str, Any]) -> str:
        keywords = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        return f"```python\ntool_call({keywords})\n```"

    def parse_reply(self, text: str) -> Reply:
        """Parse a tool call: the tool's name, a newline and a Python call in a code fence, never executed."""
        name, newline, body = text.partition("\n")
        if not newline or not name.strip() or "tool_call(" not in body:
            return super().parse_reply(text)
        try:
            return Reply("", [ToolCall(name.strip(), _parse_call(body))])
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            return Reply(text.strip(), problem=reason or "nested too deep")


def _parse_call(body: str) -> dict[str, Any]:
    """Parse the keyword arguments of the `tool_call(...)` in a code fence.

    Names are taken as text, since the official preprocessing also writes Python keywords and names with a hyphen there;
    values are Python literals.

    Raises:
        SyntaxError, ValueError: the text has another form, or a value is not a literal.
    """
    lines = body.strip().splitlines()
    if len(lines) < 3 or not lines[0].startswith("```") or lines[-1].strip() != "```":
        raise ValueError("the call is not in a closed code fence")
    call = "\n".join(lines[1:-1]).strip()
    if not call.startswith("tool_call(") or not call.endswith(")"):
        raise ValueError("not a single tool_call(...)")
    arguments = {}
    for part in _split_at_commas(call[len("tool_call(") : -1]):
        name, equals, value = part.partition("=")
        if not equals or not re.fullmatch(r"\s*[^\s'\"(){}\[\]*]+\s*", name):
            raise ValueError("arguments must be given by name")
        arguments[name.strip()] = ast.literal_eval(value.strip())
    return arguments


def _split_at_commas(text: str) -> list[str]:
    """Split at the commas outside brackets and strings."""
    parts, start, depth = [], 0, 0
    for token in re.finditer(_PYTHON_STRING + r"|[(\[{]|[)\]}]|,", text, re.DOTALL):
        symbol = token.group()
        depth += (symbol in "([{") - (symbol in ")]}") if len(symbol) == 1 else 0
        if depth < 0:
            raise ValueError("a closing bracket without an opening one")
        if symbol == "," and depth == 0:
            parts.append(text[start : token.start()])
            start = token.end()
    return [part for part in [*parts, text[start:]] if part.strip()]


# A Python string literal.
_PYTHON_STRING = r"\'\'\'(?:\\.|.)*?\'\'\'|\"\"\"(?:\\.|.)*?\"\"\"|\'(?:\\.|[^\'\\])*\'|\"(?:\\.|[^\"\\])*\""
