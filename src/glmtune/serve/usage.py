"""Numbers of tokens in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glmtune.generation.batch_requests import FinishEvent


def count_usage(ends: Sequence[FinishEvent], prompts: int = 1) -> dict[str, Any]:
    """The `usage` of a request.

    Args:
        ends: of its replies, those of a prompt next to each other.
        prompts: number of prompts; the replies to one count its tokens once.
    """
    per_prompt = max(1, len(ends) // prompts)
    prompt_tokens = sum(end.prompt_tokens for end in ends[::per_prompt])
    completion_tokens = sum(end.completion_tokens for end in ends)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in ends[::per_prompt])},
    }
