"""Keys and values of recent prompts and replies: a conversation's next turn begins with its earlier ones.

Found by a hash chain over blocks of tokens, as vLLM's automatic prefix caching does (its docs, "Automatic Prefix
Caching"); kept whole, least recently used first to go.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch

BLOCK = 16
"""Tokens of a block; shorter beginnings are not worth finding."""
# Tokens that are compared by one operation.
_COMPARED = 128


@dataclass(eq=False)
class StoredTokens:
    """The keys and values of a row of tokens.

    Attributes:
        owner: what they were computed with, an adapter's name for example.
        ids: of the tokens.
        states: (layers, 2, heads, tokens, size).
    """

    owner: Hashable
    ids: list[int]
    states: torch.Tensor


class PrefixStore:
    """Recent rows, bounded in bytes.

    Args:
        max_bytes: of keys and values; 0: nothing is stored.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._entries: OrderedDict[int, StoredTokens] = OrderedDict()
        self._by_block: dict[int, StoredTokens] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def accepts(self, tokens: int, bytes_per_token: int) -> bool:
        """Whether a row of this length is worth storing and fits."""
        return tokens >= BLOCK and tokens * bytes_per_token <= self._max_bytes

    def add(self, owner: Hashable, ids: Sequence[int], states: torch.Tensor) -> None:
        """Store a row; rows that are its beginning are no longer needed."""
        ids = list(ids)
        if states.nbytes > self._max_bytes:
            return
        hashes = list(_hash_blocks(owner, ids))
        for key in hashes:
            entry = self._by_block.get(key)
            if entry is not None and entry.ids == ids[: len(entry.ids)]:
                self._remove(entry)
        entry = StoredTokens(owner, ids, states)
        self._entries[id(entry)] = entry
        self._by_block.update(dict.fromkeys(hashes, entry))
        self.nbytes += states.nbytes
        while self.nbytes > self._max_bytes:
            self._remove(next(iter(self._entries.values())))

    def find(self, owner: Hashable, ids: Sequence[int]) -> tuple[StoredTokens, int] | None:
        """The row with the longest common beginning, and the beginning's length; None below a block."""
        found = None
        for key in _hash_blocks(owner, ids):
            found = self._by_block.get(key, found)
        if found is None or found.owner != owner:
            return None
        length = count_common(found.ids, list(ids))
        if length < BLOCK:  # two different beginnings of one hash
            return None
        self._entries.move_to_end(id(found))
        return found, length

    def clear(self) -> None:
        """Forget all rows."""
        self._entries.clear()
        self._by_block.clear()
        self.nbytes = 0

    def _remove(self, entry: StoredTokens) -> None:
        if self._entries.pop(id(entry), None) is None:
            return
        self.nbytes -= entry.states.nbytes
        for key in _hash_blocks(entry.owner, entry.ids):
            if self._by_block.get(key) is entry:
                del self._by_block[key]


def count_common(first: list[int], second: list[int]) -> int:
    """The number of tokens with which both begin."""
    limit, start = min(len(first), len(second)), 0
    while start < limit and first[start : start + _COMPARED] == second[start : start + _COMPARED]:
        start += _COMPARED
    for place in range(start, min(start + _COMPARED, limit)):
        if first[place] != second[place]:
            return place
    return limit


def _hash_blocks(owner: Hashable, ids: Sequence[int]) -> Iterator[int]:
    """A hash of each beginning of whole blocks."""
    value = hash(owner)
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        value = hash((value, *ids[start : start + BLOCK]))
        yield value
