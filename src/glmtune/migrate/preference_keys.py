"""What the trainers of preferences have in common: stages, options without effect, dropout, the reference."""

from __future__ import annotations

from typing import Any

from glmtune.config import GrpoConfig
from glmtune.config_checks import PREFERENCE_KEYS
from glmtune.config_parsing import parse_number
from glmtune.errors import ConfigError
from glmtune.migrate.translation import Translation
from glmtune.utils.documents import parse_json

LOSSES = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo"}
"""Losses of DPO, in all projects, to `preference.loss`."""
_WITH_REFERENCE = ("dpo", "kto")


def complete_preference(translation: Translation, project: str, *, compares_with_base: bool) -> None:
    """Remove options without effect on the stage, turn dropout off, and say where the reference differs.

    Args:
        translation: has a stage and its options.
        project: whose settings they are, for the notes.
        compares_with_base: whether the project's reference is the base even if training starts from an adapter.
    """
    stage = translation.get_value("stage") or "sft"
    if stage != "grpo":
        for section in ("grpo", "reward"):
            if translation.tree.pop(section, None):
                translation.add_note(f"{section}: no effect with stage {stage}.")
    options = translation.tree.get("preference", {})
    for key in [key for key in options if stage not in PREFERENCE_KEYS[key]]:
        if parse_number(options.pop(key)):
            translation.add_note(f"preference.{key}: no effect with stage {stage}.")
    if not options:
        translation.tree.pop("preference", None)
    if stage not in ("sft", "rm"):
        _disable_dropout(translation, project)
    if stage in _WITH_REFERENCE and translation.get_value("adapter") and compares_with_base:
        translation.add_note(
            f"adapter: the reference is the adapter before training; {project} compares with the base without it."
        )


def set_pair_loss(translation: Translation, names: Any, weights: Any, label: str) -> None:
    """Set the loss of DPO from the names and weights that TRL's `loss_type` and `loss_weights` have.

    Args:
        translation: is filled.
        names: a loss, or a list of one loss and `sft`; None: sigmoid.
        weights: of them; None: 1 each.
        label: their key of the losses, for messages.

    Raises:
        ConfigError: a loss, or a sum of losses, that is not supported.
    """
    losses = [str(name) for name in _list_values(names or "sigmoid")]
    numbers = [float(parse_number(weight)) for weight in _list_values(weights or [1.0] * len(losses))]
    if len(numbers) != len(losses):
        raise ConfigError(f"{translation.source}: {len(losses)} losses in {label} and {len(numbers)} weights.")
    weight_of = dict(zip(losses, numbers, strict=True))
    sft = weight_of.pop("sft", 0.0)
    main, scale = next(iter(weight_of.items()), ("", 0.0))
    if len(weight_of) != 1 or main not in (*LOSSES, "sigmoid_norm") or scale <= 0:
        options = ", ".join((*LOSSES, "sigmoid_norm"))
        raise ConfigError(
            f"{translation.source}: {label} {' '.join(losses)} is not supported.",
            f"One of: {options}; and sft with it.",
        )
    if scale != 1:
        translation.add_note(f"{label}: the weights are taken relative to that of {main}, which is 1 here.")
    translation.set_value("preference.loss", LOSSES.get(main, "sigmoid"))
    if main == "sigmoid_norm":
        translation.set_value("preference.length_normalized", True)
    if sft:
        translation.set_value("preference.sft_weight", sft / scale)


def _list_values(value: Any) -> list[Any]:
    if isinstance(value, str):
        value = parse_json(value) if value.lstrip().startswith("[") else value.replace(",", " ").split()
    return list(value) if isinstance(value, (list, tuple)) else [value]


def set_online_rewards(translation: Translation, rewards: Any, stage: str) -> None:
    """Set what rewards the answers of stage grpo.

    Args:
        translation: is filled.
        rewards: a reward model, or a list of rewards; None: not given.
        stage: their name of the stage.
    """
    if rewards:
        translation.set_value("reward", rewards)
    if stage == "ppo":
        translation.add_note(
            "stage ppo: becomes grpo, which has no value model: an answer's advantage is its reward compared with the "
            "rewards of other answers to the same question (grpo.num_generations of them)."
        )
        if translation.get_value("grpo.beta") is None:
            translation.add_note(
                "stage ppo: PPO also pulls the model back to where it started; here it is off unless grpo.beta is set, "
                "to 0.04 say."
            )


def convert_answer_batches(translation: Translation, project: str) -> None:
    """Make the batch sizes of GRPO, which count answers in other projects, those of questions.

    Args:
        translation: has the batch sizes and `grpo.num_generations`, if they are not the defaults.
        project: whose settings they are, for the note.
    """
    keys = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")
    size, steps = (translation.get_value(key) for key in keys)
    answers = int(parse_number(size or 1)) * int(parse_number(steps or 1))
    per_question = int(parse_number(translation.get_value("grpo.num_generations") or GrpoConfig().num_generations))
    questions = max(1, answers // per_question)
    for key, value in zip(keys, (1, questions), strict=True):
        translation.set_value(key, value)
        translation.defaults = [default for default in translation.defaults if default.key != key]
    translation.add_note(
        f"training.gradient_accumulation_steps: {questions}. {project}'s batch sizes count answers, of which a step "
        f"had {answers} in a process; here they count questions, with {per_question} answers each."
    )


def _disable_dropout(translation: Translation, project: str) -> None:
    """Set the dropout of adapters to 0, as all projects do in preference tuning whatever is given."""
    method = translation.get_value("method") or "lora"
    section = {"lora": "lora", "qlora": "lora", "ptuning": "ptuning"}.get(str(method))
    if section is None:
        return
    key = f"{section}.dropout"
    is_given = all(default.key != key for default in translation.defaults)
    if is_given and float(parse_number(translation.get_value(key) or 0)):
        translation.add_note(f"{key}: 0, as {project} turns dropout off in preference tuning.")
    translation.defaults = [default for default in translation.defaults if default.key != key]
    translation.set_value(key, 0.0)
