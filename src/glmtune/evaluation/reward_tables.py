"""Rewards of a data set as tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from glmtune.utils.console import count_noun, get_console, print_message

_BAR = 20
_ROWS_SHOWN = 3
_MAX_CHARACTERS = 60


def print_rewards(kind: str, name: str, data: str, records: list[dict[str, Any]], metrics: dict[str, Any]) -> None:
    """Print what `summarize_rewards` computed.

    Args:
        kind: `pairs`, `labels` or `rows`.
        name: of the model.
        data: as the user named it.
        records: of the rows.
        metrics: over all rows.
    """
    if kind == "pairs":
        _print_pairs(name, data, records, metrics)
        return
    table = Table("rewards", title=Text(f"{name} on {data}, {count_noun(len(records), 'row')}"))
    table.add_column("", justify="right")
    for title, key in (("mean", "mean_reward"), ("deviation", "reward_deviation"), ("lowest", "min_reward")):
        table.add_row(title, f"{metrics[key]:.3f}")
    table.add_row("highest", f"{metrics['max_reward']:.3f}")
    if kind == "labels":
        for title, key in (("mean of good answers", "mean_good_reward"), ("mean of bad answers", "mean_bad_reward")):
            table.add_row(title, "" if metrics[key] is None else f"{metrics[key]:.3f}")
        table.add_row("good above bad (AUC)", "" if metrics["auc"] is None else f"{metrics['auc']:.3f}")
    get_console().print(table)
    if kind == "rows":
        ranked = sorted(records, key=lambda record: record["reward"])
        count = min(_ROWS_SHOWN, len(ranked) // 2)  # of few rows, none is shown twice
        for title, shown in (("Lowest", ranked[:count]), ("Highest", ranked[::-1][:count])):
            for record in shown:
                print_message(f"{title}: {record['reward']:.3f}  {record['where']}: {_shorten(record['answer'])}")


def _print_pairs(name: str, data: str, records: list[dict[str, Any]], metrics: dict[str, Any]) -> None:
    table = Table("score", title=Text(f"{name} on {data}, {count_noun(metrics['pairs'], 'pair')}"))
    table.add_column("", justify="right")
    interval = f"{100 * metrics['accuracy_low']:.1f} – {100 * metrics['accuracy_high']:.1f}"
    table.add_row("accuracy", f"{100 * metrics['accuracy']:.1f} % ({interval})")
    for title, key in (("mean margin", "mean_margin"), ("calibration error (ECE)", "ece"), ("Brier score", "brier")):
        table.add_row(title, f"{metrics[key]:.3f}")
    table.add_row("mean reward", f"{metrics['mean_reward']:.3f}")
    if metrics["longer_is_better"] is not None:
        shares = [100 * metrics[key] for key in ("longer_is_preferred", "longer_is_better")]
        table.add_row("longer answer preferred", f"{shares[0]:.1f} % (better in {shares[1]:.1f} %)")
    get_console().print(table)

    reliability = Table("probability given", title="Calibration")
    for heading in ("pairs", "mean given", "right"):
        reliability.add_column(heading, justify="right")
    reliability.add_column("")
    for one in metrics["bins"]:
        given = f"{100 * one['low']:.0f} – {100 * one['high']:.0f} %"
        if not one["pairs"]:
            reliability.add_row(given, "0", "", "", "")
            continue
        shares = [f"{100 * one[key]:.1f} %" for key in ("confidence", "accuracy")]
        reliability.add_row(given, str(one["pairs"]), *shares, _draw_bar(one["accuracy"], one["confidence"]))
    get_console().print(reliability)

    wrong = sorted((one for one in records if one["margin"] < 0), key=lambda one: one["margin"])
    for one in wrong[:_ROWS_SHOWN]:
        answers = " < ".join(_shorten(one[key]) for key in ("better_answer", "worse_answer"))
        print_message(f"Wrong by {-one['margin']:.2f}: {one['where']}: {answers}")


def _draw_bar(accuracy: float, confidence: float) -> str:
    """A bar as long as the accuracy, with a mark where it would be if calibrated."""
    cells = ["█" if place < round(accuracy * _BAR) else " " for place in range(_BAR)]
    cells[min(_BAR - 1, round(confidence * _BAR))] = "|"
    return "".join(cells)


def _shorten(answer: str) -> str:
    line = " ".join(answer.split())
    return line if len(line) <= _MAX_CHARACTERS else f"{line[: _MAX_CHARACTERS - 1]}…"
