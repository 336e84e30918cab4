"""`finetune.py` of ChatGLM-Tuning and what was built on it: LoRA on an int8 ChatGLM-6B, all by flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.migrate.dialect import Dialect, stop_evaluation_without_data
from glmtune.migrate.draft import Translation
from glmtune.migrate.rules import Rules, to

RULES: Rules = {
    "dataset_path": to(
        "data.train",
        "give the rows themselves; a folder that tokenize_dataset_rows.py made holds token ids and cannot be read",
    ),
    "lora_rank": to("lora.rank"),
    "lora_alpha": to("lora.alpha"),
    "lora_dropout": to("lora.dropout"),
}
"""Keys of `finetune.py`; those of `TrainingArguments` come on top."""

DEFAULTS = {
    "model.path": "THUDM/chatglm-6b",
    "model.quantization": "int8",
    "data.max_length": 384,
    "lora.rank": 8,
    "lora.alpha": 32,
    "lora.dropout": 0.1,
    "training.gradient_checkpointing": True,
}
"""What the script does where it is not told, and the length its tokenising script uses."""


def complete(draft: Translation, given: Mapping[str, Any]) -> None:
    """What finetune.py does without being told."""
    draft.put("method", "lora")
    for key, value in DEFAULTS.items():
        draft.default(key, value)
    draft.note("The base is THUDM/chatglm-6b in int8 (bitsandbytes), as there; another: --model.")
    draft.note("data.max_length is the 384 of tokenize_dataset_rows.py; set what you gave as --max_seq_length.")
    stop_evaluation_without_data(draft)


FINETUNE_LORA = Dialect(
    name="finetune.py (LoRA)",
    scripts=("finetune.py",),
    signs=frozenset({"dataset_path"}),
    rules=RULES,
    complete=complete,
)
