"""Errors on the page: the same one or two lines as on the command line."""

from __future__ import annotations

from glmtune.errors import GlmtuneError


class PathError(GlmtuneError):
    """A path outside the folders that the server was started with."""


class JobError(GlmtuneError):
    """A job that does not exist any more, or cannot start."""
