"""Keeps libraries' own chatter off the screen of a command; what matters is said by us."""

from __future__ import annotations

import warnings

import transformers


def quiet_libraries() -> None:
    """Silence transformers' log and bars, and the deprecations that it and peft raise about each other."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|accelerate")
