"""The scores of an evaluation as a table."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from glmtune.html.i18n import has_text, text
from glmtune.utils.console import get_console, print_message


def metric_title(name: str) -> str:
    """The name of a metric as the terminal shows it."""
    return text(f"metric.{name}", "en") if has_text(f"metric.{name}") else name


def print_scores(metrics: dict[str, Any]) -> None:
    """Show the scores with their intervals, the loss, and what should make one wary."""
    data = metrics["data"]
    table = Table("score", title=f"{metrics['model']['name']} on {data['path']}, {data['rows']} rows")
    for heading in ("mean", "95 % interval", "rows"):
        table.add_column(heading, justify="right")
    for name, score in metrics["scores"].items():
        interval = f"{score['low']:.2f} – {score['high']:.2f}"
        table.add_row(metric_title(name), f"{score['mean']:.2f}", interval, str(score["rows"]))
    get_console().print(table)
    for line in _list_lines(metrics):
        print_message(line)


def _list_lines(metrics: dict[str, Any]) -> list[str]:
    loss, perplexity = metrics["loss"], metrics["perplexity"]
    data, counts, rows = metrics["data"], metrics["counts"], metrics["data"]["rows"]
    told = "not a finite number" if loss is None or perplexity is None else f"{loss:.4f}, perplexity {perplexity:.2f}"
    said = [
        f"Loss of the references {told} ({metrics['loss_tokens']:,} tokens).",
        f"Variety: {metrics['variety']['distinct_1']:.1f} % of characters and {metrics['variety']['distinct_2']:.1f} % "
        "of pairs differ (distinct-1, -2).",
        f"{metrics['tokens_per_second']:,.0f} tokens/s, {metrics['seconds']:.0f} s.",
    ]
    wary = {
        "empty": "are empty and score 0",
        "truncated": f"did not end within {metrics['sampling']['max_new_tokens']} tokens",
        "repeated_tail": "end in a loop",
    }
    said += _describe_cuts(data["counts"])
    return said + [f"{counts[name]} of {rows} replies {what}." for name, what in wary.items() if counts[name]]


def _describe_cuts(counts: dict[str, int]) -> list[str]:
    """What the length limits took, if they took anything."""
    parts = {
        "turns_dropped": "prompts lost old turns",
        "prompts_cut": "the start of their question",
        "answers_cut": "references their end",
        "rows_dropped": "rows were left out as too long",
    }
    told = ", ".join(f"{counts[name]} {what}" for name, what in parts.items() if counts[name])
    return [f"Length limits, as in training: {told}."] if told else []
