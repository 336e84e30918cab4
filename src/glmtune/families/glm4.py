"""GLM-4-9B, in its original layout and as transformers' `glm` and `glm4` (THUDM/GLM-4)."""

from __future__ import annotations

from collections.abc import Sequence

from glmtune.errors import DataError
from glmtune.families.base import Message
from glmtune.families.roles import RoleFamily


class GLM4(RoleFamily):
    name = "glm4"
    title = "GLM-4-9B"
    lora_targets = ("q_proj", "k_proj", "v_proj")
    stop_tokens = ("<|endoftext|>", "<|user|>", "<|observation|>")
    start_tokens = ("[gMASK]", "<sop>")

    def expand(self, messages: Sequence[Message], tools: list | None) -> list[Message]:
        if tools or any(message["role"] == "tool" for message in messages):
            raise DataError("Tools are not rendered for GLM-4 yet.", "Use ChatGLM3-6B for rows with tools.")
        return list(messages)
