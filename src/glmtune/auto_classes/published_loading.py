"""What transformers' Auto classes load from a published folder: our model and our tokenizer, checked as everywhere."""

from __future__ import annotations

import copy
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import BitsAndBytesConfig, PreTrainedConfig

from glmtune.auto_classes.entry_points import HUB_OPTIONS
from glmtune.errors import ModelError
from glmtune.families import get_family
from glmtune.hub import list_patterns, resolve_checkpoint
from glmtune.methods.base_info import require_same_base
from glmtune.methods.lora import load_adapter
from glmtune.methods.ptuning import attach_new_prefix, disable_prefix, find_prefix, is_prefix_folder, load_prefix
from glmtune.methods.tuned_model import ModelTarget, resolve_target
from glmtune.models.auto import PUBLISHED_OPTIONS, find_family, read_packed_bits
from glmtune.models.checkpoints import Checkpoint, inspect_checkpoint
from glmtune.models.loading import load_weights, make_quantization_arguments, parse_dtype
from glmtune.models.shared_head import share_equal_head
from glmtune.models.tokenizers import load_tokenizer
from glmtune.quantization.packed import BITS
from glmtune.quantization.quantizer import get_quantization, pack_model

# Options of the published models and of transformers that have nothing to do here.
_IDLE_OPTIONS = (
    "trust_remote_code",
    "code_revision",
    "low_cpu_mem_usage",
    "empty_init",
    "adapter_kwargs",
    "resume_download",
    "mirror",
    "_from_auto",
)
# What the published tokenizers take when they are loaded, and transformers' own settings of a tokenizer.
_TOKENIZER_SETTINGS = (
    "padding_side",
    "truncation_side",
    "model_max_length",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
)


def load_published_model(path: str | os.PathLike[str], **options: Any) -> Any:
    """Load a published folder as `AutoModel.from_pretrained` is asked to.

    Args:
        path: a folder or a hub id.
        options: `config` (from `AutoConfig`), `dtype` or `torch_dtype`, `device` or `device_map`,
            `quantization_config`, `load_in_4bit`, `load_in_8bit`, `pre_seq_len` and other keys of the config, options
            of the hub; all others are passed to transformers.

    Returns:
        The language model in eval mode. With `pre_seq_len` it has a new prefix as `model.transformer.prefix_encoder`,
        or the prefix that the folder holds.

    Raises:
        ModelError: the folder cannot be loaded as it is, or not with this quantisation.
    """
    options = {key: value for key, value in options.items() if key not in _IDLE_OPTIONS}
    target = resolve_target(path) if os.path.isdir(path) else ModelTarget(str(path))
    folder = resolve_folder(target.base, options, "all")
    family = get_family(target.family) if target.family else find_family(folder, name=target.base)
    base = inspect_checkpoint(folder, family=family.name if family else None)
    if target.adapter is not None:
        require_same_base(target.adapter, base.fingerprint, base.folder)
    config = _choose_config(base, options)
    quantization, bits_config = _choose_quantization(options)
    bits = read_packed_bits(config)
    if bits and not base.packed_bits and not quantization:
        quantization = f"packed{bits}"
    precision = parse_dtype(_pop_dtype(options)) or base.inventory.dtype
    arguments = make_quantization_arguments(base, quantization, precision, double=False)
    if bits_config is not None:
        arguments["quantization_config"] = bits_config
    device_map = options.pop("device_map", None)
    device = options.pop("device", None)
    if device is not None and device_map is None:
        device_map = {"": torch.device(device)}
    arguments = {"dtype": precision, "device_map": device_map} | arguments | options
    base = replace(base, config=config)
    model: Any = load_weights(base, quantization, precision, arguments)
    _share_head_of_quantized(model)
    model.config._name_or_path = model.name_or_path = target.base
    if target.adapter is not None and not is_prefix_folder(target.adapter):
        return load_adapter(model, target.adapter).eval()
    return _add_prefix(model, base, target.adapter)


def load_published_tokenizer(path: str | os.PathLike[str], **options: Any) -> Any:
    """Load the tokenizer of a published folder as `AutoTokenizer.from_pretrained` is asked to.

    Raises:
        ModelError: see `load_tokenizer`; or an option that has no effect here.
    """
    ignored = (*_IDLE_OPTIONS, "use_fast", "config")
    options = {key: value for key, value in options.items() if key not in ignored}
    has_own = (Path(path) / "config.json").is_file() or not os.path.isdir(path)
    target = ModelTarget(str(path)) if has_own else resolve_target(path)
    folder = resolve_folder(target.base, options, "tokenizer")
    if "encode_special_tokens" in options:  # of the published tokenizers: whether special tokens typed in a text count
        options["split_special_tokens"] = not options.pop("encode_special_tokens")
    unknown = [key for key in options if key not in _TOKENIZER_SETTINGS]
    if unknown:
        raise ModelError(
            f"AutoTokenizer: {', '.join(unknown)} cannot be set for the tokenizer of {path}.",
            f"Known: {', '.join((*_TOKENIZER_SETTINGS, 'encode_special_tokens'))}.",
        )
    family = find_family(folder, name=str(path)) if target.family is None else get_family(target.family)
    tokenizer: Any = load_tokenizer(folder, family=family.name if family else None, adapter=target.adapter)
    for key, value in options.items():
        setattr(tokenizer, key, value)
    tokenizer.name_or_path = target.base
    return tokenizer


