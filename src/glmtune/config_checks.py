"""Contradictions in a run's configuration, and settings without an effect: checked before anything is loaded."""

from __future__ import annotations

import dataclasses
from typing import Any

from glmtune.config import GrpoConfig, PreferenceConfig, RunConfig, list_rewards
from glmtune.config_parsing import check_field_range
from glmtune.errors import ConfigError

PREFERENCE_KEYS = {
    "loss": ("dpo",),
    "beta": ("dpo", "orpo", "simpo", "kto"),
    "label_smoothing": ("dpo",),
    "length_normalized": ("dpo",),
    "margin": ("simpo",),
    "sft_weight": ("dpo", "simpo", "kto"),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "center_rewards": ("rm",),
}
"""The stages that options of preference tuning have an effect on."""


def check_config(config: RunConfig) -> None:
    """Check ranges, and contradictions between keys.

    Raises:
        ConfigError: no model, no data, or a number out of its range.
    """
    required = {"model.path": (config.model.path, "--model"), "data.train": (config.data.train, "--data")}
    for key, (value, option) in required.items():
        if not value:
            raise ConfigError(f"{key} is not set.", f"Give {option}, or set it in the config file.")
    _check_ranges(config)
    _check_stage(config)
    _check_new_tokens(config)
    if config.data.eval and config.data.eval_rows:
        raise ConfigError("data.eval and data.eval_rows both name evaluation rows.", "Remove one of them.")
    _check_base(config)


def _check_new_tokens(config: RunConfig) -> None:
    """Check that the settings allow new tokens, if there are any.

    Raises:
        ConfigError: names what does not.
    """
    if config.data.new_tokens and config.method in ("ptuning", "freeze"):
        raise ConfigError(
            f"data.new_tokens: method {config.method} does not train the embedding, so new tokens would mean nothing.",
            "Use method lora, qlora or full, or leave it out.",
        )
    if config.data.new_tokens and config.stage == "rm":
        raise ConfigError(
            "data.new_tokens trains rows of the head, which a reward model does not use.",
            "Add the tokens in a run of stage sft, and train the reward model on its merged result: glmtune export.",
        )
    if config.data.new_tokens and (config.model.head_quantization or config.model.embedding_on_host):
        key = "head_quantization" if config.model.head_quantization else "embedding_on_host"
        raise ConfigError(
            f"data.new_tokens trains rows of embedding and head, which model.{key} does not allow.",
            f"Remove one of the two: --set model.{key}={'null' if key == 'head_quantization' else 'false'}",
        )


def _check_base(config: RunConfig) -> None:
    """Check that the method can train a base that is held as the settings say.

    Raises:
        ConfigError: names the setting.
    """
    quantization = config.model.quantization
    if quantization in ("packed4", "packed8") and config.method == "lora":
        raise ConfigError(
            f"method lora cannot train adapters on a base quantized to {quantization}.",
            "Use model.quantization nf4 or int8, or method ptuning.",
        )
    if quantization and config.method in ("freeze", "full"):
        raise ConfigError(
            f"method {config.method} trains the base's own weights, which cannot be quantized to {quantization}.",
            "Use method lora or ptuning on a quantized base, or remove model.quantization.",
        )
    if config.model.head_quantization and config.method in ("freeze", "full"):
        raise ConfigError(
            f"model.head_quantization: method {config.method} saves a complete model, head included.",
            "Use method lora or ptuning, or remove model.head_quantization.",
        )
    if config.model.embedding_on_host and config.method == "full":
        raise ConfigError(
            "model.embedding_on_host: method full trains the embedding, which must be on the GPU.",
            "Use another method, or remove model.embedding_on_host.",
        )


