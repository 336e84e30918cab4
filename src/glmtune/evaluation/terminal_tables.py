"""Results of evaluations, comparisons and forgetting probes as tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from glmtune.evaluation.metric_order import find_direction, sort_metrics
from glmtune.evaluation.results import ChangedRow, ComparisonResult, EvaluationResult, ForgettingResult, PairResult
from glmtune.evaluation.statistics import ScoreDifference
from glmtune.evaluation.win_rates import WinRate
from glmtune.html.i18n import has_text, text
from glmtune.utils.console import count_noun, get_console, print_message

_STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
_ROWS_SHOWN = 3
_MAX_CHARACTERS = 300
_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


def print_scores(result: EvaluationResult) -> None:
    """Print the scores with their intervals, the loss, the speed, and warnings."""
    data, counts = result.data, result.counts
    table = Table("score", title=f"{result.model.name} on {data.path}, {count_noun(data.rows, 'row')}")
    for heading in ("mean", "95 % interval", "rows"):
        table.add_column(heading, justify="right")
    for name, score in result.scores.items():
        interval = f"{score.low:.2f} – {score.high:.2f}"
        table.add_row(_metric_title(name), f"{score.mean:.2f}", interval, str(score.rows))
    get_console().print(table)

    loss = "not a finite number"
    if result.loss is not None and result.perplexity is not None:
        loss = f"{result.loss:.4f}, perplexity {result.perplexity:.2f}"
    print_message(f"Loss of the references {loss} ({count_noun(result.loss_tokens, 'token')}).")
    one, two = (result.variety[f"distinct_{n}"] for n in (1, 2))
    print_message(f"Variety: {one:.1f} % of characters and {two:.1f} % of pairs differ (distinct-1, -2).")
    print_message(f"{result.tokens_per_second:,.0f} tokens/s, {result.seconds:.0f} s.")
    cuts = {
        "turns_dropped": "prompts lost old turns",
        "prompts_cut": "a part of their question",
        "answers_cut": "references their end",
        "rows_dropped": "rows were skipped as too long",
    }
    parts = [f"{data.counts[name]} {meaning}" for name, meaning in cuts.items() if data.counts[name]]
    if parts:
        print_message(f"Length limits, as in training: {', '.join(parts)}.")
    faults = {
        "empty": "are empty and score 0",
        "truncated": f"did not end within {result.sampling['max_new_tokens']} tokens",
        "repeated_tail": "end in a loop",
    }
    for name, meaning in faults.items():
        if counts[name]:
            print_message(f"{counts[name]} of {count_noun(data.rows, 'reply', 'replies')} {meaning}.")


def print_pairs(result: PairResult) -> None:
    """Print how the model rewards better and worse answers, and how far it is from its reference."""
    reference = f"compared with {result.reference.name}" if result.reference else "without a reference"
    table = Table("pairs of answers", title=f"{count_noun(result.pairs, 'pair')}; reward: {result.reward}, {reference}")
    for heading in ("mean", "95 % interval", "pairs"):
        table.add_column(heading, justify="right")
    for name, score in result.scores.items():
        is_share = name.startswith("accuracy")
        form = ".1f" if is_share else ".3f"
        unit = " %" if is_share else ""
        interval = f"{score.low:{form}} – {score.high:{form}}"
        table.add_row(text(f"report.pairs.{name}", "en"), f"{score.mean:{form}}{unit}", interval, str(score.rows))
    get_console().print(table)
    if result.kl is not None:
        how = "sampled" if result.is_sampled else "most probable"
        print_message(
            f"KL from the reference, estimated from {count_noun(result.kl.rows, f'{how} reply', f'{how} replies')}: "
            f"{result.kl.mean:.3f} nats per reply ({result.kl.low:.3f} – {result.kl.high:.3f}), "
            f"{_format_number(result.kl_per_token)} per token."
        )
        if not result.is_sampled:
            print_message("An unbiased estimate takes replies drawn from the model: --temperature 1 --top-p 1")
    if result.dropped:
        print_message(f"{count_noun(result.dropped, 'pair is', 'pairs are')} left out: too long, or the same when cut.")
    if result.others:
        print_message(f"{count_noun(result.others, 'row is', 'rows are')} no pairs.")


def print_comparison(comparison: ComparisonResult) -> None:
    """Print the scores of all models with significant differences marked, and the rows that changed most."""
    names = [model.model.name for model in comparison.models]
    table = Table("score", title=Text(f"{comparison.data.path}, {count_noun(comparison.data.rows, 'row')}"))
    for name in names:
        table.add_column(Text(name), justify="right")
    differences = {(pair.score, pair.b): pair.difference for pair in comparison.pairs}
    for score in sort_metrics({pair.score: None for pair in comparison.pairs}):
        scores = [model.scores.get(score) for model in comparison.models]
        cells = [
            _format_cell(score, each.mean if each else None, differences.get((score, b)))
            for b, each in enumerate(scores)
        ]
        table.add_row(_metric_title(score), *cells)
    table.add_row("loss of the references", *(Text(_format_number(model.loss)) for model in comparison.models))
    get_console().print(table, soft_wrap=False)
    print_message(
        f"Compared with {names[0]}: * p < 0.05, ** p < 0.01, *** p < 0.001 (paired bootstrap over the rows; a "
        "difference without a star may be chance). Then the numbers of rows that score higher/lower/the same."
    )
    for win_rate in comparison.win_rates:
        _print_win_rate(win_rate, names, str(comparison.judge))
    for i, row in enumerate(comparison.changed[:_ROWS_SHOWN]):
        if i == 0:
            print_message("\nThe rows that changed most:", "bold")
        get_console().print(_make_reply_table(row, names), soft_wrap=False)
    for name, forgetting in zip(names, comparison.forgetting, strict=True):
        if forgetting is not None:
            get_console().print()
            print_forgetting(forgetting, name)


def _print_win_rate(result: WinRate, names: list[str], judge: str) -> None:
    rate, controlled = result.rate, result.controlled
    lengths = " and ".join(f"{length:,.0f}" for length in result.mean_lengths)
    print_message(
        f"{names[result.b]} against {names[result.a]}, judged by {judge}: wins {rate.mean:.1f} % "
        f"({rate.low:.1f} – {rate.high:.1f}; {result.wins} won, {result.losses} lost, {result.ties} equal), "
        f"at equal length {controlled.mean:.1f} % ({controlled.low:.1f} – {controlled.high:.1f}); "
        f"replies of {names[result.a]} and {names[result.b]} have {lengths} characters."
    )


def print_forgetting(result: ForgettingResult, name: str | None = None) -> None:
    """Print the verdict, the numbers behind it, reasons and advice."""
    colour = _COLOURS[result.verdict]
    print_message(f"Forgetting, {name or result.tuned.name}: {result.verdict.upper()}", f"bold {colour}")
    table = Table(count_noun(result.items, "question"), title_justify="left")
    for heading in ("base", "tuned"):
        table.add_column(heading, justify="right")
    accuracy = result.accuracy
    table.add_row("right answers", f"{accuracy.base:.1%}", f"{accuracy.tuned:.1%}")
    for kind, share in accuracy.by_category.items():
        table.add_row(f"  {kind}", f"{share.base:.0%}", f"{share.tuned:.0%}")
    for title, pair in (("loss of the references", result.loss), ("loss of the base's replies", result.reply_loss)):
        table.add_row(title, _format_number(pair.base), _format_number(pair.tuned))
    table.add_row("nats per token from the base", "", _format_number(result.kl))
    for kind, title in (("loop", "replies that loop"), ("unk", "full of unknown tokens"), ("empty", "empty")):
        table.add_row(title, str(result.degenerate.base[kind]), str(result.degenerate.tuned[kind]))
    get_console().print(table)
    for sentence in result.reasons:
        print_message(f"- {sentence}", colour)
    if result.advice:
        print_message("What helps:")
    for sentence in result.advice:
        print_message(f"- {sentence}")


def format_stars(p: float) -> str:
    """`***` below 0.001, `**` below 0.01, `*` below 0.05."""
    return next((stars for level, stars in _STARS if p < level), "")


def _metric_title(name: str) -> str:
    return text(f"metric.{name}", "en") if has_text(f"metric.{name}") else name


def _format_cell(score: str, mean: float | None, difference: ScoreDifference | None) -> Text:
    """The mean; except for the baseline also the difference with its stars, and the numbers of rows behind it."""
    cell = Text(_format_number(mean, ".2f"))
    if difference is None:
        return cell
    stars = format_stars(difference.p)
    gain = find_direction(score) * difference.mean if stars else 0
    cell.append(f" {difference.mean:+.2f} {stars}".rstrip(), "green" if gain > 0 else "red" if gain < 0 else "")
    return cell.append(f"  {difference.wins}/{difference.losses}/{difference.ties}", "dim")


def _make_reply_table(row: ChangedRow, names: list[str]) -> Table:
    question = next((m.get("content", "") for m in reversed(row.prompt) if m["role"] == "user"), "")
    table = Table(title=Text(f"{row.where}  {_truncate_text(question)}"), title_justify="left", show_lines=True)
    for heading, ratio in (("", None), ("ROUGE-L", None), ("text", 1)):
        table.add_column(heading, ratio=ratio, overflow="fold")  # Chinese has no spaces to break at
    table.add_row("reference", "", Text(_truncate_text(row.reference)))
    for name, score, reply in zip(names, row.scores, row.replies, strict=True):
        table.add_row(Text(name), f"{score:.1f}", Text(_truncate_text(reply)))
    return table


def _format_number(value: Any, form: str = ".4f") -> str:
    return "not finite" if value is None else format(value, form)


def _truncate_text(content: str) -> str:
    return content if len(content) <= _MAX_CHARACTERS else f"{content[: _MAX_CHARACTERS - 1]}…"
