"""The scores of an evaluation as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

TITLES = {
    "bleu4_characters": "BLEU-4, characters (as ChatGLM's tables)",
    "bleu4_words": "BLEU-4, words (as other tools)",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "exact_match": "exact match, %",
    "length_ratio": "length / reference's",
    "empty": "empty, %",
    "truncated": "cut at the longest length, %",
    "repeated_tail": "ends in a loop, %",
    "repeated_4grams": "repeated 4-word runs, %",
    "tool_decision": "calls a tool when it should, %",
    "tool_parse_failure": "unreadable call, %",
    "tool_name": "right tool, %",
    "tool_arguments": "right tool and arguments, %",
    "tool_argument_keys": "right arguments, share in %",
}
"""What a score is called to a person."""


def print_scores(metrics: dict[str, Any], console: Console) -> None:
    """Show the scores with their intervals, the loss, and what should make one wary."""
    data = metrics["data"]
    table = Table("score", title=f"{metrics['model']['name']} on {data['path']}, {data['rows']} rows")
    for heading in ("mean", "95 % interval", "rows"):
        table.add_column(heading, justify="right")
    for name, score in metrics["scores"].items():
        interval = f"{score['low']:.2f} – {score['high']:.2f}"
        table.add_row(TITLES.get(name, name), f"{score['mean']:.2f}", interval, str(score["rows"]))
    console.print(table)
    for line in _lines(metrics):
        console.print(line, highlight=False, markup=False)


def _lines(metrics: dict[str, Any]) -> list[str]:
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
    said += _cuts(data["counts"])
    return said + [f"{counts[name]} of {rows} replies {what}." for name, what in wary.items() if counts[name]]


def _cuts(counts: dict[str, int]) -> list[str]:
    """What the length limits took, if they took anything."""
    parts = {
        "turns_dropped": "prompts lost old turns",
        "prompts_cut": "the start of their question",
        "answers_cut": "references their end",
        "rows_dropped": "rows were left out as too long",
    }
    told = ", ".join(f"{counts[name]} {what}" for name, what in parts.items() if counts[name])
    return [f"Length limits, as in training: {told}."] if told else []
