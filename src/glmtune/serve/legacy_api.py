"""The contract of ChatGLM-6B's and ChatGLM2-6B's `api.py`: POST / with a prompt and its history."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from glmtune.generation.batch_requests import BatchRequest, FinishEvent, TokenEvent
from glmtune.serve.api_errors import ApiError
from glmtune.serve.context import ServeContext
from glmtune.serve.http_messages import make_json_response, read_body, run_until_disconnect
from glmtune.serve.openai_messages import read_messages
from glmtune.serve.reply_group import ReplyGroup
from glmtune.serve.request_building import encode_chat, require_room
from glmtune.serve.tool_stream import ReplyParser


class LegacyBody(BaseModel):
    """What `api.py` reads, with its defaults. `history` has pairs of question and answer, or, as ChatGLM3-6B's `chat`
    returns it, messages."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    history: list[Any] = Field(default_factory=list)
    max_length: int = Field(2048, ge=1)
    """Tokens of prompt and reply together; the context window if that is shorter."""
    top_p: float = Field(0.7, gt=0, le=1)
    temperature: float = Field(0.95, ge=0)


async def answer_prompt(request: Request, context: ServeContext) -> Response:
    """Answer with the reply and the longer history."""
    body, _ = await read_body(request, LegacyBody)
    model = context.models[0]
    is_pairs = not body.history or not isinstance(body.history[0], dict)
    question = {"role": "user", "content": body.prompt}
    prompt = read_messages([*(_read_pairs(body.history) if is_pairs else body.history), question])
    ids = await encode_chat(context, model, prompt)
    room = require_room(context, len(ids), None)
    if body.max_length <= len(ids):
        raise ApiError(
            400,
            f"max_length is {body.max_length:,}, and the prompt with its history has {len(ids):,} tokens.",
            code="context_length_exceeded",
            param="max_length",
        )
    batch_request = BatchRequest(
        input_ids=ids,
        max_new_tokens=min(room, body.max_length - len(ids)),
        temperature=body.temperature,
        top_p=body.top_p,
        adapter=model.adapter,
    )
    group = ReplyGroup(context, [batch_request])
    response = await run_until_disconnect(request, _collect_text(context, group))
    answer = [[body.prompt, response]] if is_pairs else [question, {"role": "assistant", "content": response}]
    return make_json_response(
        {
            "response": response,
            "history": [*body.history, *answer],
            "status": 200,
            "time": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
        }
    )


def _read_pairs(history: list[Any]) -> list[dict[str, str]]:
    """Messages of pairs of question and answer."""
    messages = []
    for i, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ApiError(
                400, f"history[{i}] must be a pair of texts: question and answer.", code="invalid_type", param="history"
            )
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages


async def _collect_text(context: ServeContext, group: ReplyGroup) -> str:
    parser, text = ReplyParser(context.family, []), ""
    async for _, event in group.iterate():
        if isinstance(event, TokenEvent):
            text += parser.feed(event.text)
        elif isinstance(event, FinishEvent):
            text += parser.finish().content
    return text
