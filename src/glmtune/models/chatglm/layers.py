"""The parts of ChatGLM-6B: two-stream rotary embedding, attention, MLP, block.

Module names are those of the published checkpoint. The published code is sequence-first; this is batch-first.

Shapes: B batch, T query positions, S key positions, N heads, D head size, H hidden size = N * D.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration import ChatGLMConfig


class ChatGLMRotaryEmbedding(nn.Module):
    """Cosines and sines for both position streams; computed once per forward and shared by all layers.

    The first half of a head turns with `position`, the second with `block` (base 10000, D / 2 dimensions
    each). The published frequencies are rounded to fp16, as here; the angles are computed in
    fp32 independent of the model's precision.
    """

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.stream_dim = config.head_dim // 2
        # The bits of the fp16 frequencies, as integers: `model.bfloat16()` and friends cast every floating
        # buffer, and bf16 has three bits fewer.
        self.inv_freq_bits = nn.Buffer(self.compute_inv_freq_bits(), persistent=False)

    def compute_inv_freq_bits(self) -> torch.Tensor:
        """(D / 4,) int16, made on the CPU so that every device has the same rounding."""
        exponent = torch.arange(0, self.stream_dim, 2, dtype=torch.float32, device="cpu") / self.stream_dim
        return (1.0 / 10000**exponent).half().view(torch.int16)

    @torch.no_grad()
    def forward(self, position_ids_B2T: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns cos and sin, each (B, T, 1, 1, D): ready for a (B, T, N, 2, D) pair of queries and keys."""
        inv_freq = self.inv_freq_bits.view(torch.float16).float()
        angles_BT2F = position_ids_B2T.transpose(1, 2)[..., None].float() * inv_freq
        angles_BTD = torch.cat((angles_BT2F, angles_BT2F), dim=-1).flatten(2)
        angles = angles_BTD[:, :, None, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """(a, b) to (-b, a) within each of the two streams of the last dimension."""
    halves = x.unflatten(-1, (2, 2, -1))  # stream, half, D / 4
    return torch.stack((-halves[..., 1, :], halves[..., 0, :]), dim=-2).flatten(-3)


def eager_attention_forward(
    module: nn.Module,
    query_BNTD: torch.Tensor,
    key_BNSD: torch.Tensor,
    value_BNSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations; also returns the weights, (B, N, T, S).

    `attention_mask` is bool (True: may look) or additive. In fp16 the scores of deep layers can exceed 65504,
    so queries are divided by the layer's number before the product and scores multiplied by it in fp32 after
    (GLM-130B, arXiv 2210.02414, section 2.3). The kernels behind sdpa keep scores in fp32 and need no such thing.
    """
    level = float(module.layer_idx + 1)  # type: ignore[operator]
    scores_BNTS = torch.matmul(query_BNTD * (scaling / level), key_BNSD.transpose(2, 3)).float() * level
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores_BNTS = scores_BNTS.masked_fill(~attention_mask, torch.finfo(torch.float32).min)
        else:
            scores_BNTS = scores_BNTS + attention_mask
    weights_BNTS = scores_BNTS.softmax(dim=-1).to(query_BNTD.dtype)
    weights_BNTS = nn.functional.dropout(weights_BNTS, p=dropout, training=module.training)
    return torch.matmul(weights_BNTS, value_BNSD).transpose(1, 2).contiguous(), weights_BNTS


class ChatGLMAttention(nn.Module):
    """Self-attention. The fused projection's rows are grouped per head: q, k, v of head 0, then of head 1, ..."""

    # Every mask is explicit. No mask means "sees all keys" (one new token), never "causal".
    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states_BTH: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        fused_BTN3D = self.query_key_value(hidden_states_BTH).unflatten(-1, (-1, 3, self.head_dim))
        # Under autocast the projection's precision is not that of the residual stream, which cos was made for.
        cos, sin = (table.to(fused_BTN3D.dtype) for table in position_embeddings)
        qk_BTN2D = fused_BTN3D[..., :2, :]
        qk_BTN2D = qk_BTN2D * cos + rotate_half(qk_BTN2D) * sin
        query_BNTD, key_BNTD = qk_BTN2D.permute(3, 0, 2, 1, 4).unbind(0)
        value_BNTD = fused_BTN3D[..., 2, :].transpose(1, 2)

        if past_key_values is not None:
            key_BNSD, value_BNSD = past_key_values.update(key_BNTD, value_BNTD, self.layer_idx)
        else:
            key_BNSD, value_BNSD = key_BNTD, value_BNTD

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output_BTND, weights = attention(
            self,
            query_BNTD,
            key_BNSD,
            value_BNSD,
            attention_mask,
            scaling=self.scaling,
            dropout=0.0,
            **kwargs,
        )
        return self.dense(output_BTND.flatten(2)), weights


class ChatGLMMLP(nn.Module):
    """Linear, tanh-approximated GELU, linear."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        assert config.inner_hidden_size is not None  # filled in by the configuration
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states_BTH: torch.Tensor) -> torch.Tensor:
        return self.dense_4h_to_h(nn.functional.gelu(self.dense_h_to_4h(hidden_states_BTH), approximate="tanh"))


class ChatGLMBlock(GradientCheckpointingLayer):
    """One layer. The residual is taken *after* the norm and scaled by a constant, in the manner of DeepNorm."""

    # sqrt(2 * layers) of the published model. Its code uses 28 independent of `num_layers`, so a smaller checkpoint
    # made with that code needs this number too.
    alpha = math.sqrt(2 * 28)

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLMMLP(config)

    def forward(
        self,
        hidden_states_BTH: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        normed_BTH = self.input_layernorm(hidden_states_BTH)
        attended_BTH, _ = self.attention(
            normed_BTH, position_embeddings, attention_mask, past_key_values=past_key_values, **kwargs
        )
        hidden_states_BTH = torch.add(attended_BTH, normed_BTH, alpha=self.alpha)
        normed_BTH = self.post_attention_layernorm(hidden_states_BTH)
        return torch.add(self.mlp(normed_BTH), normed_BTH, alpha=self.alpha)
