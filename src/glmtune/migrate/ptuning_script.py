"""`ptuning/main.py` of ChatGLM-6B and ChatGLM2-6B, which train.sh and evaluate.sh start, and its LoRA version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.config_parsing import parse_number
from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import parse_bool
from glmtune.migrate.dialect import (
    Dialect,
    Rules,
    accept_values,
    disable_evaluation_without_data,
    ignore_key,
    map_key,
)
from glmtune.migrate.evaluation_lines import PTUNING_LENGTHS, make_ptuning_evaluations, make_ptuning_options
from glmtune.migrate.replacement import ReplacementCommand
from glmtune.migrate.translation import EVALUATION, Translation, limit_rows

_EVALUATION = f"an option of `{EVALUATION}`"
_LIMIT_NOTE = "a random sample of that size; the script took the first rows"
_FOLDER_HINT = "Put the files into one folder and give that as --model_name_or_path."

RULES: Rules = {
    "model_name_or_path": map_key("model.path"),
    "ptuning_checkpoint": map_key("adapter"),
    "config_name": accept_values(note="the config is read from the checkpoint", hint=_FOLDER_HINT),
    "tokenizer_name": accept_values(note="the tokenizer is read from the checkpoint", hint=_FOLDER_HINT),
    "cache_dir": ignore_key("downloads are stored in the cache of the hub; HF_HOME changes its folder"),
    "use_fast_tokenizer": ignore_key("always a fast tokenizer, with the published ids", switch=True),
    "model_revision": accept_values(
        "main", note="the newest revision of a hub id is used", hint="Download the revision and give its folder."
    ),
    "use_auth_token": ignore_key("log in with `hf auth login`, or set HF_TOKEN", switch=True),
    "resize_position_embeddings": ignore_key("positions are rotary; there is no table to resize", switch=True),
    "quantization_bit": map_key("model.quantization", values={4: "packed4", 8: "packed8"}),
    "pre_seq_len": map_key("ptuning.num_virtual_tokens"),
    "prefix_projection": map_key("ptuning.prefix_projection", switch=True),
    "lora_r": map_key("lora.rank"),
    "lora_rank": map_key("lora.rank"),
    "lora_alpha": map_key("lora.alpha"),
    "lora_dropout": map_key("lora.dropout"),
    "model_parallel_mode": ignore_key("layers are not spread over GPUs; --nproc N trains on several", switch=True),
    "lang": ignore_key("never read by the script"),
    "dataset_name": map_key("data.train"),
    "dataset_config_name": accept_values(
        note="a key of the data entry in glmtune", hint="Give data.train: [{path: ORG/NAME, subset: CONFIG}]."
    ),
    "prompt_column": map_key("data.columns.prompt"),
    "response_column": map_key("data.columns.response"),
    "history_column": map_key("data.columns.history"),
    "train_file": map_key("data.train"),
    "validation_file": map_key("data.eval"),
    "test_file": ignore_key(f"score the run on it afterwards: {EVALUATION}"),
    "overwrite_cache": ignore_key(
        "the cache of encoded rows is keyed by their content, so it is never out of date", switch=True
    ),
    "preprocessing_num_workers": ignore_key("set automatically; the rows are the same"),
    "max_source_length": map_key("data.max_source_length"),
    "max_target_length": map_key("data.max_target_length"),
    "val_max_target_length": ignore_key(_EVALUATION),
    "pad_to_max_length": ignore_key("batches are padded to their longest row; the loss ignores padding", switch=True),
    "max_train_samples": ignore_key(f"num_samples of data.train: {_LIMIT_NOTE}"),
    "max_eval_samples": ignore_key(f"num_samples of data.eval: {_LIMIT_NOTE}"),
    "max_predict_samples": ignore_key(_EVALUATION),
    "num_beams": ignore_key(_EVALUATION),
    "ignore_pad_token_for_loss": accept_values(
        True, note="the loss always ignores padding", hint="Leave it out.", switch=True
    ),
    "source_prefix": map_key("data.prefix"),
    "forced_bos_token": ignore_key("never read by the script"),
}
"""Keys of `main.py`; it takes those of `TrainingArguments` too."""


def _set_defaults(translation: Translation, values: Mapping[str, Any]) -> None:
    if not parse_bool(values.get("do_train"), "--do_train", translation.source):
        raise ConfigError(
            f"{translation.source}: no --do_train, so there is nothing to train.",
            "Add --do_train to train, or --do_predict to generate and score replies.",
        )
    prefix = parse_number(translation.get_value("ptuning.num_virtual_tokens"))
    rank = translation.get_value("lora.rank")
    translation.set_value("method", "ptuning" if prefix else "lora" if rank else "full")
    if not prefix and not rank:
        translation.add_note("No --pre_seq_len: all weights are trained (method full).")
        if translation.get_value("model.quantization"):
            raise ConfigError(
                f"{translation.source}: --quantization_bit without --pre_seq_len: quantized weights cannot be trained.",
                "Give --pre_seq_len 128 for P-Tuning, or leave out --quantization_bit.",
            )
    if translation.get_value("method") == "lora":
        translation.set_default("lora.alpha", 16, "written in main.py with --lora_r")
        translation.set_default("lora.dropout", 0.05, "written in main.py with --lora_r")
        if translation.get_value("model.quantization"):
            bits = values["quantization_bit"]
            translation.set_value("model.quantization", "nf4" if str(bits) == "4" else "int8")
            translation.add_note(f"--quantization_bit {bits}: LoRA trains on a base quantized by bitsandbytes.")
    for key, length in PTUNING_LENGTHS.items():
        translation.set_default(key, length, "main.py's")
    translation.set_default("training.gradient_checkpointing", True)
    limit_rows(translation, "data.train", values.get("max_train_samples"))
    limit_rows(translation, "data.eval", values.get("max_eval_samples"))
    translation.test_file = str(values.get("test_file") or "")
    translation.add_note(
        "Prompts over the limit are truncated at the oldest turns, then at the start; main.py truncated the end, "
        "where the question is."
    )
    if translation.get_value("data.prefix") and translation.get_value("data.columns.history"):
        translation.add_note(
            "--source_prefix: inserted inside the round of the first question; main.py inserted it before the round."
        )
    disable_evaluation_without_data(translation)
    output, data = translation.get_value("output"), translation.test_file
    if parse_bool(values.get("do_predict"), "--do_predict", translation.source) and output and data:
        words = ["eval", str(output), "--data", data, *make_ptuning_options(values)]
        translation.evaluations.append(ReplacementCommand(translation.source, "main.py", words))


PTUNING_SCRIPT = Dialect(
    name="main.py (P-Tuning)",
    scripts=("main.py",),
    marker_keys=frozenset(
        {"pre_seq_len", "prompt_column", "response_column", "history_column", "train_file", "ptuning_checkpoint"}
        | {"test_file", "validation_file", "source_prefix", "prefix_projection"}
    ),
    rules=RULES,
    set_defaults=_set_defaults,
    make_evaluations=make_ptuning_evaluations,
)
