"""What each kind of report shows: values for the templates, in the order of the page.

The templates decide how it looks; everything here is a number, a text or a list of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from glmtune.evaluation.metric_order import sort_metrics
from glmtune.html.i18n import has_text
from glmtune.html.pages import is_number, show_duration, show_memory, show_number, show_text
from glmtune.html.plots import draw_line_chart, make_loss_chart, select_points
from glmtune.report.answer_views import find_last_numbers, make_answer_charts, show_answer_fall, view_pair_scores
from glmtune.report.comparison_views import (
    list_comparison_tiles,
    list_sentences,
    make_verdict_tile,
    view_comparison,
    view_forgetting,
    view_pairs,
    view_probe,
)
from glmtune.report.contents import Evaluation, ReportContents
from glmtune.report.run_charts import find_rise, make_small_charts
from glmtune.report.view_parts import (
    MAIN_SCORES,
    Tile,
    format_data_name,
    format_pairs,
    keep_together,
    list_model_names,
    show_change,
)
from glmtune.utils.shell_words import quote_word

CUTS = ("turns_dropped", "prompts_cut", "answers_cut", "rows_dropped", "tokens_cut")
_REPLIES_PER_GROUP = 6


def view_run(contents: ReportContents) -> dict[str, Any]:
    """The report of a training run, with the evaluations, comparisons and the probe inside its folder."""
    summary, config = _complete_summary(contents), contents.config
    model_path = summary.model.get("path") or _get(config, "model", "path") or "?"
    method = str(summary.method or config.get("method") or "?")
    method_key, bits = f"report.method.{method}", _get(config, "model", "quantization")
    method_title: object = show_text(method_key) if has_text(method_key) else method
    if bits:
        method_title = show_text("report.method.on", method=method_title, bits=bits)
    data, sources = summary.data, summary.data.sources if summary.data else []
    names = [Path(str(source["name"])).name for source in sources if source.get("name")]
    data_title: object = ", ".join(names[:2]) or format_data_name(_get(config, "data", "train"))
    if len(names) > 2:
        data_title = show_text("report.run.and_more", names=data_title, n=show_number(len(names) - 2))

    tiles = [
        Tile("report.tile.loss", show_change(summary.first_loss, summary.last_loss, ".3f")),
        Tile(
            "report.tile.eval_loss",
            show_number(summary.eval_loss, ".3f"),
            _show_if_number("report.tile.best", summary.best_eval_loss, ".3f"),
        ),
        Tile(
            "report.tile.steps",
            show_number(summary.steps),
            _show_if_number("report.tile.epochs", summary.epochs, ".2f"),
        ),
        Tile("report.tile.time", show_duration(summary.seconds)),
        Tile(
            "report.tile.speed",
            show_number(summary.tokens_per_second),
            _show_if_number("report.tile.samples", summary.samples_per_second, ",.1f"),
        ),
        Tile("report.tile.memory", show_memory(summary.peak_memory_bytes), summary.device),
    ]
    tiles += _list_answer_tiles(contents.metrics)
    tiles += [tile for comparison in contents.comparisons[:1] for tile in list_comparison_tiles(comparison)[:1]]
    if contents.forgetting:
        tiles.append(make_verdict_tile(contents.forgetting))

    on_device = summary.peak_device_bytes
    folder = contents.folder.resolve()
    output = folder.with_name(f"{folder.name}-again")
    return {
        "headline": show_text(
            "report.run.headline",
            model=keep_together(Path(str(model_path)).name),
            method=method_title,
            rows=show_number(data.train_rows if data else None),
            data=data_title,
        ),
        "lede": [sentence for comparison in contents.comparisons for sentence in list_sentences(comparison)],
        "tiles": tiles,
        "summary": summary,
        "loss_chart": draw_line_chart(make_loss_chart(contents.metrics, config.get("stage") or "sft"), is_wide=True),
        "rise": find_rise(select_points(contents.metrics, "eval_loss")),
        "answer_charts": [draw_line_chart(chart) for chart in make_answer_charts(contents.metrics)],
        "answer_fall": show_answer_fall(contents.metrics, config),
        "small_charts": [draw_line_chart(chart) for chart in make_small_charts(contents.metrics)],
        "speed_facts": [
            ("report.speed.device", summary.device),
            ("report.speed.precision", summary.model.get("precision")),
            ("report.speed.time", show_duration(summary.seconds)),
            ("report.speed.tokens", show_number(summary.tokens_per_second, ",.1f")),
            ("report.speed.samples", show_number(summary.samples_per_second, ",.2f")),
            ("report.speed.memory", show_memory(summary.peak_memory_bytes)),
            *([("report.speed.device_memory", show_memory(on_device))] if on_device else []),
            ("report.speed.trainable", show_number(summary.trainable_parameters)),
        ],
        "limits": {
            "prompts_cut": _get(config, "data", "max_length") or _get(config, "data", "max_source_length"),
            "answers_cut": _get(config, "data", "max_length") or _get(config, "data", "max_target_length"),
        },
        "run": quote_word(str(contents.folder)),
        "repeat_command": f"glmtune train {quote_word(str(folder / 'config.yaml'))} "
        f"--set {quote_word(f'output={output}')}",
        "repeat_facts": [
            ("report.repeat.base", summary.model.get("path")),
            ("report.repeat.fingerprint", summary.model.get("fingerprint")),
            ("report.repeat.seed", _get(config, "training", "seed")),
            ("report.repeat.finished", summary.finished_at),
            ("report.repeat.versions", format_pairs(summary.versions)),
        ],
        "config_text": contents.config_text,
        "evaluations": [_view_scores(evaluation) for evaluation in contents.evaluations],
        "comparisons": [view_pairs(comparison) for comparison in contents.comparisons],
        "probes": [view_probe(contents.forgetting)] if contents.forgetting else [],
    }


def view_evaluation(contents: ReportContents) -> dict[str, Any]:
    """The report of an evaluation."""
    evaluation = contents.evaluations[0]
    result = evaluation.result
    faults = {name: show_number(result.counts.get(name)) for name in ("empty", "truncated", "repeated_tail")}
    tiles = []
    for name in MAIN_SCORES[:2]:
        if score := result.scores.get(name):
            interval = {"low": show_number(score.low, ".1f"), "high": show_number(score.high, ".1f")}
            value = show_number(score.mean, ".1f")
            tiles.append(Tile(f"report.score.{name}", value, show_text("report.tile.interval", **interval)))
    perplexity = show_text("report.tile.perplexity", n=show_number(result.perplexity, ",.2f"))
    tiles += [
        Tile("report.tile.eval_loss", show_number(result.loss, ".3f"), perplexity),
        Tile("report.tile.rows", show_number(result.data.rows), show_text("report.tile.faults", **faults)),
        Tile("report.tile.time", show_duration(result.seconds)),
        Tile("report.tile.speed", show_number(result.tokens_per_second), result.device),
    ]
    return {
        "headline": show_text(
            "report.eval.headline",
            model=keep_together(list_model_names([result.model])[0]),
            rows=show_number(result.data.rows),
            data=format_data_name(result.data.path),
        ),
        "tiles": tiles,
        "evaluation": _view_scores(evaluation),
        "command": result.command,
        "facts": [
            ("report.how.model", result.model.path),
            ("report.repeat.fingerprint", result.model.fingerprint),
            ("report.how.adapter", result.model.adapter),
            ("report.how.dtype", result.model.dtype),
            ("report.how.quantization", result.model.quantization),
            ("report.how.data", result.data.path),
            ("report.how.digest", result.data.digest),
            ("report.how.sampling", format_pairs(result.sampling)),
            ("report.speed.device", result.device),
            ("report.repeat.versions", format_pairs(result.versions)),
            ("report.repeat.finished", result.finished_at),
        ],
    }


VIEWS: dict[str, Callable[[ReportContents], dict[str, Any]]] = {
    "run": view_run,
    "eval": view_evaluation,
    "comparison": view_comparison,
    "forgetting": view_forgetting,
}


def _view_scores(evaluation: Evaluation) -> dict[str, Any]:
    """Scores in order, and replies from the whole range by ROUGE-L."""
    result = evaluation.result

    def rank(row: dict[str, Any]) -> float:
        value = _get(row, "scores", "rouge_l")
        return float(value) if is_number(value) else -1.0

    rows, size = sorted(evaluation.predictions, key=rank), _REPLIES_PER_GROUP
    middle = (len(rows) - size) // 2
    groups: list[tuple[str | None, list[dict[str, Any]]]] = [(None, rows[::-1])] if rows else []
    if len(rows) > 3 * size:
        groups = [
            ("report.replies.best", rows[: -size - 1 : -1]),
            ("report.replies.middle", rows[middle : middle + size]),
            ("report.replies.worst", rows[:size]),
        ]
    return {
        "result": result,
        "data_name": format_data_name(result.data.path),
        "pairs": view_pair_scores(evaluation),
        "scores": [(name, result.scores[name]) for name in sort_metrics(result.scores)],
        "reply_groups": groups,
    }


def _list_answer_tiles(metrics: list[dict[str, Any]]) -> list[Tile]:
    """Accuracy and margin of the rewards of a preference tuning, of held-out pairs if there are any."""
    tiles = []
    for name, form in (("accuracy", ".1%"), ("margin", ".3f")):
        value, is_evaluation = find_last_numbers(metrics, name)
        if value is not None and find_last_numbers(metrics, "better_reward")[0] is not None:
            small = show_text("report.pairs.held_out" if is_evaluation else "report.pairs.in_training")
            tiles.append(Tile(f"report.pairs.{name}", show_number(value, form), small))
    return tiles


def _complete_summary(contents: ReportContents) -> Any:
    """The summary; what a running training has not written there yet comes from its metrics."""
    metrics = contents.metrics
    losses, eval_losses = select_points(metrics, "loss"), select_points(metrics, "eval_loss")
    speeds = select_points(metrics, "tokens_per_second")
    last = metrics[-1] if metrics else {}
    known: dict[str, Any] = {
        "steps": last.get("step"),
        "epochs": last.get("epoch"),
        "first_loss": losses[0][1] if losses else None,
        "last_loss": losses[-1][1] if losses else None,
        "eval_loss": eval_losses[-1][1] if eval_losses else None,
        "best_eval_loss": min(value for _, value in eval_losses) if eval_losses else None,
        "tokens_per_second": speeds[-1][1] if speeds else None,
    }
    missing = {key: value for key, value in known.items() if getattr(contents.summary, key) is None}
    return replace(contents.summary, **missing)


def _show_if_number(key: str, value: Any, form: str) -> Markup | None:
    return show_text(key, n=show_number(value, form)) if is_number(value) else None


def _get(tree: Any, *keys: str) -> Any:
    """A value in nested dicts; None where any of it is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
