"""ChatGLM3-6B: role tokens, tools in a system message, calls as Python text (THUDM/ChatGLM3, finetune_demo)."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence

from glmtune.families.base import Message, Reply, ToolCall
from glmtune.families.roles import RoleFamily

TOOLS_HEADING = "Answer the following questions as best as you can. You have access to the following tools:\n"


class ChatGLM3(RoleFamily):
    name = "chatglm3"
    title = "ChatGLM3-6B"
    lora_targets = ("q_proj", "k_proj", "v_proj")
    stop_tokens = ("</s>", "<|user|>", "<|observation|>")
    start_tokens = ("[gMASK]", "sop")

    def expand(self, messages: Sequence[Message], tools: list | None) -> list[Message]:
        expanded: list[Message] = []
        if tools:
            listing = json.dumps(tools, indent=4, ensure_ascii=False)
            expanded.append({"role": "system", "content": TOOLS_HEADING + listing})
        for message in messages:
            expanded += _call_and_result(message) if message["role"] == "tool" else [message]
        return expanded

    def parse_reply(self, text: str) -> Reply:
        """A tool call is `name`, a newline and a Python call in a code fence; it is read, never evaluated."""
        name, newline, body = text.partition("\n")
        if newline and name.strip():
            arguments = _read_call(body)
            if arguments is not None:
                return Reply("", [ToolCall(name.strip(), arguments)])
        return super().parse_reply(text)


def _call_and_result(message: Message) -> list[Message]:
    arguments = ", ".join(f"{key}={value!r}" for key, value in message.get("parameters", {}).items())
    observation = message.get("observation", "")
    if not isinstance(observation, str):
        observation = json.dumps(observation, ensure_ascii=False)
    call = {
        "role": "assistant",
        "metadata": message["name"],
        "content": f"```python\ntool_call({arguments})\n```",
        "loss": message.get("loss", True),
    }
    return [call, {"role": "observation", "content": observation}]


def _read_call(body: str) -> dict | None:
    """Keyword arguments of the `tool_call(...)` in a code fence; None when the text is not exactly that."""
    lines = body.strip().splitlines()
    if len(lines) < 3 or not lines[0].startswith("```") or lines[-1].strip() != "```":
        return None
    try:
        call = ast.parse("\n".join(lines[1:-1]), mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            return None
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
