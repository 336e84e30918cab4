"""What was chosen in one tab and is taken over by the others."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr


@dataclass
class Chosen:
    """The last model and data that were looked at; empty: none yet."""

    model: gr.State
    data: gr.State
