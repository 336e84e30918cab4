"""Native configs of published folders, for `load_base` and for transformers' Auto classes.

Importing this module registers our models with `AutoModelForCausalLM`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from glmtune.errors import ModelError, join_lines
from glmtune.families import (
    FAMILY_KEY,
    AmbiguousFamilyError,
    Family,
    family_from_config,
    family_from_folder,
    read_model_config,
)
from glmtune.models.chatglm import ChatGLMConfig, ChatGLMForCausalLM
from glmtune.models.glm import PublishedGlm, PublishedGlmConfig, make_glm_config
from glmtune.models.weight_names import convert_to_published
from glmtune.quantization.packed import BITS
from glmtune.quantization.quantizer import PackedQuantizationConfig
from glmtune.utils.io import find_json_object

PUBLISHED_OPTIONS = ("pre_seq_len", "prefix_projection", "quantization_bit")
"""Keys of the published configs that `AutoConfig.from_pretrained` takes as keywords and transformers' own lack."""


def find_family(folder: Path, name: str = "") -> Family | None:
    """Find the family of a folder; None if ChatGLM2 or ChatGLM3 cannot be decided, which matters for prompts only.

    Raises:
        ModelError: see `glmtune.families.family_from_folder`.
    """
    try:
        return family_from_folder(folder, name)
    except AmbiguousFamilyError:
        return None


def make_native_config(folder: Path, family: Family | None) -> PreTrainedConfig:
    """Make the config that a checkpoint folder loads with, published or in transformers' layout.

    Raises:
        ModelError: see `read_published_config`.
    """
    config = read_model_config(folder)
    if config["model_type"] == "chatglm":
        return read_published_config(config, family)
    try:
        loaded = AutoConfig.from_pretrained(folder)
    except ModelError:
        raise
    except Exception as error:  # transformers' checks of types and values raise many kinds
        raise ModelError(f"{folder / 'config.json'}: {join_lines(error)}.", "Download config.json again.") from None
    if family:
        setattr(loaded, FAMILY_KEY, family.name)
    return _announce_packing(loaded)


def read_published_config(config: dict[str, Any], family: Family | None) -> PreTrainedConfig:
    """Make the native config of a published config.json (any `model_type: chatglm`).

    Args:
        config: the parsed file.
        family: its generation; None for a ChatGLM2 or ChatGLM3 that does not say which.

    Raises:
        ModelError: a key that the generation needs is missing, or has a value that none of them supports.
    """
    try:
        if family and family.name == "chatglm":
            own = {key: value for key, value in config.items() if key not in ("auto_map", "model_type")}
            return _announce_packing(ChatGLMConfig(**own | {FAMILY_KEY: family.name}))
        return _announce_packing(make_glm_config(config, family))
    except KeyError as error:
        title = family.title if family else "ChatGLM2-6B"
        raise ModelError(f"config.json: no key {error}, which {title} needs.", "Download config.json again.") from None
    except ModelError:
        raise
    except Exception as error:  # transformers' checks of types and values raise many kinds
        raise ModelError(f"config.json: {join_lines(error)}.", "Download config.json again.") from None


def has_published_layout(folder: Path) -> bool:
    """Whether a folder's config.json is that of the published code rather than of transformers' `glm` or `glm4`."""
    config = find_json_object(folder / "config.json")
    return config is not None and config.get("model_type") == "chatglm"


def read_packed_bits(config: PreTrainedConfig) -> int:
    """Bits of the packed weights that a config announces; 0 for full precision."""
    return getattr(config, "quantization_bit", None) or 0


def _announce_packing(config: PreTrainedConfig) -> PreTrainedConfig:
    """Set `quantization_config` for packed weights; published files have `quantization_bit` alone."""
    bits = read_packed_bits(config)
    if bits and bits not in BITS:
        raise ModelError(f"config.json: quantization_bit is {bits}; packed weights have 4 or 8.", "Correct the key.")
    if bits and (getattr(config, "quantization_embeddings", False) or getattr(config, "quantize_embeddings", False)):
        raise ModelError(
            f"config.json: the embeddings are packed into int{bits} too, which cannot be loaded.",
            "Use a repository whose embeddings are not, such as THUDM/chatglm-6b-int4, or the full-precision one.",
        )
    if bits:
        config.quantization_config = PackedQuantizationConfig(bits).to_dict()
    return config


def open_published_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Get a loaded model's weights under their published names, bit for bit; packed ones in the official layout.

    With `"quantization_bit"` in config.json, packed weights so written are a published quantised repository's.
    """
    state = model.state_dict()
    return state if isinstance(model, ChatGLMForCausalLM) else convert_to_published(state)


def make_config_from_dict(config_dict: dict[str, Any], **kwargs: Any) -> Any:
    """Implement `from_dict` as `AutoConfig` calls it: the config, with overrides from `kwargs` set on it."""
    source = str(kwargs.pop("name_or_path", "") or config_dict.get("_name_or_path", ""))
    config = read_published_config(config_dict, _find_family_of_config(config_dict, source))
    return_unused = kwargs.pop("return_unused_kwargs", False)
    for key in ("pre_seq_len", "prefix_projection"):
        if config_dict.get(key):
            setattr(config, key, config_dict[key])
    for key in [key for key in kwargs if hasattr(config, key) or key in PUBLISHED_OPTIONS]:
        setattr(config, key, kwargs.pop(key))
    config._name_or_path = source
    unused = {key: value for key, value in kwargs.items() if not key.startswith("_from_")}
    return (config, unused) if return_unused else config


def _find_family_of_config(config: dict[str, Any], source: str) -> Family | None:
    if source and Path(source).is_dir():
        return find_family(Path(source))
    clues = [source, str(config.get("_name_or_path", ""))]
    try:
        return family_from_config(config, names=clues, where=source or "config.json")
    except AmbiguousFamilyError:
        return None


# AutoModel too: the published config.json files name the language model for it.
for auto_class in (AutoModel, AutoModelForCausalLM):
    auto_class.register(ChatGLMConfig, ChatGLMForCausalLM, exist_ok=True)
    auto_class.register(PublishedGlmConfig, PublishedGlm, exist_ok=True)
