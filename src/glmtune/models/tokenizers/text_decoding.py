"""Token ids to text, with the characters of an incomplete sequence of bytes that are whole.

A character that a SentencePiece vocabulary lacks is a token for each of its bytes. The fast tokenizers' `ByteFallback`
gives up a whole run of byte tokens if one character of it is cut off, as in a reply that ends amid an emoji.
SentencePiece, and so the published tokenizers, give up the bytes that belong to no character alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TextDecoder = Callable[[Sequence[int]], str]
"""From ids to their text, special tokens left out."""

_REPLACEMENT = "\ufffd"


def decode_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of some ids, special tokens left out; a byte that is part of no character is U+FFFD."""
    return make_text_decoder(tokenizer)(ids)


@lru_cache(maxsize=16)
def make_text_decoder(tokenizer: PreTrainedTokenizerBase) -> TextDecoder:
    """`decode_text` for one tokenizer.

    The text of some first ids is the beginning of the text of all, but for U+FFFD at its end.
    """
    decode = _choose_decode(tokenizer)
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return decode
    # ASCII is the same in bytes, and no part of another character.
    ids_by_byte = {byte: backend.token_to_id(f"<0x{byte:02X}>") for byte in range(0x80, 0x100)}
    if None in ids_by_byte.values():
        return decode
    bytes_by_id = {token: byte for byte, token in ids_by_byte.items()}
    replacement = [ids_by_byte[byte] for byte in _REPLACEMENT.encode()]
    specials = frozenset(token for token, added in backend.get_added_tokens_decoder().items() if added.special)

    def decode_characters(ids: Sequence[int]) -> str:
        text = decode(ids)
        if _REPLACEMENT not in text:
            return text
        kept = [token for token in ids if token not in specials]
        repaired: list[int] = []
        start = 0
        while start < len(kept):
            end = start
            while end < len(kept) and kept[end] in bytes_by_id:
                end += 1
            if end == start:
                repaired.append(kept[start])
                start += 1
                continue
            for part in _split_characters(bytes(bytes_by_id[token] for token in kept[start:end])):
                repaired += replacement if part is None else [ids_by_byte[byte] for byte in part]
            start = end
        return decode(repaired)

    return decode_characters


def _choose_decode(tokenizer: PreTrainedTokenizerBase) -> TextDecoder:
    """The tokenizer's own backend where that gives the same: a stream decodes for every token."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and not tokenizer.clean_up_tokenization_spaces:
        return backend.decode  # leaves special tokens out unless told otherwise
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _split_characters(value: bytes) -> Iterator[bytes | None]:
    """The characters of bytes from 0x80 on, and None for each byte that is part of none (as SentencePiece decodes)."""
    place = 0
    while place < len(value):
        first = value[place]
        length = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        part = value[place : place + length]
        try:
            part.decode()
        except UnicodeDecodeError:
            yield None
            place += 1
        else:
            yield part
            place += length
