"""ChatGLM2-6B and CodeGeeX2-6B: `[gMASK] sop`, then rounds counted from 1 (THUDM/ChatGLM2-6B)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glmtune.families.family import Encoded, Family, Message, require_answer, special_id, text_ids
from glmtune.families.rounds import Round, answer_text, to_rounds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatGLM2(Family):
    """The whole history is one text; only the newest answer is encoded apart, as the official code does."""

    name = "chatglm2"
    title = "ChatGLM2-6B"
    lora_targets = ("q_proj", "k_proj", "v_proj")
    stop_tokens = ("</s>",)
    positions_scaled = True

    def render_prompt(self, messages: Sequence[Message], tools: list | None = None) -> str:
        """The text after `[gMASK] sop`."""
        return self._render(to_rounds(messages, tools, self.title))[0]

    def encode_prompt(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> list[int]:
        return self._start(tokenizer) + text_ids(tokenizer, self.render_prompt(messages, tools))

    def encode_answer(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [*text_ids(tokenizer, answer_text(message, self.title)), special_id(tokenizer, self.stop_tokens[0])]

    def encode(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> Encoded:
        """Every answer is trained. The input is the official prompt, byte for byte, and it has no end token after
        an earlier answer: there the end token stands in the labels alone, as what should have come next.
        """
        require_answer(messages)
        rounds = to_rounds(messages[:-1], tools, self.title)
        encoded = super().encode(messages, tokenizer, tools)
        spans = self._render(rounds)[1]
        if spans:
            self._label_earlier_answers(encoded, self._render(rounds)[0], spans, tokenizer)
        return encoded

    def _start(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [special_id(tokenizer, "[gMASK]"), special_id(tokenizer, "sop")]

    def _render(self, rounds: list[Round]) -> tuple[str, list[tuple[int, int]]]:
        """The prompt, and where in it the earlier answers that count begin and end."""
        text, spans = "", []
        for i, turn in enumerate(rounds, start=1):
            text += f"[Round {i}]\n\n问：{turn.question}\n\n答："
            if turn.answer is not None:
                start = len(text)
                text += turn.answer["content"]
                if turn.answer.get("loss", True):
                    spans.append((start, len(text)))
                text += "\n\n"
        return text, spans

    def _label_earlier_answers(
        self, encoded: Encoded, text: str, spans: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        offsets = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        shift, end_id = len(self._start(tokenizer)), special_id(tokenizer, self.stop_tokens[0])
        for start, end in spans:
            # A token that reaches over either border belongs to the frame: the model is not asked to write it.
            inside = [i for i, (first, last) in enumerate(offsets) if start <= first < last <= end]
            for i in inside:
                encoded.labels[shift + i] = encoded.input_ids[shift + i]
            after = inside[-1] + 1 if inside else next(i for i, (first, _) in enumerate(offsets) if first >= end)
            encoded.labels[shift + after] = end_id
