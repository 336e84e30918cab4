"""What each kind of report shows: values for the templates, in the order of the page.

The templates decide how it looks; everything here is a number, a text or a list of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from glmtune.evaluation.metric_order import QUALITY, SIGNIFICANT, find_direction, sort_metrics
from glmtune.evaluation.model_info import ModelInfo
from glmtune.evaluation.results import ComparisonResult, ForgettingResult, ScorePair
from glmtune.evaluation.statistics import ScoreDifference
from glmtune.html.i18n import has_text
from glmtune.html.pages import NO_VALUE, is_number, show_duration, show_memory, show_number, show_text
from glmtune.html.plots import (
    LineChart,
    Points,
    Series,
    draw_line_chart,
    make_loss_chart,
    select_points,
)
from glmtune.report.answer_views import (
    find_last_numbers,
    make_answer_charts,
    show_answer_fall,
    view_pair_scores,
)
from glmtune.report.contents import Evaluation, ReportContents
from glmtune.utils.shell_words import quote_word

CUTS = ("turns_dropped", "prompts_cut", "answers_cut", "rows_dropped", "tokens_cut")
VERDICT_MOODS = {"pass": "good", "warn": "warn", "fail": "bad"}
_VERDICT_SIGNS = {"pass": "✓ ", "warn": "! ", "fail": "✗ "}
_MAIN_SCORES = ("rouge_l", "bleu4_characters", "exact_match")
_SERIES_STYLES = ("first", "second", "third", "fourth")
_REPLIES_PER_GROUP = 6
_MAX_CHARACTERS = 4000  # of a text; a model in a loop writes more than anybody reads
_RISE_FACTOR = 1.02  # an evaluation loss this much above its minimum has risen


@dataclass(frozen=True)
class Tile:
    """One big number with its name and a small line below."""

    title: str
    value: Markup
    small: object = None
    mood: str = ""


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
    tiles += [tile for comparison in contents.comparisons[:1] for tile in _list_comparison_tiles(comparison)[:1]]
    if contents.forgetting:
        tiles.append(_make_verdict_tile(contents.forgetting))

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
        "lede": [sentence for comparison in contents.comparisons for sentence in _list_sentences(comparison)],
        "tiles": tiles,
        "summary": summary,
        "loss_chart": draw_line_chart(make_loss_chart(contents.metrics, config.get("stage") or "sft"), is_wide=True),
        "rise": _find_rise(select_points(contents.metrics, "eval_loss")),
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
        "comparisons": [_view_pairs(comparison) for comparison in contents.comparisons],
        "probes": [_view_probe(contents.forgetting)] if contents.forgetting else [],
    }


def view_evaluation(contents: ReportContents) -> dict[str, Any]:
    """The report of an evaluation."""
    evaluation = contents.evaluations[0]
    result = evaluation.result
    faults = {name: show_number(result.counts.get(name)) for name in ("empty", "truncated", "repeated_tail")}
    tiles = []
    for name in _MAIN_SCORES[:2]:
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


def view_comparison(contents: ReportContents) -> dict[str, Any]:
    """The report of a comparison."""
    comparison = contents.comparisons[0]
    models = comparison.models
    first, *others = list_model_names([model.model for model in models]) or ["?"]
    probes = [probe for probe in comparison.forgetting if probe is not None and probe.verdict]
    if contents.forgetting and not probes:
        probes = [contents.forgetting]
    baseline = models[0] if models else None
    return {
        "headline": show_text(
            "report.compare.headline",
            base=keep_together(first),
            others=keep_together(", ".join(others) or "?"),
            rows=show_number(comparison.data.rows),
            data=format_data_name(comparison.data.path),
        ),
        "lede": _list_sentences(comparison),
        "tiles": [*_list_comparison_tiles(comparison), *(_make_verdict_tile(probe) for probe in probes)],
        "comparison": _view_pairs(comparison),
        "probes": [_view_probe(probe) for probe in probes],
        "command": comparison.command,
        "models": [
            (name, model.model.path, model.model.adapter or "", model.model.fingerprint or "")
            for name, model in zip([first, *others], models, strict=False)
        ],
        "facts": [
            ("report.how.data", comparison.data.path),
            ("report.how.digest", comparison.data.digest),
            ("report.how.sampling", format_pairs(baseline.sampling) if baseline else None),
            ("report.speed.device", baseline.device if baseline else None),
            ("report.repeat.versions", format_pairs(baseline.versions) if baseline else None),
            ("report.repeat.finished", comparison.finished_at),
        ],
    }


def view_forgetting(contents: ReportContents) -> dict[str, Any]:
    """The report of a forgetting probe."""
    probe = contents.forgetting
    assert probe is not None
    base, tuned = list_model_names([probe.base, probe.tuned])
    return {
        "headline": show_text(
            "report.forget.headline",
            base=keep_together(base),
            tuned=keep_together(tuned),
            items=show_number(probe.items),
        ),
        "tiles": [
            _make_verdict_tile(probe),
            Tile("report.forget.accuracy", show_change(probe.accuracy.base, probe.accuracy.tuned, ".1%")),
            Tile("report.forget.loss", show_change(probe.loss.base, probe.loss.tuned, ".3f")),
            Tile("report.forget.reply_loss", show_change(probe.reply_loss.base, probe.reply_loss.tuned, ".3f")),
            Tile("report.forget.kl", show_number(probe.kl, ".3f"), show_text("report.unit.kl")),
        ],
        "probe": _view_probe(probe),
        "command": probe.command,
        "facts": [
            ("report.how.base", probe.base.path),
            ("report.how.tuned", probe.tuned.adapter or probe.tuned.path),
            ("report.repeat.fingerprint", probe.base.fingerprint),
            ("report.forget.thresholds", format_pairs(probe.thresholds)),
            ("report.repeat.finished", probe.finished_at),
        ],
    }


VIEWS: dict[str, Callable[[ReportContents], dict[str, Any]]] = {
    "run": view_run,
    "eval": view_evaluation,
    "comparison": view_comparison,
    "forgetting": view_forgetting,
}


# --- parts of several reports -----------------------------------------------------------------------------------------


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


def _view_pairs(comparison: ComparisonResult) -> dict[str, Any]:
    """A table for each model against the baseline, and the rows that changed most."""
    models = comparison.models
    names = list_model_names([model.model for model in models])
    pairs = [pair for pair in comparison.pairs if _is_complete(pair, len(models))]
    tables = []
    for a, b in sorted({(pair.a, pair.b) for pair in pairs}):
        differences = {str(pair.score): pair.difference for pair in pairs if (pair.a, pair.b) == (a, b)}
        rows = [
            {
                "name": name,
                "before": models[a].scores[name].mean if name in models[a].scores else None,
                "after": models[b].scores[name].mean if name in models[b].scores else None,
                "difference": differences[name],
                "verdict": show_verdict(name, differences[name]),
            }
            for name in sort_metrics(differences)
        ]
        tables.append({"before": names[a], "after": names[b], "rows": rows})
    numbers = range(len(models))
    wins = [win for win in comparison.win_rates if win.a in numbers and win.b in numbers]
    judge = Path(comparison.judge).name if comparison.judge else "?"
    return {
        "tables": tables,
        "names": names,
        "win_rates": wins,
        "judge": judge,
        "changed": [row for row in comparison.changed if row.where],
    }


def _view_probe(probe: ForgettingResult) -> dict[str, Any]:
    mood = VERDICT_MOODS.get(probe.verdict, "")
    return {"result": probe, "mood": mood, "verdict": _show_probe_verdict(probe.verdict)}


def _list_answer_tiles(metrics: list[dict[str, Any]]) -> list[Tile]:
    """Accuracy and margin of the rewards of a preference tuning, of held-out pairs if there are any."""
    tiles = []
    for name, form in (("accuracy", ".1%"), ("margin", ".3f")):
        value, is_evaluation = find_last_numbers(metrics, name)
        if value is not None and find_last_numbers(metrics, "better_reward")[0] is not None:
            small = show_text("report.pairs.held_out" if is_evaluation else "report.pairs.in_training")
            tiles.append(Tile(f"report.pairs.{name}", show_number(value, form), small))
    return tiles


def _list_comparison_tiles(comparison: ComparisonResult) -> list[Tile]:
    """The main scores of two models; of more, the tables show more than tiles could."""
    if len(comparison.models) != 2:
        return []
    before, after = comparison.models
    tiles = []
    for name in _MAIN_SCORES:
        if score := after.scores.get(name):
            old = before.scores[name].mean if name in before.scores else None
            pair = next((p for p in comparison.pairs if (p.b, p.score) == (1, name)), None)
            verdict = show_verdict(name, pair.difference if pair else None)
            tiles.append(Tile(f"report.score.{name}", show_change(old, score.mean, ".1f"), verdict))
    return tiles


def _list_sentences(comparison: ComparisonResult) -> list[Markup]:
    """What ROUGE-L says of each model against the baseline, a sentence each."""
    names = list_model_names([model.model for model in comparison.models])
    sentences = []
    for pair in comparison.pairs:
        mean, p = pair.difference.mean, pair.difference.p
        if pair.score != "rouge_l" or not _is_complete(pair, len(names)) or not (is_number(mean) and is_number(p)):
            continue
        kind = "unclear" if p >= SIGNIFICANT or mean == 0 else "better" if mean > 0 else "worse"
        sentences.append(
            show_text(
                f"report.compare.sentence.{kind}",
                base=keep_together(names[pair.a]),
                tuned=Markup("<strong>{}</strong>").format(keep_together(names[pair.b])),
                mean=show_number(mean, "+.1f"),
                wins=show_number(pair.difference.wins),
                losses=show_number(pair.difference.losses),
            )
        )
    return sentences


def _make_verdict_tile(probe: ForgettingResult) -> Tile:
    shares = {"base": show_number(probe.accuracy.base, ".0%"), "tuned": show_number(probe.accuracy.tuned, ".0%")}
    mood = VERDICT_MOODS.get(probe.verdict, "")
    return Tile(
        "report.forget.verdict", _show_probe_verdict(probe.verdict), show_text("report.forget.tile", **shares), mood
    )


def _show_probe_verdict(verdict: str) -> Markup:
    key = f"report.verdict.{verdict}" if verdict in VERDICT_MOODS else "report.verdict.unknown"
    return Markup("<span>{}{}</span>").format(_VERDICT_SIGNS.get(verdict, ""), show_text(key))


def show_verdict(name: str, difference: ScoreDifference | None) -> Markup:
    """Better, worse, changed or not significant, with a sign, so that colour is not needed."""
    mean, p = (difference.mean, difference.p) if difference else (None, None)
    if not (is_number(mean) and is_number(p)):
        return show_text("report.compare.unknown")
    if p >= SIGNIFICANT or mean == 0:
        return Markup('<span class="unclear">{}</span>').format(show_text("report.compare.unclear"))
    gain = find_direction(name) * mean
    if gain == 0:
        return Markup("<span>{}</span>").format(show_text("report.compare.different"))
    kind = "better" if gain > 0 else "worse"
    sign = "▲ " if mean > 0 else "▼ "
    return Markup('<span class="{}">{}{}</span>').format(kind, sign, show_text(f"report.compare.{kind}"))


def show_change(before: Any, after: Any, form: str) -> Markup:
    """Two numbers with an arrow; `NO_VALUE` if the second is not known."""
    if not is_number(after):
        return Markup(NO_VALUE)
    return Markup('<span class="was">{} → </span>{}').format(show_number(before, form), show_number(after, form))


def show_clipped(content: Any) -> Markup:
    """A text; of a very long one, the start and the number of characters not shown."""
    content = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    content = content.encode("utf-8", "replace").decode("utf-8")
    if len(content) <= _MAX_CHARACTERS:
        return Markup("<span>{}</span>").format(content)
    rest = show_text("report.reply.clipped", n=show_number(len(content) - _MAX_CHARACTERS))
    return Markup("{} <em>{}</em>").format(content[:_MAX_CHARACTERS], rest)


def list_turns(prompt: Any) -> list[dict[str, Any]]:
    """The turns of a prompt, at least one; a bare text is one."""
    turns = [turn for turn in prompt if isinstance(turn, dict)] if isinstance(prompt, list) else []
    turns = [{"role": turn.get("role", "?"), "content": turn.get("content") or ""} for turn in turns]
    return turns or [{"role": "user", "content": prompt if isinstance(prompt, str) else ""}]


def list_model_names(models: Sequence[ModelInfo]) -> list[str]:
    """A name for each model; equal names are told apart by the adapter, else by a number."""
    names = [model.name or Path(model.path or "?").name for model in models]
    return [
        name
        if names.count(name) == 1
        else f"{name} + {Path(model.adapter).name}"
        if model.adapter
        else f"{name} ({i + 1})"
        for i, (name, model) in enumerate(zip(names, models, strict=True))
    ]


def keep_together(name: object) -> Markup:
    """A name in running text, which does not break at its hyphens while it fits on a line."""
    return Markup('<span class="name">{}</span>').format(name)


def format_data_name(path: Any) -> str:
    """The short name of a data file, or of several."""
    if isinstance(path, list):
        return ", ".join(format_data_name(each) for each in path)
    return Path(str(path)).name if path else "?"


def format_pairs(values: Any) -> str | None:
    """Names with their values on one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items()) if isinstance(values, dict) else None


