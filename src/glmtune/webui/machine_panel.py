"""`glmtune doctor` and `glmtune verify` on the page: whether the machine and the model's files are in order.

They run as commands: what asks the GPU holds a part of its memory from then on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.errors import GlmtuneError
from glmtune.html.builder import el
from glmtune.webui import html
from glmtune.webui.context import Context
from glmtune.webui.errors import JobError, shown
from glmtune.webui.paths import model_or_path
from glmtune.webui.texts import text
from glmtune.webui.words import Words

_DOCTOR_SECONDS, _VERIFY_SECONDS = 300, 3600


def build_machine_panel(context: Context, words: Words, lang: gr.State, path: gr.Dropdown) -> None:
    """Put the two buttons and what they show onto the page.

    Args:
        context: of the server.
        words: texts in the language of the page.
        lang: that language.
        path: where the model is named.
    """
    with gr.Row():
        verify = words.add(gr.Button(elem_id="machine-verify"), value="machine.verify")
        doctor = words.add(gr.Button(elem_id="machine-doctor"), value="machine.doctor")
    result = gr.HTML(elem_id="machine-result")

    @shown
    def diagnose(code: str, name: str | None) -> str:
        model = model_or_path(context.roots, name) if name else ""
        return make_doctor_html(_run(["doctor", *([model] if model else [])], context, _DOCTOR_SECONDS), code)

    @shown
    def check(code: str, name: str | None) -> str:
        if not name:
            raise GlmtuneError(text("machine.no_model", code))
        return make_verify_html(_run(["verify", model_or_path(context.roots, name)], context, _VERIFY_SECONDS), code)

    doctor.click(diagnose, [lang, path], [result])
    verify.click(check, [lang, path], [result])


def _run(words: list[str], context: Context, seconds: int) -> dict[str, Any]:
    """What a command prints with --json; exit code 1 means faults, which it lists."""
    command = [sys.executable, "-m", "glmtune", *words, "--json"]
    root: Path = context.roots[0]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, encoding="utf-8", timeout=seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise JobError(text("machine.slow", context.lang)) from None
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise GlmtuneError(done.stderr.strip().removeprefix("Error: ")[-600:]) from None
    return result


def make_doctor_html(result: dict[str, Any], lang: str) -> str:
    """Findings with their commands.

    Args:
        result: of `glmtune doctor --json`.
        lang: of the page.
    """
    if not result["findings"]:
        return html.note(text("machine.healthy", lang))
    pieces = []
    for finding in result["findings"]:
        title = text(f"machine.finding.{finding['code']}", lang)
        style = "note" if finding["severity"] == "note" else "problem"
        lines = [el("strong", title), el("br"), f"{finding['what']}.", el("br"), f"{finding['why']}.", el("br")]
        pieces.append(el("p", *lines, f"{text('machine.fix', lang)}: ", el("code", finding["fix"]), class_=style))
    return html.join(pieces)


def make_verify_html(result: dict[str, Any], lang: str) -> str:
    """Faults with their files, and the command that fetches them again.

    Args:
        result: of `glmtune verify --json`.
        lang: of the page.
    """
    notes = [html.note(note) for note in result["notes"]]
    if result["ok"]:
        matched = sum(file["sum_matches"] is True for file in result["files"])
        sums = f"{matched} ({result['sums']})" if matched else text("machine.no_sums", lang)
        return html.join([html.note(text("machine.intact", lang, files=len(result["files"]), sums=sums)), *notes])
    rows = [(fault["file"], fault["problem"]) for fault in result["faults"]]
    pieces = [html.facts(rows)]
    if result["fix"]:
        fetch = el("code", result["fix"])
        pieces.append(el("p", f"{text('machine.fetch', lang)}: ", fetch, class_="problem", role="alert"))
    return html.join([*pieces, *notes])
