"""GLM-4-9B, in its original layout and as transformers' `glm` and `glm4` (THUDM/GLM-4)."""

from __future__ import annotations

import json
import re
from typing import Any

from glmtune.families.family import Message, Reply, ToolCall
from glmtune.families.roles import RoleFamily

# From the published chat template; a system message of the conversation replaces SYSTEM.
SYSTEM = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。"
)
TOOLS_HEADING = "\n\n# 可用工具"
TOOL_FOOTER = "\n在调用上述函数时，请使用 Json 格式表示调用的参数。"


class GLM4(RoleFamily):
    name = "glm4"
    title = "GLM-4-9B"
    lora_targets = ("q_proj", "k_proj", "v_proj")
    stop_tokens = ("<|endoftext|>", "<|user|>", "<|observation|>")
    start_tokens = ("[gMASK]", "<sop>")
    has_json_calls = True

    def add_tools(self, messages: list[Message], tools: list) -> list[Message]:
        has_system = bool(messages) and messages[0]["role"] == "system"
        system = messages[0]["content"] if has_system else SYSTEM
        tool_list = "".join(map(_render_tool, tools))
        loss = {"loss": messages[0]["loss"]} if has_system and "loss" in messages[0] else {}
        return [{"role": "system", "content": system + TOOLS_HEADING + tool_list, **loss}, *messages[has_system:]]

    def render_tool_call(self, arguments: dict[str, Any]) -> str:
        return json.dumps(arguments, ensure_ascii=False)

    def parse_reply(self, text: str) -> Reply:
        """Parse a tool call: the tool's name, a newline and a JSON object."""
        name, newline, body = text.partition("\n")
        if not newline or not re.fullmatch(r"\s*[\w.-]+\s*", name):
            return super().parse_reply(text)
        try:
            arguments = json.loads(body)
            if not isinstance(arguments, dict):
                raise ValueError("the arguments are not a JSON object")
        except (ValueError, RecursionError) as error:
            looks_like_call = body.lstrip().startswith(("{", "["))
            return Reply(text.strip(), problem=str(error) if looks_like_call else "")
        return Reply("", [ToolCall(name.strip(), arguments)])


def _render_tool(tool: Any) -> str:
    if isinstance(tool, str):  # ToolAlpaca's: "name: description ..."
        return f"\n\n## {tool.partition(':')[0].strip()}\n\n{tool}{TOOL_FOOTER}"
    function = tool.get("function", tool) if isinstance(tool, dict) else tool
    name = function.get("name", "") if isinstance(function, dict) else ""
    return f"\n\n## {name}\n\n{json.dumps(function, ensure_ascii=False, indent=4)}{TOOL_FOOTER}"
