"""ChatGLM2-6B and CodeGeeX2-6B: `[gMASK] sop`, then rounds counted from 1 (THUDM/ChatGLM2-6B)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glmtune.families.base import Family, Message, special_id, text_ids
from glmtune.families.rounds import to_rounds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatGLM2(Family):
    """The whole history is one text; only the answer to come is encoded apart, as the official code does."""

    name = "chatglm2"
    title = "ChatGLM2-6B"
    lora_targets = ("q_proj", "k_proj", "v_proj")
    stop_tokens = ("</s>",)
    positions_scaled = True

    def render_prompt(self, messages: Sequence[Message], tools: list | None = None) -> str:
        """The text after `[gMASK] sop`."""
        parts = []
        for i, turn in enumerate(to_rounds(messages, tools, self.title), start=1):
            answer = "" if turn.answer is None else f"{turn.answer['content']}\n\n"
            parts.append(f"[Round {i}]\n\n问：{turn.question}\n\n答：{answer}")
        return "".join(parts)

    def encode_prompt(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> list[int]:
        start = [special_id(tokenizer, "[gMASK]"), special_id(tokenizer, "sop")]
        return start + text_ids(tokenizer, self.render_prompt(messages, tools))

    def encode_answer(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [*text_ids(tokenizer, message["content"]), special_id(tokenizer, self.stop_tokens[0])]
