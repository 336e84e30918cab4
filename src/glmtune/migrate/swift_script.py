"""ms-swift, versions 1 to 3: `swift sft`, `swift pt` and `swift rlhf`, and its commands that do not train."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from glmtune.config_parsing import parse_number
from glmtune.errors import ConfigError
from glmtune.migrate.command_words import parse_words
from glmtune.migrate.dialect import (
    Dialect,
    Rules,
    accept_values,
    disable_evaluation_without_data,
    format_flag,
    ignore_key,
    map_key,
    replace_training_defaults,
    require_known_keys,
)
from glmtune.migrate.evaluation_lines import list_ignored
from glmtune.migrate.factory_defaults import split_names
from glmtune.migrate.replacement import ReplacementCommand, make_options
from glmtune.migrate.swift_preference import RLHF_LISTS, RLHF_RULES, set_rlhf_options
from glmtune.migrate.translation import Translation

_REMOVE_HINT = "Leave it out."
_MODEL_IDS = {
    "chatglm2-6b": "ZhipuAI/chatglm2-6b",
    "chatglm2-6b-32k": "ZhipuAI/chatglm2-6b-32k",
    "chatglm3-6b": "ZhipuAI/chatglm3-6b",
    "chatglm3-6b-base": "ZhipuAI/chatglm3-6b-base",
    "chatglm3-6b-32k": "ZhipuAI/chatglm3-6b-32k",
    "chatglm3-6b-128k": "ZhipuAI/chatglm3-6b-128k",
    "glm4-9b": "ZhipuAI/glm-4-9b",
    "glm4-9b-chat": "ZhipuAI/glm-4-9b-chat",
    "glm4-9b-chat-1m": "ZhipuAI/glm-4-9b-chat-1m",
}
"""`--model_type` to the id on ModelScope, of versions 1 and 2."""

_METHODS = {"lora": "lora", "full": "full", "longlora": "lora"}
RULES: Rules = {
    "model_id_or_path": map_key("model.path"),
    "model_type": ignore_key("decides model.path, unless --model_id_or_path or --model does"),
    "model_revision": accept_values(
        *("master", "main"), note="the newest revision is used", hint="Download the revision and give its folder."
    ),
    "use_hf": ignore_key("true: hub ids belong to Hugging Face, else to ModelScope", switch=True),
    "template_type": ignore_key("the model family decides the prompt format"),
    "template": ignore_key("the model family decides the prompt format"),
    "sft_type": map_key("method", values={key: _METHODS[key] for key in ("lora", "full")}),
    "train_type": map_key("method", values={key: _METHODS[key] for key in ("lora", "full")}),
    "tuner_type": map_key("method", values={key: _METHODS[key] for key in ("lora", "full")}),
    "tuner_backend": ignore_key("always peft"),
    "dtype": map_key("model.precision", values={"AUTO": "auto", "bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}),
    "torch_dtype": map_key("model.precision", values={"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}),
    "dataset": map_key("data.train", "NAME#N is a random sample of N rows"),
    "custom_train_dataset_path": map_key("data.train"),
    "val_dataset": map_key("data.eval"),
    "custom_val_dataset_path": map_key("data.eval"),
    "train_dataset_sample": accept_values(
        *(-1, "-1"), note="glmtune limits the rows per data entry", hint="Give --dataset NAME#N."
    ),
    "dataset_test_ratio": map_key("data.eval_fraction"),
    "split_dataset_ratio": map_key("data.eval_fraction"),
    "dataset_seed": ignore_key("training.seed draws the rows"),
    "dataset_num_proc": ignore_key("set automatically; the rows are the same"),
    "preprocess_num_proc": ignore_key("set automatically; the rows are the same"),
    "max_length": map_key("data.max_length"),
    "truncation_strategy": map_key("data.overlength", values={"delete": "drop", "truncation_left": "cut"}),
    "check_dataset_strategy": ignore_key("rows are always checked: glmtune data check FILE"),
    "packing": map_key("data.packing", switch=True),
    "system": accept_values(note="a system message is part of its row", hint="Add it to the rows."),
    "quantization_bit": map_key("model.quantization", values={0: None, 4: "nf4", 8: "int8"}),
    "quant_bits": map_key("model.quantization", values={4: "nf4", 8: "int8"}),
    "quant_method": accept_values("bnb", note="only bitsandbytes is supported", hint="Use bnb."),
    "bnb_4bit_comp_dtype": ignore_key("model.precision decides it"),
    "bnb_4bit_compute_dtype": ignore_key("model.precision decides it"),
    "lora_rank": map_key("lora.rank"),
    "lora_alpha": map_key("lora.alpha"),
    "lora_dropout": map_key("lora.dropout"),
    "lora_dropout_p": map_key("lora.dropout"),
    "lora_target_modules": map_key("lora.targets", "DEFAULT is the query, key and value projections, ALL all-linear"),
    "target_modules": map_key("lora.targets"),
    "use_dora": map_key("lora.dora", switch=True),
    "use_rslora": map_key("lora.rslora", switch=True),
    "adapters": map_key("adapter"),
    "batch_size": map_key("training.per_device_train_batch_size"),
    "eval_batch_size": map_key("training.per_device_eval_batch_size"),
    "attn_impl": map_key(
        "model.attention", values={"flash_attn": "flash_attention_2", "sdpa": "sdpa", "eager": "eager"}
    ),
    "use_flash_attn": ignore_key("model.attention decides it"),
    "add_output_dir_suffix": ignore_key("the run is written to the output that is given", switch=True),
    "logging_dir": ignore_key("the curves are in the run folder"),
    "only_save_model": map_key("training.save_only_model", switch=True),
    "model_author": accept_values(note="rows of self-cognition are not added", hint=_REMOVE_HINT),
    "model_name": accept_values(note="rows of self-cognition are not added", hint=_REMOVE_HINT),
    "load_from_cache_file": ignore_key("the cache of encoded rows is keyed by their content", switch=True),
    "streaming": accept_values(False, note="rows are encoded once, then memory-mapped", hint=_REMOVE_HINT, switch=True),
    **RLHF_RULES,
}
"""Keys of `swift sft` and `swift rlhf`; they take those of `TrainingArguments` too."""


def _set_defaults(translation: Translation, values: Mapping[str, Any]) -> None:
    source = "ms-swift's of version 3"
    translation.set_default("method", "lora", source)
    kind = str(values.get("model_type") or "")
    if kind in _MODEL_IDS:
        translation.set_default("model.path", _MODEL_IDS[kind], f"the model of --model_type {kind}")
    elif kind and not translation.get_value("model.path"):
        raise ConfigError(
            f"{translation.source}: --model_type {kind} is not a model of this kind.", "Give --model PATH."
        )
    if str(values.get("use_hf", "false")).lower() not in ("true", "1"):
        translation.set_default("model.hub", "modelscope", source)
    for key in ("data.train", "data.eval"):
        if translation.get_value(key):
            names = translation.get_value(key)
            names = names if isinstance(names, list) else re.split(r"[,\s]+", str(names).strip())
            translation.set_value(key, [_make_entry(name, translation) for name in names])
    translation.set_default("data.max_length", 2048, source)
    if translation.get_value("method") == "lora":
        for key, value in (("rank", 8), ("alpha", 32), ("dropout", 0.05)):
            translation.set_default(f"lora.{key}", value, source)
        names = split_names(translation.get_value("lora.targets") or "all-linear")
        targets = ["all-linear" if name in ("ALL", "all-linear") else name for name in names]
        translation.set_value("lora.targets", [name for name in targets if name != "DEFAULT"])
    rates = {"learning_rate": 1e-4, "lr_scheduler_type": "cosine", "warmup_steps": 0.05}
    rates |= {"weight_decay": 0.1, "adam_beta2": 0.95, "logging_steps": 5}
    replace_training_defaults(translation, values, {**rates, **_choose_batch_sizes(values)}, source)
    translation.set_default("training.gradient_checkpointing", True)
    set_rlhf_options(translation, values, source)
    disable_evaluation_without_data(translation)


def _choose_batch_sizes(values: Mapping[str, Any]) -> dict[str, int]:
    """The batch sizes that are not given: 1, and as many micro-batches as make a step of 16 rows; with GRPO one."""
    sizes = {}
    given = values.get("per_device_train_batch_size") or values.get("batch_size")
    if given is None:
        sizes["per_device_train_batch_size"] = 1
    if values.get("per_device_eval_batch_size") is None and values.get("eval_batch_size") is None:
        sizes["per_device_eval_batch_size"] = 1
    is_grpo = values.get("rlhf_type") == "grpo"
    return sizes | {"gradient_accumulation_steps": 1 if is_grpo else max(1, -(-16 // int(parse_number(given or 1))))}


def _make_entry(name: str, translation: Translation) -> Any:
    """Return the entry of `data.train` for a name such as `AI-ModelScope/alpaca-gpt4-data-zh#500`."""
    path, mark, count = name.partition("#")
    if translation.get_value("model.hub") == "modelscope" and re.fullmatch(r"[\w-]+/[\w.-]+", path):
        entry: Any = {"path": path, "hub": "modelscope"}
    else:
        entry = path
    if not mark:
        return entry
    entry = entry if isinstance(entry, dict) else {"path": path}
    return {**entry, "num_samples": parse_number(count), "repeat": False}


SWIFT_SCRIPT = Dialect(
    name="swift sft",
    scripts=("swift",),
    marker_keys=frozenset({"sft_type", "train_type", "tuner_type", "model_id_or_path", "dataset_test_ratio"}),
    decisive_keys=frozenset({"sft_type", "train_type", "model_id_or_path", "split_dataset_ratio"}),
    rules=RULES,
    set_defaults=_set_defaults,
    list_keys=frozenset({"dataset", "val_dataset", "target_modules", "lora_target_modules", *RLHF_LISTS}),
)

_COMMAND_KEYS_NAMES = """
    ckpt_dir adapters model model_id_or_path model_type sft_type merge_lora output_dir max_new_tokens temperature top_p
    stream infer_backend quant_bits quant_method load_dataset_config eval_human stop_words use_hf
