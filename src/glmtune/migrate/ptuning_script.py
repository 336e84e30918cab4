"""`main.py` of the P-Tuning folder that came with ChatGLM-6B and ChatGLM2-6B: train.sh, train_chat.sh and others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.config_parsing import as_number
from glmtune.errors import ConfigError
from glmtune.migrate.dialect import Dialect, stop_evaluation_without_data
from glmtune.migrate.draft import Translation
from glmtune.migrate.rules import Rules, only, to, without
from glmtune.migrate.values import is_true

_EVAL = "belongs to `glmtune eval RUN`"
_SHORTER = "Cut the file (head -n N), or give data.train: [{path: FILE, num_samples: N}], a random sample."
_OTHER_FOLDER = "Put the files into one folder and give that as --model_name_or_path."

RULES: Rules = {
    "model_name_or_path": to("model.path"),
    "ptuning_checkpoint": to("adapter"),
    "config_name": only(why="the config is read from the checkpoint", hint=_OTHER_FOLDER),
    "tokenizer_name": only(why="the tokenizer is read from the checkpoint", hint=_OTHER_FOLDER),
    "cache_dir": without("downloads go to the hub's own cache; HF_HOME moves it"),
    "use_fast_tokenizer": without("always the fast one, with the published ids", switch=True),
    "model_revision": only("main", why="hub ids mean their newest revision", hint="Download it and give the folder."),
    "use_auth_token": without("log in with `hf auth login`, or set HF_TOKEN", switch=True),
    "resize_position_embeddings": without("positions are rotary; there is no table to resize", switch=True),
    "quantization_bit": to("model.quantization", values={4: "packed4", 8: "packed8"}),
    "pre_seq_len": to("ptuning.num_virtual_tokens"),
    "prefix_projection": to("ptuning.prefix_projection", switch=True),
    "lang": without("never read by the script"),
    "dataset_name": to("data.train"),
    "dataset_config_name": only(
        why="is part of the data entry here", hint="Give data.train: [{path: ORG/NAME, subset: CONFIG}]."
    ),
    "prompt_column": to("data.columns.prompt"),
    "response_column": to("data.columns.response"),
    "history_column": to("data.columns.history"),
    "train_file": to("data.train"),
    "validation_file": to("data.eval"),
    "test_file": without("score the run on it afterwards: glmtune eval RUN --data FILE"),
    "overwrite_cache": without("encoded rows are kept by their content, so they are never stale", switch=True),
    "preprocessing_num_workers": without("decided by the machine; the rows are the same"),
    "max_source_length": to("data.max_source_length"),
    "max_target_length": to("data.max_target_length"),
    "val_max_target_length": without(_EVAL),
    "pad_to_max_length": without("rows are padded no further than they must be; padding is never learnt", switch=True),
    "max_train_samples": only(why="rows are counted per data entry here", hint=_SHORTER),
    "max_eval_samples": only(why="rows are counted per data entry here", hint=_SHORTER.replace("train", "eval")),
    "max_predict_samples": without(_EVAL),
    "num_beams": without(_EVAL),
    "ignore_pad_token_for_loss": only(True, why="padding is never learnt here", hint="Leave it out.", switch=True),
    "source_prefix": to("data.prefix"),
    "forced_bos_token": without("never read by the script"),
}
"""Keys of `main.py`; those of `TrainingArguments` come on top."""


def complete(draft: Translation, given: Mapping[str, Any]) -> None:
    """What main.py does without being told."""
    if not is_true(given.get("do_train"), "--do_train", draft.source):
        raise ConfigError(f"{draft.source}: nothing to train, there is no --do_train.", _how_to_score(given))
    prefix = as_number(draft.get("ptuning.num_virtual_tokens"))
    draft.put("method", "ptuning" if prefix else "full")
    if not prefix:
        draft.note("no --pre_seq_len: every weight is trained (method full).")
        if draft.get("model.quantization"):
            raise ConfigError(
                f"{draft.source}: --quantization_bit without --pre_seq_len: quantised weights cannot be trained.",
                "Give --pre_seq_len 128 for P-Tuning, or leave out --quantization_bit.",
            )
    draft.default("data.max_source_length", 1024)
    draft.default("data.max_target_length", 128)
    draft.default("training.gradient_checkpointing", True)
    draft.note(
        "Prompts over the limit lose their oldest turns and then their start; main.py cut off the end, "
        "which is where the question stands."
    )
    if draft.get("data.prefix") and draft.get("data.columns.history"):
        draft.note("--source_prefix: stands before the first question, inside its round; main.py put it before that.")
    stop_evaluation_without_data(draft)


def _how_to_score(given: Mapping[str, Any]) -> str:
    model, prefix = given.get("model_name_or_path", "MODEL"), given.get("ptuning_checkpoint")
    data = given.get("test_file") or given.get("validation_file") or "FILE"
    return f"Score it with: glmtune eval {f'{prefix} --base {model}' if prefix else model} --data {data}"


PTUNING = Dialect(
    name="main.py (P-Tuning)",
    scripts=("main.py",),
    signs=frozenset(
        {"pre_seq_len", "prompt_column", "response_column", "history_column", "train_file", "ptuning_checkpoint"}
        | {"test_file", "validation_file", "source_prefix", "prefix_projection"}
    ),
    rules=RULES,
    complete=complete,
)
