"""The whole page: heading, big numbers, sections; one file that needs no network."""

from __future__ import annotations

import re
import shlex
from html import unescape

from glmtune.html.i18n import LANGUAGES
from glmtune.report import compare_sections, forget_sections, run_sections, score_sections
from glmtune.report.gather import Found
from glmtune.report.markup import Html, command, el, join, note, say
from glmtune.report.parts import section
from glmtune.report.style import STYLE


def render(found: Found, lang: str) -> str:
    """The page of what a folder holds; `lang` is shown first."""
    heading, lede, tiles, sections = _CONTENTS[found.kind](found)
    known = [tile for tile in tiles if tile]
    main = el(
        "main",
        el("h1", heading),
        el("p", lede, class_="lede") if lede else None,
        _tiles(known) if known else None,
        *sections,
    )
    body = el("body", *_choices(lang), _bar(found.kind), main, el("footer", say("footer")))
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", _plain(heading, lang)),
        el("style", Html(STYLE)),
    )
    return "<!DOCTYPE html>\n" + el("html", head, body, lang=lang) + "\n"


_Contents = tuple[Html, Html | None, list[Html | None], list[Html | None]]


def _run(found: Found) -> _Contents:
    tiles = run_sections.tiles(found)
    tiles += [tile for comparison in found.comparisons[:1] for tile in compare_sections.tiles(comparison)[:1]]
    if found.forgetting:
        tiles.append(forget_sections.verdict_tile(found.forgetting))
    lede = join(filter(None, (compare_sections.outcome(comparison) for comparison in found.comparisons))) or None
    return (
        run_sections.headline(found),
        lede,
        tiles,
        [
            run_sections.state(found),
            run_sections.curves(found),
            *_run_scores(found),
            *_run_forgetting(found),
            run_sections.speed(found),
            run_sections.data(found),
            run_sections.repeat(found),
        ],
    )


def _run_scores(found: Found) -> list[Html | None]:
    run = shlex.quote(str(found.folder))
    if not found.evaluations and not found.comparisons:
        return [section("scores.title", note(say("scores.missing")), command(f"glmtune eval {run} --data dev.json"))]
    parts: list[Html | None] = [
        part
        for comparison in found.comparisons
        for part in (compare_sections.scores(comparison), compare_sections.changed(comparison))
    ]
    for evaluation in found.evaluations:
        parts.append(score_sections.scores(evaluation))
        if not found.comparisons:  # the rows that changed say more
            parts.append(score_sections.replies(evaluation))
    if not found.comparisons:
        parts.append(
            section(
                "changed.title", note(say("compare.missing")), command(f"glmtune compare BASE {run} --data dev.json")
            )
        )
    return parts


def _run_forgetting(found: Found) -> list[Html | None]:
    if not found.forgetting:
        run = shlex.quote(str(found.folder))
        return [section("forget.title", note(say("forget.missing")), command(f"glmtune forget {run}"))]
    return [forget_sections.result(found.forgetting), forget_sections.examples(found.forgetting)]


def _evaluation(found: Found) -> _Contents:
    evaluation = found.evaluations[0]
    return (
        score_sections.headline(evaluation),
        None,
        score_sections.tiles(evaluation.metrics),
        [
            score_sections.scores(evaluation),
            score_sections.replies(evaluation),
            score_sections.how(evaluation.metrics),
        ],
    )


def _comparison(found: Found) -> _Contents:
    comparison = found.comparisons[0]
    probes = [probe for probe in comparison.get("forgetting") or [] if isinstance(probe, dict)]
    if found.forgetting and not probes:
        probes = [found.forgetting]
    tiles = [*compare_sections.tiles(comparison), *(forget_sections.verdict_tile(probe) for probe in probes)]
    return (
        compare_sections.headline(comparison),
        compare_sections.outcome(comparison),
        tiles,
        [
            compare_sections.scores(comparison),
            compare_sections.changed(comparison),
            *(part for probe in probes for part in (forget_sections.result(probe), forget_sections.examples(probe))),
            compare_sections.how(comparison),
        ],
    )


def _forgetting(found: Found) -> _Contents:
    probe = found.forgetting or {}
    return (
        forget_sections.headline(probe),
        None,
        forget_sections.tiles(probe),
        [
            forget_sections.result(probe),
            forget_sections.examples(probe),
            forget_sections.how(probe),
        ],
    )


_CONTENTS = {"run": _run, "eval": _evaluation, "comparison": _comparison, "forgetting": _forgetting}


def _tiles(tiles: list[Html]) -> Html:
    """In even rows: three or four a row once they are more than four."""
    columns = len(tiles) if len(tiles) <= 4 else 3 if len(tiles) <= 6 else 4
    return el("dl", *tiles, class_="tiles", style=f"--columns: {columns}")


def _choices(lang: str) -> list[Html]:
    """The switch works without a script: what the page hides follows from which of these is on."""
    return [
        el(
            "input",
            type="radio",
            name="lang",
            id=f"lang-{each}",
            class_="choice",
            checked=each == lang,
            aria_label=name,
        )
        for each, name in LANGUAGES.items()
    ]


def _bar(kind: str) -> Html:
    labels = [el("label", name, for_=f"lang-{each}") for each, name in LANGUAGES.items()]
    brand = el("div", "glmtune", el("span", say(f"kind.{kind}")), class_="brand")
    return el("div", brand, el("div", *labels, class_="switch"), class_="bar")


def _plain(text: Html, lang: str) -> str:
    """The text in one language, without markup."""
    for other in LANGUAGES:
        if other != lang:
            text = Html(_without(text, other))
    return unescape(re.sub(r"<[^>]*>", "", text))


def _without(text: str, lang: str) -> str:
    """Markup without the spans of a language; spans may hold others."""
    kept, depth = [], 0
    for part in re.split(r"(<span[^>]*>|</span>)", text):
        if depth or part == f'<span lang="{lang}">':
            depth += part.startswith("<span") - (part == "</span>")
        else:
            kept.append(part)
    return "".join(kept)
