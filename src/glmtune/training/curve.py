"""The loss curve as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw_loss_curve(entries: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw training and evaluation loss over steps.

    Args:
        entries: the lines of metrics.jsonl.
        path: where the PNG goes.
        title: stands above; Latin letters, since not every machine has Chinese fonts.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]
    evaluated = [(entry["step"], entry["eval_loss"]) for entry in entries if "eval_loss" in entry]
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        axes.plot(*zip(*train, strict=True), color="#2563eb", linewidth=1.6, label="training")
    if evaluated:
        axes.plot(*zip(*evaluated, strict=True), color="#dc2626", marker="o", linewidth=1.2, label="evaluation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss per target token")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if train or evaluated:
        axes.legend(frameon=False)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary)
    temporary.replace(path)
