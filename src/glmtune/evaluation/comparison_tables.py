"""A comparison and a forgetting probe in the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from glmtune.evaluation.metric_order import find_direction, sort_metrics
from glmtune.evaluation.table import metric_title
from glmtune.utils.console import get_console, print_message

_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
_SHOWN = 3
"""Rows side by side."""
_LONGEST = 300
"""Characters of a text."""
_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


def print_comparison(comparison: dict[str, Any]) -> None:
    """The scores of all models, what of the differences is not chance, and the rows that changed most."""
    names = [model["model"]["name"] for model in comparison["models"]]
    get_console().print(_make_score_table(comparison, names), soft_wrap=False)
    print_message(
        f"Against {names[0]}: * p < 0.05, ** p < 0.01, *** p < 0.001 (paired bootstrap over the rows; no star: may be "
        "chance). Then rows that score higher/lower/the same."
    )
    for i, row in enumerate(comparison["changed"][:_SHOWN]):
        if i == 0:
            print_message("\nThe rows that changed most:", "bold")
        get_console().print(_make_reply_table(row, names), soft_wrap=False)
    for name, forgetting in zip(names, comparison["forgetting"], strict=True):
        if forgetting is not None:
            get_console().print()
            print_forgetting(forgetting, name)


def print_forgetting(forgetting: dict[str, Any], name: str | None = None) -> None:
    """The verdict, the numbers it rests on, reasons and advice."""
    verdict = forgetting["verdict"]
    name = name or forgetting["tuned"]["name"]
    print_message(f"Forgetting, {name}: {verdict.upper()}", f"bold {_COLOURS[verdict]}")
    get_console().print(_make_number_table(forgetting))
    for sentence in forgetting["reasons"]:
        print_message(f"- {sentence}", _COLOURS[verdict])
    if forgetting["advice"]:
        print_message("What helps:")
    for sentence in forgetting["advice"]:
        print_message(f"- {sentence}")


def format_stars(p: float) -> str:
    """`***` below 0.001, `**` below 0.01, `*` below 0.05."""
    return next((marks for level, marks in _STARS if p < level), "")


def _make_score_table(comparison: dict[str, Any], names: list[str]) -> Table:
    data = comparison["data"]
    table = Table("score", title=Text(f"{data['path']}, {data['rows']} rows"))
    for name in names:
        table.add_column(Text(name), justify="right")
    pairs = {(pair["score"], pair["b"]): pair["difference"] for pair in comparison["pairs"]}
    for score in sort_metrics({pair["score"]: None for pair in comparison["pairs"]}):
        means = [model["scores"].get(score, {}).get("mean") for model in comparison["models"]]
        cells = [_format_cell(score, mean, pairs.get((score, b))) for b, mean in enumerate(means)]
        table.add_row(metric_title(score), *cells)
    table.add_row("loss of the references", *(Text(_format_number(model["loss"])) for model in comparison["models"]))
    return table


def _format_cell(score: str, mean: float | None, difference: dict[str, Any] | None) -> Text:
    """The mean; of all but the first model also the difference with its stars, and how many rows it comes from."""
    text = Text(_format_number(mean, ".2f"))
    if difference is None:
        return text
    marks = format_stars(difference["p"])
    good = find_direction(score) * difference["mean"] if marks else 0
    colour = "green" if good > 0 else "red" if good < 0 else ""
    text.append(f" {difference['mean']:+.2f} {marks}".rstrip(), colour)
    return text.append(f"  {difference['wins']}/{difference['losses']}/{difference['ties']}", "dim")


def _make_reply_table(row: dict[str, Any], names: list[str]) -> Table:
    question = next((m.get("content", "") for m in reversed(row["prompt"]) if m["role"] == "user"), "")
    table = Table(title=Text(f"{row['where']}  {_truncate_text(question)}"), title_justify="left", show_lines=True)
    for heading, ratio in (("", None), ("ROUGE-L", None), ("text", 1)):
        table.add_column(heading, ratio=ratio, overflow="fold")  # Chinese has no spaces to break at
    table.add_row("reference", "", Text(_truncate_text(row["reference"])))
    for name, score, reply in zip(names, row["scores"], row["replies"], strict=True):
        table.add_row(Text(name), f"{score:.1f}", Text(_truncate_text(reply)))
    return table


def _make_number_table(forgetting: dict[str, Any]) -> Table:
    accuracy, items = forgetting["accuracy"], forgetting["items"]
    table = Table(f"{items} questions", title_justify="left")
    for heading in ("base", "tuned"):
        table.add_column(heading, justify="right")
    table.add_row("right answers", *(f"{accuracy[side]:.1%}" for side in ("base", "tuned")))
    for kind, each in accuracy["by_category"].items():
        table.add_row(f"  {kind}", *(f"{each[side]:.0%}" for side in ("base", "tuned")))
    for title, key in (("loss of the references", "loss"), ("loss of the base's replies", "reply_loss")):
        table.add_row(title, *(_format_number(forgetting[key][side]) for side in ("base", "tuned")))
    table.add_row("nats per token from the base", "", _format_number(forgetting["kl"]))
    for kind, title in (("loop", "replies that loop"), ("unk", "full of unknown tokens"), ("empty", "empty")):
        table.add_row(title, *(str(forgetting["degenerate"][side][kind]) for side in ("base", "tuned")))
    return table


def _format_number(value: float | None, form: str = ".4f") -> str:
    return "not finite" if value is None else format(value, form)


def _truncate_text(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
