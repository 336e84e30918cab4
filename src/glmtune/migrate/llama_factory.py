"""LLaMA-Factory and ChatGLM-Efficient-Tuning, which it grew from: YAML files, command lines and the command preview of
the web page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.config_parsing import parse_number
from glmtune.migrate.dialect import (
    Dialect,
    Rules,
    accept_values,
    disable_evaluation_without_data,
    ignore_key,
    map_key,
)
from glmtune.migrate.evaluation_lines import make_factory_evaluations
from glmtune.migrate.factory_defaults import set_factory_defaults, split_names
from glmtune.migrate.factory_preference import PREFERENCE_RULES, STAGES, set_preference_loss
from glmtune.migrate.translation import Translation, limit_rows
from glmtune.utils.documents import parse_json, read_document

_REMOVE_HINT = "Leave it out."
_NEW_TOKENS = (
    "one id each; embedding and head grow where needed, and the new rows are trained; replies show these tokens"
)
_NEW_TOKEN_KEYS = ("add_tokens", "new_special_tokens", "add_special_tokens")
"""In the order in which LLaMA-Factory adds them."""

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
    "checkpoint_dir": map_key("adapter"),
    "resume_lora_training": accept_values(
        True, note="training continues the adapter; a second one is not supported", hint=_REMOVE_HINT, switch=True
    ),
    "use_auth_token": ignore_key("log in with `hf auth login`, or set HF_TOKEN", switch=True),
    "hf_hub_token": ignore_key("log in with `hf auth login`, or set HF_TOKEN"),
    "ms_hub_token": ignore_key("log in with ModelScope's own command"),
    "config_name": accept_values(note="the config is read from the checkpoint", hint=_REMOVE_HINT),
    "tokenizer_name": accept_values(note="the tokenizer is read from the checkpoint", hint=_REMOVE_HINT),
    "new_special_tokens": map_key("data.new_tokens", _NEW_TOKENS),
    "add_special_tokens": map_key("data.new_tokens", _NEW_TOKENS),
    "add_tokens": map_key("data.new_tokens", _NEW_TOKENS),
    "resize_vocab": ignore_key(
        "embedding and head grow where data.new_tokens needs it; an adapter trains the rows of the new tokens, where "
        "LLaMA-Factory trained all rows (lora.modules_to_save does)",
        switch=True,
    ),
    "stage": map_key("stage", values=STAGES),
    **PREFERENCE_RULES,
    "finetuning_type": map_key(
        "method", values={"lora": "lora", "full": "full", "freeze": "freeze", "p_tuning": "ptuning"}
    ),
    "template": ignore_key("the model family decides the prompt format"),
    "prompt_template": ignore_key("the model family decides the prompt format"),
    "tool_format": ignore_key("the model family decides the format of tools"),
    "enable_thinking": ignore_key("rows are trained on as they are"),
    "default_system": accept_values(note="a system message is part of its row", hint="Add it to the rows."),
    "system_prompt": accept_values(note="a system message is part of its row", hint="Add it to the rows."),
    "source_prefix": map_key("data.prefix"),
    "dataset": map_key("data.train", "dataset_dir is added to the names"),
    "eval_dataset": map_key("data.eval", "dataset_dir is added to the names"),
    "dataset_dir": ignore_key("added to the names in data.train and data.eval"),
    "cutoff_len": map_key(
        "data.max_length", "longer rows are truncated at the oldest turns, then at the start of the prompt"
    ),
    "max_source_length": map_key("data.max_source_length"),
    "max_target_length": map_key("data.max_target_length"),
    "val_size": map_key("data.eval_fraction", "above 1 it is a number of rows, data.eval_rows"),
    "dev_ratio": map_key("data.eval_fraction"),
    "max_samples": ignore_key(
        "num_samples of each data set: a random sample of at most that size; LLaMA-Factory took the first rows"
    ),
    "split": accept_values("train", note="a key of the data entry in glmtune", hint="Give it in dataset_info.json."),
    "media_dir": ignore_key("only text is supported"),
    "mix_strategy": accept_values("concat", note="data sets are used one after the other", hint="Use concat."),
    "interleave_probs": accept_values(
        note="data sets are not interleaved", hint="Give data.train: [{path: NAME, weight: W}]."
    ),
    "buffer_size": ignore_key("rows are not streamed"),
    "eval_on_each_dataset": accept_values(
        False, note="the loss is that of all evaluation rows", hint=_REMOVE_HINT, switch=True
    ),
    "eval_num_beams": ignore_key("replies are not generated by beam search"),
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
    "sft_packing": map_key("data.packing", "without attention between the rows of a block", switch=True),
    "neat_packing": map_key("data.packing", switch=True),
    "disable_shuffling": accept_values(False, note="rows are always shuffled", hint=_REMOVE_HINT, switch=True),
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
    "lora_lr_ratio": map_key("lora.loraplus_ratio"),
    "loraplus_lr_embedding": ignore_key("embeddings have no adapters"),
    "use_rslora": map_key("lora.rslora", switch=True),
    "use_dora": map_key("lora.dora", switch=True),
    "pissa_init": accept_values(False, note="new adapters always start at zero", hint=_REMOVE_HINT, switch=True),
    "create_new_adapter": accept_values(
        False, note="training continues the adapter; a second one is not supported", hint=_REMOVE_HINT, switch=True
    ),
    "pre_seq_len": map_key("ptuning.num_virtual_tokens"),
    "prefix_projection": map_key("ptuning.prefix_projection", switch=True),
    "freeze_trainable_layers": map_key("freeze.trainable_layers"),
    "num_layer_trainable": map_key("freeze.trainable_layers"),
    "name_module_trainable": accept_values("all", note="whole layers are trained", hint=_REMOVE_HINT),
    "freeze_extra_modules": accept_values(note="only whole layers are trained", hint=_REMOVE_HINT),
    "use_llama_pro": accept_values(False, note="LLaMA Pro is not supported", hint=_REMOVE_HINT, switch=True),
    "freeze_trainable_modules": accept_values("all", note="whole layers are trained", hint=_REMOVE_HINT),
    "quantization_bit": map_key("model.quantization", values={4: "nf4", 8: "int8"}),
    "quantization_method": accept_values(
        *("bitsandbytes", "bnb"), note="only bitsandbytes is supported", hint="Use bitsandbytes."
    ),
    "quantization_type": accept_values("nf4", note="4 bits are always nf4", hint="Use nf4."),
    "double_quantization": map_key("model.double_quantization", switch=True),
    "flash_attn": map_key(
        "model.attention",
        values={
            **{"auto": "auto", "disabled": "eager", "off": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"},
            **{False: "auto", "False": "auto", True: "flash_attention_2", "True": "flash_attention_2"},
        },
    ),
    "shift_attn": accept_values(False, note="shifted attention is not supported", hint=_REMOVE_HINT, switch=True),
    "rope_scaling": accept_values(
        "none", "None", note="positions are always those of the checkpoint", hint=_REMOVE_HINT
    ),
    "use_unsloth": ignore_key("its kernels do not support these models", switch=True),
    "use_unsloth_gc": ignore_key("its kernels do not support these models", switch=True),
    "enable_liger_kernel": ignore_key("the result is the same; the loss is computed a chunk at a time", switch=True),
    "low_cpu_mem_usage": ignore_key("weights are always loaded one by one", switch=True),
    "use_reentrant_gc": ignore_key("no effect on the result", switch=True),
    "use_swanlab": accept_values(
        False, note="set training.report_to: swanlab", hint="Use report_to: swanlab.", switch=True
    ),
    "early_stopping_steps": map_key("early_stopping", "a number of evaluations, as in LLaMA-Factory"),
    "include_effective_tokens_per_second": ignore_key("tokens per second are always measured", switch=True),
    "compute_accuracy": ignore_key("the evaluation computes the loss; glmtune eval scores replies", switch=True),
    "ray_run_name": ignore_key("used with Ray only"),
    "ray_storage_path": ignore_key("used with Ray only"),
    "ray_num_workers": ignore_key("used with Ray only; --nproc N trains on several GPUs"),
    "resources_per_worker": ignore_key("used with Ray only"),
    "placement_strategy": ignore_key("used with Ray only"),
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
    set_preference_loss(translation, values)
    set_factory_defaults(translation, values)
    folder = str(values.get("dataset_dir") or "data")
    is_text = values.get("stage") == "pt"
    for name, key in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        if values.get(name):
            entries = [_make_entry(entry, folder, is_text) for entry in split_names(values[name])]
            translation.set_value(key, entries)
    for key in ("data.train", "data.eval"):
        limit_rows(translation, key, values.get("max_samples"))
    if is_text:
        if not {"packing", "neat_packing", "sft_packing"} & values.keys():
            translation.set_value("data.packing", True)
        translation.add_note("stage pt: rows are plain text, and every token is trained on; long ones become several.")
    held_out = parse_number(translation.get_value("data.eval_fraction") or 0)
    if isinstance(held_out, (int, float)) and held_out > 1:
        translation.set_value("data.eval_fraction", 0.0)
        translation.set_value("data.eval_rows", int(held_out))
    tokens = [token for key in _NEW_TOKEN_KEYS for token in split_names(values.get(key) or [])]
    if tokens:
        translation.set_value("data.new_tokens", list(dict.fromkeys(tokens)))
    if modules := translation.get_value("lora.modules_to_save"):
        translation.set_value("lora.modules_to_save", split_names(modules))
    disable_evaluation_without_data(translation)


def _make_entry(name: str, folder: str, is_text: bool) -> str | dict[str, Any]:
    """Return the entry of `data.train` for a name in `dataset`.

    Args:
        name: of an entry in dataset_info.json, or a file.
        folder: `dataset_dir`.
        is_text: whether the rows are plain text, whose column LLaMA-Factory calls the prompt.
    """
    if "/" in name or folder == "ONLINE" or (Path(name).suffix and Path(name).is_file()):
        return name
    if Path(name).suffix and (Path(folder) / name).is_file():
        return str(Path(folder) / name)
    entry = f"{folder}:{name}"
    column = _find_text_column(Path(folder) / "dataset_info.json", name) if is_text else None
    return {"path": entry, "columns": {"text": column}} if column else entry


def _find_text_column(catalog: Path, name: str) -> str | None:
    try:
        columns = parse_json(read_document(catalog))[name]["columns"]
        return None if columns.get("text") else columns.get("prompt")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # the error, if it is one, is reported when the rows are read


LLAMA_FACTORY = Dialect(
    name="LLaMA-Factory",
    scripts=("llamafactory-cli", "train_bash.py", "train.py", "train_sft.py"),
    marker_keys=frozenset({"stage", "finetuning_type", "template", "dataset_dir", "cutoff_len", "lora_target"}),
    rules=RULES,
    set_defaults=_set_defaults,
    make_evaluations=make_factory_evaluations,
)