def make_small_charts(metrics: list[dict[str, Any]]) -> list[LineChart]:
    """Rewards, learning rate, gradient norm, speed, and scores of generated replies, if they were logged."""
    charts = _make_reward_charts(metrics)
    charts += [
        LineChart(f"report.chart.{name}", f"report.unit.{name}", [Series(f"report.chart.{name}", points, "first")])
        for name, key in (("rate", "learning_rate"), ("norm", "grad_norm"), ("speed", "tokens_per_second"))
        if (points := select_points(metrics, key))
    ]
    scores = [(name, points) for name in QUALITY if (points := select_points(metrics, f"eval_{name}"))]
    series = [
        Series(f"report.score.{name}", points, style, has_dots=True)
        for (name, points), style in zip(scores, _SERIES_STYLES, strict=False)
    ]
    return [*charts, LineChart("report.chart.scores", "report.unit.scores", series)] if series else charts


def _make_reward_charts(metrics: list[dict[str, Any]]) -> list[LineChart]:
    """What the answers of a training by rewards were like; none of other trainings."""
    if not select_points(metrics, "reward"):
        return []
    charts = []
    for name, key in (("reward", "reward"), ("answer_length", "completion_length"), ("reference_kl", "kl")):
        series = [
            Series("report.curve.train", select_points(metrics, key), "first"),
            Series("report.curve.eval", select_points(metrics, f"eval_{key}"), "second", has_dots=True),
        ]
        charts.append(LineChart(f"report.chart.{name}", f"report.unit.{name}", series))
    return [chart for chart in charts if chart.drawn_series()]


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


def _find_rise(points: Points) -> dict[str, float] | None:
    """Where the evaluation loss was lowest, if it has risen since."""
    if len(points) < 2:
        return None
    step, lowest = min(points, key=lambda point: point[1])
    last = points[-1][1]
    return {"step": step, "lowest": lowest, "last": last} if last > lowest * _RISE_FACTOR else None


def _show_if_number(key: str, value: Any, form: str) -> Markup | None:
    return show_text(key, n=show_number(value, form)) if is_number(value) else None


def _is_complete(pair: ScorePair, model_count: int) -> bool:
    return all(isinstance(end, int) and 0 <= end < model_count for end in (pair.a, pair.b))


def _get(tree: Any, *keys: str) -> Any:
    """A value in nested dicts; None where any of it is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
