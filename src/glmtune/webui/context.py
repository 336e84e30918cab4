"""What every tab is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glmtune.webui.jobs import Jobs

STATE = ".glmtune-ui"
"""Folder in the first root for what the page itself keeps: jobs, their logs, configs and uploads."""


@dataclass
class Context:
    """The server's settings.

    Who a request comes from is `security.owner_of(request)`: the session hash changes with every reload of the page.
    """

    roots: list[Path]
    """Paths outside of these are refused; the first is where relative paths begin and where runs are written."""
    lang: str
    """Language of a page that has chosen none."""
    jobs: Jobs
    locked: bool
    """Whether the server asked for a password."""

    def state(self, *parts: str) -> Path:
        """A folder of the page's own, made if it is not there."""
        folder = self.roots[0].joinpath(STATE, *parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
