"""A reply to a conversation, rendered by the same family code as training and stopped on every stop id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.streamers import BaseStreamer

from glmtune.data.encoding import add_prefix
from glmtune.families import Family, Message, Reply
from glmtune.generation.context_window import fit_prompt, get_context_window, get_default_reply_length
from glmtune.generation.engine import decode_tokens
from glmtune.generation.reply_text import ReplyText
from glmtune.generation.sampling import Sampling, make_sampler
from glmtune.models.tokenizers.text_decoding import decode_text, make_text_decoder
from glmtune.utils.streams import replace_undecodable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Sampling", "TextStream", "generate_reply"]


class TextStream(BaseStreamer):
    """Turns ids, the prompt's first, into text as soon as it is whole (a Chinese character may take
    several byte tokens) and passes it on."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]):
        self._text = ReplyText(make_text_decoder(tokenizer))
        self._on_text = on_text
        self._has_prompt = False
        self._is_started = False

    def put(self, value: torch.Tensor) -> None:
        if not self._has_prompt:  # the first call brings the prompt
            self._has_prompt = True
            return
        self._emit(self._text.add(value.reshape(-1).tolist()))

    def end(self) -> None:
        self._emit(self._text.finish())

    def _emit(self, text: str) -> None:
        # Formats with roles begin a reply with an empty metadata line, which is not shown.
        text = text if self._is_started else text.lstrip()
        if text:
            self._is_started = True
            self._on_text(text)


def replace_undecodable_texts(message: Message) -> Message:
    """A message whose texts every tokenizer takes: see `replace_undecodable`."""
    return {key: replace_undecodable(value) if isinstance(value, str) else value for key, value in message.items()}


def generate_reply(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    messages: Sequence[Message],
    *,
    tools: list | None = None,
    sampling: Sampling | None = None,
    on_text: Callable[[str], None] | None = None,
    prefix: str = "",
    on_drop: Callable[[int], None] | None = None,
) -> Reply:
    """Let the model answer. Turns for which the context window has no room are left out, the oldest first.

    Args:
        model: a base or a tuned model.
        tokenizer: its tokenizer.
        family: its generation.
        messages: the conversation, the user's message last.
        tools: descriptions of tools, for generations that know them.
        sampling: greedy when None. Draws depend on torch's global random state.
        on_text: called with each new piece of text.
        prefix: text in front of the first question, see `data.prefix`.
        on_drop: called with the number of messages that were left out, if there are any.

    Raises:
        ModelError: the last turn alone does not fit into the context window, or the model computes NaN.
    """
    chosen = sampling or Sampling(max_new_tokens=get_default_reply_length(model))
    cleaned = [replace_undecodable_texts(message) for message in messages]
    fitted = fit_prompt(
        cleaned,
        lambda turns: family.encode_prompt(add_prefix([dict(turn) for turn in turns], prefix), tokenizer, tools),
        get_context_window(model),
        chosen.max_new_tokens,
    )
    prompt = fitted.ids
    if fitted.dropped and on_drop:
        on_drop(fitted.dropped)
    stream = TextStream(tokenizer, on_text) if on_text else None
    seeds = [int(torch.randint(1 << 31, ()))] if chosen.temperature > 0 else [0]
    padding: Any = tokenizer.pad_token_id
    if stream:
        stream.put(torch.tensor(prompt))
    (ids,) = decode_tokens(
        model,
        [prompt],
        make_sampler(chosen, seeds, model.device),
        max_new_tokens=chosen.max_new_tokens,
        stops=family.get_stop_ids(tokenizer),
        padding=padding,
        on_step=(lambda new: stream.put(torch.tensor(new[0]))) if stream else None,
    )
    if stream:
        stream.end()
    return family.parse_reply(decode_text(tokenizer, ids))
