"""From a request's prompt and sampling fields to requests of the engine."""

from __future__ import annotations

from typing import Any

from glmtune.generation.batch_requests import BatchRequest
from glmtune.serve.api_errors import ApiError, make_length_error, make_submit_error
from glmtune.serve.context import ServeContext, ServedModel
from glmtune.serve.openai_messages import ChatPrompt
from glmtune.serve.openai_schema import SamplingFields

# No token of the published vocabularies has more characters.
_MAX_TOKEN_CHARACTERS = 256


async def encode_chat(context: ServeContext, model: ServedModel, prompt: ChatPrompt) -> list[int]:
    """The prompt's ids.

    Raises:
        ApiError: the family has no place for a message, or the conversation is too long to be encoded.
    """
    from glmtune.data.encoding import add_prefix

    require_short_text(context, sum(len(str(message)) for message in prompt.messages))

    def encode() -> list[int]:
        messages = add_prefix([dict(message) for message in prompt.messages], model.prefix)
        ids = context.family.encode_prompt(messages, context.tokenizer, prompt.tools)
        if prompt.call_name is not None:
            ids = ids + context.family.encode_call_start(prompt.call_name, context.tokenizer)
        return ids

    try:
        return await context.run_encoder(encode)
    except Exception as error:
        raise make_submit_error(error) from error


async def encode_text(context: ServeContext, text: str) -> list[int]:
    """The ids of a text for completion, with the special tokens that the published tokenizer adds."""
    require_short_text(context, len(text))
    tokenizer: Any = context.tokenizer
    return await context.run_encoder(lambda: list(tokenizer(text, split_special_tokens=True)["input_ids"]))


def require_short_text(context: ServeContext, characters: int) -> None:
    """Refuse a text that cannot fit, before time is spent on it.

    Raises:
        ApiError: it has too many characters for the context window.
    """
    window = context.limits.context_window
    if characters > window * _MAX_TOKEN_CHARACTERS:
        raise ApiError(
            400,
            f"The request has {characters:,} characters; the context window of this model holds {window:,} tokens.",
            code="context_length_exceeded",
        )


def make_batch_requests(
    context: ServeContext,
    model: ServedModel,
    body: SamplingFields,
    input_ids: list[int],
    *,
    max_new_tokens: int | None,
    logprobs: int | None,
) -> list[BatchRequest]:
    """Make the `n` requests for a prompt.

    Args:
        context: of the server.
        model: that answers.
        body: its sampling fields.
        input_ids: of the prompt.
        max_new_tokens: None: whatever fits into the context window.
        logprobs: see `BatchRequest`.

    Raises:
        ApiError: prompt and reply do not fit into the context window, or a field is out of the vocabulary.
    """
    length = require_room(context, len(input_ids), max_new_tokens)
    bias = body.read_logit_bias()
    size = len(context.tokenizer)
    outside = next((token for token in (*input_ids, *bias) if token >= size), None)
    if outside is not None:
        raise ApiError(400, f"The vocabulary has {size:,} tokens; {outside} is not one of them.", code="invalid_value")
    temperature = context.defaults.temperature if body.temperature is None else body.temperature
    top_p = context.defaults.top_p if body.top_p is None else body.top_p
    return [
        BatchRequest(
            input_ids=input_ids,
            max_new_tokens=length,
            temperature=temperature,
            top_p=top_p,
            top_k=body.top_k,
            repetition_penalty=body.repetition_penalty,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias=bias,
            seed=None if body.seed is None else body.seed + index,
            stop=body.list_stops(),
            logprobs=logprobs,
            adapter=model.adapter,
            ignore_eos=body.ignore_eos,
        )
        for index in range(body.n)
    ]


def require_room(context: ServeContext, prompt_tokens: int, max_new_tokens: int | None) -> int:
    """The maximum number of new tokens.

    Args:
        context: of the server.
        prompt_tokens: length of the prompt.
        max_new_tokens: that the request asks for; None: what fits.

    Raises:
        ApiError: it does not fit.
    """
    window = context.limits.context_window
    room = window - prompt_tokens
    if room < 1 or (max_new_tokens or 0) > room:
        raise make_length_error(prompt_tokens, max_new_tokens, window)
    return max_new_tokens or room
