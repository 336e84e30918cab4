"""Errors on the page: the same one or two lines as on the command line."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from glmtune.errors import GlmtuneError

_SECONDS = 20


class PathError(GlmtuneError):
    """A path outside the folders that the server was started with."""


class JobError(GlmtuneError):
    """A job that is not there any more, or is somebody else's."""


def as_html(error: GlmtuneError) -> str:
    """The error's lines as text on a page; a path may hold what looks like a tag."""
    return "<br>".join(escape(line) for line in str(error).splitlines())


def shown(function: Callable[..., Any]) -> Callable[..., Any]:
    """A callback, or generator, whose `GlmtuneError` becomes a notice; what the page shows stays as it is."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stream(*arguments: Any, **named: Any) -> Any:
            try:
                yield from function(*arguments, **named)
            except GlmtuneError as error:
                _tell(error)
                yield gr.skip()

        return stream

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except GlmtuneError as error:
            _tell(error)
            return gr.skip()

    return call


def _tell(error: GlmtuneError) -> None:
    gr.Warning(as_html(error), duration=_SECONDS, title="glmtune")
