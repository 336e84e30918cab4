"""Log probabilities of tokens in the forms of OpenAI's two completions, with each token's text and bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from glmtune.families.family import tokenize_text
from glmtune.generation.batch_requests import TokenLogprob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def format_chat_logprobs(logprobs: Sequence[TokenLogprob], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The `logprobs.content` of a chat completion.

    Args:
        logprobs: of the generated tokens.
        tokenizer: of the model.
    """
    return [
        {
            **_format_token(item.token_id, item.logprob, tokenizer),
            "top_logprobs": [_format_token(token, logprob, tokenizer) for token, logprob in item.top],
        }
        for item in logprobs
    ]


def format_text_logprobs(
    logprobs: Sequence[TokenLogprob], tokenizer: PreTrainedTokenizerBase, offset: int
) -> dict[str, Any]:
    """The `logprobs` of a text completion.

    Args:
        logprobs: of the generated tokens.
        tokenizer: of the model.
        offset: characters of the text before the first token.
    """
    tokens, offsets = [], []
    for item in logprobs:
        tokens.append(get_token_bytes(tokenizer, item.token_id).decode("utf-8", "replace"))
        offsets.append(offset)
        offset += len(tokens[-1])
    tops = [
        {get_token_bytes(tokenizer, token).decode("utf-8", "replace"): logprob for token, logprob in item.top}
        for item in logprobs
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [item.logprob for item in logprobs],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


@lru_cache(maxsize=1 << 16)
def get_token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """The bytes that a token adds to a text; a token may be a part of a character."""
    backend: Any = tokenizer.backend_tokenizer
    piece = backend.id_to_token(token)
    if piece is None:  # the model has more outputs than its tokenizer has tokens
        return b""
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    if byte:
        return bytes([int(byte[1], 16)])
    is_byte_level = type(backend.decoder).__name__ == "ByteLevel"
    if is_byte_level and token not in backend.get_added_tokens_decoder():
        values = _list_byte_values()
        return bytes(values[character] for character in piece)
    # After another token, as the first one of a text loses its space.
    before = tokenize_text(tokenizer, "a")[-1:]
    text = str(tokenizer.decode([*before, token]))
    return text[len(str(tokenizer.decode(before))) :].encode("utf-8", "replace")


@cache
def _list_byte_values() -> dict[str, int]:
    """The byte behind each character of byte-level vocabularies (openai/gpt-2, `encoder.py`, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _format_token(token: int, logprob: float, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    value = get_token_bytes(tokenizer, token)
    return {"token": value.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(value)}
