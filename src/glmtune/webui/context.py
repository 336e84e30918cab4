"""What every route is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from glmtune.webui.chat_models import HeldModels
from glmtune.webui.jobs import Jobs

STATE = ".glmtune-ui"
"""Folder in the first root for what the page itself keeps: jobs, their logs, configs, forms and conversations."""


@dataclass
class Context:
    """The server's settings, and what it keeps between requests."""

    roots: list[Path]
    """Paths outside of these are refused; the first is where relative paths begin and where runs are written."""
    lang: str
    """Language of a browser that has chosen none."""
    jobs: Jobs
    locked: bool
    """Whether the server asks for a password."""
    models: HeldModels = field(default_factory=HeldModels)
    """Models of the chat in memory."""

    def state(self, *parts: str) -> Path:
        """A folder of the page's own, created if it is not there."""
        folder = self.roots[0].joinpath(STATE, *parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def shorten(self, path: str | Path) -> str:
        """A path as it is read: from its root on."""
        for root in self.roots:
            if Path(path).is_relative_to(root) and Path(path) != root:
                return str(Path(path).relative_to(root))
        return str(path)
