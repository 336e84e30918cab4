"""Scores of replies while training: a sample of the evaluation rows, answered and scored at every evaluation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch.distributed as dist
from transformers import TrainingArguments

from glmtune.data.batches import BlockDataset
from glmtune.data.encoding import EncodedRow
from glmtune.errors import ConfigError
from glmtune.families import IGNORE, Family
from glmtune.training.distributed import processes
from glmtune.training.training_data import Rows


@dataclass(frozen=True)
class Question:
    """The last turn of an encoded row: the ids of its prompt, and of the answer with its end token."""

    prompt_ids: list[int]
    reference_ids: list[int]


class ScoreReplies(Protocol):
    """Answers questions and scores the replies: a dictionary of scores per question."""

    def __call__(
        self,
        model: Any,
        tokenizer: Any,
        family: Family,
        questions: Sequence[Question],
        *,
        max_new_tokens: int,
        batch_size: int,
    ) -> list[dict[str, float]]: ...


class GeneratedScores:
    """Mean scores of the same sampled rows whenever it is called; processes share the rows.

    Args:
        blocks: the evaluation rows.
        rows: how many of them are sampled; all when there are fewer.
        seed: of the sample.
        score: from `glmtune.evaluation`, which stands above this room.
        tokenizer: the model's.
        family: its generation.
        max_new_tokens: longest reply.
        batch_size: rows at once, per process.

    Raises:
        ConfigError: the rows are plain text, which asks nothing.
    """

    def __init__(
        self,
        blocks: BlockDataset,
        rows: int,
        seed: int,
        score: ScoreReplies,
        *,
        tokenizer: Any,
        family: Family,
        max_new_tokens: int,
        batch_size: int,
    ):
        self._questions = sample_questions(blocks, rows, seed)
        self._score = score
        self._tokenizer, self._family = tokenizer, family
        self._limits = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}

    def __call__(self, model: Any) -> dict[str, float]:
        """Mean of every score over the rows that have it, the same in all processes; all must call it.

        Args:
            model: in eval mode, not wrapped for data parallelism.
        """
        rank = dist.get_rank() if dist.is_initialized() else 0
        mine = self._questions[rank :: processes()]
        scored = self._score(model, self._tokenizer, self._family, mine, **self._limits) if mine else []
        rows = [row for part in _gather(scored) for row in part]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: _mean([row[name] for row in rows if name in row]) for name in names}


def generated_scores(
    count: int,
    max_new_tokens: int,
    rows: Rows,
    family: Family,
    tokenizer: Any,
    arguments: TrainingArguments,
    score: ScoreReplies | None,
) -> GeneratedScores | None:
    """What a run's config asks for; None if it asks for nothing.

    Args:
        count: `generate.rows`.
        max_new_tokens: `generate.max_new_tokens`.
        rows: the run's data.
        family: the generation.
        tokenizer: its tokenizer.
        arguments: say by what the best checkpoint is chosen, and how many rows are evaluated at once.
        score: scores replies.

    Raises:
        ConfigError: there are no rows to answer, or the best checkpoint is to be chosen by a score that nobody takes.
        ValueError: `score` is missing.
    """
    best = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
    if not count:
        if best != "loss":
            raise ConfigError(
                f"training.metric_for_best_model {best} is a score of replies, and none are generated.",
                "Set generate.rows, say to 50, or use loss.",
            )
        return None
    if score is None:
        raise ValueError("generate.rows needs a function that scores replies")
    if rows.eval is None:
        raise ConfigError(
            "generate.rows needs evaluation rows, and there are none.",
            "Give --eval-data, or set data.eval_fraction=0.05.",
        )
    return GeneratedScores(
        *(rows.eval, count, arguments.seed, score),
        tokenizer=tokenizer,
        family=family,
        max_new_tokens=max_new_tokens,
        batch_size=arguments.per_device_eval_batch_size,
    )


def sample_questions(blocks: BlockDataset, count: int, seed: int) -> list[Question]:
    """A sample of the rows in the blocks; it depends on nothing but the rows' order, `count` and `seed`.

    Raises:
        ConfigError: the rows are plain text.
    """
    numbers = sorted(row for block in blocks.blocks for row in block)
    chosen = sorted(random.Random(seed).sample(numbers, min(count, len(numbers))))
    questions = [question for row in chosen if (question := last_turn(blocks.rows[row])) is not None]
    if not questions:
        raise ConfigError("generate.rows: the evaluation rows are plain text, which asks nothing.", "Set it to 0.")
    return questions


def last_turn(row: EncodedRow) -> Question | None:
    """Prompt and answer at the end of a row; None for plain text, where all but the two opening tokens is learnt."""
    ids, labels = list(map(int, row.input_ids)), list(row.labels)
    start = max(place for place, label in enumerate(labels) if label == IGNORE) + 1
    return None if start <= _OPENING else Question(ids[:start], ids[start:])


_OPENING = 2


def _gather(scored: list[dict[str, float]]) -> list[list[dict[str, float]]]:
    """What every process has, in the order of processes."""
    if not dist.is_initialized():
        return [scored]
    parts: list[Any] = [None] * processes()
    dist.all_gather_object(parts, scored)
    return parts


def _mean(values: list[float]) -> float:
    return sum(sorted(values)) / len(values)  # sorted: one sum, however the rows were shared out
