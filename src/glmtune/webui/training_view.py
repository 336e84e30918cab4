"""What is shown of a training: state, numbers, curves. Read from its run folder and log, so any page can show it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.config_parsing import read_config_file
from glmtune.errors import GlmtuneError
from glmtune.html import i18n
from glmtune.html.builder import Html
from glmtune.html.pages import is_number
from glmtune.run_dir import RunDir
from glmtune.training.answer_curves import find_answer_fall
from glmtune.training.best_metric import find_best_step
from glmtune.utils.console import format_bytes, format_duration
from glmtune.utils.io import find_json_object, read_json_lines_end
from glmtune.webui.elements import make_figures
from glmtune.webui.gpu_memory import describe_gpu_memory
from glmtune.webui.jobs import Job, memory_of
from glmtune.webui.texts import text

CURVE_GROUPS: dict[str, tuple[str, ...]] = {
    "loss": ("loss",),
    "learning_rate": ("learning_rate",),
    "grad_norm": ("grad_norm",),
    "logp": ("better_logp", "worse_logp"),
    "reward": ("reward", "better_reward", "worse_reward", "mean_reward"),
    "accuracy": ("accuracy",),
    "margin": ("margin",),
    "kl": ("kl",),
    "generated": ("rouge_l", "bleu4_characters"),
}
"""Charts of a training with the numbers of metrics.jsonl in each; those of evaluations have `eval_` before the name."""
_MAX_POINTS = 4_000
_MAX_SAMPLES, _MAX_SAMPLE_BYTES = 3, 2**20
_ERROR = "Error: "


@dataclass(frozen=True)
class TrainingView:
    """A training as far as it is known."""

    job: Job
    has_folder: bool
    step: int = 0
    total: int = 0
    """Steps in all; 0: not known yet."""
    eta: str = ""
    entries: list[dict[str, Any]] = field(default_factory=list)
    """Lines of metrics.jsonl."""
    last: dict[str, Any] = field(default_factory=dict)
    """The newest number of every kind."""
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """Of the run; empty before it is written."""
    error: str = ""
    """The error that the command ended with."""

    @property
    def name(self) -> str:
        """Of the run folder."""
        return Path(self.job.output).name

    @property
    def percent(self) -> int | None:
        """Share of the steps that are done; None: not known."""
        if self.job.state == "finished":
            return 100
        return int(100 * min(1.0, self.step / self.total)) if self.total else None


def read_training(job: Job, log: str = "") -> TrainingView:
    """Read the files of a training; its folder may be missing, or disappear while it is read."""
    run = RunDir(job.output)
    try:
        entries = run.read_metrics()
    except OSError:
        entries = []
    last: dict[str, Any] = {}
    for entry in entries:
        last |= entry
    progress = find_json_object(run.progress) or {}  # not written yet, or gone
    step, total = int(progress.get("step") or 0), int(progress.get("max_steps") or 0)
    summary = find_json_object(run.summary) or {}
    step = max(step, last.get("step", 0))
    try:
        config = read_config_file(run.config) if run.config.is_file() else {}
    except GlmtuneError:  # deleted meanwhile, or not written by us
        config = {}
    eta = _describe_time_left(run, progress)
    return TrainingView(job, run.root.is_dir(), step, total, eta, entries, last, summary, config, find_error(log))


def _describe_time_left(run: RunDir, progress: dict[str, Any]) -> str:
    """The time left now: the file says it for the moment at which it was written."""
    if not is_number(progress.get("eta_seconds")):
        return ""
    try:
        age = time.time() - run.progress.stat().st_mtime
    except OSError:
        return ""
    return format_duration(max(0, round(progress["eta_seconds"] - max(0.0, age))))


def make_curves(entries: list[dict[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """The curves as the page's charts take them.

    Args:
        entries: lines of metrics.jsonl.
        config: of the run, which says by what the best checkpoint is chosen.

    Returns:
        `{"curves": {name: [[steps], [values]]}, "best": step or None, "metric": name}`.
    """
    metric, best = find_best_step(entries, config)
    curves: dict[str, Any] = {}
    for name in dict.fromkeys((*list_curve_names(), f"eval_{metric}")):
        points = [(entry["step"], entry[name]) for entry in entries if is_number(entry.get(name)) and "step" in entry]
        if points:
            stride = max(1, -(-len(points) // _MAX_POINTS))
            points = [*points[:-1:stride], points[-1]]
            curves[name] = [[step for step, _ in points], [value for _, value in points]]
    return {"curves": curves, "best": best, "metric": f"eval_{metric}"}


def list_curve_names(group: str = "") -> list[str]:
    """Numbers that are drawn, of one chart or of all, those of evaluations included."""
    names = CURVE_GROUPS[group] if group else [name for group in CURVE_GROUPS.values() for name in group]
    return [label for name in names for label in (name, f"eval_{name}")]


def describe_charts(lang: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The charts of a training for the template `macros`: titles, curves, and labels of the curves.

    Args:
        lang: of the page.
        config: of the run; the metric of its best checkpoint is drawn even where other runs do not show it.
    """
    metric = find_best_step((), config or {})[0]
    groups = {group: list_curve_names(group) for group in CURVE_GROUPS}
    if f"eval_{metric}" not in list_curve_names():
        groups["reward" if metric.startswith("reward") else "generated"].append(f"eval_{metric}")
    names = [*(name for group in groups.values() for name in group), "step", "best"]
    plain = {name: _name_curve(name.removeprefix("eval_"), lang) for name in names}
    evaluation = text("curve.eval", lang)
    labels = {name: f"{label} ({evaluation})" if name.startswith("eval_") else label for name, label in plain.items()}
    labels["eval_loss"] = text("train.eval_loss", lang)
    titles = [{"title": text(f"chart.{group}", lang), "names": members} for group, members in groups.items()]
    return {"groups": titles, "labels": labels}


