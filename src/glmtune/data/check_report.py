"""What a check found, for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from glmtune.data.check import ERROR, Finding, escaped, title
from glmtune.data.check_fix import Fixed
from glmtune.data.check_rows import SHOWN, ModelCheck, Report
from glmtune.data.histogram import PERCENTILES, Lengths, bars, bins
from glmtune.data.sources import Source

_STYLES = {"error": "bold red", "warning": "yellow"}


def to_json(report: Report, sources: list[Source], model: ModelCheck | None, fixed: Fixed | None) -> dict[str, Any]:
    """The whole report as one JSON object.

    Keys:
        files: `name`, `format` and `notes` of each source.
        model: the generation, or null without `--model`.
        counts: `rows` = `conversations` + `texts` + `unusable`; `messages` by role; `answers`, those that are learnt;
            `with_tools`; `training_rows`, what the model sees of them; `targets`, their learnt tokens (null without a
            model); `eval_rows` (null without evaluation data); `errors` and `warnings`.
        lengths: `unit` (tokens or characters) and `limits`; `total`, `prompt` and `answer` with min, mean, p50, p90,
            p95, p99 and max, each before the limits; `histogram`, a list of [first, last, rows].
        kinds: `severity`, `kind` and `count` of each kind that was found.
        findings: `severity`, `kind`, `where`, `file`, `line` (null where rows have no lines), `row` (from 1),
            `message`, `excerpt` and `hint`.
        fixed: `clean`, `clean_rows`, `refused`, `refused_rows`, or null without `--fix`.
    """
    return {
        "files": [{"name": source.name, "format": source.format, "notes": source.notes} for source in sources],
        "model": model.family.name if model else None,
        "counts": _counts(report, model),
        "lengths": {
            "unit": report.unit,
            "limits": _limits(model),
            "total": report.total.as_dict(),
            "prompt": report.prompts.as_dict(),
            "answer": report.last_answers.as_dict(),
            "histogram": [[item.first, item.last, item.count] for item in bins(report.total)],
        },
        "kinds": [
            {"severity": severity, "kind": kind, "count": report.kinds[severity, kind]}
            for severity, kind in _order(report)
        ],
        "findings": [finding.as_dict() for finding in report.findings],
        "fixed": fixed.as_dict() if fixed else None,
    }


def print_report(
    report: Report, sources: list[Source], model: ModelCheck | None, fixed: Fixed | None, console: Console
) -> None:
    """Counts, lengths, findings and the verdict."""
    for source in sources:
        console.print(f"{source.name}: {source.format}", highlight=False, markup=False)
        for note in source.notes:
            console.print(note, style="yellow", highlight=False, markup=False)
    console.print(_counts_table(report, model))
    if len(report.total):
        console.print(_lengths_table(report, model))
        console.print("\n".join(bars(bins(report.total))), highlight=False, markup=False)
    for severity, kind in _order(report):
        found = [item for item in report.findings if (item.severity, item.kind) == (severity, kind)]
        _print_kind(severity, kind, report.kinds[severity, kind], found[:SHOWN], console)
    console.print()
    _print_verdict(report, fixed, console)


def _counts(report: Report, model: ModelCheck | None) -> dict[str, Any]:
    return {
        "rows": report.rows,
        "conversations": report.conversations,
        "texts": report.texts,
        "unusable": report.unusable,
        "messages": dict(report.messages),
        "answers": report.answers,
        "with_tools": report.with_tools,
        "training_rows": report.training_rows,
        "targets": report.targets if model else None,
        "eval_rows": report.eval_rows,
        "errors": report.errors,
        "warnings": report.warnings,
    }


def _limits(model: ModelCheck | None) -> dict[str, int] | None:
    if model is None:
        return None
    rules = model.rules
    if rules.max_length is not None:
        return {"total": rules.max_length}
    return {"prompt": rules.max_source_length, "answer": rules.max_target_length}


def _order(report: Report) -> list[tuple[str, str]]:
    """Errors first; within them the most frequent kind first."""
    return sorted(report.kinds, key=lambda key: (key[0] != ERROR, -report.kinds[key], key[1]))


def _counts_table(report: Report, model: ModelCheck | None) -> Table:
    roles = ", ".join(f"{count:,} {role}" for role, count in report.messages.most_common())
    lines: list[tuple[str, int | None, str]] = [
        ("rows", report.rows, ""),
        (
            "conversations",
            report.conversations or None,
            f"with tools: {report.with_tools:,}" if report.with_tools else "",
        ),
        ("plain texts", report.texts or None, ""),
        ("unusable", report.unusable or None, ""),
        ("messages", report.messages.total() or None, roles),
        ("answers to learn", report.answers or None, ""),
        ("training rows", report.training_rows if model else None, model.family.title if model else ""),
        ("tokens", sum(n * count for n, count in report.total.counts.items()) if model else None, "before the limits"),
        ("targets", report.targets if model else None, "tokens that are learnt, before the limits"),
        ("evaluation rows", report.eval_rows, ""),
    ]
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for name, count, note in lines:
        if count is not None:
            table.add_row(name, f"{count:,}", note)
    return table


def _lengths_table(report: Report, model: ModelCheck | None) -> Table:
    limits = _limits(model) or {}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(report.unit)
    for name in ("mean", *(f"{share} %" for share in PERCENTILES), "longest", *(["limit"] if model else [])):
        table.add_column(name, justify="right")
    parts: list[tuple[str, str, Lengths]] = [
        ("prompt", "prompt", report.prompts),
        ("last answer", "answer", report.last_answers),
        ("together", "total", report.total),
    ]
    for name, key, lengths in parts:
        cells = [
            f"{lengths.mean:,.0f}",
            *(f"{lengths.percentile(share):,}" for share in PERCENTILES),
            f"{lengths.longest:,}",
        ]
        table.add_row(name, *cells, *([f"{limits[key]:,}" if key in limits else ""] if model else []))
    return table


def _print_kind(severity: str, kind: str, count: int, found: list[Finding], console: Console) -> None:
    console.print()
    console.print(Text.assemble((severity, _STYLES[severity]), f" {kind}: {count:,}  ", (title(kind), "dim")))
    for item in found:
        shown = Text.assemble((f"  {item.where}", "cyan"), f"  {escaped(item.message)}")
        if item.excerpt:
            shown.append(f"  {item.excerpt}", style="dim")
        console.print(shown)
    hint = next((item.hint for item in found if item.hint), None)
    if hint:
        console.print(Text(f"  {hint}", style="dim"))
    if count > len(found):
        console.print(Text(f"  and {count - len(found):,} more (--json lists all)", style="dim"))


def _print_verdict(report: Report, fixed: Fixed | None, console: Console) -> None:
    for line in _verdict(report, fixed):
        console.print(line, highlight=False, markup=False, style="bold" if line.endswith(".") else "")


def _verdict(report: Report, fixed: Fixed | None) -> Iterator[str]:
    rows = _counted(report.rows, "row")
    if not report.kinds:
        yield f"Nothing found in {rows}."
    else:
        yield f"{_counted(report.errors, 'error')}, {_counted(report.warnings, 'warning')} in {rows}."
    if fixed is not None:
        clean = str(fixed.clean) if fixed.clean_rows else "not written"
        out = str(fixed.refused) if fixed.refused_rows else "not written"
        yield f"clean rows: {fixed.clean_rows:,} ({clean})   refused: {fixed.refused_rows:,} ({out})"
    elif report.errors or any(kind == "duplicate" for _, kind in report.kinds):
        yield "Rows with errors, and doubles, can be put aside: glmtune data check FILE --fix clean.jsonl"


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"
