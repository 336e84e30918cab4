"""LLaMA-Factory: YAML files, command lines and the command preview of its web page, for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.config_parsing import parse_number
from glmtune.errors import ConfigError
from glmtune.migrate.dialect import Dialect, Rules, accept_values, disable_evaluation_without_data, ignore_key, map_key
from glmtune.migrate.translation import Translation

_SAMPLE_HINT = "Give data.train: [{path: NAME, num_samples: N}], a random sample."
_REMOVE_HINT = "Leave it out."

RULES: Rules = {
    "model_name_or_path": map_key("model.path"),
    "adapter_name_or_path": map_key("adapter"),
    "cache_dir": ignore_key("downloads are stored in the cache of the hub; HF_HOME changes its folder"),
    "model_revision": accept_values(
        "main", note="the newest revision of a hub id is used", hint="Download the revision and give its folder."
    ),
    "trust_remote_code": ignore_key("the Python files of a checkpoint are never executed", switch=True),
    "use_fast_tokenizer": ignore_key("always a fast tokenizer, with the published ids", switch=True),
    "split_special_tokens": ignore_key("special tokens in a text are always encoded as text", switch=True),
    "resize_vocab": accept_values(
        False, note="the vocabulary is always that of the checkpoint", hint=_REMOVE_HINT, switch=True
    ),
    "stage": accept_values("sft", note="only supervised fine-tuning is supported", hint="Use stage sft."),
    "finetuning_type": map_key("method", values={"lora": "lora", "full": "full", "freeze": "freeze"}),
    "template": ignore_key("the model family decides the prompt format"),
    "dataset": map_key("data.train", "dataset_dir is added to the names"),
    "eval_dataset": map_key("data.eval", "dataset_dir is added to the names"),
    "dataset_dir": ignore_key("added to the names in data.train and data.eval"),
    "cutoff_len": map_key(
        "data.max_length", "longer rows are truncated at the oldest turns, then at the start of the prompt"
    ),
    "val_size": map_key("data.eval_fraction"),
    "max_samples": accept_values(100000, "100000", note="glmtune limits the rows per data entry", hint=_SAMPLE_HINT),
    "overwrite_cache": ignore_key(
        "the cache of encoded rows is keyed by their content, so it is never out of date", switch=True
    ),
    "preprocessing_num_workers": ignore_key("set automatically; the rows are the same"),
    "preprocessing_batch_size": ignore_key("not needed; the rows are the same"),
    "tokenized_path": ignore_key("encoded rows are stored in the cache of glmtune"),
    "ignore_pad_token_for_loss": accept_values(
        True, note="the loss always ignores padding", hint=_REMOVE_HINT, switch=True
    ),
    "packing": map_key("data.packing", "without attention between the rows of a block", switch=True),
    "neat_packing": map_key("data.packing", switch=True),
    "train_on_prompt": accept_values(
        False, note="the loss is never computed on prompts", hint=_REMOVE_HINT, switch=True
    ),
    "mask_history": map_key("data.train_on", switch=True, values={True: "last", False: "all"}),
    "streaming": accept_values(False, note="rows are encoded once, then memory-mapped", hint=_REMOVE_HINT, switch=True),
    "lora_rank": map_key("lora.rank"),
    "lora_alpha": map_key("lora.alpha"),
    "lora_dropout": map_key("lora.dropout"),
    "lora_target": map_key("lora.targets", "all is all-linear"),
    "additional_target": map_key("lora.modules_to_save"),
    "loraplus_lr_ratio": map_key("lora.loraplus_ratio"),
    "use_rslora": map_key("lora.rslora", switch=True),
    "use_dora": map_key("lora.dora", switch=True),
    "pissa_init": accept_values(False, note="new adapters always start at zero", hint=_REMOVE_HINT, switch=True),
    "create_new_adapter": accept_values(
        False, note="training continues the adapter; a second one is not supported", hint=_REMOVE_HINT, switch=True
    ),
    "freeze_trainable_layers": map_key("freeze.trainable_layers"),
    "freeze_trainable_modules": accept_values("all", note="whole layers are trained", hint=_REMOVE_HINT),
    "quantization_bit": map_key("model.quantization", values={4: "nf4", 8: "int8"}),
    "quantization_method": accept_values(
        *("bitsandbytes", "bnb"), note="only bitsandbytes is supported", hint="Use bitsandbytes."
    ),
    "quantization_type": accept_values("nf4", note="4 bits are always nf4", hint="Use nf4."),
    "double_quantization": map_key("model.double_quantization", switch=True),
    "flash_attn": map_key(
        "model.attention",
        values={"auto": "auto", "disabled": "eager", "off": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"},
    ),
    "shift_attn": accept_values(False, note="shifted attention is not supported", hint=_REMOVE_HINT, switch=True),
    "rope_scaling": accept_values(
        "none", "None", note="positions are always those of the checkpoint", hint=_REMOVE_HINT
    ),
    "use_unsloth": ignore_key("its kernels do not support these models", switch=True),
    "use_galore": accept_values(
        False, note="GaLore is an optimizer in glmtune", hint="Set training.optim: galore_adamw.", switch=True
    ),
    "use_badam": accept_values(False, note="BAdam is not supported", hint=_REMOVE_HINT, switch=True),
    "upcast_layernorm": ignore_key("trainable weights are always fp32", switch=True),
    "upcast_lmhead_output": ignore_key("the loss is always computed in fp32", switch=True),
    "visual_inputs": accept_values(False, note="only text is supported", hint=_REMOVE_HINT, switch=True),
    "disable_gradient_checkpointing": map_key(
        "training.gradient_checkpointing", switch=True, values={True: False, False: True}
    ),
    "pure_bf16": accept_values(
        False, note="trainable weights are always fp32", hint="Set training.bf16: true.", switch=True
    ),
    "print_param_status": ignore_key("the number of trainable parameters is always printed", switch=True),
    "plot_loss": ignore_key("always plotted: loss.png in the run folder", switch=True),
}
"""Keys of LLaMA-Factory; it takes those of `TrainingArguments` too."""


def _set_defaults(translation: Translation, values: Mapping[str, Any]) -> None:
    translation.set_default("data.max_length", 2048)
    translation.set_default("method", "lora")
    translation.set_default("training.gradient_checkpointing", True)
    folder = str(values.get("dataset_dir") or "data")
    for name, key in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        if values.get(name):
            entries = [entry if "/" in entry else f"{folder}:{entry}" for entry in _split_names(values[name])]
            translation.set_value(key, entries)
    if parse_number(translation.get_value("data.eval_fraction") or 0) >= 1:
        raise ConfigError(
            f"{translation.source}: val_size {values['val_size']} is a number of rows; glmtune takes a share.",
            "Give a share such as 0.05, or a separate file as data.eval.",
        )
    if translation.get_value("method") == "freeze":
        translation.set_default("freeze.trainable_layers", 2)
    if translation.get_value("method") == "lora":
        translation.set_default("lora.rank", 8)
        translation.set_default("lora.alpha", 2 * int(translation.get_value("lora.rank")))
        translation.set_default("lora.dropout", 0.0)
        targets = _split_names(values.get("lora_target") or "all")
        translation.set_value("lora.targets", ["all-linear" if name == "all" else name for name in targets])
        if translation.get_value("lora.modules_to_save"):
            translation.set_value("lora.modules_to_save", _split_names(translation.get_value("lora.modules_to_save")))
    disable_evaluation_without_data(translation)


def _split_names(value: Any) -> list[str]:
    names = value if isinstance(value, list) else str(value).split(",")
    return [str(name).strip() for name in names if str(name).strip()]


LLAMA_FACTORY = Dialect(
    name="LLaMA-Factory",
    scripts=("llamafactory-cli", "train_bash.py", "train.py"),
    marker_keys=frozenset({"stage", "finetuning_type", "template", "dataset_dir", "cutoff_len", "lora_target"}),
    rules=RULES,
    set_defaults=_set_defaults,
)
