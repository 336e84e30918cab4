"""ChatGLM-6B: text, `[gMASK]`, `<sop>`, answer, `<eop>` (THUDM/ChatGLM-6B, `ptuning/main.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glmtune.families.family import Encoded, Family, Message, special_id, text_ids
from glmtune.families.rounds import answer_text, to_rounds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatGLM(Family):
    """The context is read in both directions, so a row trains its last answer only."""

    name = "chatglm"
    title = "ChatGLM-6B"
    lora_targets = ("query_key_value",)
    stop_tokens = ("<eop>",)
    one_answer_per_row = True
    position_streams = 2

    def render_prompt(self, messages: Sequence[Message], tools: list | None = None) -> str:
        """The text before `[gMASK]`: the bare question, or rounds counted from 0 once there is a history."""
        rounds = to_rounds(messages, tools, self.title)
        if len(rounds) == 1:
            return rounds[0].question
        parts = []
        for i, turn in enumerate(rounds):
            answer = "" if turn.answer is None else f"{turn.answer['content']}\n"
            parts.append(f"[Round {i}]\n问：{turn.question}\n答：{answer}")
        return "".join(parts)

    def encode_prompt(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> list[int]:
        return text_ids(tokenizer, self.render_prompt(messages, tools)) + self._start(tokenizer)

    def encode_answer(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [*text_ids(tokenizer, answer_text(message, self.title)), special_id(tokenizer, self.stop_tokens[0])]

    def _start(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [special_id(tokenizer, "[gMASK]"), special_id(tokenizer, "<sop>")]

    def row(self, prompt: list[int], answer: list[int], trained: bool = True) -> Encoded:
        encoded = super().row(prompt, answer, trained)
        encoded.context = len(prompt) - 1  # all before <sop>
        return encoded
