"""Scores of replies during training: a sample of the evaluation rows is answered and scored at every evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from transformers import TrainingArguments

from glmtune.config import GenerateConfig
from glmtune.data.batches import BlockDataset
from glmtune.data.encoding import EncodedRow
from glmtune.errors import ConfigError
from glmtune.families import IGNORE_INDEX, Family
from glmtune.training.best_metric import TOOL_SCORES
from glmtune.training.distributed import count_processes
from glmtune.training.training_data import TrainingData
from glmtune.utils.console import count_noun

SAMPLES = 3
"""Number of questions whose replies are kept at every evaluation."""


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
        on_reply: Callable[[int, str], None] | None = None,
    ) -> list[dict[str, float]]:
        """Args: `on_reply` is called with the number of a question and the text of its reply."""
        ...


class GeneratedScores:
    """Mean scores of the same sampled rows at every call; the rows are divided among the processes.

    Args:
        blocks: the evaluation rows.
        rows: number of rows to sample; all when there are fewer.
        seed: of the sample.
        score: from `glmtune.evaluation`, which this package must not import.
        tokenizer: the model's.
        family: its generation.
        max_new_tokens: longest reply.
        batch_size: rows in a batch, per process.
        samples: file of the run to which the replies to the first questions are appended; None: they are not kept.

    Raises:
        ConfigError: the rows are plain text without questions.
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
        samples: Path | None = None,
    ):
        self._samples = samples
        self._questions = sample_questions(blocks, rows, seed)
        self._score = score
        self._tokenizer, self._family = tokenizer, family
        self._limits = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        self._replies: dict[int, str] = {}

    @property
    def count(self) -> int:
        """Number of sampled rows."""
        return len(self._questions)

    def has_tool_calls(self) -> bool:
        """Whether an answer of the sampled rows calls a tool, so that its score exists."""
        texts = (
            self._tokenizer.decode(question.reference_ids, skip_special_tokens=True) for question in self._questions
        )
        return any(self._family.parse_reply(text).tool_calls for text in texts)

    def __call__(self, model: Any, step: int) -> dict[str, float]:
        """Mean of every score over the rows that have it, the same in all processes; all must call it.

        Args:
            model: in eval mode, not wrapped for data parallelism.
            step: of the run.
        """
        rank = dist.get_rank() if dist.is_initialized() else 0
        questions = self._questions[rank :: count_processes()]
        self._replies = {}
        scores = []
        if questions:
            limits: dict[str, Any] = {**self._limits, "on_reply": self._keep_reply}
            scores = self._score(model, self._tokenizer, self._family, questions, **limits)
        if self._samples is not None and rank == 0:
            self._write_samples(self._samples, step)
        rows = [row for part in _gather_scores(scores) for row in part]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: _mean([row[name] for row in rows if name in row]) for name in names}

    def _write_samples(self, path: Path, step: int) -> None:
        """Append the replies of the last call to the first questions, the same ones every time."""
        lines = []
        for number, reply in self._replies.items():
            question = self._questions[number * count_processes()]  # the main process has these
            prompt, reference = (
                self._tokenizer.decode(ids, skip_special_tokens=True)
                for ids in (question.prompt_ids, question.reference_ids)
            )
            entry = {"step": step, "kind": "evaluation", "prompt": prompt, "reference": reference, "completion": reply}
            lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
        with path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write("".join(lines))

    def _keep_reply(self, number: int, reply: str) -> None:
        if number < SAMPLES:
            self._replies[number] = reply


def make_generated_scores(
    generate: GenerateConfig,
    data: TrainingData,
    family: Family,
    tokenizer: Any,
    arguments: TrainingArguments,
    score: ScoreReplies | None,
    samples: Path | None = None,
) -> GeneratedScores | None:
    """Make the scores that a run's config asks for; None if it asks for none.

    Args:
        generate: the section of the config.
        data: of the run.
        family: the generation.
        tokenizer: its tokenizer.
        arguments: with the seed, the metric of the best checkpoint and the evaluation batch size.
        score: scores replies.
        samples: see `GeneratedScores`.

    Raises:
        ConfigError: there are no rows to answer, or none has the metric of the best checkpoint.
        ValueError: `score` is missing.
    """
    if not generate.rows:
        return None
    if score is None:
        raise ValueError("generate.rows needs a function that scores replies")
    if data.eval is None:
        raise ConfigError(
            "generate.rows needs evaluation rows, and there are none.",
            "Give --eval-data, or set data.eval_fraction=0.05.",
        )
    scores = GeneratedScores(
        *(data.eval, generate.rows, arguments.seed, score),
        tokenizer=tokenizer,
        family=family,
        max_new_tokens=generate.max_new_tokens,
        batch_size=arguments.per_device_eval_batch_size,
        samples=samples,
    )
    metric = (arguments.metric_for_best_model or "").removeprefix("eval_")
    if metric in TOOL_SCORES and not scores.has_tool_calls():
        raise ConfigError(
            f"training.metric_for_best_model {metric} is a score of tool calls, and no answer among the "
            f"{count_noun(scores.count, 'sampled evaluation row')} calls a tool.",
            "Raise generate.rows, give evaluation rows with calls, or choose another metric.",
        )
    return scores


def sample_questions(blocks: BlockDataset, count: int, seed: int) -> list[Question]:
    """Sample rows of the blocks; the sample depends on the order of the rows, `count` and `seed` only.

    Raises:
        ConfigError: the rows are plain text.
    """
    numbers = sorted(row for block in blocks.blocks for row in block)
    sample = sorted(random.Random(seed).sample(numbers, min(count, len(numbers))))
    questions = [question for row in sample if (question := extract_last_turn(blocks.rows[row])) is not None]
    if not questions:
        raise ConfigError("generate.rows: the evaluation rows are plain text without questions.", "Set it to 0.")
    return questions


def extract_last_turn(row: EncodedRow) -> Question | None:
    """Prompt and answer at the end of a row; None for plain text, where all but the two first tokens are targets."""
    ids, labels = list(map(int, row.input_ids)), list(row.labels)
    start = max(index for index, label in enumerate(labels) if label == IGNORE_INDEX) + 1
    return None if start <= _TEXT_PREFIX_LENGTH else Question(ids[:start], ids[start:])


_TEXT_PREFIX_LENGTH = 2


def _gather_scores(scores: list[dict[str, float]]) -> list[list[dict[str, float]]]:
    """The scores of every process, in the order of the processes."""
    if not dist.is_initialized():
        return [scores]
    parts: list[Any] = [None] * count_processes()
    dist.all_gather_object(parts, scores)
    return parts


def _mean(values: list[float]) -> float:
    return sum(sorted(values)) / len(values)  # sorted, so that the sum does not depend on the number of processes