"""
_COMMAND_KEYS = frozenset(_COMMAND_KEYS_NAMES.split())


def make_swift_command(name: str, words: list[str], source: str, environment: Mapping[str, str]) -> ReplacementCommand:
    """Return the command of glmtune for a command of swift that does not train.

    Args:
        name: infer, app, export, web-ui or another command.
        words: after it.
        source: for messages.
        environment: variables that are set before the command.

    Raises:
        ConfigError: a command that glmtune has not, or no model.
    """
    if name in ("web-ui", "app"):
        return ReplacementCommand(source, f"swift {name}", ["ui"], [], dict(environment))
    if name not in ("infer", "export"):
        raise ConfigError(
            f"{source}: swift {name}: has no equivalent.",
            "Read are: swift sft, pt, rlhf, infer, export, web-ui and app.",
        )
    flags = parse_words(words, {"merge_lora", "stream", "eval_human"}, _COMMAND_KEYS, source, own_options=False).flags
    require_known_keys(flags, _COMMAND_KEYS, format_flag, source, f"swift {name}")
    adapter = flags.get("adapters") or flags.get("ckpt_dir")
    model = flags.get("model") or flags.get("model_id_or_path") or _MODEL_IDS.get(str(flags.get("model_type")))
    if not adapter and not model:
        raise ConfigError(f"{source}: swift {name}: no model is named.", "Give --model or --adapters PATH.")
    base = make_options({"--base": model if adapter else None})
    target = str(adapter or model)
    used = {"ckpt_dir", "adapters", "model", "model_id_or_path", "model_type", "merge_lora", "output_dir"}
    if name == "export":
        output = flags.get("output_dir") or f"{target.rstrip('/')}-merged"
        bits = {"--bits": flags.get("quant_bits")}
        arguments = ["export", target, str(output), *base, *make_options(bits)]
        used |= {"quant_bits"}
    else:
        options = {
            "--max-new-tokens": flags.get("max_new_tokens"),
            "--temperature": flags.get("temperature"),
            "--top-p": flags.get("top_p"),
        }
        arguments = ["chat", target, *base, *make_options(options)]
        used |= {"max_new_tokens", "temperature", "top_p"}
    return ReplacementCommand(source, f"swift {name}", arguments, list_ignored(flags, used), dict(environment))
