"""Numbers by which `training.metric_for_best_model` can choose a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from glmtune.config import RunConfig
from glmtune.config_parsing import suggest_key
from glmtune.errors import ConfigError
from glmtune.html.pages import is_number
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
    return _get_name(config.training, config.stage)


def find_best_step(entries: Iterable[Mapping[str, Any]], config: Mapping[str, Any]) -> tuple[str, int | None]:
    """The evaluation with the best number so far, by the metric and the direction that a run chooses checkpoints by.

    Args:
        entries: lines of metrics.jsonl.
        config: nested plain values, such as those of a run's config.yaml.

    Returns:
        The metric's name without `eval_`, and the step; None: no evaluation has it yet.
    """
    training = config.get("training") or {}
    name = _get_name(training, str(config.get("stage") or "sft"))
    is_greater_better = training.get("greater_is_better")
    if is_greater_better is None:
        is_greater_better = name not in FAULTS and not name.endswith("loss")
    key = f"eval_{name}"
    points = [
        (float(entry[key]), int(entry["step"]))
        for entry in entries
        if is_number(entry.get(key)) and is_number(entry.get("step"))
    ]
    if not points:
        return name, None
    best = max if is_greater_better else min
    return name, best(points, key=lambda point: point[0])[1]  # the first of several, as transformers does


def _get_name(training: Mapping[str, Any], stage: str) -> str:
    default = "reward" if stage == "grpo" else "loss"
    return str(training.get("metric_for_best_model") or default).removeprefix("eval_")


def _check_reward_metric(name: str, given: Any) -> None:
    """Check a metric of stage grpo, whose evaluations have rewards and no loss."""
    if not name.startswith("reward"):
        raise ConfigError(
            f"{_KEY} {shorten_value(given)}: evaluations of stage grpo have rewards alone.", "Remove it, or use reward."
        )
