"""The trainings under way: choose one, see how far it is, stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.run_dir import is_run
from glmtune.webui import html
from glmtune.webui.context import Context
from glmtune.webui.errors import shown
from glmtune.webui.jobs import Job
from glmtune.webui.pick import this_tab
from glmtune.webui.security import owner_of
from glmtune.webui.texts import text
from glmtune.webui.train_view import curves, status, watch
from glmtune.webui.words import Words

_EVERY_SECONDS = 1.5
_LINES = 300
_LISTED = 30
_TO_THE_END = """() => setTimeout(() => {
  const log = document.querySelector("#train-log textarea");
  if (log) log.scrollTop = log.scrollHeight;
}, 2500)"""


class TrainPanel:
    """The panel's components and what fills them. Set `selected` to show a job."""

    def __init__(self, context: Context, words: Words, lang: gr.State):
        self._context = context
        self.selected = gr.State("")
        """Id of the job that is shown; empty: the one at work, else the newest."""
        self.ended = gr.State("")
        """The run folder of the training that is shown, once it ended and left one."""
        seen = gr.State(None)
        with gr.Row(elem_classes="ends"):
            self.jobs = gr.Dropdown([], value=None, interactive=True, scale=3, min_width=260, elem_id="train-jobs")
            words.add(self.jobs, label="train.jobs")
            self.stop = gr.Button(interactive=False, variant="stop", min_width=160, elem_id="train-stop")
            words.add(self.stop, value="train.stop")
        self.status = gr.HTML(elem_id="train-status")
        self.curves = gr.HTML(elem_id="train-curves")
        self.log = gr.Textbox(lines=10, max_lines=10, interactive=False, elem_id="train-log", elem_classes="log")
        words.add(self.log, label="common.log")
        outputs = [self.jobs, self.status, self.curves, self.log, self.stop, self.ended, seen]
        inputs = [self.selected, lang, seen]
        quiet: dict[str, Any] = {"show_progress": "hidden"}
        timer = gr.Timer(_EVERY_SECONDS)
        timer.tick(self._tick, inputs, outputs, **quiet)
        self.selected.change(self._tick, inputs, outputs, **quiet)
        self.jobs.input(lambda id: id or "", [self.jobs], [self.selected], **quiet)
        # A text that was filled while its tab was hidden stands at its first line.
        for changed in (this_tab().select, self.jobs.input):
            changed(None, js=_TO_THE_END)
        self.stop.click(shown(self._stop), [self.selected], None, **quiet)

    def _trainings(self) -> list[Job]:
        return [job for job in self._context.jobs.list() if job.kind == "train"]

    def _shown(self, selected: str, jobs: list[Job]) -> Job | None:
        """The chosen job; without a choice the one at work, else the newest."""
        chosen = next((job for job in jobs if job.id == selected), None)
        return chosen or next((job for job in jobs if job.state == "running"), jobs[0] if jobs else None)

    def _stop(self, selected: str, request: gr.Request) -> None:
        job = self._shown(selected, self._trainings())
        if job is not None:
            self._context.jobs.stop(job.id, owner_of(request))

    def _tick(self, selected: str, lang: str, seen: Any) -> list[Any]:
        jobs = self._trainings()
        job = self._shown(selected, jobs)
        if job is None:
            return [gr.skip(), html.note(text("train.none", lang)), *[gr.skip()] * 5]
        log = self._context.jobs.tail(job.id, _LINES)
        watched = watch(job, log)
        listed = [(self._name(each, lang), each.id) for each in jobs[:_LISTED]]
        now = [listed, str(status(watched, lang)), str(curves(watched, lang)), log, job.stops, job.id, lang]
        before = seen or [None] * len(now)
        same = [new == old for new, old in zip(now, before, strict=True)]
        stop = gr.update(interactive=job.alive, value=text("train.stop_now" if job.stops else "train.stop", lang))
        return [
            gr.skip() if same[0] and same[5] else gr.update(choices=listed, value=job.id),
            *(gr.skip() if same[part] else now[part] for part in (1, 2, 3)),
            gr.skip() if now == before else stop,
            gr.skip() if job.alive or not is_run(job.output) else job.output,
            gr.skip() if now == before else now,
        ]

    def _name(self, job: Job, lang: str) -> str:
        return f"{Path(job.output).name} · {text(f'state.{job.state}', lang)}"
