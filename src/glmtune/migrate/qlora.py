"""`train_qlora.py` of chatGLM-6B-QLoRA: a JSON file of `TrainingArguments` and a handful of flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.migrate.dialect import Dialect, stop_evaluation_without_data
from glmtune.migrate.draft import Translation
from glmtune.migrate.rules import Rules, to

RULES: Rules = {
    "model_name_or_path": to("model.path"),
    "train_data_path": to("data.train"),
    "eval_data_path": to("data.eval"),
    "max_input_length": to("data.max_source_length"),
    "max_output_length": to("data.max_target_length"),
    "lora_rank": to("lora.rank"),
    "lora_alpha": to("lora.alpha"),
    "lora_dropout": to("lora.dropout"),
    "resume_from_checkpoint": to("adapter", "its weights are taken up, as there; the optimiser starts anew"),
    "prompt_text": to("data.prefix"),
    "compute_dtype": to("model.precision", values={"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}),
}
"""Keys of `train_qlora.py`; those of its JSON file, which are `TrainingArguments`, come on top."""

DEFAULTS = {
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
"""What the script does where it is not told."""


def complete(draft: Translation, given: Mapping[str, Any]) -> None:
    """What train_qlora.py does without being told."""
    draft.put("method", "lora")
    for key, value in DEFAULTS.items():
        draft.default(key, value)
    draft.note("The base is quantised to nf4 with double quantisation, as there (model.quantization).")
    draft.note(
        "Questions are put as the model's own chat puts them; the script gave them bare, which for ChatGLM2 "
        "is not what its chat does."
    )
    draft.note("Prompts over the limit lose their start; the script cut off the end.")
    stop_evaluation_without_data(draft)


QLORA = Dialect(
    name="train_qlora.py",
    scripts=("train_qlora.py",),
    signs=frozenset({"train_args_json", "train_data_path", "eval_data_path", "compute_dtype", "prompt_text"}),
    rules=RULES,
    complete=complete,
)
