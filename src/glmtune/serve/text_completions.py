"""/v1/completions and /tokenize: text without a conversation around it."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from glmtune.generation.batch_requests import BatchRequest, FinishEvent, TokenEvent, TokenLogprob
from glmtune.models.tokenizers.text_decoding import decode_text
from glmtune.serve.api_errors import ApiError
from glmtune.serve.context import ServeContext
from glmtune.serve.http_messages import (
    EventStream,
    make_json_response,
    make_warning_headers,
    read_body,
    run_until_disconnect,
)
from glmtune.serve.openai_messages import read_messages
from glmtune.serve.openai_schema import MAX_CHOICES, TextCompletionBody, TokenizeBody
from glmtune.serve.reply_group import ReplyGroup
from glmtune.serve.request_building import encode_chat, encode_text, make_batch_requests
from glmtune.serve.token_logprobs import format_text_logprobs
from glmtune.serve.usage import count_usage

# OpenAI's default.
_DEFAULT_LENGTH = 16


async def complete_text(request: Request, context: ServeContext) -> Response:
    """Answer a request, in one piece or as a stream."""
    body, unused = await read_body(request, TextCompletionBody)
    model = context.find_model(body.model)
    prompts = _split_prompts(body)
    if len(prompts) * body.n > MAX_CHOICES:
        raise ApiError(400, f"prompt: at most {MAX_CHOICES} replies (prompts times n) in a request.", param="prompt")
    requests: list[BatchRequest] = []
    for prompt in prompts:
        ids = await encode_text(context, prompt) if isinstance(prompt, str) else prompt
        if not ids:
            raise ApiError(400, "prompt is empty.", code="invalid_value", param="prompt")
        length = body.max_tokens or min(_DEFAULT_LENGTH, max(1, context.limits.context_window - len(ids)))
        requests += make_batch_requests(*(context, model, body, ids), max_new_tokens=length, logprobs=body.logprobs)
    echoes = [await _read_echo(context, body, prompt) for prompt in prompts for _ in range(body.n)]
    completion = TextCompletion(context, body, echoes, len(prompts), ReplyGroup(context, requests))
    headers = make_warning_headers(unused)
    if body.stream:
        return EventStream(completion.stream(), context.limits.request_timeout_s, headers)
    return make_json_response(await run_until_disconnect(request, completion.collect()), headers)


async def tokenize(request: Request, context: ServeContext) -> Response:
    """Answer with the ids of a text, or of a conversation as the model gets it."""
    body, unused = await read_body(request, TokenizeBody)
    model = context.find_model(body.model) if body.model is not None else context.models[0]
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "Give prompt or messages.", param="prompt")
    if body.messages is not None:
        prompt = read_messages(body.messages, body.tools)
        ids = await encode_chat(context, model, prompt)
        unused = unused + prompt.unused
    elif body.add_special_tokens:
        ids = await encode_text(context, body.prompt or "")
    else:
        from glmtune.families.family import tokenize_text
        from glmtune.utils.streams import replace_undecodable

        text = replace_undecodable(body.prompt or "")
        ids = await context.run_encoder(lambda: tokenize_text(context.tokenizer, text))
    answer = {"count": len(ids), "max_model_len": context.limits.context_window, "tokens": ids}
    return make_json_response(answer, make_warning_headers(unused))


class TextCompletion:
    """The continuations of prompts as OpenAI's objects.

    Args:
        context: of the server.
        body: of the request.
        echoes: text before each reply.
        prompts: number of prompts.
        group: the replies, those to one prompt next to each other.
    """

    def __init__(
        self, context: ServeContext, body: TextCompletionBody, echoes: list[str], prompts: int, group: ReplyGroup
    ):
        self._context = context
        self._body = body
        self._echoes = echoes
        self._prompts = prompts
        self._group = group
        self._ends: list[FinishEvent | None] = [None] * len(echoes)
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def collect(self) -> dict[str, Any]:
        """Generate all replies; returns a `text_completion`."""
        texts = list(self._echoes)
        logprobs: list[list[TokenLogprob]] = [[] for _ in texts]
        async for index, event in self._group.iterate():
            if isinstance(event, TokenEvent):
                texts[index] += event.text
                logprobs[index] += event.logprobs or []
            else:
                self._ends[index] = event
        choices = [
            self._make_choice(index, text, logprobs[index], len(self._echoes[index]))
            for index, text in enumerate(texts)
        ]
        return {**self._make_head(), "choices": choices, "usage": self._count_usage()}

    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        """Yield `text_completion` objects with a piece of text each."""
        offsets = [0] * len(self._echoes)
        for index, echo in enumerate(self._echoes):
            offsets[index] = len(echo)
            if echo:
                yield self._make_chunk(self._make_choice(index, echo, [], 0))
        async for index, event in self._group.iterate():
            if isinstance(event, FinishEvent):
                self._ends[index] = event
                yield self._make_chunk(self._make_choice(index, "", [], offsets[index]))
            elif event.text or event.logprobs:
                yield self._make_chunk(self._make_choice(index, event.text, event.logprobs or [], offsets[index]))
                offsets[index] += len(event.text)
        if self._body.has_stream_usage:
            yield {**self._make_head(), "choices": [], "usage": self._count_usage()}

    def _make_choice(self, index: int, text: str, logprobs: list[TokenLogprob], offset: int) -> dict[str, Any]:
        end = self._ends[index]
        has_logprobs = self._body.logprobs is not None
        return {
            "index": index,
            "text": text,
            "logprobs": format_text_logprobs(logprobs, self._context.tokenizer, offset) if has_logprobs else None,
            "finish_reason": end.reason if end else None,
        }

    def _make_chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._make_head(), "choices": [choice]}
        return {**chunk, "usage": None} if self._body.has_stream_usage else chunk

    def _make_head(self) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": self._body.model}

    def _count_usage(self) -> dict[str, Any]:
        return count_usage([end for end in self._ends if end], self._prompts)


def _split_prompts(body: TextCompletionBody) -> list[str | list[int]]:
    """The prompts of a request: texts or lists of ids."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    prompts: list[Any] = body.prompt
    if not prompts:
        raise ApiError(400, "prompt is empty.", code="invalid_value", param="prompt")
    return [prompts] if isinstance(prompts[0], int) else prompts


async def _read_echo(context: ServeContext, body: TextCompletionBody, prompt: str | list[int]) -> str:
    """The text before a reply: its prompt, if the request wants it.

    Raises:
        ApiError: the log probabilities of a prompt are asked for.
    """
    if not body.echo:
        return ""
    if body.logprobs is not None:
        raise ApiError(
            400,
            "echo with logprobs is not supported: the log probabilities of a prompt are not computed.",
            code="unsupported_parameter",
            param="echo",
        )
    if isinstance(prompt, str):
        return prompt
    return await context.run_encoder(lambda: decode_text(context.tokenizer, prompt))
