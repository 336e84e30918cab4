"""`finetune.py` of ChatGLM3's first demos: finetune_chatmodel_demo and finetune_basemodel_demo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.config_parsing import parse_number
from glmtune.errors import ConfigError
from glmtune.migrate.dialect import Dialect, Rules, accept_values, disable_evaluation_without_data, ignore_key, map_key
from glmtune.migrate.ptuning_script import RULES as PTUNING_RULES
from glmtune.migrate.translation import Translation, limit_rows

_SHARED_KEYS = (
    *("model_name_or_path", "ptuning_checkpoint", "config_name", "tokenizer_name", "cache_dir", "use_fast_tokenizer"),
    *("model_revision", "use_auth_token", "resize_position_embeddings", "quantization_bit", "pre_seq_len"),
    *("prefix_projection", "lora_rank", "lora_alpha", "lora_dropout", "train_file", "max_source_length"),
    *("max_target_length", "overwrite_cache", "preprocessing_num_workers", "pad_to_max_length", "max_train_samples"),
)
RULES: Rules = {
    **{key: PTUNING_RULES[key] for key in _SHARED_KEYS},
    "train_format": accept_values(
        *("multi-turn", "input-output"), note="an unknown format", hint="One of: multi-turn, input-output."
    ),
    "max_seq_length": map_key("data.max_length", "of multi-turn rows"),
    "lora_checkpoint": map_key("adapter"),
    "save_safetensors": ignore_key("always safetensors"),
}
"""Keys of the two scripts; they take those of `TrainingArguments` too."""


def _set_defaults(translation: Translation, values: Mapping[str, Any]) -> None:
    prefix, rank = (translation.get_value(key) for key in ("ptuning.num_virtual_tokens", "lora.rank"))
    translation.set_value("method", "lora" if rank else "ptuning" if prefix else "full")
    if rank:
        translation.set_default("lora.alpha", 32, "finetune_lora.sh's")
        translation.set_default("lora.dropout", 0.1, "finetune_lora.sh's")
        translation.set_value("lora.targets", ["query_key_value"])
    if not rank and not prefix:
        translation.add_note("No --pre_seq_len and no --lora_rank: all weights are trained (method full).")
    bits = parse_number(values.get("quantization_bit"))
    if bits and not prefix:
        if not rank:
            raise ConfigError(
                f"{translation.source}: --quantization_bit without --pre_seq_len: quantized weights cannot be trained.",
                "Give --pre_seq_len 128 for P-Tuning, or leave out --quantization_bit.",
            )
        translation.set_value("model.quantization", "nf4" if bits == 4 else "int8")

    if values.get("train_format") == "multi-turn":
        translation.set_default("data.max_length", 2048, "finetune_chatmodel_demo's")
        translation.add_note("Rows over the limit are truncated at the oldest turns; finetune.py truncated the end.")
    else:
        if translation.get_value("data.max_length"):
            translation.set_value("data.max_length", None)
            translation.add_note("--max_seq_length: has no effect on input-output rows, as in finetune.py.")
        translation.set_default("data.max_source_length", 1024, "finetune.py's")
        translation.set_default("data.max_target_length", 128, "finetune.py's")
        translation.add_note("Prompts have the chat format of the model; finetune.py used the bare prompt.")
    translation.set_default("training.gradient_checkpointing", True)
    limit_rows(translation, "data.train", values.get("max_train_samples"))
    disable_evaluation_without_data(translation)


CHATGLM3_SCRIPT = Dialect(
    name="finetune.py (ChatGLM3)",
    scripts=("finetune.py",),
    marker_keys=frozenset({"train_format", "train_file", "max_seq_length", "lora_checkpoint"}),
    decisive_keys=frozenset({"train_format", "lora_checkpoint"}),
    rules=RULES,
    set_defaults=_set_defaults,
)
