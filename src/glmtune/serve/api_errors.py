"""Errors of requests, in the form and with the status codes of OpenAI's API."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from glmtune.errors import GlmtuneError
from glmtune.generation.batch_requests import QueueFull, RequestTooLong

RETRY_AFTER_S = 5
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status code.
        message: what is wrong and how to fix it.
        code: machine-readable reason, such as `context_length_exceeded`.
        param: key of the request that is wrong.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers or {}

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, default)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def to_response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.to_dict(), self.status, self.headers)


def make_submit_error(error: Exception) -> ApiError:
    """The answer to a request that the engine does not take.

    Args:
        error: raised by `BatchEngine.submit` or by a family that cannot encode the conversation.
    """
    if isinstance(error, QueueFull):
        return ApiError(
            429,
            "Too many requests are waiting. Try again later.",
            code="queue_full",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )
    if isinstance(error, RequestTooLong):
        return make_length_error(error.prompt_tokens, None, error.limit)
    if isinstance(error, GlmtuneError):
        return ApiError(400, " ".join(str(error).split()), code="invalid_value")
    raise error


def make_length_error(prompt_tokens: int, max_new_tokens: int | None, limit: int) -> ApiError:
    """The answer to a request that is longer than the context window.

    Args:
        prompt_tokens: length of the prompt.
        max_new_tokens: of the reply, as the request says; None if it does not.
        limit: tokens of prompt and reply together.
    """
    reply = f" and asks for {max_new_tokens:,} tokens of reply" if max_new_tokens else ""
    return ApiError(
        400,
        f"The context window of this model holds {limit:,} tokens; the request has {prompt_tokens:,} tokens{reply}. "
        "Shorten the messages or max_tokens.",
        code="context_length_exceeded",
        param="messages",
    )
