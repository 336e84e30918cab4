"""A KV cache with preallocated buffers: transformers' growing cache copies all keys and values for every token.

Shapes: B rows, N key-value heads, S places in use, T new ones, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

# Positions that are added when a buffer is full; each time it is copied once.
_GROWTH = 256


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values, views (B, N, S, D) of buffers for later tokens too."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, N, T, D) of each; returns all keys and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        total = length + key_states.shape[-2]
        if not self._buffers or total > self._buffers[0].shape[-2]:
            states = (self.keys, self.values) if length else (None, None)
            self._buffers = [
                _grow_tensor(old, new, total) for old, new in zip(states, (key_states, value_states), strict=True)
            ]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, length:total] = new
        self.keys, self.values = (buffer[:, :, :total] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows alone."""
        super().batch_select_indices(indices)
        self._buffers = []  # the next token allocates them again, for fewer rows


def new_preallocated_cache() -> Cache:
    """An empty cache for as many layers as will ask for one."""
    return Cache(layer_class_to_replicate=PreallocatedLayer)


def _grow_tensor(old: torch.Tensor | None, new: torch.Tensor, total: int) -> torch.Tensor:
    buffer = new.new_empty(*new.shape[:2], total + _GROWTH, new.shape[-1])
    if old is not None:
        buffer[:, :, : old.shape[-2]] = old
    return buffer
