"""LLaMA-Factory's settings of preference tuning, reward models and PPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmtune.errors import ConfigError
from glmtune.migrate.dialect import Rules, accept_values, ignore_key, map_key
from glmtune.migrate.preference_keys import LOSSES, complete_preference, set_online_rewards
from glmtune.migrate.translation import Translation

STAGES = {"sft": "sft", "pt": "sft", "dpo": "dpo", "kto": "kto", "rm": "rm", "ppo": "grpo"}
# `pref_loss` to our stage and loss.
_LOSSES = {
    **{name: ("dpo", loss) for name, loss in LOSSES.items()},
    **{"orpo": ("orpo", None), "simpo": ("simpo", None)},
}
_PPO = "with stage ppo"
_GENERATION_KEYS = {
    "max_new_tokens": "grpo.max_completion_length",
    "temperature": "grpo.temperature",
    "top_p": "grpo.top_p",
}
_GENERATION_DEFAULTS = {"max_new_tokens": 1024, "temperature": 0.95, "top_p": 0.7}

PREFERENCE_RULES: Rules = {
    "pref_beta": map_key("preference.beta"),
    "dpo_beta": map_key("preference.beta"),
    "orpo_beta": map_key("preference.beta"),
    "kto_beta": map_key("preference.beta"),
    "pref_loss": ignore_key("decides stage and preference.loss: sigmoid, hinge, ipo, orpo or simpo"),
    "dpo_loss": ignore_key("decides preference.loss"),
    "pref_ftx": map_key("preference.sft_weight"),
    "dpo_ftx": map_key("preference.sft_weight"),
    "kto_ftx": map_key("preference.sft_weight"),
    "simpo_gamma": map_key("preference.margin"),
    "dpo_label_smoothing": map_key("preference.label_smoothing"),
    "kto_chosen_weight": map_key("preference.desirable_weight"),
    "kto_rejected_weight": map_key("preference.undesirable_weight"),
    "pref_bco_weight": accept_values(0, 0.0, note="the BCO loss is not supported", hint="Leave it out."),
    "ld_alpha": accept_values(1, 1.0, note="LD-DPO is not supported", hint="Set preference.length_normalized."),
    "ref_model": accept_values(
        note="the reference is the model that training starts from", hint="Start from it: model_name_or_path."
    ),
    "ref_model_adapters": accept_values(
        note="the reference is the model that training starts from", hint="Start from it: adapter_name_or_path."
    ),
    "ref_model_quantization_bit": ignore_key("the reference is the same model; model.quantization decides it"),
    "reward_model": map_key("reward", f"{_PPO}: the run folder of a reward model (stage rm)"),
    "reward_model_type": accept_values(
        *("lora", "full"),
        note="the reward model is a run of stage rm, or Python code",
        hint="Write a function that asks the server: reward: FILE.py:FUNCTION.",
    ),
    "reward_model_adapters": accept_values(
        note="the reward model is a run folder, base and adapter together", hint="Give the run as reward_model."
    ),
    "reward_model_quantization_bit": ignore_key("the reward model has the precision of its run"),
    "ppo_epochs": map_key("grpo.num_iterations", _PPO),
    "ppo_buffer_size": ignore_key("answers are generated for every step"),
    "ppo_target": ignore_key("the weight of the KL divergence is constant: grpo.beta"),
    "ppo_score_norm": ignore_key("rewards are always compared within their group: grpo.scale_rewards", switch=True),
    "ppo_whiten_rewards": ignore_key("rewards are always compared within their group", switch=True),
    "max_new_tokens": ignore_key(f"{_PPO}: grpo.max_completion_length; else replies have data.max_target_length"),
    "temperature": ignore_key(f"{_PPO}: grpo.temperature; else replies are greedy"),
    "top_p": ignore_key(f"{_PPO}: grpo.top_p; else replies are greedy"),
    "top_k": ignore_key("answers are sampled from all tokens"),
    "do_sample": ignore_key("answers of stage grpo are always sampled, and replies greedy", switch=True),
}


def set_preference_loss(translation: Translation, values: Mapping[str, Any]) -> None:
    """Set stage and loss as `stage` and `pref_loss` say, and what LLaMA-Factory does in that stage.

    Raises:
        ConfigError: a loss that is not supported.
    """
    stage = str(values.get("stage") or "sft")
    if stage == "dpo":
        _set_pair_loss(translation, values)
    if stage in ("dpo", "kto"):
        translation.set_default("preference.beta", 0.1, "LLaMA-Factory's")
    if stage == "ppo":
        for name, key in _GENERATION_KEYS.items():
            if values.get(name) is not None:
                translation.set_value(key, values[name])
            translation.set_default(key, _GENERATION_DEFAULTS[name], "LLaMA-Factory's")
        set_online_rewards(translation, values.get("reward_model"), stage)
    complete_preference(translation, "LLaMA-Factory", compares_with_base=True)


def _set_pair_loss(translation: Translation, values: Mapping[str, Any]) -> None:
    name = str(values.get("pref_loss") or values.get("dpo_loss") or "sigmoid")
    if name not in _LOSSES:
        raise ConfigError(f"{translation.source}: pref_loss {name} is not supported.", f"One of: {', '.join(_LOSSES)}.")
    stage, loss = _LOSSES[name]
    translation.set_value("stage", stage)
    if loss is not None:
        translation.set_value("preference.loss", loss)
    if stage == "simpo":
        translation.set_default("preference.margin", 0.5, "LLaMA-Factory's")