def _name_curve(name: str, lang: str) -> str:
    for key in (f"ui.curve.{name}", f"metric.{name}"):
        if i18n.has_text(key):
            return i18n.text(key, lang)
    return name  # of a reward function of the user's


def read_samples(run: RunDir) -> list[dict[str, Any]]:
    """Prompts whose replies were kept while training, with the replies by step: `prompt`, `reference` and `replies`, a
    list of (step, reply, reward or None)."""
    samples: dict[str, dict[str, Any]] = {}
    for entry in read_json_lines_end(run.samples, _MAX_SAMPLE_BYTES):
        prompt = _format_prompt(entry.get("prompt"))
        if entry.get("kind") != "evaluation" or not isinstance(entry.get("completion"), str) or not prompt:
            continue
        if prompt not in samples and len(samples) >= _MAX_SAMPLES:
            continue
        sample = samples.setdefault(prompt, {"prompt": prompt, "reference": entry.get("reference"), "replies": []})
        reward = entry.get("reward")
        sample["replies"].append((entry.get("step"), entry["completion"], reward if is_number(reward) else None))
    return list(samples.values())


def _format_prompt(prompt: Any) -> str:
    if isinstance(prompt, list):
        contents = [str(message.get("content", "")) for message in prompt if isinstance(message, dict)]
        return contents[-1] if contents else ""
    return prompt if isinstance(prompt, str) else ""


def make_training_figures(view: TrainingView, lang: str) -> Html:
    """Steps, times, losses, speed and memory."""
    job, last = view.job, view.last
    items: list[tuple[str, str]] = []
    if view.step:
        items.append(("train.step", f"{view.step:,} / {view.total:,}" if view.total else f"{view.step:,}"))
    if job.started is not None:
        items.append(("train.elapsed", format_duration((job.ended or time.time()) - job.started)))
    if job.state == "running" and view.eta:
        items.append(("train.eta", view.eta))
    for name, key, form in (
        ("train.loss", "loss", ".4f"),
        ("train.eval_loss", "eval_loss", ".4f"),
        ("train.rate", "learning_rate", ".2e"),
        ("train.speed", "tokens_per_second", ",.0f"),
    ):
        if is_number(last.get(key)):
            items.append((name, f"{last[key]:{form}}"))
    return make_figures((text(name, lang), value) for name, value in [*items, *_list_memory(view)])


def list_remarks(view: TrainingView, lang: str) -> list[str]:
    """Sentences under the numbers: what the training does when it does no steps, and where its folder is."""
    job = view.job
    if job.state == "running" and job.stops:
        return [text("train.stopping", lang)]
    if job.state == "running" and not view.step:
        return [text("train.loading", lang)]
    if not job.alive and not view.has_folder:
        return [text("train.gone", lang, path=job.output)]
    return [text("train.folder", lang, path=job.output), *_describe_fall(view, lang)]


def _describe_fall(view: TrainingView, lang: str) -> list[str]:
    """A warning where the answers of pairs all become less likely."""
    if not any("better_logp" in entry for entry in view.entries):
        return []
    fall = find_answer_fall(view.entries, view.config)
    return [fall.describe(lang)] if fall is not None else []


def find_error(log: str) -> str:
    """The last error in a log, with the hint under it."""
    _, found, rest = log.rpartition(f"\n{_ERROR}") if f"\n{_ERROR}" in log else log.rpartition(_ERROR)
    return "\n".join(rest.splitlines()[:2]) if found else ""


def _list_memory(view: TrainingView) -> list[tuple[str, str]]:
    if view.job.state == "running":
        gpu = describe_gpu_memory()
        return [("train.memory", format_bytes(memory_of(view.job))), *([("train.gpu", gpu)] if gpu else [])]
    peak = view.summary.get("peak_memory_bytes")
    return [("train.peak", format_bytes(peak))] if is_number(peak) else []
