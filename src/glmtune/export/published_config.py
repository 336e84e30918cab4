"""config.json in the published layout: the base's own, or one made again from a transformers config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GlmConfig, PreTrainedConfig

from glmtune.errors import ModelError
from glmtune.families import FAMILY_KEY, Family, read_model_config
from glmtune.models.chatglm import ChatGLMConfig

_CODE = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
}
"""Where the published repositories have their code, for libraries that run it. glmtune never does."""
_NOT_PUBLISHED = ("dtype", "quantization_config", "quantization_bit", "architectures", "auto_map")


def has_published_layout(config: PreTrainedConfig) -> bool:
    """Whether a model of this architecture was ever published in the layout of the ChatGLM repositories."""
    return isinstance(config, (ChatGLMConfig, GlmConfig))


def make_published_config(
    folder: Path, config: PreTrainedConfig, family: Family, dtype: torch.dtype, bits: int | None
) -> dict[str, Any]:
    """The published config.json of a model.

    Args:
        folder: of the base; its own file is copied if it is a published one.
        config: the native config.
        family: the generation.
        dtype: of the weights that are not packed.
        bits: 8 or 4 when the weights are packed.

    Raises:
        ModelError: the rotary parameters are none that a published config can say.
    """
    own = read_model_config(folder)
    # Both ways of writing ChatGLM-6B have the published keys; what libraries add to them goes.
    if own["model_type"] == ChatGLMConfig.model_type:
        published = {key: value for key, value in own.items() if key not in _NOT_PUBLISHED}
        # The weights' number of rows, which a resized base's own file may not have.
        published["padded_vocab_size" if "padded_vocab_size" in own else "vocab_size"] = config.vocab_size
        code = own.get("auto_map", _CODE)
    else:
        assert isinstance(config, GlmConfig)
        published, code = _convert_glm_config(config, family, folder), _CODE
    published |= {"architectures": ["ChatGLMModel"], "auto_map": code, FAMILY_KEY: family.name}
    published["torch_dtype"] = str(dtype).removeprefix("torch.")
    return published | ({"quantization_bit": bits} if bits else {})


def _convert_glm_config(config: GlmConfig, family: Family, folder: Path) -> dict[str, Any]:
    """The inverse of `glmtune.models.glm.make_glm_config`, with the constants that all published files share."""
    return {
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": config.attention_bias,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": config.attention_dropout,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": config.intermediate_size,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": config.hidden_size,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.rms_norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": config.num_key_value_heads,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "original_rope": True,
        "padded_vocab_size": config.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        **_find_rope_ratio(config, family, folder),
        "seq_length": config.max_position_embeddings,
        "use_cache": True,
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }


def _find_rope_ratio(config: GlmConfig, family: Family, folder: Path) -> dict[str, float]:
    """`rope_ratio`, left out where it is 1: the oldest published code does not know it."""
    rope: Any = config.rope_parameters
    kind, theta = rope.get("rope_type", "default"), rope["rope_theta"]
    if (
        kind == "default"
        and rope.get("partial_rotary_factor") == 0.5
        and not (family.positions_scaled and theta != 1e4)
    ):
        ratio = theta / 1e4
    elif kind == "linear" and family.positions_scaled and theta == 1e4:
        ratio = rope["factor"]
    else:
        raise ModelError(
            f"{folder}: its rotary parameters ({dict(rope)}) cannot be written in the published layout.",
            "Export it with --format hf.",
        )
    return {} if ratio == 1 else {"rope_ratio": int(ratio) if ratio == int(ratio) else ratio}
