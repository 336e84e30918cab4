"""LLaMA-Factory's settings of preference tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.config_parsing import parse_number
from glmtune.errors import ConfigError
from glmtune.migrate.dialect import Rules, accept_values, ignore_key, map_key
from glmtune.migrate.translation import Translation

_UNSUPPORTED_STAGES = {
    "rm": "reward models",
    "ppo": "reinforcement learning",
    "kto": "tuning with single labelled answers",
}
# `pref_loss` to our stage and loss.
_LOSSES = {
    **{"sigmoid": ("dpo", "sigmoid"), "hinge": ("dpo", "hinge"), "ipo": ("dpo", "ipo")},
    **{"orpo": ("orpo", None), "simpo": ("simpo", None)},
}

PREFERENCE_RULES: Rules = {
    "pref_beta": map_key("preference.beta"),
    "dpo_beta": map_key("preference.beta"),
    "orpo_beta": map_key("preference.beta"),
    "pref_loss": ignore_key("decides stage and preference.loss: sigmoid, hinge, ipo, orpo or simpo"),
    "dpo_loss": ignore_key("decides preference.loss"),
    "pref_ftx": map_key("preference.sft_weight"),
    "dpo_ftx": map_key("preference.sft_weight"),
    "simpo_gamma": map_key("preference.margin"),
    "dpo_label_smoothing": map_key("preference.label_smoothing"),
    "ref_model": accept_values(
        note="the reference is the model that training starts from", hint="Start from it: model_name_or_path."
    ),
    "ref_model_adapters": accept_values(
        note="the reference is the model that training starts from", hint="Start from it: adapter_name_or_path."
    ),
    "ref_model_quantization_bit": ignore_key("the reference is the same model; model.quantization decides it"),
    "pref_bco_weight": accept_values(0, 0.0, note="the BCO loss is not supported", hint="Leave it out."),
    "ld_alpha": accept_values(1, 1.0, note="LD-DPO is not supported", hint="Set preference.length_normalized."),
}


def refuse_unsupported_stages(values: Mapping[str, Any], label: str, source: str) -> None:
    """Check that the stage is one that is trained here, before its own keys are called unknown.

    Raises:
        ConfigError: a reward model, reinforcement learning or KTO.
    """
    stage = str(values.get("stage") or "")
    if stage in _UNSUPPORTED_STAGES:
        raise ConfigError(
            f"{source}: {label} {stage}: {_UNSUPPORTED_STAGES[stage]} is not supported yet.",
            "Answers (sft), plain text (pt) and pairs (dpo) are trained on.",
        )


def set_preference_loss(translation: Translation, values: Mapping[str, Any]) -> None:
    """Set stage and loss as `pref_loss` says, and what LLaMA-Factory does in that stage.

    Raises:
        ConfigError: a loss that is not supported.
    """
    if translation.get_value("stage") != "dpo":
        return
    name = str(values.get("pref_loss") or values.get("dpo_loss") or "sigmoid")
    if name not in _LOSSES:
        raise ConfigError(f"{translation.source}: pref_loss {name} is not supported.", f"One of: {', '.join(_LOSSES)}.")
    stage, loss = _LOSSES[name]
    translation.set_value("stage", stage)
    if loss is not None:
        translation.set_value("preference.loss", loss)
    translation.set_default("preference.beta", 0.1, "LLaMA-Factory's")
    if stage == "simpo":
        translation.set_default("preference.margin", 0.5, "LLaMA-Factory's")
    disable_dropout(translation, "LLaMA-Factory")
    if stage == "dpo" and translation.get_value("adapter"):
        translation.add_note(
            "adapter: the reference is the adapter before training; LLaMA-Factory compares with the base without it."
        )


def disable_dropout(translation: Translation, project: str) -> None:
    """Set the dropout of adapters to 0, as a project does in preference tuning whatever is given."""
    if translation.get_value("method") not in (None, "lora"):
        return
    if float(parse_number(translation.get_value("lora.dropout") or 0)):
        translation.add_note(f"lora.dropout: 0, as {project} turns dropout off in preference tuning.")
    translation.set_value("lora.dropout", 0.0)
