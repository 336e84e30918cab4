"""Types and ranges of the values in a checkpoint's config.json, checked before anything is built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glmtune.config_ranges import NumberRange
from glmtune.errors import ModelError
from glmtune.utils.documents import shorten_value

_HINT = "Download config.json again, or correct the key."

_WIDTH = NumberRange(1, 10**6)
_LAYERS = NumberRange(1, 1000)
_VOCABULARY = NumberRange(1, 10**7)
_LENGTH = NumberRange(1, 10**9)
_SHARE = NumberRange(0, 1, excludes_high=True)

# Whole numbers that the model is built from. None of the optional ones means: as computed from the others.
_COUNTS: dict[str, NumberRange] = {
    "hidden_size": _WIDTH,
    "inner_hidden_size": _WIDTH,
    "ffn_hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "kv_channels": _WIDTH,
    "head_dim": _WIDTH,
    "num_layers": _LAYERS,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": NumberRange(1, 10_000),
    "num_key_value_heads": NumberRange(1, 10_000),
    "multi_query_group_num": NumberRange(1, 10_000),
    "vocab_size": _VOCABULARY,
    "padded_vocab_size": _VOCABULARY,
    "seq_length": _LENGTH,
    "max_sequence_length": _LENGTH,
    "max_position_embeddings": _LENGTH,
    "quantization_bit": NumberRange(0, 16),
    "pre_seq_len": NumberRange(0, 65_536),
}
_FLOATS: dict[str, NumberRange] = {
    "layernorm_epsilon": NumberRange(0, 1),
    "rms_norm_eps": NumberRange(0, 1),
    "attention_dropout": _SHARE,
    "hidden_dropout": _SHARE,
    "rope_ratio": NumberRange(0, 10**6),
    "initializer_range": NumberRange(0, 1000),
}
_FLAGS = (
    "add_bias_linear",
    "add_qkv_bias",
    "apply_residual_connection_post_layernorm",
    "attention_bias",
    "fp32_residual_connection",
    "interleaved_qkv",
    "multi_query_attention",
    "position_encoding_2d",
    "post_layer_norm",
    "prefix_projection",
    "quantization_embeddings",
    "quantize_embeddings",
    "rmsnorm",
    "tie_word_embeddings",
    "use_cache",
)
_TEXTS = ("model_type", "glmtune_family")
_PRECISIONS = ("float16", "bfloat16", "float32", "float64")
_TOKENS = ("bos_token_id", "gmask_token_id", "mask_token_id", "pad_token_id")
_REQUIRED = ("hidden_size", "num_layers", "num_hidden_layers", "num_attention_heads", "vocab_size", "padded_vocab_size")

_READABLE_QUANTIZATIONS = ("bitsandbytes", "glm_packed")
"""Values of `quant_method`: bitsandbytes, and our own name for the published packing."""


def check_config_values(config: dict[str, Any], path: Path) -> None:
    """Require that every known key of a config.json has a value of its type and range.

    Args:
        config: the parsed file.
        path: of it, for the message.

    Raises:
        ModelError: names the key, its value and what it must be; or the scheme of quantised weights that cannot be
            loaded.
    """

    def refuse(key: str, expected: object) -> ModelError:
        return ModelError(f"{path}: {key} is {shorten_value(config[key])}; it must be {expected}.", _HINT)

    for key in config:
        value = config[key]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is None and key not in _REQUIRED:
            continue
        if key in _COUNTS and not (is_number and isinstance(value, int) and _COUNTS[key].contains(value)):
            raise refuse(key, f"a whole number {_COUNTS[key]}")
        if key in _FLOATS and not (is_number and _FLOATS[key].contains(value)):
            raise refuse(key, f"a number {_FLOATS[key]}")
        if key in _FLAGS and not isinstance(value, bool):
            raise refuse(key, "true or false")
        if key in _TEXTS and not isinstance(value, str):
            raise refuse(key, "text")
        if key in ("torch_dtype", "dtype") and str(value).removeprefix("torch.") not in _PRECISIONS:
            raise refuse(key, f"one of {', '.join(_PRECISIONS)}")
        if key in _TOKENS and not _is_token(value):
            raise refuse(key, "the id of a token")
        if key == "eos_token_id" and not (_is_token(value) or _is_token_list(value)):
            raise refuse(key, "the id of a token, or a list of ids")
    _check_heads(config, path)
    _check_quantization(config.get("quantization_config"), path)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -1 <= value < 10**7


def _is_token_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_token, value))


def _check_heads(config: dict[str, Any], path: Path) -> None:
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if heads and width and not (config.get("kv_channels") or config.get("head_dim")) and width % heads:
        raise ModelError(f"{path}: hidden_size is {width}, no multiple of num_attention_heads ({heads}).", _HINT)
    for key in ("multi_query_group_num", "num_key_value_heads"):
        groups = config.get(key)
        if heads and groups and heads % groups:
            raise ModelError(f"{path}: num_attention_heads is {heads}, no multiple of {key} ({groups}).", _HINT)


def _check_quantization(value: Any, path: Path) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        expected = "an object with quant_method"
        raise ModelError(f"{path}: quantization_config is {shorten_value(value)}; it must be {expected}.", _HINT)
    scheme = value.get("quant_method")
    if scheme not in _READABLE_QUANTIZATIONS:
        name = scheme if isinstance(scheme, str) and len(scheme) < 40 else "an unknown scheme"
        raise ModelError(
            f"{path}: the weights are quantised by {name} (quantization_config), which cannot be loaded.",
            "Use the full-precision repository of the same model; --set model.quantization=nf4 quantises while "
            "loading.",
        )
