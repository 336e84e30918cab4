"""Whether a tuned model has forgotten too much, the reasons, and what to change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from glmtune.config import ForgetConfig, RunConfig
from glmtune.evaluation.statistics import compare_by_bootstrap

Verdict = Literal["pass", "warn", "fail"]
_ORDER: tuple[Verdict, ...] = ("pass", "warn", "fail")
_NOISE = 0.05
"""A difference of shares counts where chance explains it less often than this."""


@dataclass(frozen=True)
class BothSides:
    """The probe's findings for a base and for a model tuned from it."""

    right: tuple[Sequence[bool], Sequence[bool]]
    """Per item, of the base and of the tuned model."""
    broken: tuple[Sequence[bool], Sequence[bool]]
    """Replies that loop, are empty or full of unknown tokens."""
    reply_loss: tuple[float, float]
    """Mean cross-entropy of the base's own replies in nats."""
    kl: float
    """Mean KL(base || tuned) per token of these replies in nats."""


def judge_forgetting(sides: BothSides, limits: ForgetConfig) -> tuple[Verdict, list[str]]:
    """Judge by the worst of the numbers; with a sentence for each number over a limit."""
    lost = -_compute_gain(*sides.right)
    worse = _compute_gain(*sides.broken)
    rise = sides.reply_loss[1] - sides.reply_loss[0]
    excesses = [
        _explain_excess(
            *(lost, limits.accuracy_warn, limits.accuracy_fail),
            f"Right answers fell by {lost:.1f} points, from {_format_percent(sides.right[0])} to "
            f"{_format_percent(sides.right[1])}",
        ),
        _explain_excess(
            *(sides.kl, limits.kl_warn, limits.kl_fail),
            f"On the base's own replies it is {sides.kl:.2f} nats per token away from the base",
        ),
        _explain_excess(
            *(rise, limits.reply_loss_warn, limits.reply_loss_fail),
            f"The loss of the base's own replies rose by {rise:.2f}, from {sides.reply_loss[0]:.2f} to "
            f"{sides.reply_loss[1]:.2f}",
        ),
        _explain_excess(
            *(worse, limits.degenerate_warn, limits.degenerate_fail),
            f"Replies that loop, are empty or unreadable rose by {worse:.1f} points, from "
            f"{_format_percent(sides.broken[0])} to {_format_percent(sides.broken[1])}",
        ),
    ]
    over = [each for each in excesses if each is not None]
    verdict: Verdict = max((kind for kind, _ in over), key=_ORDER.index, default=_ORDER[0])
    return verdict, [sentence for _, sentence in over]


def suggest_remedies(verdict: Verdict, config: RunConfig | None, steps: int | None = None) -> list[str]:
    """What to change, the most helpful first; nothing after a pass.

    Args:
        verdict: from `judge`.
        config: of the run that tuned it; None where there was none.
        steps: that the run took.
    """
    if verdict == "pass":
        return []
    grave = verdict == "fail"
    if config is not None and config.stage != "sft":  # which replays no rows
        advice = _suggest_reference(config, grave)
    else:
        advice = [_suggest_replay(config, 0.3 if grave else 0.1)]
    if config is None:
        return [*advice, "Train with a lower learning rate, for fewer steps, or with a lower rank."]
    rate = float(config.training["learning_rate"])
    lower = rate / (5 if grave else 2)
    advice.append(f"Lower the rate from {rate:g} to {lower:g}: --set training.learning_rate={lower:g}")
    if steps and steps > 1:
        fewer = max(1, steps // (4 if grave else 2))
        advice.append(
            f"Take fewer steps, {fewer} instead of {steps} (--set training.max_steps={fewer}), or probe an "
            "earlier checkpoint of the run"
        )
    if config.method == "lora" and config.lora.rank > 1:
        rank = max(1, config.lora.rank // (4 if grave else 2))
        advice.append(
            f"Lower the rank from {config.lora.rank} to {rank}, and alpha with it: --set lora.rank={rank} "
            f"--set lora.alpha={config.lora.alpha * rank / config.lora.rank:g}"
        )
    if config.method in ("freeze", "full"):
        advice.append("Use --method lora, which leaves the base's own weights as they are")
    return advice


def _suggest_reference(config: RunConfig, grave: bool) -> list[str]:
    """How a preference tuning stays closer to the model that it starts from."""
    options = config.preference
    if config.stage not in ("dpo", "kto"):
        return []
    beta = options.beta * (5 if grave else 2)
    advice = [f"Stay closer to the reference: --set preference.beta={beta:g} instead of {options.beta:g}"]
    if not options.sft_weight:
        advice.append("Keep the better answers likely: --set preference.sft_weight=0.2")
    return advice


def _suggest_replay(config: RunConfig | None, share: float) -> str:
    now = config.replay.share if config and config.replay.data else 0.0
    if now:
        more = min(0.5, max(share, 2 * now))
        return f"Replay more general rows: --set replay.share={more:g} instead of {now:g}"
    return f"Mix general rows into training: --set replay.data=GENERAL.jsonl --set replay.share={share:g}"


def _compute_gain(base: Sequence[bool], tuned: Sequence[bool]) -> float:
    """By how many points of 100 the share of true ones grew; 0 where that may be chance."""
    difference = compare_by_bootstrap([100.0 * each for each in base], [100.0 * each for each in tuned])
    return difference.mean if difference.p < _NOISE else 0.0


def _explain_excess(value: float, warn: float, fail: float, sentence: str) -> tuple[Verdict, str] | None:
    """The verdict about one number; a value that is not finite means a broken model."""
    if not math.isfinite(value):
        return "fail", f"{sentence} (not a finite number: the tuned model is broken)."
    if value >= fail:
        return "fail", f"{sentence} ({fail:g} fails)."
    return ("warn", f"{sentence} ({warn:g} warns).") if value >= warn else None


def _format_percent(flags: Sequence[bool]) -> str:
    return f"{100 * sum(flags) / len(flags):.1f} %"
