"""Request bodies of OpenAI's API: which keys are read, their types and ranges.

A key that is not read is refused by name; keys of OpenAI's own that cannot change a reply here are accepted and named
in the answer's `Warning` header (`UNUSED_KEYS`).
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glmtune.serve.api_errors import ApiError

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20
_MAX_STOPS = 16
_MAX_SEED = 2**63 - 1

UNUSED_KEYS = (
    *("user", "store", "metadata", "service_tier", "prediction", "reasoning_effort", "verbosity"),
    *("safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
)
"""Keys of OpenAI's API that have no effect here, besides a warning."""

# Keys of OpenAI's API that would change the reply, and why they are refused.
_REFUSED_KEYS = {
    "audio": "this model has no audio",
    "web_search_options": "this server does not search",
    "suffix": "these models do not fill in the middle",
    "best_of": "give n",
}

Body = TypeVar("Body", bound=BaseModel)
_Stop = Annotated[str, Field(min_length=1, max_length=1000)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_TokenId = Annotated[int, Field(ge=0)]


class SamplingFields(BaseModel):
    """What both completions have: how tokens are chosen, and how many."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    stream: bool = False
    stream_options: dict[str, Any] = Field(default_factory=dict)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=_MAX_STOPS)] = Field(default_factory=list)
    seed: int | None = Field(None, ge=-_MAX_SEED, le=_MAX_SEED)
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    # Not OpenAI's; vLLM's and transformers' servers have them.
    top_k: int = Field(0, ge=0)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    ignore_eos: bool = False

    @property
    def has_stream_usage(self) -> bool:
        """Whether the last piece of a stream has the number of tokens."""
        return bool(self.stream_options.get("include_usage"))

    def list_stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def read_logit_bias(self) -> dict[int, float]:
        """The bias by token id.

        Raises:
            ApiError: a key is no token id.
        """
        wrong = next((key for key in self.logit_bias if not key.isascii() or not key.isdigit() or len(key) > 9), None)
        if wrong is not None:
            raise ApiError(400, f"logit_bias: {wrong[:40]!r} is not a token id.", param="logit_bias")
        return {int(key): bias for key, bias in self.logit_bias.items()}


class ChatCompletionBody(SamplingFields):
    """Body of /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_length: int | None = Field(None, ge=1)
    """Tokens of prompt and reply together, as in ChatGLM2-6B's openai_api.py."""
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    functions: list[dict[str, Any]] | None = None
    function_call: Literal["none", "auto"] | dict[str, Any] | None = None
    modalities: list[Literal["text"]] | None = None


class TextCompletionBody(SamplingFields):
    """Body of /v1/completions."""

    prompt: str | list[_TokenId] | list[str] | list[list[_TokenId]]
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)


class TokenizeBody(BaseModel):
    """Body of /tokenize: a text, or a conversation as the model gets it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool = True
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


def parse_body(value: Any, kind: type[Body]) -> tuple[Body, list[str]]:
    """Check the parsed body of a request.

    Args:
        value: the JSON value.
        kind: the class of the body.

    Returns:
        The body, and the names of keys that have no effect.

    Raises:
        ApiError: not an object, an unknown key, or a wrong value.
    """
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_type")
    values = {key: item for key, item in value.items() if item is not None}
    if "best_of" in values and values["best_of"] == values.get("n", 1):
        del values["best_of"]  # all of them are returned, as without it
    for key, reason in _REFUSED_KEYS.items():
        if key in values and key not in kind.model_fields:
            raise ApiError(400, f"{key} is not supported: {reason}.", code="unsupported_parameter", param=key)
    unused = [key for key in UNUSED_KEYS if key in values and key not in kind.model_fields]
    try:
        body = kind.model_validate({key: item for key, item in values.items() if key not in unused})
    except ValidationError as error:
        raise _make_field_error(error, kind) from None
    if isinstance(body, SamplingFields):
        unused += _check_stream_options(body)
    return body, unused


def _check_stream_options(body: SamplingFields) -> list[str]:
    """Keys of `stream_options` without effect."""
    known = {"include_usage", "include_obfuscation"}
    for key, item in body.stream_options.items():
        if key not in known or not isinstance(item, bool):
            problem = "must be true or false" if key in known else "is unknown"
            raise ApiError(400, f"stream_options.{key[:80]} {problem}.", param="stream_options")
    if body.stream_options and not body.stream:
        raise ApiError(400, "stream_options needs stream: true.", param="stream_options")
    return ["stream_options.include_obfuscation"] if body.stream_options.get("include_obfuscation") else []


def _make_field_error(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    """The answer to a body with a wrong field: the first one."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = "".join(f"[{part}]" if isinstance(part, int) else part[:80] for part in _list_places(first["loc"]))
    if first["type"] == "extra_forbidden":
        match = difflib.get_close_matches(name, list(kind.model_fields), n=1)
        hint = f" Did you mean {match[0]}?" if match else ""
        message = f"Unrecognized request argument supplied: {name}.{hint}"
        return ApiError(400, message, code="unknown_parameter", param=name)
    if first["type"] == "missing":
        return ApiError(400, f"{name}: this key is missing.", code="missing_required_parameter", param=name)
    text = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    return ApiError(400, f"{name}: {text[:1].lower()}{text[1:]}.", code=code, param=name)


def _list_places(location: tuple[int | str, ...]) -> list[int | str]:
    """The key and the places in its list; pydantic's other parts name branches of a union."""
    return [part for i, part in enumerate(location) if i == 0 or isinstance(part, int)]
