"""Keys and values of rows that join and leave: each row has a slot and starts at its first place.

One tensor holds all layers, so that a row moves, is saved and is restored by one copy. Rows of a forward pass are
neighbours; what is behind a row's last token is never looked at.

Shapes: L layers, B slots, N key-value heads, S places of a slot, D head size; R rows of a forward pass, T new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

# Places are allocated in multiples of this.
_LENGTH_STEP = 128


class SlotCache(Cache):
    """The cache of a batch. `select` says which slots the next forward pass extends.

    Args:
        layers: of the model.
    """

    is_compileable = False

    def __init__(self, layers: int):
        super().__init__(layers=[])
        self._layer_count = layers
        self._rows, self._length = 0, 0
        self._states: torch.Tensor | None = None
        self._start, self._stop, self._width = 0, 0, 0
        self._past: Sequence[int] = ()
        self._new: Sequence[int] = ()
        self._places: tuple[torch.Tensor, torch.Tensor] | None = None

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` slots of `length` places; what they hold stays, and what is beyond them may go.

        Args:
            rows: at least as many as are in use.
            length: at least that of the longest row.
        """
        if rows <= self._rows and length <= self._length:
            return
        # Half as many places again: growing rows are copied a few times only. And no slots as long as a row that left.
        length = max(length, self._length * 3 // 2) if length > self._length else min(2 * length, self._length)
        length = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        old = self._states
        if old is not None:
            states = old.new_zeros(*old.shape[:2], rows, old.shape[3], length, old.shape[5])
            kept_rows, kept_length = min(rows, self._rows), min(length, self._length)
            states[:, :, :kept_rows, :, :kept_length] = old[:, :, :kept_rows, :, :kept_length]
            self._states = states
        self._rows, self._length = rows, length

    def release(self) -> None:
        """Give the memory back; nothing is held then."""
        self._states, self._rows, self._length = None, 0, 0

    def select(self, start: int, past: Sequence[int], new: Sequence[int]) -> None:
        """Choose what the next forward pass writes.

        Args:
            start: first slot.
            past: number of places that each row has filled.
            new: number of tokens that are added to each.
        """
        self._start, self._stop = start, start + len(past)
        self._past, self._new, self._places = past, new, None
        self._width = max(p + n for p, n in zip(past, new, strict=True))

    def select_step(self, start: int, rows_R: torch.Tensor, past_R: torch.Tensor, width: int) -> None:
        """Choose what the next forward pass of one token per row writes.

        Args:
            start: first slot.
            rows_R: 0, 1, 2, ...
            past_R: number of places that each row has filled.
            width: places of the longest row, its new token included.
        """
        self._start, self._stop, self._width = start, start + len(rows_R), width
        self._places = rows_R, past_R

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (R, N, T, D) of each; returns all keys and values of the rows, (R, N, width, D)."""
        if self._states is None:
            _, heads, _, size = key_states.shape
            # Zeros: a place that is hidden from a row still takes part in products, where NaN would stay NaN.
            self._states = key_states.new_zeros(self._layer_count, 2, self._rows, heads, self._length, size)
        states_2RNSD = self._states[layer_idx, :, self._start : self._stop]
        keys_RNSD, values_RNSD = states_2RNSD.unbind(0)
        if self._places is not None:
            rows_R, past_R = self._places
            keys_RNSD[rows_R, :, past_R] = key_states[:, :, 0]
            values_RNSD[rows_R, :, past_R] = value_states[:, :, 0]
        else:
            for row, (past, new) in enumerate(zip(self._past, self._new, strict=True)):
                keys_RNSD[row, :, past : past + new] = key_states[row, :, :new]
                values_RNSD[row, :, past : past + new] = value_states[row, :, :new]
        return keys_RNSD[:, :, : self._width], values_RNSD[:, :, : self._width]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first places of a slot to another one."""
        if self._states is not None and source != target:
            self._states[:, :, target, :, :length] = self._states[:, :, source, :, :length]

    def clear(self, slot: int) -> None:
        """Write zeros over what may not be finite."""
        if self._states is not None:
            self._states[:, :, slot] = 0

    def save(self, slot: int, start: int, length: int) -> torch.Tensor:
        """A copy of `length` places of a slot, (L, 2, N, length, D)."""
        assert self._states is not None
        return self._states[:, :, slot, :, start : start + length].clone()

    def restore(self, slot: int, start: int, states: torch.Tensor, length: int) -> None:
        """Fill `length` places of a slot with the first ones of what `save` returned."""
        if self._states is None:
            shape = states.shape
            self._states = states.new_zeros(*shape[:2], self._rows, shape[2], self._length, shape[4])
        self._states[:, :, slot, :, start : start + length] = states[:, :, :, :length]

    @property
    def length(self) -> int:
        """Places of a slot."""
        return self._length

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token's keys and values in all layers."""
        return 0 if self._states is None else self._states.nbytes // max(self._rows * self._length, 1)

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated."""
        return 0 if self._states is None else self._states.nbytes

    def get_seq_length(self, layer_idx: int = 0) -> int:
        raise NotImplementedError("rows have lengths of their own")
