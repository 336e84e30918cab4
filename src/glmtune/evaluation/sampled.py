"""Generated scores for training, which stands below this room and is handed this function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glmtune.evaluation.scoring import read_reference, score_reply
from glmtune.families import Family
from glmtune.generation.batched import generate_batched
from glmtune.generation.reply import Sampling
from glmtune.training.generated import Question


def score_questions(
    model: Any,
    tokenizer: Any,
    family: Family,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[dict[str, float]]:
    """Greedy replies to the questions, scored as `glmtune eval` does; see `ScoreReplies`.

    Whether a row offered tools is not known any more: tool scores are given where the reference calls one.
    """
    prompts = [question.prompt_ids for question in questions]
    replies = generate_batched(model, tokenizer, family, prompts, Sampling(max_new_tokens), batch_size=batch_size)
    scores = []
    for question, reply in zip(questions, replies, strict=True):
        reference, calls = read_reference(question.reference_ids, tokenizer, family)
        scores.append(score_reply(reply, reference, calls, family, tools=False)[1])
    return scores
