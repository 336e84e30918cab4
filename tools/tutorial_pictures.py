"""Pictures of the tutorials: terminals, loss curves and the web page of a recorded folder."""

from __future__ import annotations

from pathlib import Path


def take_pictures(name: str, folder: Path, environment: dict[str, str], images: Path) -> None:
    """Make the pictures of one page."""