def quantize_in_place(model: Any, bits: int) -> Any:
    """Pack a loaded model's matrices in the official scheme; a prefix stays as it is.

    Raises:
        ModelError: another number of bits, or a model that is quantised otherwise.
    """
    if bits not in BITS:
        raise ModelError(f"quantize({bits!r}): packed weights have 4 or 8 bits.", "Give 4 or 8.")
    present = get_quantization(model)
    if present == f"packed{bits}":
        return model
    if present:
        raise ModelError(f"quantize({bits}): the model is {present} already.", "Load it in full precision.")
    with disable_prefix(model) if find_prefix(model) is not None else nullcontext():
        pack_model(model, bits)
    _share_head_of_quantized(model)
    return model


def _share_head_of_quantized(model: Any) -> None:
    """Hold ChatGLM-6B's equal embedding and head once, which saves 1 GB.

    Not in full precision: the caller may train all weights in a loop of its own, where these are two.
    """
    if get_quantization(model):
        share_equal_head(model)


def resolve_folder(path: str | os.PathLike[str], options: dict[str, Any], parts: str) -> Path:
    """The local folder of what was asked for; options of the hub are taken out of `options`."""
    if "use_auth_token" in options:  # of transformers 4
        options["token"] = options.pop("use_auth_token")
    hub_options = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
    asked = {key: value for key, value in hub_options.items() if value is not None}
    if os.path.isdir(path) or not asked:
        return resolve_checkpoint(path, parts=parts)
    asked.pop("proxies", None)
    return Path(snapshot_download(str(path), allow_patterns=list_patterns(parts), **asked))


def _choose_config(base: Checkpoint, options: dict[str, Any]) -> PreTrainedConfig:
    """The caller's config or the folder's, with the keys that the caller names beside it."""
    given = options.pop("config", None)
    if isinstance(given, str | os.PathLike):
        raise ModelError(f"AutoModel: config is a path ({given}).", "Give a config: AutoConfig.from_pretrained(PATH).")
    if given is not None and not isinstance(given, type(base.config)):
        raise ModelError(
            f"AutoModel: config is a {type(given).__name__}; {base.folder} needs a {type(base.config).__name__}.",
            "Make it with AutoConfig.from_pretrained of the same folder.",
        )
    config = copy.deepcopy(base.config if given is None else given)
    config.vocab_size = base.config.vocab_size  # the weights' number of rows
    names = [key for key in options if key in PUBLISHED_OPTIONS or key in config.to_dict()]
    for key in names:
        if key not in ("dtype", "torch_dtype", "quantization_config"):
            setattr(config, key, options.pop(key))
    return config


def _choose_quantization(options: dict[str, Any]) -> tuple[str | None, BitsAndBytesConfig | None]:
    """Our name of the quantisation that is asked for, and its settings."""
    settings: Any = options.pop("quantization_config", None)
    flags = {key: options.pop(key) for key in ("load_in_4bit", "load_in_8bit") if key in options}
    if isinstance(settings, dict) and settings.get("quant_method", "bitsandbytes") == "bitsandbytes":
        settings = BitsAndBytesConfig.from_dict(settings)
    if settings is None and any(flags.values()):
        settings = BitsAndBytesConfig(**flags)
    if settings is None:
        return None, None
    if not isinstance(settings, BitsAndBytesConfig):
        raise ModelError(
            f"AutoModel: quantization_config is a {type(settings).__name__}, which is not supported.",
            "Give a BitsAndBytesConfig, or call model.quantize(4) on the loaded model.",
        )
    if settings.load_in_4bit:
        return "nf4", settings
    return ("int8", settings) if settings.load_in_8bit else (None, None)


def _pop_dtype(options: dict[str, Any]) -> Any:
    asked = [options.pop(key) for key in ("torch_dtype", "dtype") if key in options]
    named = [value for value in asked if value not in (None, "auto")]
    return named[0] if named else None


def _add_prefix(model: Any, base: Checkpoint, folder: Path | None) -> Any:
    """The prefix of a folder, or a new one if `pre_seq_len` asks for it."""
    tokens = getattr(base.config, "pre_seq_len", None)
    if folder is not None:
        load_prefix(model, folder)
    elif tokens:
        longest = model.config.max_position_embeddings
        if not isinstance(tokens, int) or not 0 < tokens <= longest:
            raise ModelError(f"pre_seq_len is {tokens!r}; the model has {longest} positions.", "128 is usual.")
        attach_new_prefix(model, tokens, bool(getattr(base.config, "prefix_projection", False)))
    if find_prefix(model) is not None and not hasattr(model, "transformer"):
        # The published name of the inner model. In __dict__, so that it is no second set of weights.
        model.__dict__["transformer"] = model.base_model
    return model.eval()
