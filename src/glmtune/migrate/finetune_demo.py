"""`finetune_hf.py` of ChatGLM3's finetune_demo, started as `finetune_hf.py DATA_DIR MODEL_DIR CONFIG.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import OLD_KEYS, TRAINING_KEYS
from glmtune.migrate.dialect import (
    RUN_RULES,
    Rules,
    accept_values,
    apply_rules,
    disable_evaluation_without_data,
    ignore_key,
    map_key,
    require_known_keys,
    set_training_section,
)
from glmtune.migrate.translation import EVALUATION, Translation

SCRIPT_NAMES = ("finetune_hf.py", "finetune.py")
SECTIONS = ("data_config", "training_args", "peft_config")
"""Keys that only this file format has."""

_REMOVE_HINT = "Leave it out."
TOP_RULES: Rules = {
    "max_input_length": map_key(
        "data.max_length", "the sum of the two lengths plus 1, for the whole conversation, as in finetune_hf.py"
    ),
    "max_output_length": map_key("data.max_length", "see max_input_length"),
    "combine": map_key("data.train_on", switch=True, values={True: "last", False: "all"}),
    "freezeV": ignore_key("it froze the vision layers of GLM-4V; only text is supported", switch=True),
    "swanlab": ignore_key("to report to SwanLab, set training.report_to: swanlab"),
}
"""Keys outside the sections."""
DATA_RULES: Rules = {
    "train_file": map_key("data.train"),
    "val_file": map_key("data.eval"),
    "test_file": ignore_key(f"score the run on it afterwards: {EVALUATION}"),
    "num_proc": ignore_key("set automatically; the rows are the same"),
}
"""Keys of `data_config`."""
PEFT_RULES: Rules = {
    "peft_type": map_key("method", values={"LORA": "lora", "PREFIX_TUNING": "ptuning"}),
    "task_type": accept_values("CAUSAL_LM", note="the models are causal language models", hint="Use CAUSAL_LM."),
    "inference_mode": accept_values(
        False, note="an adapter in inference mode is not trained", hint=_REMOVE_HINT, switch=True
    ),
    "r": map_key("lora.rank"),
    "lora_alpha": map_key("lora.alpha"),
    "lora_dropout": map_key("lora.dropout"),
    "target_modules": map_key("lora.targets"),
    "bias": map_key("lora.bias"),
    "modules_to_save": map_key("lora.modules_to_save"),
    "use_rslora": map_key("lora.rslora", switch=True),
    "use_dora": map_key("lora.dora", switch=True),
    "init_lora_weights": accept_values(True, note="new adapters always start at zero", hint=_REMOVE_HINT, switch=True),
    "fan_in_fan_out": accept_values(False, note="these models have no Conv1D layers", hint=_REMOVE_HINT, switch=True),
    "num_virtual_tokens": map_key("ptuning.num_virtual_tokens"),
    "prefix_projection": ignore_key("finetune_hf.py did not pass it to the model; see ptuning.prefix_projection"),
    "num_attention_heads": ignore_key("read from the model; finetune_hf.py did not use it"),
    "token_dim": ignore_key("read from the model; finetune_hf.py did not use it"),
}
"""Keys of `peft_config`."""


# peft's defaults
_LORA_DEFAULTS = {"lora.rank": 8, "lora.alpha": 8, "lora.dropout": 0.0}


def is_finetune_demo(tree: Mapping[str, Any]) -> bool:
    """Return whether the values of a YAML file are a config of finetune_hf.py."""
    return any(section in tree for section in SECTIONS)


def translate_finetune_demo(
    tree: Mapping[str, Any],
    translation: Translation,
    data_dir: str = "",
    model: str = "",
    flags: Mapping[str, Any] | None = None,
) -> None:
    """Translate a YAML file and the command line that it is used with.

    Args:
        tree: values of the file.
        translation: is filled.
        data_dir: folder of the files in `data_config`.
        model: checkpoint folder or hub id.
        flags: flags after the file, which are keys of `training_args`.

    Raises:
        ConfigError: an unknown key, or a value that is not supported.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name in SECTIONS:
        section = tree.get(name) or {}
        if not isinstance(section, Mapping):
            raise ConfigError(f"{translation.source}: {name} must hold keys and values, not {section!r}.")
        sections[name] = dict(section)
    top = {key: value for key, value in tree.items() if key not in SECTIONS}
    training = {**sections["training_args"], **(flags or {})}
    names = [*top, *(f"data_config.{key}" for key in sections["data_config"])]
    names += [*(f"peft_config.{key}" for key in sections["peft_config"]), *(f"training_args.{key}" for key in training)]
    require_known_keys(names, _list_keys(), str, translation.source, "finetune_hf.py")
    apply_rules(TOP_RULES, top, translation)
    apply_rules(DATA_RULES, sections["data_config"], translation, lambda key: f"data_config.{key}")
    apply_rules(PEFT_RULES, sections["peft_config"], translation, lambda key: f"peft_config.{key}")
    run_values = {key: value for key, value in training.items() if key in RUN_RULES}
    apply_rules(RUN_RULES, run_values, translation, lambda key: f"training_args.{key}")
    set_training_section({key: value for key, value in training.items() if key not in RUN_RULES}, translation)
    if model:
        translation.set_value("model.path", model)
    test_file = sections["data_config"].get("test_file")
    translation.test_file = str(Path(data_dir) / str(test_file)) if test_file else ""
    _set_defaults(translation, tree, data_dir)
    translation.add_summary()
    translation.add_default_notes({rule.key: name for name, rule in PEFT_RULES.items() if rule.key})


def _list_keys() -> list[str]:
    sections = {"data_config": DATA_RULES, "peft_config": PEFT_RULES, "training_args": [*TRAINING_KEYS, *OLD_KEYS]}
    return [*TOP_RULES, *(f"{section}.{key}" for section, keys in sections.items() for key in keys)]


def _set_defaults(translation: Translation, tree: Mapping[str, Any], data_dir: str) -> None:
    for key in ("data.train", "data.eval"):
        if translation.get_value(key):
            translation.set_value(key, str(Path(data_dir) / str(translation.get_value(key))))
    lengths = [tree.get(key) for key in ("max_input_length", "max_output_length")]
    if not all(isinstance(length, int) for length in lengths):
        raise ConfigError(f"{translation.source}: max_input_length and max_output_length must both be numbers.")
    translation.set_value("data.max_length", sum(lengths) + 1)  # type: ignore[arg-type]
    translation.add_note(
        "Conversations over data.max_length are truncated at the oldest turns; finetune_hf.py truncated the end."
    )
    translation.set_default("method", "full")
    if translation.get_value("method") == "lora":
        for key, value in _LORA_DEFAULTS.items():
            translation.set_default(key, value, "peft's")
    targets = translation.get_value("lora.targets")
    if isinstance(targets, str):
        translation.set_value("lora.targets", [targets])
    translation.set_default("training.gradient_checkpointing", True)
    if translation.get_value("data.eval") and translation.get_value("training.eval_strategy") != "no":
        translation.add_note(
            "Evaluation computes the loss on all rows of val_file; finetune_hf.py generated replies to 50 of them. "
            f"For BLEU and ROUGE: {EVALUATION}"
        )
    disable_evaluation_without_data(translation)
    if not data_dir:
        translation.add_note(
            "Paths in data_config are relative to the working directory, because DATA_DIR and MODEL_DIR are not given."
        )
