"""Generated answers with their rewards: scoring, metrics and samples on disk.

Shapes: A answers, F rewards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmtune.data.conversation import Conversation
from glmtune.data.encoding import add_prefix
from glmtune.data.prompt_rows import REFERENCE
from glmtune.data.row_store import RowStore
from glmtune.errors import ConfigError
from glmtune.preference.group_losses import combine_rewards
from glmtune.preference.model_reward import ModelReward
from glmtune.preference.reward_functions import Answer, FunctionReward, Reward
from glmtune.preference.rollouts import Completion


@dataclass
class ScoredAnswer:
    """An answer with its rewards.

    Attributes:
        row: number of its question.
        completion: that was generated.
        rewards: of each function; NaN for none.
        reward: their weighted sum; NaN for none.
        advantage: over the other answers to the question.
    """

    row: int
    completion: Completion
    rewards: list[float]
    reward: float
    advantage: float = 0.0


def open_rewards(entries: Sequence[str]) -> list[Reward]:
    """Open the rewards of a run; names that occur twice get a number.

    Args:
        entries: of `reward`.

    Raises:
        ConfigError: no entry, no such function, or no such folder.
    """
    if not entries:
        raise ConfigError(
            "stage grpo needs a reward.",
            "Name a function of a Python file: --set reward=rewards.py:score, or the run folder of a reward model.",
        )
    rewards: list[Reward] = []
    names: set[str] = set()
    for entry in entries:
        if entry.endswith(".py"):
            raise ConfigError(f"reward {entry}: which function of the file?", f"Name it: {entry}:FUNCTION")
        reward: Reward = FunctionReward(entry) if entry.rpartition(":")[0].endswith(".py") else ModelReward(entry)
        name, number = reward.name, 2
        while reward.name in names:
            reward.name, number = f"{name}_{number}", number + 1
        names.add(reward.name)
        rewards.append(reward)
    return rewards


class AnswerScorer:
    """Scores answers by all rewards of a run.

    Args:
        rewards: at least one.
        weights: of each.
        prefix: text before the first question, as the model sees it.
    """

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float], prefix: str):
        self._rewards, self._prefix = rewards, prefix
        self._weights_F = torch.tensor(weights, dtype=torch.float64)
        each = [f"reward_{reward.name}" for reward in rewards] if len(rewards) > 1 else []
        self.metric_names = ("reward", *each, "completion_length", "truncated")
        """What `measure` gives: the reward, with several of them also each, tokens, and whether it was cut."""

    def score(
        self,
        store: RowStore,
        questions: dict[int, Conversation],
        rows: Sequence[int],
        completions: Sequence[Completion],
    ) -> list[ScoredAnswer]:
        """Call every reward once with all answers.

        Args:
            store: encoded questions.
            questions: the conversations that they were encoded from.
            rows: number of the question of each answer.
            completions: the answers.

        Raises:
            StepDataError: a reward fails.
        """
        if not completions:
            return []
        answers = []
        for number, completion in zip(rows, completions, strict=True):
            row = store[number]
            question = questions[row.conversation]
            columns = {**(question.columns or {}), REFERENCE: question.reference}
            messages = list_prompt_messages(question, self._prefix)
            answers.append(Answer(question, messages, completion.text, completion.answer_ids, columns, row.where))
        scores = [reward.score(answers) for reward in self._rewards]
        table_AF = torch.tensor(
            [[math.nan if value is None else value for value in values] for values in zip(*scores, strict=True)],
            dtype=torch.float64,
        )
        totals_A = combine_rewards(table_AF, self._weights_F)
        parts = zip(rows, completions, table_AF.tolist(), totals_A.tolist(), strict=True)
        return [ScoredAnswer(*part) for part in parts]

    def measure(self, answer: ScoredAnswer) -> dict[str, float]:
        """The metrics of an answer, without rewards that it does not have."""
        each = answer.rewards if len(self._rewards) > 1 else []
        values = (answer.reward, *each, float(len(answer.completion.ids)), float(answer.completion.is_cut))
        named = zip(self.metric_names, values, strict=True)
        return {name: value for name, value in named if not math.isnan(value)}

    def write_samples(
        self,
        path: Path,
        step: int,
        kind: str,
        store: RowStore,
        questions: dict[int, Conversation],
        answers: Iterable[ScoredAnswer],
    ) -> None:
        """Append answers to a file of samples, an object per line.

        Args:
            path: of the file.
            step: of the run.
            kind: `training` or `evaluation`.
            store: encoded questions.
            questions: the conversations that they were encoded from.
            answers: to write.
        """
        lines = []
        for answer in answers:
            row = store[answer.row]
            question = questions[row.conversation]
            named = zip(self._rewards, answer.rewards, strict=True)
            entry = {
                "step": step,
                "kind": kind,
                "row": row.where,
                "prompt": list_prompt_messages(question, self._prefix),
                "reference": question.reference,
                "completion": answer.completion.text,
                "tokens": len(answer.completion.ids),
                "truncated": answer.completion.is_cut,
                "rewards": {reward.name: _to_json(value) for reward, value in named},
                "reward": _to_json(answer.reward),
            }
            if kind == "training":
                entry["advantage"] = round(answer.advantage, 6)
            lines.append(json.dumps(entry, ensure_ascii=False, default=str) + "\n")
        with path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write("".join(lines))


def list_prompt_messages(question: Conversation, prefix: str) -> list[dict[str, Any]]:
    """The messages that the model answers, without what is only for training."""
    private = ("loss", "observation_loss")
    messages = add_prefix(question.messages[:-1], prefix)
    return [{key: value for key, value in message.items() if key not in private} for message in messages]


def _to_json(value: float) -> float | None:
    return None if math.isnan(value) else value
