"""What the trainers of preferences have in common: stages, options without effect, dropout, the reference."""

from __future__ import annotations

from typing import Any

from glmtune.config import PREFERENCE_KEYS
from glmtune.config_parsing import parse_number
from glmtune.migrate.translation import Translation

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
    options = translation.tree.get("preference", {})
    for key in [key for key in options if stage not in PREFERENCE_KEYS[key]]:
        if parse_number(options.pop(key)):
            translation.add_note(f"preference.{key}: no effect with stage {stage}.")
    if not options:
        translation.tree.pop("preference", None)
    if stage != "sft":
        _disable_dropout(translation, project)
    if stage in _WITH_REFERENCE and translation.get_value("adapter") and compares_with_base:
        translation.add_note(
            f"adapter: the reference is the adapter before training; {project} compares with the base without it."
        )


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


def _disable_dropout(translation: Translation, project: str) -> None:
    """Set the dropout of adapters to 0, as all projects do in preference tuning whatever is given."""
    method = translation.get_value("method") or "lora"
    section = {"lora": "lora", "qlora": "lora", "ptuning": "ptuning"}.get(str(method))
    if section is None:
        return
    if float(parse_number(translation.get_value(f"{section}.dropout") or 0)):
        translation.add_note(f"{section}.dropout: 0, as {project} turns dropout off in preference tuning.")
    translation.set_value(f"{section}.dropout", 0.0)