def _check_stage(config: RunConfig) -> None:
    """Check that nothing is set that has no effect on the stage.

    Raises:
        ConfigError: names the key.
    """
    stage, preference = config.stage, config.preference
    if "margin" in config.data.columns and stage != "rm":
        raise ConfigError(f"data.columns.margin has no effect with stage {stage}.", "It is for rm.")
    if stage == "grpo":
        _check_grpo(config)
        return
    if config.reward or config.grpo != GrpoConfig():
        key = "reward" if config.reward else "grpo.*"
        raise ConfigError(f"{key} has no effect with stage {stage}.", "Add: --set stage=grpo")
    if stage == "sft":
        kind = config.data.preference
        if kind in ("pairs", "labels", "prompts"):
            fitting = {"pairs": "dpo", "labels": "kto", "prompts": "grpo"}[kind]
            raise ConfigError(
                f"data.preference {kind} is for preference tuning; stage is sft.", f"Add: --set stage={fitting}"
            )
        if preference != PreferenceConfig():
            raise ConfigError("preference.* has no effect with stage sft.", "Set stage to dpo, orpo, simpo, kto or rm.")
        return
    needed = "labels" if stage == "kto" else "pairs"
    if config.data.preference != needed:
        what = "single answers with a label" if needed == "labels" else "both answers of every row"
        raise ConfigError(
            f"data.preference is {config.data.preference}; stage {stage} needs {what}.", "Remove data.preference."
        )
    for key, stages in PREFERENCE_KEYS.items():
        default = PreferenceConfig.__dataclass_fields__[key].default
        if stage not in stages and getattr(preference, key) != default:
            raise ConfigError(
                f"preference.{key} has no effect with stage {stage}.", f"It is for {' and '.join(stages)}."
            )
    if stage == "kto" and not preference.desirable_weight and not preference.undesirable_weight:
        raise ConfigError("preference.desirable_weight and undesirable_weight are both 0.", "Set one of them.")
    if preference.label_smoothing and preference.loss != "sigmoid":
        raise ConfigError(
            f"preference.label_smoothing has no effect with preference.loss {preference.loss}.", "Remove it."
        )
    if preference.length_normalized and preference.loss == "ipo":
        raise ConfigError(
            "preference.length_normalized has no effect with preference.loss ipo, which always takes means per token.",
            "Remove it.",
        )
    if config.training.get("label_smoothing_factor"):
        raise ConfigError(
            "training.label_smoothing_factor smooths the tokens of answers, which preference tuning does not.",
            "Use preference.label_smoothing." if stage == "dpo" else "Remove it.",
        )
    if config.replay.data:
        rows = "answers with a label" if stage == "kto" else "pairs"
        raise ConfigError(f"replay.data has single answers; stage {stage} needs {rows}.", "Remove it.")
    if config.generate.rows:
        command = "score" if stage == "rm" else "eval"
        raise ConfigError(
            f"generate.rows is for stage sft, not {stage}.", f"Score the result: glmtune {command} RUN --data FILE"
        )


def _check_grpo(config: RunConfig) -> None:
    """Check the settings of stage grpo; that there is a reward is checked where it is opened: previews need none.

    Raises:
        ConfigError: a setting that has no effect or does not work.
    """
    rewards, weights = list_rewards(config), config.grpo.reward_weights
    if weights and rewards and len(weights) != len(rewards):
        raise ConfigError(
            f"grpo.reward_weights has {len(weights)} numbers, and reward has {len(rewards)} entries.",
            "Give one weight for each reward, in the same order.",
        )
    if weights and not any(weights):
        raise ConfigError(f"grpo.reward_weights {weights} must not all be 0.")
    if config.data.preference != "prompts":
        raise ConfigError(
            f"data.preference {config.data.preference} has no effect with stage grpo, which reads questions alone.",
            "Remove it.",
        )
    if config.preference != PreferenceConfig():
        raise ConfigError("preference.* has no effect with stage grpo.", "Its options are under grpo.")
    for key, value in (("lora.dropout", config.lora.dropout), ("ptuning.dropout", config.ptuning.dropout)):
        if value:
            raise ConfigError(
                f"{key} is {value:g}: stage grpo trains the probabilities that answers were sampled with, without "
                "dropout.",
                f"Remove {key}.",
            )
    for key in ("label_smoothing_factor", "neftune_noise_alpha"):
        if config.training.get(key):
            raise ConfigError(
                f"training.{key} changes the probabilities of answers, which stage grpo trains as they were sampled.",
                f"Remove training.{key}.",
            )
    for key in ("fsdp", "deepspeed"):
        if config.training.get(key):
            raise ConfigError(
                f"training.{key} does not work with stage grpo: every process generates answers with the whole model.",
                f"Remove training.{key}; several GPUs work without it, and model.quantization saves memory.",
            )
    if config.model.attention == "flash_attention_2":
        raise ConfigError(
            "model.attention flash_attention_2 cannot generate answers of several lengths in one batch (stage grpo).",
            "Remove model.attention: auto takes the best kernel of torch.",
        )
    if config.replay.data:
        raise ConfigError("replay.data has answers to train on; stage grpo trains on the model's own.", "Remove it.")
    if config.generate.rows:
        raise ConfigError(
            "generate.rows has no effect with stage grpo, which generates and scores all evaluation rows.",
            "Set data.eval_rows to the number of rows.",
        )


def _check_ranges(config: Any, prefix: str = "") -> None:
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            _check_ranges(value, f"{prefix}{each.name}.")
        else:
            check_field_range(each, value, f"{prefix}{each.name}")
