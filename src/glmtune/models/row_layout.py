"""Positions of a row's tokens and what they may look at, row by row: what a batch needs whose rows are of any length.

Shapes: T tokens, K position streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from glmtune.models.chatglm import ChatGLMForCausalLM
from glmtune.models.chatglm.prefix_lm import prefix_position_ids


class RowLayout:
    """A causal row: positions count up, and a token sees those before it."""

    streams = 0
    """Position streams of a token beside the usual one: 0, or 2 where position_ids are (B, 2, T)."""

    def count_context(self, ids: Sequence[int]) -> int:
        """Number of first tokens that see each other in both directions: their keys depend on all of them."""
        return 0

    def make_positions(self, ids: Sequence[int]) -> torch.Tensor:
        """Positions of a whole row, (T,) or (K, T)."""
        return torch.arange(len(ids))

    def next_change(self, ids: Sequence[int]) -> list[int]:
        """How far the next token's position is from the last one's, in each stream."""
        return [1]

    def changes_at(self, token: int, ids: Sequence[int]) -> bool:
        """Whether `token`, generated after `ids`, changes the positions of those that follow it."""
        return False


class PrefixRowLayout(RowLayout):
    """ChatGLM-6B: a context with attention in both directions, `<sop>`, and an answer with a second position.

    Args:
        config: of the model.
    """

    streams = 2

    def __init__(self, config: Any):
        self._config = config

    def count_context(self, ids: Sequence[int]) -> int:
        try:
            return ids.index(self._config.bos_token_id)
        except ValueError:
            return 0  # plain text: causal throughout

    def make_positions(self, ids: Sequence[int]) -> torch.Tensor:
        return prefix_position_ids(torch.tensor([list(ids)]), None, self._config)[0]

    def next_change(self, ids: Sequence[int]) -> list[int]:
        return [0, 1] if self._config.bos_token_id in ids else [1, 0]

    def changes_at(self, token: int, ids: Sequence[int]) -> bool:
        return token == self._config.bos_token_id and token not in ids


def get_row_layout(model: Any) -> RowLayout:
    """The layout of a model's rows.

    Args:
        model: not wrapped by peft.
    """
    return PrefixRowLayout(model.config) if isinstance(model, ChatGLMForCausalLM) else RowLayout()
