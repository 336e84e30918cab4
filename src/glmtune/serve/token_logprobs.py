"""Log probabilities of tokens in the forms of OpenAI's two completions, with each token's text and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glmtune.generation.batch_requests import TokenLogprob
from glmtune.models.tokenizers.token_bytes import get_token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def format_chat_logprobs(logprobs: Sequence[TokenLogprob], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The `logprobs.content` of a chat completion.

    Args:
        logprobs: of the generated tokens.
        tokenizer: of the model.
    """
    return [
        {
            **_format_token(item.token_id, item.logprob, tokenizer),
            "top_logprobs": [_format_token(token, logprob, tokenizer) for token, logprob in item.top],
        }
        for item in logprobs
    ]


def format_text_logprobs(
    logprobs: Sequence[TokenLogprob], tokenizer: PreTrainedTokenizerBase, offset: int
) -> dict[str, Any]:
    """The `logprobs` of a text completion.

    Args:
        logprobs: of the generated tokens.
        tokenizer: of the model.
        offset: characters of the text before the first token.
    """
    tokens, offsets = [], []
    for item in logprobs:
        tokens.append(get_token_bytes(tokenizer, item.token_id).decode("utf-8", "replace"))
        offsets.append(offset)
        offset += len(tokens[-1])
    tops = [
        {get_token_bytes(tokenizer, token).decode("utf-8", "replace"): logprob for token, logprob in item.top}
        for item in logprobs
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [item.logprob for item in logprobs],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _format_token(token: int, logprob: float, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    value = get_token_bytes(tokenizer, token)
    return {"token": value.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(value)}
