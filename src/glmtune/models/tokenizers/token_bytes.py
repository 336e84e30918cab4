"""The bytes behind token ids: a token may be a part of a character."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from glmtune.families.family import tokenize_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    if "<" not in piece:
        return piece.replace("▁", " ").encode("utf-8", "replace")
    # A name of ChatGLM-6B's for white space, such as <n>. After another token, as the first of a text loses its space.
    before = tokenize_text(tokenizer, "a")[-1:]
    text = str(tokenizer.decode([*before, token]))
    return text[len(str(tokenizer.decode(before))) :].encode("utf-8", "replace")


@cache
def _list_byte_values() -> dict[str, int]:
    """The byte behind each character of byte-level vocabularies (openai/gpt-2, `encoder.py`, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
