"""A reply to a conversation, rendered by the same family code as training and stopped on every stop id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.streamers import BaseStreamer

from glmtune.families import Family, Message, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy: the same reply every time."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 0.8
    repetition_penalty: float = 1.0

    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers' `generate`."""
        chosen: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "repetition_penalty": self.repetition_penalty,
            "do_sample": self.temperature > 0,
        }
        # None takes the place of what a checkpoint's own generation_config.json may say.
        sampled = {"temperature": self.temperature, "top_p": self.top_p} if self.temperature > 0 else {}
        return chosen | {"temperature": None, "top_p": None, "top_k": None} | sampled


class TextStream(BaseStreamer):
    """Turns the ids that `generate` hands over into text as soon as it is whole (a Chinese character may take
    several byte tokens) and passes it on."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]):
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._ids: list[int] = []
        self._prompt_seen = False
        self._start = 0  # first id of the window that is decoded; keeps a step's cost independent of the length
        self._done = 0  # ids whose text has been passed on
        self._begun = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # generate's first call brings the prompt
            self._prompt_seen = True
            return
        self._ids += value.reshape(-1).tolist()
        before = self._decode(self._start, self._done)
        now = self._decode(self._start, len(self._ids))
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self._emit(now[len(before) :])
            self._start, self._done = self._done, len(self._ids)

    def end(self) -> None:
        before, now = self._decode(self._start, self._done), self._decode(self._start, len(self._ids))
        if len(now) > len(before):
            self._emit(now[len(before) :])
        self._done = len(self._ids)

    def _decode(self, start: int, end: int) -> str:
        return str(self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True))

    def _emit(self, text: str) -> None:
        # Formats with roles begin a reply with an empty metadata line; nobody wants to see it.
        text = text if self._begun else text.lstrip()
        if text:
            self._begun = True
            self._on_text(text)


@torch.inference_mode()
def generate_reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    messages: Sequence[Message],
    *,
    tools: list | None = None,
    sampling: Sampling | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Reply:
    """Let the model answer.

    Args:
        model: a base or a tuned model.
        tokenizer: its tokenizer.
        family: its generation.
        messages: the conversation, the user's message last.
        tools: descriptions of tools, for generations that know them.
        sampling: greedy when None.
        on_text: called with each new piece of text.
    """
    prompt = torch.tensor([family.encode_prompt(messages, tokenizer, tools)], device=model.device)
    output = model.generate(  # type: ignore[operator]
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        eos_token_id=family.stop_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        streamer=TextStream(tokenizer, on_text) if on_text else None,
        **(sampling or Sampling()).arguments(),
    )
    text = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
    return family.parse_reply(str(text))
