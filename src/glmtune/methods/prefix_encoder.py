"""The trained part of P-Tuning v2: an embedding, or a small network, whose output is keys and values for every layer.

Parameters have the names of the published checkpoints (THUDM/ChatGLM-6B and THUDM/ChatGLM2-6B, `ptuning/`).

Shapes: P virtual tokens, L layers, N key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class PrefixShape:
    """What a prefix is made for: the attention of one model."""

    layers: int
    kv_heads: int
    head_dim: int

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> PrefixShape:
        """The shape that a model's layers take."""
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        return cls(config.num_hidden_layers, heads, config.head_dim)

    @property
    def width(self) -> int:
        """Numbers of one virtual token: a key and a value for every head of every layer."""
        return self.layers * 2 * self.kv_heads * self.head_dim

    def __str__(self) -> str:
        return f"{self.layers} layers of {self.kv_heads} key-value heads of {self.head_dim}"


@dataclass(frozen=True)
class Projection:
    """Widths of the network that makes a prefix out of a shorter embedding."""

    embedding: int
    hidden: int

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> Projection:
        """The published widths. ChatGLM-6B has one of its own; later generations embed the full width of a prefix."""
        own: int | None = getattr(config, "prefix_embedding_size", None)
        return cls(own or PrefixShape.from_config(config).width, config.hidden_size)


class PrefixEncoder(nn.Module):
    """Keys and values of the virtual tokens, in fp32 independent of the base's precision.

    Args:
        tokens: virtual tokens.
        shape: of the model's attention.
        projection: widths of the network; None: the embedding is the prefix.
        dropout: share of the numbers that is left out while training.
    """

    def __init__(self, tokens: int, shape: PrefixShape, projection: Projection | None, dropout: float):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(tokens, projection.embedding if projection else shape.width, dtype=torch.float32)
        self.trans: nn.Module | None = None
        if projection:
            self.trans = nn.Sequential(
                nn.Linear(projection.embedding, projection.hidden, dtype=torch.float32),
                nn.Tanh(),
                nn.Linear(projection.hidden, shape.width, dtype=torch.float32),
            )
        self.dropout = nn.Dropout(dropout)
        self._cached: tuple[tuple[Any, ...], torch.Tensor] | None = None

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor], shape: PrefixShape, dropout: float) -> PrefixEncoder:
        """An encoder that holds given weights, by the names of `state_dict`.

        Raises:
            ValueError: a weight is missing, left over or of a shape that does not fit the others or the model.
        """
        embedding, hidden = state.get("embedding.weight"), state.get("trans.0.weight")
        last = state.get("embedding.weight" if hidden is None else "trans.2.bias")
        if embedding is None or last is None:
            raise ValueError("it lacks embedding.weight or trans.2.bias")
        if last.shape[-1] != shape.width:
            raise ValueError(f"it has {last.shape[-1]} numbers per virtual token; {shape} take {shape.width}")
        projection = None if hidden is None else Projection(embedding.shape[-1], hidden.shape[0])
        with torch.device("meta"):  # nothing is drawn at random
            encoder = cls(embedding.shape[0], shape, projection, dropout)
        try:
            encoder.load_state_dict(
                {key: value.to(torch.float32, copy=True) for key, value in state.items()}, assign=True
            )
        except RuntimeError as error:
            raise ValueError("; ".join(line.strip() for line in str(error).splitlines()[1:])) from None
        return encoder

    @property
    def tokens(self) -> int:
        """Length of the prefix."""
        return self.embedding.num_embeddings

    def forward(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The prefix as (L, 2, N, P, D): of every layer its keys, then its values.

        Without gradients it is computed once and cached until a weight changes: generation needs it at every token.

        Args:
            dtype: of the cached prefix, fp32 when None; with gradients it is always fp32.
        """
        if torch.is_grad_enabled():
            return self._encode_prefix()
        if torch.compiler.is_compiling() and self._cached is not None and not self.training:
            # A compiler cannot compare addresses: what runs before its step (reading the prompt) has compared them.
            return self._cached[1]
        weights = dtype, *((p.data_ptr(), p._version) for p in self.parameters())
        if self.training or self._cached is None or self._cached[0] != weights:
            prefix_L2NPD = self._encode_prefix().to(dtype or torch.float32, memory_format=torch.contiguous_format)
            if not torch.compiler.is_compiling():
                torch._dynamo.mark_static_address(prefix_L2NPD)  # a CUDA graph reads it in place, and copies nothing
            self._cached = weights, prefix_L2NPD
        return self._cached[1]

    def train(self, mode: bool = True) -> PrefixEncoder:
        self._cached = None  # not worth its memory while training
        return super().train(mode)

    def _encode_prefix(self) -> torch.Tensor:
        device = self.embedding.weight.device
        # Autocast would compute the network in 16 bits.
        with torch.autocast(device.type, enabled=False):
            prefix = self.embedding(torch.arange(self.tokens, device=device))
            if self.trans is not None:
                prefix = self.trans(prefix)
        # One dropout mask for the whole batch; the published code draws one for each row.
        prefix = self.dropout(prefix)
        prefix_PL2ND = prefix.unflatten(-1, (self.shape.layers, 2, self.shape.kv_heads, self.shape.head_dim))
        return prefix_PL2ND.permute(1, 2, 3, 0, 4)
