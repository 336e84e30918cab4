"""A comparison: who is better at what, whether that can be chance, and the rows that show it."""

from __future__ import annotations

from typing import Any

from glmtune.evaluation.metric_order import SIGNIFICANT, find_direction, sort_metrics
from glmtune.report.bars import key, wins_and_losses
from glmtune.report.gather import Json, at, below, several
from glmtune.report.markup import Html, el, is_number, join, note, number, say, table
from glmtune.report.parts import (
    column,
    data_name,
    facts,
    few_and_more,
    from_to,
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

_SHOWN = 6
"""Rows that changed most, before the rest is folded."""
_TILES = ("rouge_l", "bleu4_characters", "exact_match")


def models_of(comparison: Json) -> list[Json]:
    """The evaluations that are compared, the baseline first."""
    return [model for model in several(comparison, "models") if isinstance(model, dict)]


def headline(comparison: Json) -> Html:
    """Who is compared with whom on what."""
    first, *others = model_names(models_of(comparison)) or ["?"]
    data = comparison.get("data")
    return say(
        "compare.headline",
        base=unbroken(first),
        others=unbroken(", ".join(others) or "?"),
        rows=number(at(data, "rows")),
        data=data_name(at(data, "path")),
    )


def outcome(comparison: Json) -> Html | None:
    """What ROUGE-L says of each model against the baseline, a sentence each."""
    names = model_names(models_of(comparison))
    found = [pair for pair in _pairs_of(comparison) if pair.get("score") == "rouge_l"]
    return join(el("span", _sentence(pair, names), " ") for pair in found) or None


def tiles(comparison: Json) -> list[Html | None]:
    """The main scores of two models; of more, the tables say more than tiles could."""
    models = models_of(comparison)
    if len(models) != 2:
        return []
    return [_tile(comparison, name) for name in _TILES if at(models[1], "scores", name)]


def scores(comparison: Json) -> Html:
    """A table for each model against the baseline."""
    models = models_of(comparison)
    names = model_names(models)
    found = [pair for pair in _pairs_of(comparison) if _known(pair, len(models))]
    if not found:
        return section("compare.title", note(say("compare.none")))
    order = sorted({(pair["a"], pair["b"]) for pair in found})
    tables = [
        join(
            [
                el("h3", f"{names[a]} → {names[b]}"),
                _table([p for p in found if (p["a"], p["b"]) == (a, b)], models, names),
            ]
        )
        for a, b in order
    ]
    return section(
        "compare.title",
        *tables,
        key(("win", "compare.wins"), ("tie", "compare.ties"), ("loss", "compare.losses")),
        note(say("compare.note")),
    )


def changed(comparison: Json) -> Html:
    """The rows whose scores changed most, with all replies side by side."""
    rows = [row for row in several(comparison, "changed") if isinstance(row, dict)]
    if not rows:
        return section("changed.title", note(say("changed.none")))
    names = model_names(models_of(comparison))
    return section(
        "changed.title", note(say("changed.note")), few_and_more([_card(row, names) for row in rows], _SHOWN)
    )


def how(comparison: Json) -> Html:
    """The command and the models' identities."""
    models = models_of(comparison)
    known = [
        [name, at(m, "model", "path"), at(m, "model", "adapter") or "", at(m, "model", "fingerprint") or ""]
        for name, m in zip(model_names(models), models, strict=True)
    ]
    head = [say(f"how.{name}") for name in ("name", "model", "adapter", "fingerprint")]
    first = models[0] if models else {}
    return section(
        "repeat.title",
        repeat_command(comparison),
        table(head, known, "left"),
        facts(
            [
                ("how.data", at(comparison, "data", "path")),
                ("how.digest", at(comparison, "data", "digest")),
                ("how.sampling", pairs(first.get("sampling"))),
                ("speed.device", first.get("device")),
                ("repeat.versions", pairs(first.get("versions"))),
                ("repeat.finished", comparison.get("finished_at")),
            ]
        ),
    )


def _pairs_of(comparison: Json) -> list[Json]:
    return [pair for pair in several(comparison, "pairs") if isinstance(pair, dict)]


def _known(pair: Json, count: int) -> bool:
    return all(isinstance(pair.get(end), int) and 0 <= pair[end] < count for end in "ab")


def _table(pairs_: list[Json], models: list[Json], names: list[str]) -> Html:
    a, b = pairs_[0]["a"], pairs_[0]["b"]
    head = [
        say("scores.score"),
        names[a],
        names[b],
        *(say(f"compare.{name}") for name in ("says", "difference", "p", "rows")),
    ]
    by_name = {str(pair.get("score")): below(pair, "difference") for pair in pairs_}
    rows = [_row(name, by_name[name], models[a], models[b]) for name in sort_metrics(by_name)]
    return table(head, rows, "compare")


def _row(name: str, difference: Json, before: Json, after: Json) -> list[object]:
    low, high = (number(difference.get(end), "+.2f") for end in ("low", "high"))
    return [
        title(name),
        number(at(before, "scores", name, "mean"), ".2f"),
        el("strong", number(at(after, "scores", name, "mean"), ".2f")),
        verdict(name, difference),
        join([number(difference.get("mean"), "+.2f"), el("small", el("br"), "[", low, ", ", high, "]")]),
        p_value(difference.get("p")),
        wins_and_losses(difference) or "",
    ]


def verdict(name: str, difference: Json) -> Html:
    """Better, worse, different, or no clear difference: with a sign, so that no colour is needed."""
    mean, p = difference.get("mean"), difference.get("p")
    if not (is_number(mean) and is_number(p)):
        return say("compare.unknown")
    if p >= SIGNIFICANT or mean == 0:
        return el("span", say("compare.unclear"), class_="unclear")
    good = find_direction(name) * mean
    if good == 0:
        return el("span", say("compare.different"))
    kind = "better" if good > 0 else "worse"
    return el("span", "▲ " if mean > 0 else "▼ ", say(f"compare.{kind}"), class_=kind)


def p_value(p: Any) -> Html:
    """A p-value; a very small one is said to be so."""
    if is_number(p) and p < 0.001:
        return el("data", "< 0.001", value=repr(p))
    return number(p, ".3f")


def _sentence(pair: Json, names: list[str]) -> Html | None:
    difference = below(pair, "difference")
    mean, p, wins = (difference.get(name) for name in ("mean", "p", "wins"))
    if not _known(pair, len(names)) or not (is_number(mean) and is_number(p)):
        return None
    kind = "unclear" if p >= SIGNIFICANT or mean == 0 else "better" if mean > 0 else "worse"
    return say(
        f"compare.sentence.{kind}",
        base=unbroken(names[pair["a"]]),
        tuned=el("strong", unbroken(names[pair["b"]])),
        mean=number(mean, "+.1f"),
        wins=number(wins),
        losses=number(difference.get("losses")),
    )


def _tile(comparison: Json, name: str) -> Html | None:
    models = models_of(comparison)
    before, after = (at(models[i], "scores", name, "mean") for i in (0, 1))
    pair = next((p for p in _pairs_of(comparison) if (p.get("b"), p.get("score")) == (1, name)), {})
    return tile(f"score.{name}", from_to(before, after, ".1f"), verdict(name, below(pair, "difference")))


def _card(row: Json, names: list[str]) -> Html:
    replies, values = several(row, "replies"), several(row, "scores")
    columns = [
        column(name, reply, rouge(values[i] if i < len(values) else None), "tuned" if i else "")
        for i, (name, reply) in enumerate(zip(names, replies, strict=False))
    ]
    reference = column(say("reply.reference"), row.get("reference"))
    return reply_card(row.get("where"), row.get("prompt"), reference, *columns)
