"""Which tokens may follow, so that a reply is a JSON object, or a call of one of some tools.

A token is allowed if the automaton of `json_grammar` or `json_schema` takes all its bytes. The allowed tokens of a
state are computed once and remembered. That takes milliseconds for a published vocabulary (130,000 tokens): tokens are
sorted by their bytes, so that those with a beginning that is not allowed are skipped together, and most are plain text
inside a string.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from glmtune.generation.json_grammar import JsonGrammar
from glmtune.models.tokenizers.token_bytes import get_token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CACHED_STATES = 1024


class ByteGrammar(Protocol):
    """An automaton that reads bytes; its states can be hashed."""

    start: Any
    end: Any

    def step(self, state: Any, byte: int) -> Any:
        """The state after a byte; None if it is not allowed."""

    def takes_text(self, state: Any) -> bool:
        """Whether any whole characters of a JSON string may follow."""


JSON_OBJECT = JsonGrammar()
"""Any JSON object."""


class TokenTable:
    """The bytes of a vocabulary's tokens, and the allowed tokens of the states met so far.

    Args:
        tokenizer: of the model.
        size: number of the model's outputs.
        stop_ids: allowed at the end alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, stop_ids: list[int]):
        special: Any = {*tokenizer.all_special_ids, *stop_ids}
        added: Any = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        special |= {token for token, description in added.items() if description.special}
        self.bytes = [b"" if token in special else get_token_bytes(tokenizer, token) for token in range(size)]
        self._size = size
        self._stop_ids = stop_ids
        # Text that changes nothing inside a string.
        self._plain_V = np.array([_is_plain(value) for value in self.bytes])
        tokens = [token for token in range(size) if self.bytes[token]]
        self._sorted = _SortedTokens(self.bytes, tokens)
        self._sorted_not_plain = _SortedTokens(self.bytes, [token for token in tokens if not self._plain_V[token]])
        self.by_bytes: dict[bytes, list[int]] = {}
        for token in tokens:
            self.by_bytes.setdefault(self.bytes[token], []).append(token)
        self._masks: OrderedDict[tuple[ByteGrammar, Any], np.ndarray] = OrderedDict()

    def list_allowed(self, grammar: ByteGrammar, state: Any) -> np.ndarray:
        """Which tokens may follow in a state of a grammar, (V,) bool."""
        key = grammar, state
        packed = self._masks.get(key)
        if packed is None:
            packed = self._masks[key] = np.packbits(self._compute_allowed(grammar, state))
            if len(self._masks) > _CACHED_STATES:
                self._masks.popitem(last=False)
        return np.unpackbits(packed, count=self._size).astype(bool)

    def _compute_allowed(self, grammar: ByteGrammar, state: Any) -> np.ndarray:
        allowed_V = np.zeros(self._size, dtype=bool)
        if state == grammar.end:
            allowed_V[self._stop_ids] = True
            return allowed_V
        if grammar.takes_text(state):
            allowed_V |= self._plain_V
            allowed_V[self._sorted_not_plain.list_allowed(grammar, state)] = True
        else:
            allowed_V[self._sorted.list_allowed(grammar, state)] = True
        return allowed_V


class _SortedTokens:
    """Tokens in the order of their bytes."""

    def __init__(self, all_bytes: list[bytes], tokens: list[int]):
        self._tokens = sorted(tokens, key=all_bytes.__getitem__)
        self._bytes = [all_bytes[token] for token in self._tokens]

    def list_allowed(self, grammar: ByteGrammar, state: Any) -> list[int]:
        """The tokens all of whose bytes may follow."""
        allowed: list[int] = []
        self._collect(0, len(self._tokens), 0, grammar, state, allowed)
        return allowed

    def _collect(self, start: int, end: int, depth: int, grammar: ByteGrammar, state: Any, allowed: list[int]) -> None:
        """Add the allowed tokens from `start` to `end`, which share their first `depth` bytes."""
        place = start
        while place < end and len(self._bytes[place]) == depth:
            allowed.append(self._tokens[place])
            place += 1
        while place < end:
            beginning, byte = self._bytes[place][:depth], self._bytes[place][depth]
            following = end
            if byte < 255:
                following = bisect_left(self._bytes, beginning + bytes([byte + 1]), place, end)
            next_state = grammar.step(state, byte)
            if next_state is not None:
                self._collect(place, following, depth + 1, grammar, next_state, allowed)
            place = following


class JsonConstraint:
    """The state of one reply.

    Args:
        table: of the vocabulary.
        grammar: of the reply.
    """

    def __init__(self, table: TokenTable, grammar: ByteGrammar = JSON_OBJECT):
        self._table = table
        self._grammar = grammar
        self._state = grammar.start

    def list_allowed(self) -> np.ndarray:
        """Which tokens may follow, (V,) bool."""
        return self._table.list_allowed(self._grammar, self._state)

    def advance(self, token: int) -> None:
        """Take the token that was chosen, one of the allowed ones."""
        if self._state != self._grammar.end:
            # None only if the vocabulary lacks all bytes that may follow: the reply then ends.
            self._state = advance_grammar(self._grammar, self._state, self._table.bytes[token]) or self._grammar.end


class ToolCallConstraint:
    """The state of a reply that has to call a tool: a line with the name of one, and the arguments.

    Args:
        table: of the vocabulary.
        names: of the tools; none: the name is there already.
        has_json: whether arguments are a JSON object; anything otherwise.
    """

    def __init__(self, table: TokenTable, names: list[str], has_json: bool):
        self._table = table
        # Tokenizers with a dummy prefix begin a text with a space.
        self._remaining = [space + f"{name}\n".encode() for name in names for space in (b"", b" ")]
        self._arguments = JsonConstraint(table) if has_json else None

    def list_allowed(self) -> np.ndarray | None:
        """Which tokens may follow, (V,) bool; None: all."""
        if not self._remaining:
            return self._arguments.list_allowed() if self._arguments else None
        allowed_V = np.zeros(len(self._table.bytes), dtype=bool)
        for rest in self._remaining:
            for length in range(1, len(rest) + 1):
                allowed_V[self._table.by_bytes.get(rest[:length], [])] = True
        return allowed_V

    def advance(self, token: int) -> None:
        """Take the token that was chosen, one of the allowed ones."""
        if not self._remaining:
            if self._arguments:
                self._arguments.advance(token)
            return
        value = self._table.bytes[token]
        rests = [rest[len(value) :] for rest in self._remaining if rest.startswith(value)]
        self._remaining = [] if b"" in rests else rests


def advance_grammar(grammar: ByteGrammar, state: Any, value: bytes) -> Any:
    """The state after some bytes; None if they are not allowed here."""
    for byte in value:
        state = grammar.step(state, byte) if state is not None else None
    return state


def _is_plain(value: bytes) -> bool:
    """Whether bytes are whole characters that a JSON string may have as they are."""
    if not value or b'"' in value or b"\\" in value or min(value) < 0x20:
        return False
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
