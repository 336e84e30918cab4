"""Curves of preference tuning: what a run's metrics say of better and worse answers, and whether both become less
likely.

The losses compare two answers, so they fall as well where the better answer becomes less likely and the worse one much
less: the model then unlearns both (arXiv 2402.13228, arXiv 2404.04626).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.html.i18n import text
from glmtune.run_dir import RunDir

_MIN_FALL = 1.0
"""Nats by which the log-probability of both answers must have fallen on average."""
_REFERENCE_STAGES = ("dpo", "kto")
"""Stages whose reward is beta times the change of an answer's log-probability since the start."""
SFT_WEIGHT_STAGES = ("dpo", "simpo", "kto")
"""Stages that `preference.sft_weight` has an effect on."""


@dataclass(frozen=True)
class AnswerFall:
    """Both answers of pairs became less likely; mean log-probabilities of an answer in nats.

    Attributes:
        step: of the last numbers.
        is_evaluation: whether they are of held-out pairs; otherwise of the last steps of training.
        better: of better answers, at the start and at that step.
        worse: of worse answers.
        stage: of the run.
    """

    step: int
    is_evaluation: bool
    better: tuple[float, float]
    worse: tuple[float, float]
    stage: str

    @property
    def advice_key(self) -> str:
        """Key of the text that says what helps."""
        return "report.pairs.fall.sft" if self.stage in SFT_WEIGHT_STAGES else "report.pairs.fall.rate"

    def describe(self, lang: str) -> str:
        """A warning, in a language of the locales."""
        values = {
            "before": f"{self.better[0]:,.1f}",
            "after": f"{self.better[1]:,.1f}",
            "worse_before": f"{self.worse[0]:,.1f}",
            "worse_after": f"{self.worse[1]:,.1f}",
            "step": f"{self.step:,}",
            "advice": text(self.advice_key, lang),
        }
        return text("report.pairs.fall.eval" if self.is_evaluation else "report.pairs.fall.train", lang, **values)


def read_answer_fall(run: RunDir, config: Mapping[str, Any]) -> AnswerFall | None:
    """`find_answer_fall` of a run's metrics.jsonl.

    Args:
        run: the run, finished or not.
        config: the content of its config.yaml.
    """
    return find_answer_fall(run.read_metrics(), config)


def find_answer_fall(metrics: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> AnswerFall | None:
    """Find whether both answers are less likely than at the start.

    With a reference (dpo, kto) the start is exact: the log-probability minus the reward divided by beta. Without one it
    is the first evaluation, or the mean of the first fifth of the training's numbers.

    Args:
        metrics: entries of metrics.jsonl.
        config: `stage` and `preference` of the run.

    Returns:
        None where one of them is not, or by less than a nat, or the run has no such numbers.
    """
    evaluations = [entry for entry in metrics if _has_numbers(entry, "eval_")]
    steps = [entry for entry in metrics if _has_numbers(entry, "")]
    entries, prefix = (evaluations, "eval_") if evaluations else (steps, "")
    if not entries:
        return None
    part = 1 if evaluations else max(1, len(entries) // 5)
    last = entries[-part:]
    options = config.get("preference") or {}
    is_per_token = options.get("length_normalized") or options.get("loss") == "ipo"
    beta = options.get("beta") if config.get("stage") in _REFERENCE_STAGES and not is_per_token else None
    sides = []
    for side in ("better", "worse"):
        after = _average(last, f"{prefix}{side}_logp")
        if beta:
            before = after - _average(last, f"{prefix}{side}_reward") / float(beta)
        elif len(entries) >= 2 * part:
            before = _average(entries[:part], f"{prefix}{side}_logp")
        else:
            return None
        sides.append((before, after))
    if any(not before - after > _MIN_FALL for before, after in sides):
        return None
    return AnswerFall(int(last[-1]["step"]), bool(evaluations), sides[0], sides[1], str(config.get("stage")))


def _has_numbers(entry: Mapping[str, Any], prefix: str) -> bool:
    names = [f"{prefix}{side}_{kind}" for side in ("better", "worse") for kind in ("logp", "reward")]
    return all(isinstance(entry.get(name), (int, float)) and math.isfinite(entry[name]) for name in names)


def _average(entries: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float(entry[name]) for entry in entries) / len(entries)
