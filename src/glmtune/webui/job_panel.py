"""A panel with the newest job of some kinds: its command, how far it is, its log, a way to stop it."""

from __future__ import annotations

import re
import shlex
import time
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.webui.context import Context
from glmtune.webui.errors import shown
from glmtune.webui.jobs import Job
from glmtune.webui.security import owner_of
from glmtune.webui.texts import text
from glmtune.webui.words import Words

_EVERY_SECONDS = 1.5
_COUNT = re.compile(r"^(?:\S+ )+?(\d+)/(\d+)\b.*ETA", re.MULTILINE)
_VERDICT_FAIL = 3
"""Exit code of a forgetting probe that ran well and found much forgotten."""


class JobPanel:
    """The panel's components and what fills them.

    Args:
        context: the server's settings.
        words: of the page.
        lang: the page's language.
        kinds: which jobs it shows.
        name: prefix of the components' ids.
    """

    def __init__(self, context: Context, words: Words, lang: gr.State, kinds: tuple[str, ...], name: str):
        self._context, self._kinds, self._lang = context, kinds, lang
        with gr.Row():
            self.status = gr.HTML(elem_id=f"{name}-status", elem_classes="status")
            self.stop = words.add(
                gr.Button(interactive=False, size="sm", scale=0, min_width=150, elem_id=f"{name}-stop"),
                value="job.stop",
            )
        self.log = words.add(
            gr.Textbox(
                lines=10, max_lines=10, interactive=False, visible=False, elem_id=f"{name}-log", elem_classes="log"
            ),
            label="job.log",
        )
        self.ended = gr.State("")
        """Id of the newest job that has ended: changes when results are there to be read."""
        self._seen = gr.State(None)
        self._timer = gr.Timer(_EVERY_SECONDS)
        outputs = [self.status, self.log, self.stop, self.ended, self._seen]
        self._timer.tick(self._tick, [lang, self._seen], outputs, show_progress="hidden")
        self.stop.click(shown(self._stop), None, None, show_progress="hidden")

    def _newest(self) -> Job | None:
        return next((job for job in self._context.jobs.list() if job.kind in self._kinds), None)

    def _stop(self, request: gr.Request) -> None:
        job = self._newest()
        if job is not None:
            self._context.jobs.stop(job.id, owner_of(request))

    def _tick(self, lang: str, seen: Any) -> list[Any]:
        job = self._newest()
        log = self._context.jobs.tail(job.id) if job else ""
        status = status_html(job, log, lang)
        now = (status, log)
        if now == seen:
            return [gr.skip()] * 5
        ended = job.id if job and not job.alive else gr.skip()
        return [
            status,
            gr.update(value=log, visible=job is not None),
            gr.update(interactive=bool(job and job.alive)),
            ended,
            now,
        ]


def status_html(job: Job | None, log: str, lang: str) -> str:
    """State, time and progress of a job, as markup."""
    if job is None:
        return f'<p class="note">{text("job.none", lang)}</p>'
    command = escape(shlex.join(["glmtune", *job.arguments]))
    parts = [*_time(job, lang), *_progress(job, log, lang)]
    return (
        f'<div role="status"><p><span class="state {job.state}">{escape(_state(job, lang))}</span> '
        f"{escape(' · '.join(parts))}</p>{_bar(job, log)}"
        f'<code style="overflow-wrap:anywhere">{command}</code></div>'
    )


def _state(job: Job, lang: str) -> str:
    if job.kind == "forget" and job.exit_code == _VERDICT_FAIL:
        return text("job.verdict", lang)
    return text(f"job.{job.state}", lang)


def _time(job: Job, lang: str) -> list[str]:
    if job.started is None:
        return []
    seconds = (job.ended or time.time()) - job.started
    return [text("job.seconds", lang, seconds=f"{seconds:.0f}")]


def _progress(job: Job, log: str, lang: str) -> list[str]:
    if job.state != "running":
        return []
    if job.kind == "export":
        out = Path(job.output)
        return [text("job.written", lang, size=f"{_size(out.with_name(f'.{out.name}.tmp')) / 1e6:,.0f}")]
    counted = _counted(log)
    return [text("job.step", lang, done=counted[0], total=counted[1])] if counted else []


def _bar(job: Job, log: str) -> str:
    """A bar: how far it is where that is known, moving where it is not, nothing once the job ended."""
    if job.state != "running":
        return ""
    counted = _counted(log)
    known = f' value="{counted[0]}" max="{counted[1]}"' if counted else ""
    return f'<progress{known} style="width:100%" aria-label="{escape(job.kind)}"></progress>'


def _counted(log: str) -> tuple[int, int] | None:
    found = _COUNT.findall(log)
    return (int(found[-1][0]), int(found[-1][1])) if found else None


def _size(folder: Path) -> int:
    """Bytes in a folder that somebody is writing to."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed since it was listed
            continue
    return total
