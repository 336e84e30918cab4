"""A training run: what it was, its curves, its speed, its rows, how to repeat it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from glmtune.evaluation.metric_order import QUALITY
from glmtune.html.i18n import has_text
from glmtune.report.charts import Line, line_chart
from glmtune.report.gather import Found, at, below, several
from glmtune.report.markup import (
    Html,
    command,
    duration,
    el,
    folded,
    is_number,
    loss,
    memory,
    note,
    number,
    say,
    table,
)
from glmtune.report.parts import callout, data_name, facts, from_to, pairs, section, tile, unbroken
from glmtune.report.series import generated_scores, points, rise, smoothed

_CUTS = ("turns_dropped", "prompts_cut", "answers_cut", "rows_dropped", "tokens_cut")
_KINDS = ("first", "second", "third", "fourth")


def headline(found: Found) -> Html:
    """What was trained on what, in one sentence."""
    sources = [at(source, "name") for source in several(found.summary, "data", "sources")]
    return say(
        "run.headline",
        model=unbroken(_model_name(found)),
        method=_method(found),
        rows=number(at(found.summary, "data", "train_rows")),
        data=_names([Path(str(name)).name for name in sources if name]) or data_name(at(found.config, "data", "train")),
    )


def state(found: Found) -> Html | None:
    """What is to be known about a run that did not end by itself."""
    now = found.summary.get("state")
    if now == "finished":
        return None
    return callout("warn", say("run.stopped" if now == "stopped" else "run.running"))


def tiles(found: Found) -> list[Html | None]:
    """The few numbers that say how it went; of a run that goes on, the last ones known."""
    summary = {**_so_far(found), **{key: value for key, value in found.summary.items() if value is not None}}
    first, last = summary.get("first_loss"), summary.get("last_loss")
    return [
        tile("tile.loss", from_to(first, last, ".3f")),
        tile(
            "tile.eval_loss",
            number(summary.get("eval_loss"), ".3f"),
            _known("tile.best", summary.get("best_eval_loss"), ".3f"),
        ),
        tile("tile.steps", number(summary.get("steps")), _known("tile.epochs", summary.get("epochs"), ".2f")),
        tile("tile.time", duration(summary.get("seconds"))),
        tile(
            "tile.speed",
            number(summary.get("tokens_per_second")),
            _known("tile.samples", summary.get("samples_per_second"), ",.1f"),
        ),
        tile("tile.memory", memory(summary.get("peak_memory_bytes")), summary.get("device")),
    ]


def curves(found: Found) -> Html:
    """Losses over the whole width, the rest as small pictures below."""
    entries = found.entries
    train, evaluated = points(entries, "loss"), points(entries, "eval_loss")
    if not train and not evaluated:
        return section("curves.title", note(say("curves.none")))
    smooth = smoothed(train)
    lines = [
        Line(
            train, "raw" if smooth else "first", say("curve.train_raw" if smooth else "curve.train"), False, not smooth
        ),
        Line(smooth, "first", say("curve.train_smooth"), labelled=True),
        Line(evaluated, "second", say("curve.eval"), marked=True, labelled=True),
    ]
    risen = rise(evaluated)
    return section(
        "curves.title",
        line_chart("chart.loss", "unit.loss", lines, wide=True),
        callout("warn", say("curves.risen", step=number(risen.step), lowest=loss(risen.lowest), last=loss(risen.last)))
        if risen
        else None,
        el("div", *_small_charts(entries), class_="charts"),
    )


def speed(found: Found) -> Html:
    """Time, throughput, memory and what it ran on."""
    get = found.summary.get
    known = [
        ("speed.device", get("device")),
        ("speed.precision", at(found.summary, "model", "precision")),
        ("speed.time", duration(get("seconds"))),
        ("speed.tokens", number(get("tokens_per_second"), ",.1f")),
        ("speed.samples", number(get("samples_per_second"), ",.2f")),
        ("speed.memory", memory(get("peak_memory_bytes"))),
        ("speed.trainable", number(get("trainable_parameters"))),
    ]
    return section("speed.title", facts(known), note(say("speed.note")))


def data(found: Found) -> Html:
    """Rows, what the limits took away, lines left out."""
    known = at(found.summary, "data")
    if not isinstance(known, dict):
        return section("data.title", note(say("data.none")))
    parts: list[tuple[str, Any]] = [("data.train", known.get("train")), ("data.eval", known.get("eval"))]
    present = [(key, counts) for key, counts in parts if isinstance(counts, dict)]
    rows = [
        [_count_title(name, found), *(_count(counts.get(name)) for _, counts in present)]
        for name in ("conversations", "rows", "tokens", "targets", *_CUTS)
    ]
    cut = any(counts.get(name) for _, counts in present for name in _CUTS)
    left_out = known.get("lines_left_out")
    return section(
        "data.title",
        el("p", say("data.rows", train=number(known.get("train_rows")), eval=number(known.get("eval_rows")))),
        el("p", say("data.sources"), *_sources(known)),
        callout("warn", say("data.left_out", n=number(left_out))) if left_out else None,
        table(["", *(say(key) for key, _ in present)], rows) if present else None,
        note(say("data.cut" if cut else "data.not_cut")) if present else None,
        note(say("data.blocks", n=number(known["blocks"]))) if is_number(known.get("blocks")) else None,
    )


def repeat(found: Found) -> Html:
    """The command, the versions, the config."""
    config = found.folder.resolve() / "config.yaml"
    again = found.folder.resolve().with_name(f"{found.folder.resolve().name}-again")
    model = found.summary.get("model")
    return section(
        "repeat.title",
        command(f"glmtune train {shlex.quote(str(config))} --set {shlex.quote(f'output={again}')}"),
        note(say("repeat.note")),
        facts(
            [
                ("repeat.base", at(model, "path")),
                ("repeat.fingerprint", at(model, "fingerprint")),
                ("repeat.seed", at(found.config, "training", "seed")),
                ("repeat.finished", found.summary.get("finished_at")),
                ("repeat.versions", pairs(found.summary.get("versions"))),
            ]
        ),
        folded(say("repeat.config"), el("pre", el("code", found.config_text))),
    )


def _model_name(found: Found) -> str:
    path = at(found.summary, "model", "path") or at(found.config, "model", "path") or "?"
    return Path(str(path)).name


def _method(found: Found) -> Html:
    method = str(found.summary.get("method") or found.config.get("method") or "?")
    name = say(f"method.{method}") if has_text(f"report.method.{method}") else el("span", method)
    bits = at(found.config, "model", "quantization")
    return say("method.on", method=name, bits=bits) if bits else name


def _names(names: list[str], shown: int = 2) -> Html | None:
    if not names:
        return None
    listed = el("span", ", ".join(names[:shown]))
    return listed if len(names) <= shown else say("run.and_more", names=listed, n=number(len(names) - shown))


def _so_far(found: Found) -> dict[str, Any]:
    """The numbers of a summary that the log holds already."""
    losses, evaluated = points(found.entries, "loss"), points(found.entries, "eval_loss")
    speeds = points(found.entries, "tokens_per_second")
    last = found.entries[-1] if found.entries else {}
    return {
        "steps": last.get("step"),
        "epochs": last.get("epoch"),
        "first_loss": losses[0][1] if losses else None,
        "last_loss": losses[-1][1] if losses else None,
        "eval_loss": evaluated[-1][1] if evaluated else None,
        "best_eval_loss": min(value for _, value in evaluated) if evaluated else None,
        "tokens_per_second": speeds[-1][1] if speeds else None,
    }


def _known(key: str, value: Any, form: str) -> Html | None:
    return say(key, n=number(value, form)) if is_number(value) else None


def _small_charts(entries: list[dict[str, Any]]) -> list[Html]:
    wanted = (
        ("chart.rate", "unit.rate", "learning_rate"),
        ("chart.norm", "unit.norm", "grad_norm"),
        ("chart.speed", "unit.speed", "tokens_per_second"),
    )
    drawn = [(name, unit, points(entries, key)) for name, unit, key in wanted]
    charts = [line_chart(name, unit, [Line(line, "first", say(name))]) for name, unit, line in drawn if line]
    scored = list(generated_scores(entries, QUALITY).items())[: len(_KINDS)]
    if scored:
        lines = [
            Line(line, kind, say(f"score.{name}"), marked=True)
            for (name, line), kind in zip(scored, _KINDS, strict=False)
        ]
        charts.append(line_chart("chart.scores", "unit.scores", lines))
    return charts


def _sources(known: dict[str, Any]) -> list[Html]:
    return [
        el("span", " ", el("code", at(source, "name") or "?"), f" ({at(source, 'format') or '?'})")
        for source in several(known, "sources")
    ]


def _count_title(name: str, found: Found) -> Html:
    limits = below(found.config, "data")
    longest = at(limits, "max_length")
    limit = {
        "prompts_cut": longest or at(limits, "max_source_length"),
        "answers_cut": longest or at(limits, "max_target_length"),
    }.get(name)
    explained = say(f"count.{name}.limit", n=number(limit)) if limit else say(f"count.{name}.says")
    return el("span", say(f"count.{name}"), el("small", explained), class_="score-name")


def _count(value: Any) -> Html:
    return el("span", number(value), class_=None if value else "zero")
