"""`finetune_hf.py` of the ChatGLM3 finetune_demo: DATA_DIR MODEL_DIR CONFIG.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import TRAINING_KEYS
from glmtune.migrate.dialect import OUTSIDE, put_training, stop_evaluation_without_data
from glmtune.migrate.draft import Translation
from glmtune.migrate.rules import Rules, apply, only, to, unknown, without
from glmtune.migrate.training import OLD_KEYS

SCRIPTS = ("finetune_hf.py", "finetune.py")
SECTIONS = ("data_config", "training_args", "peft_config")
"""Keys that tell this file from others."""

_LEAVE = "Leave it out."
TOP: Rules = {
    "max_input_length": to("data.max_length", "the two lengths and one more, for the whole conversation, as there"),
    "max_output_length": to("data.max_length", "see max_input_length"),
    "combine": to("data.train_on", switch=True, values={True: "last", False: "all"}),
    "freezeV": without("it froze the eyes of GLM-4V; these models read text alone", switch=True),
    "swanlab": without("set training.report_to: swanlab to report there"),
}
"""Keys of the file beside its sections."""
DATA: Rules = {
    "train_file": to("data.train"),
    "val_file": to("data.eval"),
    "test_file": without("score the run on it afterwards: glmtune eval RUN --data FILE"),
    "num_proc": without("decided by the machine; the rows are the same"),
}
"""Keys of `data_config`."""
PEFT: Rules = {
    "peft_type": to("method", values={"LORA": "lora", "PREFIX_TUNING": "ptuning"}),
    "task_type": only("CAUSAL_LM", why="these models write text", hint="Use CAUSAL_LM."),
    "inference_mode": only(False, why="nothing would be trained", hint=_LEAVE, switch=True),
    "r": to("lora.rank"),
    "lora_alpha": to("lora.alpha"),
    "lora_dropout": to("lora.dropout"),
    "target_modules": to("lora.targets"),
    "bias": to("lora.bias"),
    "modules_to_save": to("lora.modules_to_save"),
    "use_rslora": to("lora.rslora", switch=True),
    "use_dora": to("lora.dora", switch=True),
    "init_lora_weights": only(True, why="adapters start from nothing here", hint=_LEAVE, switch=True),
    "fan_in_fan_out": only(False, why="these models have no such layers", hint=_LEAVE, switch=True),
    "num_virtual_tokens": to("ptuning.num_virtual_tokens"),
    "prefix_projection": without("finetune_hf.py never handed it to the model; ours is ptuning.prefix_projection"),
    "num_attention_heads": without("taken from the model; finetune_hf.py never used it"),
    "token_dim": without("taken from the model; finetune_hf.py never used it"),
}
"""Keys of `peft_config`."""

_LORA_DEFAULTS = {"lora.rank": 8, "lora.alpha": 8, "lora.dropout": 0.0}  # peft's own


def is_demo(tree: Mapping[str, Any]) -> bool:
    """Whether a YAML file is one of finetune_hf.py's."""
    return any(section in tree for section in SECTIONS)


def take_demo(
    tree: Mapping[str, Any],
    draft: Translation,
    data_dir: str = "",
    model: str = "",
    extra: Mapping[str, Any] | None = None,
) -> Translation:
    """A run from the YAML file and the words that stood beside it.

    Args:
        tree: the file.
        draft: what to fill.
        data_dir: the folder of `data_config`'s files.
        model: the checkpoint.
        extra: flags that stood behind, as keys of `training_args`.

    Raises:
        ConfigError: an unknown key or a value that cannot be honoured.
    """
    sections = {name: _section(tree, name, draft) for name in SECTIONS}
    apply(TOP, {key: value for key, value in tree.items() if key not in SECTIONS}, draft, str)
    apply(DATA, sections["data_config"], draft, lambda key: f"data_config.{key}")
    apply(PEFT, sections["peft_config"], draft, lambda key: f"peft_config.{key}")
    _take_training({**sections["training_args"], **(extra or {})}, draft)
    if model:
        draft.put("model.path", model)
    _complete(draft, tree, sections["data_config"], data_dir)
    return draft.finish()


def _section(tree: Mapping[str, Any], name: str, draft: Translation) -> dict[str, Any]:
    section = tree.get(name) or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{draft.source}: {name} must hold keys and values, not {section!r}.")
    return dict(section)


def _take_training(given: dict[str, Any], draft: Translation) -> None:
    for key in given:
        if key not in TRAINING_KEYS | OLD_KEYS:
            raise unknown(f"training_args.{key}", key, TRAINING_KEYS | OLD_KEYS, draft)
    outside = {key: value for key, value in given.items() if key in OUTSIDE}
    apply(OUTSIDE, outside, draft, lambda key: f"training_args.{key}")
    put_training({key: value for key, value in given.items() if key not in OUTSIDE}, draft)


def _complete(draft: Translation, tree: Mapping[str, Any], data: Mapping[str, Any], data_dir: str) -> None:
    for key in ("data.train", "data.eval"):
        if draft.get(key):
            draft.put(key, str(Path(data_dir) / str(draft.get(key))))
    lengths = [tree.get(key) for key in ("max_input_length", "max_output_length")]
    if not all(isinstance(length, int) for length in lengths):
        raise ConfigError(f"{draft.source}: max_input_length and max_output_length must both be given, as numbers.")
    draft.put("data.max_length", sum(lengths) + 1)  # type: ignore[arg-type]
    draft.note("Over data.max_length the oldest turns go first; finetune_hf.py cut off the end of the conversation.")
    draft.default("method", "full")
    if draft.get("method") == "lora":
        for key, value in _LORA_DEFAULTS.items():
            draft.default(key, value)
    if isinstance(draft.get("lora.targets"), str):
        name = draft.get("lora.targets")
        draft.put("lora.targets", [name])
    draft.default("training.gradient_checkpointing", True)
    if draft.get("data.eval") and draft.get("training.eval_strategy") != "no":
        draft.note(
            "Evaluation is the loss on all rows of val_file; finetune_hf.py generated replies to 50 of them. "
            "For BLEU and ROUGE: glmtune eval RUN."
        )
    stop_evaluation_without_data(draft)
    if not data_dir:
        draft.note("data_config's files are looked for here; the script took DATA_DIR and MODEL_DIR in front.")
