"""Scripts that train LoRA adapters from flags: train_qlora.py of chatGLM-6B-QLoRA, finetune.py of ChatGLM-Tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.migrate.dialect import Dialect, Rules, disable_evaluation_without_data, ignore_key, map_key
from glmtune.migrate.translation import Translation

QLORA_RULES: Rules = {
    "model_name_or_path": map_key("model.path"),
    "train_data_path": map_key("data.train"),
    "eval_data_path": map_key("data.eval"),
    "max_input_length": map_key("data.max_source_length"),
    "max_output_length": map_key("data.max_target_length"),
    "lora_rank": map_key("lora.rank"),
    "lora_alpha": map_key("lora.alpha"),
    "lora_dropout": map_key("lora.dropout"),
    "resume_from_checkpoint": map_key("adapter", "its weights are loaded, as in the script, but no optimizer state"),
    "prompt_text": map_key("data.prefix"),
    "compute_dtype": map_key("model.precision", values={"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}),
}
"""Keys of `train_qlora.py`; its JSON file holds `TrainingArguments`."""

QLORA_DEFAULTS = {
    "model.path": "THUDM/chatglm-6b",
    "model.precision": "fp32",
    "model.quantization": "nf4",
    "data.max_source_length": 512,
    "data.max_target_length": 1536,
    "lora.rank": 4,
    "lora.alpha": 32,
    "lora.dropout": 0.05,
    "training.gradient_checkpointing": True,
}

FINETUNE_RULES: Rules = {
    "dataset_path": map_key(
        "data.train",
        "the rows, or the folder that `glmtune data tokenize` wrote; one of tokenize_dataset_rows.py is not read",
    ),
    "chatglm_path": map_key("model.path"),
    "model_name_or_path": map_key("model.path"),
    "model_path": ignore_key("the base, unless it is the output folder, which it was in the first version"),
    "lora_rank": map_key("lora.rank"),
    "lora_alpha": map_key("lora.alpha"),
    "lora_dropout": map_key("lora.dropout"),
}
"""Keys of `finetune.py`; it takes those of `TrainingArguments` too."""

FINETUNE_DEFAULTS = {
    "model.path": "THUDM/chatglm-6b",
    "data.train": "data/alpaca",
    "model.quantization": "int8",
    "data.max_length": 384,  # of tokenize_dataset_rows.py
    "lora.rank": 8,
    "lora.alpha": 32,
    "lora.dropout": 0.1,
    "training.gradient_checkpointing": True,
}


def _set_qlora_defaults(translation: Translation, values: Mapping[str, Any]) -> None:
    translation.set_value("method", "lora")
    for key, value in QLORA_DEFAULTS.items():
        translation.set_default(key, value, "" if key == "training.gradient_checkpointing" else "train_qlora.py's")
    translation.add_note(
        "The base is quantized to nf4 with double quantization, as in the script (model.quantization)."
    )
    translation.add_note(
        "Prompts have the chat format of the model; the script used the bare question, which for ChatGLM2 differs "
        "from its chat format."
    )
    translation.add_note("Prompts over the limit are truncated at the start; the script truncated the end.")
    disable_evaluation_without_data(translation)


def _set_finetune_defaults(translation: Translation, values: Mapping[str, Any]) -> None:
    translation.set_value("method", "lora")
    path = str(values.get("model_path") or "")
    if path and path not in ("output", str(values.get("output_dir"))):
        translation.set_default("model.path", path)
        translation.add_note(f"--model_path {path}: taken as the base. In the first finetune.py it had no effect.")
    for key, value in FINETUNE_DEFAULTS.items():
        translation.set_default(key, value, "" if key == "training.gradient_checkpointing" else "finetune.py's")
    translation.add_note("The base is quantized to int8 (bitsandbytes), as in the script; for another: --model.")
    translation.add_note(
        "data.max_length is 384, the default of tokenize_dataset_rows.py; if you used --max_seq_length, set its value."
    )
    disable_evaluation_without_data(translation)


QLORA_SCRIPT = Dialect(
    name="train_qlora.py",
    scripts=("train_qlora.py",),
    marker_keys=frozenset({"train_args_json", "train_data_path", "eval_data_path", "compute_dtype", "prompt_text"}),
    rules=QLORA_RULES,
    set_defaults=_set_qlora_defaults,
)
FINETUNE_SCRIPT = Dialect(
    name="finetune.py (LoRA)",
    scripts=("finetune.py",),
    marker_keys=frozenset({"dataset_path", "chatglm_path"}),
    rules=FINETUNE_RULES,
    set_defaults=_set_finetune_defaults,
)
