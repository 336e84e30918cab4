"""Numbers by which `training.metric_for_best_model` can choose a checkpoint."""

from __future__ import annotations

from typing import Any

from glmtune.config import RunConfig
from glmtune.config_parsing import suggest_key
from glmtune.errors import ConfigError
from glmtune.training.stage_metrics import BEST_METRICS
from glmtune.utils.documents import shorten_value

QUALITY = (
    "bleu4_characters",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "bleu4_words",
    "exact_match",
    "tool_decision",
    "tool_name",
    "tool_arguments",
    "tool_argument_keys",
)
"""Scores of replies, 0 to 100, more is better."""
FAULTS = ("tool_parse_failure", "empty", "truncated", "repeated_tail", "repeated_4grams")
"""Scores of replies, 0 to 100, less is better."""

TOOL_SCORES = tuple(name for name in (*QUALITY, *FAULTS) if name.startswith("tool_"))
"""Scores that only rows with a call have."""
_KEY = "training.metric_for_best_model"


def check_best_metric(config: RunConfig) -> None:
    """Check the metric of the best checkpoint before anything is loaded; the Trainer looks for it after an evaluation.

    Raises:
        ConfigError: an unknown one, one that the stage does not have, or a score of replies where none are generated.
    """
    given = config.training.get("metric_for_best_model")
    if config.stage == "grpo":
        _check_reward_metric(get_metric_name(config), given)
        return
    if given is None or get_metric_name(config) == "loss":
        return
    name = get_metric_name(config)
    of_stage = BEST_METRICS.get(config.stage, ())
    if name in of_stage:
        return
    known = ("loss", *of_stage) if of_stage else ("loss", *QUALITY, *FAULTS)
    if name not in known:
        raise ConfigError(
            f"{_KEY}: there is no metric {shorten_value(given)}.",
            suggest_key(name, known),
        )
    if not config.generate.rows:
        raise ConfigError(
            f"{_KEY} {name} is a score of replies, and none are generated.",
            "Set generate.rows, say to 50, or use loss.",
        )


def get_metric_name(config: RunConfig) -> str:
    """The name of the metric of the best checkpoint, without the prefix that transformers adds to it."""
    default = "reward" if config.stage == "grpo" else "loss"
    return str(config.training.get("metric_for_best_model") or default).removeprefix("eval_")


def _check_reward_metric(name: str, given: Any) -> None:
    """Check a metric of stage grpo, whose evaluations have rewards and no loss."""
    if not name.startswith("reward"):
        raise ConfigError(
            f"{_KEY} {shorten_value(given)}: evaluations of stage grpo have rewards alone.", "Remove it, or use reward."
        )
