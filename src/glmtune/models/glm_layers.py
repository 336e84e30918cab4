"""Layers of `GlmForCausalLM` in fewer operations, without gradients: a decoded token is bound by their number.

Results are those of transformers' layers, bit by bit in attention. The norm of a GPU is one kernel, which rounds once,
after the product with its weight, as the published code of ChatGLM2 and ChatGLM3 does; transformers' rounds before.

Shapes: B rows, T positions, N heads of queries and keys together, D head size, F rotated pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.glm import modeling_glm
from transformers.models.glm.modeling_glm import (
    GlmAttention,
    GlmMLP,
    GlmModel,
    GlmRMSNorm,
    GlmRotaryEmbedding,
    eager_attention_forward,
)


class RotaryTables(NamedTuple):
    """Factors of a head's numbers, and of each pair's other number, (B, T, 1, D): 1 and 0 where nothing is rotated."""

    cos: torch.Tensor
    sin: torch.Tensor


class FusedGlmRotaryEmbedding(GlmRotaryEmbedding):
    """Without gradients it makes `RotaryTables`, once for all layers."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        if torch.is_grad_enabled() or self.rope_type not in ("default", "linear"):
            return super().forward(x, position_ids)
        return self._make_tables(x, position_ids)

    def _make_tables(self, x: torch.Tensor, position_ids: torch.Tensor) -> RotaryTables:
        angles_BTF = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        cos, sin = angles_BTF.cos(), angles_BTF.sin()
        if self.attention_scaling != 1:
            cos, sin = cos * self.attention_scaling, sin * self.attention_scaling
        head_dim = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
        rest = (0, head_dim - 2 * cos.shape[-1])
        cos_BTD = F.pad(torch.stack((cos, cos), dim=-1).flatten(-2), rest, value=1.0)
        sin_BTD = F.pad(torch.stack((-sin, sin), dim=-1).flatten(-2), rest)
        return RotaryTables(cos_BTD.to(x.dtype)[:, :, None], sin_BTD.to(x.dtype)[:, :, None])


class FusedGlmAttention(GlmAttention):
    """Rotates queries and keys together, with `RotaryTables`."""

    joins_projections = True
    """The layers of queries, keys and values may have an attribute `joint` that computes all three at once."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        if not isinstance(position_embeddings, RotaryTables):
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        groups: Any = self.config.num_key_value_heads
        joint = getattr(self.q_proj, "joint", None)
        if joint is not None:
            all_BTND = joint(hidden_states).view(shape)
            both_BTND, value = all_BTND[:, :, :-groups], all_BTND[:, :, -groups:].transpose(1, 2)
        else:
            both_BTND = torch.cat((self.q_proj(hidden_states), self.k_proj(hidden_states)), dim=-1).view(shape)
            value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        cos, sin = position_embeddings
        others_BTND = both_BTND.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        both_BTND = (both_BTND * cos).add_(others_BTND * sin)
        query, key = both_BTND[:, :, :-groups].transpose(1, 2), both_BTND[:, :, -groups:].transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        # Of that module: `attention_kernels` has replaced its sdpa.
        functions: Any = modeling_glm.ALL_ATTENTION_FUNCTIONS
        attend = functions.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


class FusedGlmMLP(GlmMLP):
    """Writes the product over the activated gate."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return super().forward(hidden_states)
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(self.activation_fn(gate).mul_(up))


class FusedGlmRMSNorm(GlmRMSNorm):
    """One kernel on a GPU."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        is_mixed = hidden_states.dtype != self.weight.dtype
        if torch.is_grad_enabled() or is_mixed:
            return super().forward(hidden_states)
        if hidden_states.device.type == "cpu":
            states = hidden_states.float()
            scale = states.square().mean(-1, keepdim=True).add_(self.variance_epsilon).rsqrt_()
            return (states * scale).to(hidden_states.dtype).mul_(self.weight)
        with torch.autocast(hidden_states.device.type, enabled=False):
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


def compute_hidden_states(
    decoder: nn.Module, ids_BT: torch.Tensor, mask_BHTS: torch.Tensor, positions: torch.Tensor, cache: Any
) -> torch.Tensor:
    """The last hidden states (B, T, hidden size) of a model without its head, as its own `forward` computes them.

    A GLM's layers are called one after the other, without what transformers does around them for masks, defaults and
    recorded outputs.

    Args:
        decoder: in eval mode; called without gradients.
        ids_BT: new tokens.
        mask_BHTS: True, or 0 where it is added to scores, for what a token sees.
        positions: as the model takes them.
        cache: of earlier tokens.
    """
    layers: Any = getattr(decoder, "layers", ())
    if type(decoder) is not GlmModel or any(_is_hooked(layer) for layer in layers):
        return decoder(
            input_ids=ids_BT, attention_mask=mask_BHTS, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
    hidden_BTH: Any = decoder.embed_tokens(ids_BT)
    tables = decoder.rotary_emb(hidden_BTH, position_ids=positions)
    for layer in layers:
        states, _ = layer.self_attn(
            hidden_states=layer.input_layernorm(hidden_BTH),
            attention_mask=mask_BHTS,
            position_ids=positions,
            past_key_values=cache,
            position_embeddings=tables,
        )
        hidden_BTH = hidden_BTH + states
        hidden_BTH = hidden_BTH + layer.mlp(layer.post_attention_layernorm(hidden_BTH))
    return decoder.norm(hidden_BTH)


def _is_hooked(layer: nn.Module) -> bool:
    """Whether calling a layer does more than its class says, as accelerate's hooks for several devices do."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    GlmRotaryEmbedding: FusedGlmRotaryEmbedding,
    GlmAttention: FusedGlmAttention,
    GlmMLP: FusedGlmMLP,
    GlmRMSNorm: FusedGlmRMSNorm,
}


def fuse_layers(model: nn.Module) -> None:
    """Let the layers that have one use their fused form. Weights and names stay, so that saving writes the same."""
    for module in model.modules():
        module.__class__ = _FUSED.get(type(module), type(module))
