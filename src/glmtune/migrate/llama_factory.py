"""LLaMA-Factory: the YAML, the command line and the preview of its web page, for supervised tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.config_parsing import as_number
from glmtune.errors import ConfigError
from glmtune.migrate.dialect import Dialect, stop_evaluation_without_data
from glmtune.migrate.draft import Translation
from glmtune.migrate.rules import Rules, only, to, without

_SAMPLE = "Give data.train: [{path: NAME, num_samples: N}], a random sample."
_LEAVE = "Leave it out."
_UNUSED = "not needed; the result is the same"

RULES: Rules = {
    "model_name_or_path": to("model.path"),
    "adapter_name_or_path": to("adapter"),
    "cache_dir": without("downloads go to the hub's own cache; HF_HOME moves it"),
    "model_revision": only("main", why="hub ids mean their newest revision", hint="Download it and give the folder."),
    "trust_remote_code": without("a checkpoint's own Python files are never run", switch=True),
    "use_fast_tokenizer": without("always the fast one, with the published ids", switch=True),
    "split_special_tokens": without("special tokens typed in a text stay text, always", switch=True),
    "resize_vocab": only(False, why="the vocabulary is the checkpoint's", hint=_LEAVE, switch=True),
    "stage": only("sft", why="only supervised tuning is done here", hint="Use stage sft."),
    "finetuning_type": to("method", values={"lora": "lora", "full": "full", "freeze": "freeze"}),
    "template": without("the model's generation decides how a prompt is written"),
    "dataset": to("data.train", "with dataset_dir in front of the names"),
    "eval_dataset": to("data.eval", "with dataset_dir in front of the names"),
    "dataset_dir": without("stands in front of the names in data.train and data.eval"),
    "cutoff_len": to("data.max_length", "over it the oldest turns go first, then the prompt's start"),
    "val_size": to("data.eval_fraction"),
    "max_samples": only(100000, "100000", why="rows are counted per data entry here", hint=_SAMPLE),
    "overwrite_cache": without("encoded rows are kept by their content, so they are never stale", switch=True),
    "preprocessing_num_workers": without("decided by the machine; the rows are the same"),
    "preprocessing_batch_size": without(_UNUSED),
    "tokenized_path": without("encoded rows are kept in glmtune's own cache"),
    "ignore_pad_token_for_loss": only(True, why="padding is never learnt here", hint=_LEAVE, switch=True),
    "packing": to("data.packing", "rows in one block never see each other here", switch=True),
    "neat_packing": to("data.packing", switch=True),
    "train_on_prompt": only(False, why="prompts are never learnt here", hint=_LEAVE, switch=True),
    "mask_history": to("data.train_on", switch=True, values={True: "last", False: "all"}),
    "streaming": only(False, why="rows are encoded once and then mapped from disk", hint=_LEAVE, switch=True),
    "lora_rank": to("lora.rank"),
    "lora_alpha": to("lora.alpha"),
    "lora_dropout": to("lora.dropout"),
    "lora_target": to("lora.targets", "all means all-linear here"),
    "additional_target": to("lora.modules_to_save"),
    "loraplus_lr_ratio": to("lora.loraplus_ratio"),
    "use_rslora": to("lora.rslora", switch=True),
    "use_dora": to("lora.dora", switch=True),
    "pissa_init": only(False, why="adapters start from nothing here", hint=_LEAVE, switch=True),
    "create_new_adapter": only(False, why="an adapter is trained further, not stacked", hint=_LEAVE, switch=True),
    "freeze_trainable_layers": to("freeze.trainable_layers"),
    "freeze_trainable_modules": only("all", why="whole layers are trained here", hint=_LEAVE),
    "quantization_bit": to("model.quantization", values={4: "nf4", 8: "int8"}),
    "quantization_method": only(
        *("bitsandbytes", "bnb"), why="only bitsandbytes quantises for training here", hint="Use bitsandbytes."
    ),
    "quantization_type": only("nf4", why="4 bits are nf4 here", hint="Use nf4."),
    "double_quantization": to("model.double_quantization", switch=True),
    "flash_attn": to(
        "model.attention",
        values={"auto": "auto", "disabled": "eager", "off": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"},
    ),
    "shift_attn": only(False, why="there is no such attention here", hint=_LEAVE, switch=True),
    "rope_scaling": only("none", "None", why="positions are the checkpoint's own", hint=_LEAVE),
    "use_unsloth": without("its kernels do not know these models", switch=True),
    "use_galore": only(False, why="it is an optimiser here", hint="Set training.optim: galore_adamw.", switch=True),
    "use_badam": only(False, why="there is no such optimiser here", hint=_LEAVE, switch=True),
    "upcast_layernorm": without("trained weights are fp32, always", switch=True),
    "upcast_lmhead_output": without("the loss is computed in fp32, always", switch=True),
    "visual_inputs": only(False, why="these models read text alone", hint=_LEAVE, switch=True),
    "disable_gradient_checkpointing": to(
        "training.gradient_checkpointing", switch=True, values={True: False, False: True}
    ),
    "pure_bf16": only(False, why="trained weights are fp32, always", hint="Set training.bf16: true.", switch=True),
    "print_param_status": without("what is trained is always said", switch=True),
    "plot_loss": without("always drawn: loss.png in the run folder", switch=True),
}
"""Keys of LLaMA-Factory; those of `TrainingArguments` come on top."""

DEFAULTS = {"data.max_length": 2048, "method": "lora", "training.gradient_checkpointing": True}
"""What it does where it is not told."""


def complete(draft: Translation, given: Mapping[str, Any]) -> None:
    """What LLaMA-Factory does without being told."""
    for key, value in DEFAULTS.items():
        draft.default(key, value)
    folder = str(given.get("dataset_dir") or "data")
    for name, key in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        if given.get(name):
            draft.put(key, [_entry(folder, entry) for entry in _names(given[name])])
    if as_number(draft.get("data.eval_fraction") or 0) >= 1:
        raise ConfigError(
            f"{draft.source}: val_size {given['val_size']} is a number of rows; here it is a share.",
            "Give a share such as 0.05, or a file of its own as data.eval.",
        )
    if draft.get("method") == "freeze":
        draft.default("freeze.trainable_layers", 2)
    if draft.get("method") == "lora":
        _complete_lora(draft, given)
    stop_evaluation_without_data(draft)


def _complete_lora(draft: Translation, given: Mapping[str, Any]) -> None:
    draft.default("lora.rank", 8)
    draft.default("lora.alpha", 2 * int(draft.get("lora.rank")))
    draft.default("lora.dropout", 0.0)
    targets = _names(given.get("lora_target") or "all")
    draft.put("lora.targets", ["all-linear" if name == "all" else name for name in targets])
    if draft.get("lora.modules_to_save"):
        draft.put("lora.modules_to_save", _names(draft.get("lora.modules_to_save")))


def _names(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else str(value).split(",")
    return [str(name).strip() for name in listed if str(name).strip()]


def _entry(folder: str, name: str) -> str:
    return name if "/" in name else f"{folder}:{name}"


FACTORY = Dialect(
    name="LLaMA-Factory",
    scripts=("llamafactory-cli", "train_bash.py", "train.py"),
    signs=frozenset({"stage", "finetuning_type", "template", "dataset_dir", "cutoff_len", "lora_target"}),
    rules=RULES,
    complete=complete,
)
