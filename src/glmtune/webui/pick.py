"""Lists to choose models, runs and data from, as short names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import get_render_context

from glmtune.webui.context import Context
from glmtune.webui.paths import Kind, listed

Choices = list[tuple[str, str]]


def this_tab() -> gr.Tab:
    """The tab that is being built; its `select` is when lists are read anew."""
    tab = get_render_context()
    while tab is not None and not isinstance(tab, gr.Tab):
        tab = tab.parent
    if tab is None:
        raise RuntimeError("a tab's components are built inside a gr.Tab")
    return tab


def targets(context: Context) -> Choices:
    """Whatever has weights: runs, the newest first, then checkpoint folders."""
    return choices(context, "runs", "models")


def choices(context: Context, *kinds: Kind) -> Choices:
    """Paths under the roots with the names they are shown by."""
    paths = [path for kind in kinds for path in listed(context.roots, kind)]
    return [(short(context, path), path) for path in dict.fromkeys(paths)]


def short(context: Context, path: str) -> str:
    """A path as it is read: from its root on."""
    for root in context.roots:
        if Path(path).is_relative_to(root) and Path(path) != root:
            return str(Path(path).relative_to(root))
    return path


def renewed(found: Choices, value: Any, *, first: bool = False) -> Any:
    """An update of a dropdown: the list, and what was chosen if it is there still.

    Args:
        found: the new list.
        value: what is chosen now: a value, or a list of them.
        first: choose the first where nothing is chosen.
    """
    known = {path for _, path in found}
    if isinstance(value, list):
        kept: Any = [each for each in value if each in known]
    elif not value and first and found:
        kept = found[0][1]
    else:  # what was typed by hand, a hub id say, stays
        kept = None if value not in known and _is_gone(value) else value
    # What stays is not sent: somebody may have chosen something else since.
    return gr.update(choices=found) if kept == value else gr.update(choices=found, value=kept)


def _is_gone(value: str | None) -> bool:
    return bool(value) and Path(str(value)).is_absolute() and not Path(str(value)).exists()
