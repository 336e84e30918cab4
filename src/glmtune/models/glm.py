"""ChatGLM2, ChatGLM3 and original GLM-4 checkpoints as transformers' `GlmForCausalLM`."""

from __future__ import annotations

from typing import Any

from transformers import GlmConfig, GlmForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from glmtune.errors import ModelError
from glmtune.families import FAMILY_KEY, Family
from glmtune.models import attention_kernels  # noqa: F401 (chooses the attention of GLM's layers)
from glmtune.models.weight_names import COMPUTED, PREFIX_ENCODER, make_conversions

# What GlmForCausalLM computes; with other values a published config would load and give wrong numbers.
_REQUIRED = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "interleaved_qkv": False,
}


class PublishedGlmConfig(GlmConfig):
    """A `GlmConfig` that came from a published config.json; it only marks which weights to expect."""


class PublishedGlm(GlmForCausalLM):
    """Reads the published names. What it returns is a plain `GlmForCausalLM`, so saving writes transformers' own.

    The conversions are registered under this class's name: under `glm` they would turn every other
    `GlmForCausalLM` in the process into one that saves published names.
    """

    config_class = PublishedGlmConfig
    _keys_to_ignore_on_load_unexpected = [*COMPUTED, f"^{PREFIX_ENCODER}"]  # noqa: RUF012 (as transformers declares it)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        result = super().from_pretrained(*args, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        model.__class__ = GlmForCausalLM
        model.config.__class__ = GlmConfig
        model._weight_conversions = []
        return result


register_checkpoint_conversion_mapping(PublishedGlm.__name__, make_conversions(), overwrite=True)


def make_glm_config(published: dict[str, Any], family: Family | None) -> PublishedGlmConfig:
    """The transformers config of a published ChatGLM2, ChatGLM3 or GLM-4 config.json.

    Args:
        published: the parsed file.
        family: decides what `rope_ratio` means, which the file alone does not say; None for a ChatGLM2 or ChatGLM3
            that does not say which.

    Raises:
        ModelError: the config describes an architecture that no published generation has.
    """
    for key, value in _REQUIRED.items():
        if published.get(key, value) != value:
            raise ModelError(
                f"config.json: {key} is {published[key]}, which no published ChatGLM2, ChatGLM3 or GLM-4 has.",
                "Its own code computes something else than the published models; glmtune cannot load it exactly.",
            )
    heads = published["num_attention_heads"]
    head_dim = published.get("kv_channels") or published["hidden_size"] // heads
    groups = published["multi_query_group_num"] if published.get("multi_query_attention", True) else heads
    config = PublishedGlmConfig(
        vocab_size=published["padded_vocab_size"],
        hidden_size=published["hidden_size"],
        intermediate_size=published["ffn_hidden_size"],
        num_hidden_layers=published["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        attention_bias=published.get("add_qkv_bias", False) or published.get("add_bias_linear", False),
        attention_dropout=published.get("attention_dropout", 0.0),
        max_position_embeddings=published.get("seq_length", 2048),
        rms_norm_eps=published.get("layernorm_epsilon", 1e-5),
        rope_parameters=_read_rope(published, family),
        tie_word_embeddings=published.get("tie_word_embeddings", False),
        pad_token_id=published.get("pad_token_id", 0),
        eos_token_id=published.get("eos_token_id", 2),
        use_cache=published.get("use_cache", True),
        dtype=published.get("torch_dtype") or published.get("dtype"),
    )
    if family:
        setattr(config, FAMILY_KEY, family.name)
    if published.get("quantization_bit"):
        config.quantization_bit = published["quantization_bit"]
    return config


def _read_rope(published: dict[str, Any], family: Family | None) -> dict[str, Any]:
    """Rotary parameters. `rope_ratio` stretches the base, but in ChatGLM2-6B-32k it divides the positions."""
    ratio = published.get("rope_ratio", 1) or 1
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    if ratio == 1:
        return rope
    if family is None:
        raise ModelError(
            f"config.json: rope_ratio {ratio} means one thing in ChatGLM2 and another in ChatGLM3, and nothing says "
            "which of them this is.",
            f'Set the family to chatglm2 or chatglm3, or add "{FAMILY_KEY}": "chatglm3" to config.json.',
        )
    if family.positions_scaled:
        return rope | {"rope_type": "linear", "factor": float(ratio)}
    return rope | {"rope_theta": 10000.0 * ratio}
