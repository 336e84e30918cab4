"""What `glmtune doctor` and `glmtune verify` find, on the page."""

from __future__ import annotations

from typing import Any

from glmtune.html.builder import Html, el, join
from glmtune.webui.elements import make_facts, make_note
from glmtune.webui.error_texts import localize_message, translate_message
from glmtune.webui.texts import text

_STYLES = {"note": "", "warning": "warn"}


def render_diagnosis(result: dict[str, Any], lang: str) -> Html:
    """Findings with the commands that fix them.

    Args:
        result: of `glmtune doctor --json`.
        lang: of the page.
    """
    if not result["findings"]:
        return el("p", text("machine.healthy", lang), class_="callout good")
    return join(_render_finding(finding, lang) for finding in result["findings"])


def render_verification(result: dict[str, Any], lang: str) -> Html:
    """Faults with their files, and the command that fetches them again.

    Args:
        result: of `glmtune verify --json`.
        lang: of the page.
    """
    notes = [make_note(localize_message(note, lang)) for note in result["notes"]]
    if result["ok"]:
        matched = sum(file["sum_matches"] is True for file in result["files"])
        sums = f"{matched} ({result['sums']})" if matched else text("machine.no_sums", lang)
        line = text("machine.intact", lang, files=len(result["files"]), sums=sums)
        return join([el("p", line, class_="callout good"), *notes])
    pieces = [make_facts((fault["file"], localize_message(fault["problem"], lang)) for fault in result["faults"])]
    if result["fix"]:
        label = text("machine.fetch_published" if result["fix_is_a_guess"] else "machine.again", lang)
        pieces.append(el("p", f"{label}: ", el("code", result["fix"]), class_="callout bad"))
    return join([*pieces, *notes])


def _render_finding(finding: dict[str, Any], lang: str) -> Html:
    style = _STYLES.get(finding["severity"], "bad")
    return el(
        "div",
        el("p", el("strong", text(f"machine.finding.{finding['code']}", lang))),
        *(el("p", localize_message(finding[part], lang)) for part in ("what", "why")),
        el("p", f"{text('machine.fix', lang)}: ", el("code", _translate_fix(finding["fix"], lang))),
        class_=f"callout {style}".strip(),
        role="alert" if style == "bad" else None,
    )


def _translate_fix(fix: str, lang: str) -> str:
    """A sentence in a language; a command as it is, with its comment (`COMMAND  # or reboot`) in the language."""
    command, mark, comment = fix.partition("  # ")
    if mark:
        return f"{command}{mark}{translate_message(comment, lang) or comment}"
    return translate_message(fix, lang) or fix
