"""An evaluation: its scores with their intervals, its faults, some of its replies."""

from __future__ import annotations

from glmtune.evaluation.metric_order import RATIO, sort_metrics
from glmtune.report.bars import whisker
from glmtune.report.gather import Evaluation, Json, at, below
from glmtune.report.markup import (
    Html,
    duration,
    el,
    is_number,
    join,
    loss,
    note,
    number,
    say,
    table,
)
from glmtune.report.parts import (
    column,
    data_name,
    facts,
    few_and_more,
    model_names,
    pairs,
    repeat_command,
    reply_card,
    rouge,
    section,
    tile,
    title,
    unbroken,
)

_SAMPLES = 6
"""Replies of the best, of the middle and of the worst."""
_SHOWN = 2
"""Of each, before the rest is folded."""


def headline(evaluation: Evaluation) -> Html:
    """What was evaluated on what."""
    data = at(evaluation.metrics, "data")
    return say(
        "eval.headline",
        model=unbroken(model_names([evaluation.metrics])[0]),
        rows=number(at(data, "rows")),
        data=data_name(at(data, "path")),
    )


def tiles(metrics: Json) -> list[Html | None]:
    """The numbers that most people ask for."""
    return [
        _score_tile(metrics, "rouge_l"),
        _score_tile(metrics, "bleu4_characters"),
        tile("tile.eval_loss", number(metrics.get("loss"), ".3f"), _perplexity(metrics)),
        tile("tile.rows", number(at(metrics, "data", "rows")), _faults(metrics)),
        tile("tile.time", duration(metrics.get("seconds"))),
        tile("tile.speed", number(metrics.get("tokens_per_second")), metrics.get("device")),
    ]


def scores(evaluation: Evaluation, title_key: str = "scores.title") -> Html:
    """The table of means with intervals."""
    metrics = evaluation.metrics
    found = at(metrics, "scores")
    if not isinstance(found, dict) or not found:
        return section(title_key, note(say("scores.none")))
    rows = [_row(name, found[name]) for name in sort_metrics(found) if isinstance(found[name], dict)]
    head = [say(f"scores.{key}") for key in ("score", "mean", "interval", "scale", "rows")]
    data = at(metrics, "data")
    return section(
        title_key,
        note(say("scores.of", data=data_name(at(data, "path")), rows=number(at(data, "rows")))),
        table(head, rows),
        note(say("scores.note")),
        _loss_line(metrics),
        _variety(metrics),
    )


def replies(evaluation: Evaluation) -> Html:
    """Replies from the whole range: the worst, the middle, the best by ROUGE-L."""
    rows = evaluation.predictions
    if not rows:
        return section("replies.title", note(say("replies.none")))
    ranked = sorted(rows, key=_rank)
    if len(ranked) <= 3 * _SAMPLES:
        cards = [_card(row) for row in reversed(ranked)]
        return section("replies.title", few_and_more(cards, 3 * _SHOWN))
    middle = (len(ranked) - _SAMPLES) // 2
    parts = (
        ("replies.best", ranked[: -_SAMPLES - 1 : -1]),
        ("replies.middle", ranked[middle : middle + _SAMPLES]),
        ("replies.worst", ranked[:_SAMPLES]),
    )
    body = [join([el("h3", say(key)), few_and_more([_card(row) for row in part], _SHOWN)]) for key, part in parts]
    return section("replies.title", note(say("replies.note")), *body)


def how(metrics: Json) -> Html:
    """How the replies were made, and the command to make them again."""
    model = below(metrics, "model")
    known = [
        ("how.model", model.get("path")),
        ("repeat.fingerprint", model.get("fingerprint")),
        ("how.adapter", model.get("adapter")),
        ("how.dtype", model.get("dtype")),
        ("how.quantization", model.get("quantization")),
        ("how.data", at(metrics, "data", "path")),
        ("how.digest", at(metrics, "data", "digest")),
        ("how.sampling", pairs(metrics.get("sampling"))),
        ("speed.device", metrics.get("device")),
        ("repeat.versions", pairs(metrics.get("versions"))),
        ("repeat.finished", metrics.get("finished_at")),
    ]
    return section("repeat.title", repeat_command(metrics), facts(known))


def _score_tile(metrics: Json, name: str) -> Html | None:
    score = at(metrics, "scores", name)
    low, high = number(at(score, "low"), ".1f"), number(at(score, "high"), ".1f")
    return tile(f"score.{name}", number(at(score, "mean"), ".1f"), say("tile.interval", low=low, high=high))


def _perplexity(metrics: Json) -> Html:
    return say("tile.perplexity", n=number(metrics.get("perplexity"), ",.2f"))


def _faults(metrics: Json) -> Html:
    counts = below(metrics, "counts")
    return say("tile.faults", **{name: number(counts.get(name)) for name in ("empty", "truncated", "repeated_tail")})


def _row(name: str, score: Json) -> list[object]:
    form = ".2f"
    interval = join([number(score.get("low"), form), " – ", number(score.get("high"), form)])
    picture = None if name == RATIO else whisker(score)
    return [
        title(name),
        el("strong", number(score.get("mean"), form)),
        interval,
        picture or "",
        number(score.get("rows")),
    ]


def _loss_line(metrics: Json) -> Html | None:
    if not is_number(metrics.get("loss")):
        return None
    return note(say("scores.loss", loss=loss(metrics["loss"]), perplexity=number(metrics.get("perplexity"), ",.2f")))


def _variety(metrics: Json) -> Html | None:
    values = at(metrics, "variety")
    if not isinstance(values, dict):
        return None
    one, two = (number(values.get(f"distinct_{size}"), ".1f") for size in (1, 2))
    return note(say("scores.variety", one=one, two=two))


def _rank(row: Json) -> float:
    value = at(row, "scores", "rouge_l")
    return float(value) if is_number(value) else -1.0


def _card(row: Json) -> Html:
    reference = column(say("reply.reference"), row.get("reference"))
    reply = column(say("reply.model"), row.get("prediction"), rouge(at(row, "scores", "rouge_l")), "tuned")
    return reply_card(row.get("where"), row.get("prompt"), reference, reply)
