"""What is shown of a training: state, numbers, curves. Read from its run folder and log, so any page can show it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.config_parsing import read_config_file
from glmtune.errors import ConfigError
from glmtune.html.builder import Html
from glmtune.html.pages import is_number
from glmtune.run_dir import RunDir
from glmtune.training.answer_curves import find_answer_fall
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
    eta = format_duration(progress["eta_seconds"]) if progress.get("eta_seconds") is not None else ""
    summary = find_json_object(run.summary) or {}
    step = max(step, last.get("step", 0))
    return TrainingView(job, run.root.is_dir(), step, total, eta, entries, last, summary, find_error(log))


def make_curves(entries: list[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Any]:
    """The curves as the page's charts take them: `{"curves": {name: [[steps], [values]]}, "best": step or None}`."""
    curves: dict[str, Any] = {}
    for name in list_curve_names():
        points = [(entry["step"], entry[name]) for entry in entries if is_number(entry.get(name)) and "step" in entry]
        if points:
            stride = max(1, -(-len(points) // _MAX_POINTS))
            points = [*points[:-1:stride], points[-1]]
            curves[name] = [[step for step, _ in points], [value for _, value in points]]
    best = summary.get("best_step")
    if best is None and "eval_loss" in curves:
        steps, values = curves["eval_loss"]
        best = steps[values.index(min(values))]
    return {"curves": curves, "best": best}


def list_curve_names(group: str = "") -> list[str]:
    """Numbers that are drawn, of one chart or of all, those of evaluations included."""
    names = CURVE_GROUPS[group] if group else [name for group in CURVE_GROUPS.values() for name in group]
    return [label for name in names for label in (name, f"eval_{name}")]


def describe_charts(lang: str) -> dict[str, Any]:
    """The charts of a training for the template `macros`: titles, curves, and labels of the curves."""
    names = [*list_curve_names(), "step", "best"]
    plain = {name: text(f"curve.{name.removeprefix('eval_')}", lang) for name in names}
    evaluation = text("curve.eval", lang)
    labels = {name: f"{label} ({evaluation})" if name.startswith("eval_") else label for name, label in plain.items()}
    groups = [{"title": text(f"chart.{group}", lang), "names": list_curve_names(group)} for group in CURVE_GROUPS]
    return {"groups": groups, "labels": labels}


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
    try:
        config = read_config_file(RunDir(view.job.output).config)
    except ConfigError:  # deleted meanwhile
        return []
    fall = find_answer_fall(view.entries, config)
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
