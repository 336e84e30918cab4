"""Conversations within the context window of a model: the oldest turns go, and what cannot fit is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.errors import ModelError
from glmtune.families import Message
from glmtune.methods.prefix_attention import find_prefix

DEFAULT_REPLY_LENGTH = 512
# No token of the published vocabularies has more characters.
_MAX_TOKEN_CHARACTERS = 256

EncodePrompt = Callable[[Sequence[Message]], list[int]]


@dataclass
class FittedPrompt:
    """A prompt that leaves room for its reply."""

    ids: list[int]
    dropped: int
    """Number of messages that were left out: the oldest ones after the system message."""


def get_context_window(model: Any) -> int:
    """The number of tokens, prompt and reply together, for which a model has room: those that its config says it was
    trained for, less the virtual tokens of a P-Tuning prefix, which every token attends to as well."""
    prefix = find_prefix(model)
    longest = int(getattr(model.config, "max_position_embeddings", None) or 2048)
    return max(0, longest - prefix.tokens) if prefix is not None else longest


def get_default_reply_length(model: Any) -> int:
    """The maximum length of a reply where none is given: 512 tokens, or half of a shorter context window."""
    return max(1, min(DEFAULT_REPLY_LENGTH, get_context_window(model) // 2))


def fit_prompt(messages: Sequence[Message], encode: EncodePrompt, window: int, max_new_tokens: int) -> FittedPrompt:
    """Encode a conversation, leaving out its oldest turns where it would not fit into the context window.

    Args:
        messages: a system message or none, then turns, each of which begins with a user message.
        encode: gives the ids of a conversation.
        window: tokens of prompt and reply together.
        max_new_tokens: of the reply.

    Raises:
        ModelError: the last turn alone does not fit.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    rest = messages[len(system) :]
    starts = [place for place, message in enumerate(rest) if message["role"] == "user"] or [0]
    last = [*system, *rest[starts[-1] :]]
    length = sum(len(str(message.get("content") or "")) for message in last)
    if length > window * _MAX_TOKEN_CHARACTERS:  # not even worth encoding
        raise ModelError(
            f"The prompt has {length:,} characters; the context window of this model holds {window:,} tokens.",
            "Shorten the message.",
        )

    def encode_from(turn: int) -> list[int] | None:
        ids = encode([*system, *rest[starts[turn] if turn else 0 :]])
        return ids if len(ids) + max_new_tokens <= window else None

    ids = encode_from(0)
    if ids is not None:
        return FittedPrompt(ids, 0)
    # The smallest number of turns to leave out, by bisection: encoding is linear in the length.
    low, high = 1, len(starts) - 1
    best: tuple[int, list[int]] | None = None
    while low <= high:
        middle = (low + high) // 2
        ids = encode_from(middle)
        if ids is None:
            low = middle + 1
        else:
            best, high = (middle, ids), middle - 1
    if best is None:
        raise _explain_length(len(encode(last)), window, max_new_tokens)
    turn, ids = best
    return FittedPrompt(ids, starts[turn])


def _explain_length(length: int, window: int, max_new_tokens: int) -> ModelError:
    room = window - length
    hint = "Shorten the message." if room < 1 else f"Shorten the message, or allow at most {room:,} new tokens."
    return ModelError(
        f"The prompt has {length:,} tokens and its reply may have {max_new_tokens:,}; "
        f"the context window of this model holds {window:,}.",
        hint,
    )
