"""/v1/chat/completions (https://platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from glmtune.families import ToolCall
from glmtune.generation.batch_requests import BatchRequest, FinishEvent, TokenEvent
from glmtune.serve.api_errors import ApiError
from glmtune.serve.context import ServeContext
from glmtune.serve.http_messages import (
    EventStream,
    make_json_response,
    make_warning_headers,
    read_body,
    run_until_disconnect,
)
from glmtune.serve.openai_messages import ChatPrompt, read_chat_prompt
from glmtune.serve.openai_schema import ChatCompletionBody
from glmtune.serve.reply_group import ReplyGroup
from glmtune.serve.request_building import encode_chat, make_batch_requests
from glmtune.serve.token_logprobs import format_chat_logprobs
from glmtune.serve.tool_stream import ReplyParser
from glmtune.serve.usage import count_usage

if TYPE_CHECKING:
    from glmtune.generation.token_constraint import ByteGrammar


@dataclass
class ChatChoice:
    """One of the `n` replies while it is generated."""

    parser: ReplyParser
    content: str = ""
    call: ToolCall | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    end: FinishEvent | None = None


async def complete_chat(request: Request, context: ServeContext) -> Response:
    """Answer a request, in one piece or as a stream."""
    body, unused = await read_body(request, ChatCompletionBody)
    model = context.find_model(body.model)
    grammar = await context.run_encoder(lambda: _read_grammar(body))
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
    prompt = read_chat_prompt(body)
    ids = await encode_chat(context, model, prompt)
    requests = make_batch_requests(
        *(context, model, body, ids),
        max_new_tokens=_read_max_new_tokens(body, len(ids)),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    await _add_constraints(context, requests, prompt, grammar)
    headers = make_warning_headers(unused + prompt.unused)
    completion = ChatCompletion(context, body, prompt, ReplyGroup(context, requests))
    if body.stream:
        return EventStream(completion.stream(), context.limits.request_timeout_s, headers)
    return make_json_response(await run_until_disconnect(request, completion.collect()), headers)


class ChatCompletion:
    """The replies to a request as OpenAI's objects."""

    def __init__(self, context: ServeContext, body: ChatCompletionBody, prompt: ChatPrompt, group: ReplyGroup):
        self._context = context
        self._body = body
        self._prompt = prompt
        self._group = group
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._choices = [
            ChatChoice(ReplyParser(context.family, prompt.tool_names, prompt.call_name)) for _ in range(body.n)
        ]

    async def collect(self) -> dict[str, Any]:
        """Generate all replies; returns a `chat.completion`."""
        async for index, event in self._group.iterate():
            self._take_event(index, event)
        return {
            **self._make_head("chat.completion"),
            "choices": [self._make_choice(index) for index in range(len(self._choices))],
            "usage": self._count_usage(),
        }

    async def stream(self) -> AsyncIterator[dict[str, Any]]:
        """Yield `chat.completion.chunk` objects."""
        for index in range(len(self._choices)):
            yield self._make_chunk(index, {"role": "assistant", "content": ""})
        async for index, event in self._group.iterate():
            choice = self._choices[index]
            piece = self._take_event(index, event)
            if piece or (choice.logprobs and not choice.call):
                yield self._make_chunk(index, {"content": piece}, take_logprobs=True)
            if choice.end is None:
                continue
            if choice.call is not None:
                yield self._make_chunk(index, self._make_call_delta(choice.call), take_logprobs=True)
            yield self._make_chunk(index, {}, finish_reason=self._get_finish_reason(choice))
        if self._body.has_stream_usage:
            yield {**self._make_head("chat.completion.chunk"), "choices": [], "usage": self._count_usage()}

    def _take_event(self, index: int, event: TokenEvent | FinishEvent) -> str:
        """Add an event to its reply; return the content that it makes certain."""
        choice = self._choices[index]
        if isinstance(event, TokenEvent):
            piece = choice.parser.feed(event.text)
            choice.logprobs += format_chat_logprobs(event.logprobs or [], self._context.tokenizer)
        else:
            parsed = choice.parser.finish()
            piece, choice.call, choice.end = parsed.content, parsed.call, event
        choice.content += piece
        return piece

    def _make_choice(self, index: int) -> dict[str, Any]:
        choice = self._choices[index]
        message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
        if choice.call is not None:
            calls = self._make_call_delta(choice.call)
            for call in calls.get("tool_calls", []):
                del call["index"]
            message |= {"content": None, **calls}
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": choice.logprobs, "refusal": None} if self._body.logprobs else None,
            "finish_reason": self._get_finish_reason(choice),
        }

    def _make_chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None = None, take_logprobs: bool = False
    ) -> dict[str, Any]:
        choice = self._choices[index]
        logprobs = None
        if take_logprobs and self._body.logprobs:
            logprobs, choice.logprobs = {"content": choice.logprobs, "refusal": None}, []
        piece = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = {**self._make_head("chat.completion.chunk"), "choices": [piece]}
        return {**chunk, "usage": None} if self._body.has_stream_usage else chunk

    def _make_call_delta(self, call: ToolCall) -> dict[str, Any]:
        function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
        if self._prompt.is_legacy_call:
            return {"function_call": function}
        return {
            "tool_calls": [{"index": 0, "id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}]
        }

    def _get_finish_reason(self, choice: ChatChoice) -> str:
        if choice.call is not None:
            return "function_call" if self._prompt.is_legacy_call else "tool_calls"
        return choice.end.reason if choice.end else "length"

    def _count_usage(self) -> dict[str, Any]:
        return count_usage([choice.end for choice in self._choices if choice.end])

    def _make_head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._body.model}


def _read_max_new_tokens(body: ChatCompletionBody, prompt_tokens: int) -> int | None:
    """The longest reply that the request asks for; None if it does not say it."""
    limits = [limit for limit in (body.max_completion_tokens, body.max_tokens) if limit is not None]
    if len(set(limits)) > 1:
        raise ApiError(400, "max_tokens and max_completion_tokens differ; give one of them.", param="max_tokens")
    if body.max_length is not None:
        if body.max_length <= prompt_tokens:
            raise ApiError(
                400,
                f"max_length is {body.max_length:,}, and the prompt alone has {prompt_tokens:,} tokens.",
                code="context_length_exceeded",
                param="max_length",
            )
        limits.append(body.max_length - prompt_tokens)
    return min(limits, default=None)


def _read_grammar(body: ChatCompletionBody) -> ByteGrammar | None:
    """What the reply has to be; None: any text.

    Raises:
        ApiError: another format, a schema that cannot be followed, or tools besides.
    """
    if body.response_format is None:
        return None
    from glmtune.generation.json_schema import SchemaError, SchemaGrammar
    from glmtune.generation.token_constraint import JSON_OBJECT

    kind = body.response_format.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        name = json.dumps(kind, ensure_ascii=False)[:80]
        raise _make_format_error(f": type {name} is not supported; one of text, json_object, json_schema")
    keys = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    unknown = next((key for key in body.response_format if key not in keys), None)
    if unknown is not None:
        raise _make_format_error(f": {unknown[:80]} is unknown")
    if kind == "text":
        return None
    if body.tools or body.functions:
        raise _make_format_error(f" {kind} cannot be used with tools", code=None)
    if kind == "json_object":
        return JSON_OBJECT
    description = body.response_format.get("json_schema")
    keys = {"name", "description", "schema", "strict"}
    if not isinstance(description, dict) or "schema" not in description or not description.keys() <= keys:
        raise _make_format_error(".json_schema: an object with name, schema and strict", code=None)
    try:
        return SchemaGrammar(description["schema"])
    except SchemaError as error:
        raise _make_format_error(f".json_schema.schema: {error}") from None


def _make_format_error(problem: str, code: str | None = "unsupported_value") -> ApiError:
    return ApiError(400, f"response_format{problem}.", code=code, param="response_format")


async def _add_constraints(
    context: ServeContext, requests: Sequence[BatchRequest], prompt: ChatPrompt, grammar: ByteGrammar | None
) -> None:
    """Restrict the tokens of replies that have to be JSON or a call."""
    if grammar is None and not prompt.must_call:
        return
    from glmtune.generation.token_constraint import JsonConstraint, ToolCallConstraint

    table = await context.run_encoder(context.get_token_table)
    names = [] if prompt.call_name else prompt.tool_names
    for request in requests:
        if grammar is not None:
            request.constraint = JsonConstraint(table, grammar)
        else:
            request.constraint = ToolCallConstraint(table, names, context.family.has_json_calls)
