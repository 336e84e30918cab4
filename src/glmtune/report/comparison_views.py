"""What the reports of a comparison and of a forgetting probe show, and their parts in the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from glmtune.evaluation.metric_order import SIGNIFICANT, sort_metrics
from glmtune.evaluation.results import ComparisonResult, ForgettingResult, ScorePair
from glmtune.html.pages import is_number, show_number, show_text
from glmtune.report.contents import ReportContents
from glmtune.report.view_parts import (
    MAIN_SCORES,
    Tile,
    format_data_name,
    format_pairs,
    keep_together,
    list_model_names,
    show_change,
    show_verdict,
)

_VERDICT_MOODS = {"pass": "good", "warn": "warn", "fail": "bad"}
_VERDICT_SIGNS = {"pass": "✓ ", "warn": "! ", "fail": "✗ "}


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
        "lede": list_sentences(comparison),
        "tiles": [*list_comparison_tiles(comparison), *(make_verdict_tile(probe) for probe in probes)],
        "comparison": view_pairs(comparison),
        "probes": [view_probe(probe) for probe in probes],
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
            make_verdict_tile(probe),
            Tile("report.forget.accuracy", show_change(probe.accuracy.base, probe.accuracy.tuned, ".1%")),
            Tile("report.forget.loss", show_change(probe.loss.base, probe.loss.tuned, ".3f")),
            Tile("report.forget.reply_loss", show_change(probe.reply_loss.base, probe.reply_loss.tuned, ".3f")),
            Tile("report.forget.kl", show_number(probe.kl, ".3f"), show_text("report.unit.kl")),
        ],
        "probe": view_probe(probe),
        "command": probe.command,
        "facts": [
            ("report.how.base", probe.base.path),
            ("report.how.tuned", probe.tuned.adapter or probe.tuned.path),
            ("report.repeat.fingerprint", probe.base.fingerprint),
            ("report.forget.thresholds", format_pairs(probe.thresholds)),
            ("report.repeat.finished", probe.finished_at),
        ],
    }


def view_pairs(comparison: ComparisonResult) -> dict[str, Any]:
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


def view_probe(probe: ForgettingResult) -> dict[str, Any]:
    mood = _VERDICT_MOODS.get(probe.verdict, "")
    return {"result": probe, "mood": mood, "verdict": _show_probe_verdict(probe.verdict)}


def list_comparison_tiles(comparison: ComparisonResult) -> list[Tile]:
    """The main scores of two models; of more, the tables show more than tiles could."""
    if len(comparison.models) != 2:
        return []
    before, after = comparison.models
    tiles = []
    for name in MAIN_SCORES:
        if score := after.scores.get(name):
            old = before.scores[name].mean if name in before.scores else None
            pair = next((p for p in comparison.pairs if (p.b, p.score) == (1, name)), None)
            verdict = show_verdict(name, pair.difference if pair else None)
            tiles.append(Tile(f"report.score.{name}", show_change(old, score.mean, ".1f"), verdict))
    return tiles


def list_sentences(comparison: ComparisonResult) -> list[Markup]:
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


def make_verdict_tile(probe: ForgettingResult) -> Tile:
    shares = {"base": show_number(probe.accuracy.base, ".0%"), "tuned": show_number(probe.accuracy.tuned, ".0%")}
    mood = _VERDICT_MOODS.get(probe.verdict, "")
    return Tile(
        "report.forget.verdict", _show_probe_verdict(probe.verdict), show_text("report.forget.tile", **shares), mood
    )


def _show_probe_verdict(verdict: str) -> Markup:
    key = f"report.verdict.{verdict}" if verdict in _VERDICT_MOODS else "report.verdict.unknown"
    return Markup("<span>{}{}</span>").format(_VERDICT_SIGNS.get(verdict, ""), show_text(key))


def _is_complete(pair: ScorePair, model_count: int) -> bool:
    return all(isinstance(end, int) and 0 <= end < model_count for end in (pair.a, pair.b))
