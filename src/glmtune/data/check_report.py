"""The result of a check, for the terminal and as JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from glmtune.data.check_fix import REMOVED_WARNINGS, FixResult
from glmtune.data.check_kinds import ERROR, Finding, describe_kind, escape_controls
from glmtune.data.check_rows import FINDINGS_SHOWN, CheckReport, ModelChecker
from glmtune.data.histogram import PERCENTILES, make_bins, render_bars
from glmtune.data.row_repairs import REPAIRABLE
from glmtune.data.sources import DataSource
from glmtune.utils.console import count_noun, get_console, print_message, print_warning

_STYLES = {"error": "bold red", "warning": "yellow"}


def report_to_dict(
    report: CheckReport, sources: list[DataSource], model: ModelChecker | None, fix_result: FixResult | None
) -> dict[str, Any]:
    """The whole report as one JSON object.

    Keys:
        files: `name`, `format` and `notes` of each source.
        model: the generation, or null without `--model`.
        counts: `rows` = `conversations` + `texts` + `unusable`; `messages` by role; `answers` that are trained on;
            `with_tools`; `training_rows` of the model; `targets`, their number of target tokens (null without a model);
            `eval_rows` (null without evaluation data); `errors` and `warnings`.
        lengths: `unit` (tokens or characters) and `limits`; `total`, `prompt` and `answer` (of pairs also
            `worse_answer`) with min, mean, p50, p90, p95, p99 and max, all before truncation; `histogram`, a list of
            [first, last, rows].
        kinds: `severity`, `kind` and `count` of each kind of findings.
        findings: `severity`, `kind`, `where`, `file`, `line` (null where rows have no lines), `row` (from 1),
            `message`, `excerpt` and `hint`.
        pairs: of rows with two answers: `pairs`, of which the better answer is longer (`better_longer`, and the share
            `better_longer_share`), the worse one is (`worse_longer`), or neither (`same_length`); `better_mean` and
            `worse_mean`, their mean lengths in characters. null without pairs.
        fixed: `clean`, `clean_rows`, `refused`, `refused_rows`, `changed`, `changed_rows` and `repairs` (numbers of
            rows by kind), or null without `--fix`.
    """
    return {
        "files": [{"name": source.name, "format": source.format, "notes": source.notes} for source in sources],
        "model": model.family.name if model else None,
        "counts": {
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
        },
        "lengths": {
            "unit": report.unit,
            "limits": _get_limits(model),
            "total": report.total.as_dict(),
            "prompt": report.prompts.as_dict(),
            "answer": report.last_answers.as_dict(),
            **({"worse_answer": report.worse_answers.as_dict()} if len(report.worse_answers) else {}),
            "histogram": [[item.first, item.last, item.count] for item in make_bins(report.total)],
        },
        "pairs": report.pair_lengths.as_dict() if report.pair_lengths.pairs else None,
        "kinds": [
            {"severity": severity, "kind": kind, "count": report.kinds[severity, kind]}
            for severity, kind in _sort_kinds(report)
        ],
        "findings": [finding.as_dict() for finding in report.findings],
        "fixed": fix_result.as_dict() if fix_result else None,
    }


def print_check_report(
    report: CheckReport,
    sources: list[DataSource],
    model: ModelChecker | None,
    fix_result: FixResult | None,
    fix_command: str,
) -> None:
    """Print counts, lengths, findings and a summary.

    Args:
        report: what was found.
        sources: of the rows.
        model: that the rows were checked against.
        fix_result: the files that were written; None: none.
        fix_command: the same command with `--fix`, where there is something to fix.
    """
    for source in sources:
        print_message(f"{source.name}: {source.format}")
        for note in source.notes:
            print_warning(note)
    get_console().print(_make_counts_table(report, model))
    if len(report.total):
        get_console().print(_make_lengths_table(report, model))
        print_message("\n".join(render_bars(make_bins(report.total))))
    for severity, kind in _sort_kinds(report):
        findings = [item for item in report.findings if (item.severity, item.kind) == (severity, kind)]
        _print_findings(severity, kind, report.kinds[severity, kind], findings[:FINDINGS_SHOWN])

    print_message("")
    rows = count_noun(report.rows, "row")
    if not report.kinds:
        print_message(f"No problems in {rows}.", "bold")
    else:
        errors, warnings = count_noun(report.errors, "error"), count_noun(report.warnings, "warning")
        print_message(f"{errors}, {warnings} in {rows}.", "bold")
    if fix_result is not None:
        clean = str(fix_result.clean) if fix_result.clean_rows else "not written"
        refused = str(fix_result.refused) if fix_result.refused_rows else "not written"
        print_message(
            f"clean rows: {fix_result.clean_rows:,} ({clean})   refused: {fix_result.refused_rows:,} ({refused})"
        )
        if fix_result.changed_rows:
            repairs = ", ".join(f"{kind} {count:,}" for kind, count in fix_result.repairs.most_common())
            print_message(f"repaired: {fix_result.changed_rows:,} ({repairs}), each in {fix_result.changed}")
    elif report.errors or any(kind in REMOVED_WARNINGS for _, kind in report.kinds):
        names = "errors, duplicates and contradictions" if report.pair_lengths.pairs else "errors and duplicates"
        print_message(f"To remove rows with {names}: {fix_command}")
        if any(kind in REPAIRABLE for _, kind in report.kinds):
            print_message(f"To repair those that can be repaired: {fix_command} --repair all")


def _get_limits(model: ModelChecker | None) -> dict[str, int] | None:
    if model is None:
        return None
    rules = model.rules
    if rules.max_length is not None:
        return {"total": rules.max_length}
    return {"prompt": rules.max_source_length, "answer": rules.max_target_length}


def _sort_kinds(report: CheckReport) -> list[tuple[str, str]]:
    """Errors first, then by frequency."""
    return sorted(report.kinds, key=lambda key: (key[0] != ERROR, -report.kinds[key], key[1]))


def _make_counts_table(report: CheckReport, model: ModelChecker | None) -> Table:
    roles = ", ".join(f"{count:,} {role}" for role, count in report.messages.most_common())
    with_tools = f"with tools: {report.with_tools:,}" if report.with_tools else ""
    tokens = sum(length * count for length, count in report.total.counts.items())
    pairs = report.pair_lengths.as_dict()
    longer = f"the better answer is longer in {pairs['better_longer_share']:.0%}"
    lines: list[tuple[str, int | None, str]] = [
        ("rows", report.rows, ""),
        ("conversations", report.conversations or None, with_tools),
        ("pairs of answers", report.pair_lengths.pairs or None, longer),
        ("plain texts", report.texts or None, ""),
        ("unusable", report.unusable or None, ""),
        ("messages", report.messages.total() or None, roles),
        ("trained answers", report.answers or None, ""),
        ("training rows", report.training_rows if model else None, model.family.title if model else ""),
        ("tokens", tokens if model else None, "before truncation"),
        ("targets", report.targets if model else None, "tokens that are trained on, before truncation"),
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


def _make_lengths_table(report: CheckReport, model: ModelChecker | None) -> Table:
    limits = _get_limits(model) or {}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(report.unit)
    for name in ("mean", *(f"{percent} %" for percent in PERCENTILES), "longest", *(["limit"] if model else [])):
        table.add_column(name, justify="right")
    parts = [
        ("prompt", "prompt", report.prompts),
        ("better answer" if len(report.worse_answers) else "last answer", "answer", report.last_answers),
        *([("worse answer", "answer", report.worse_answers)] if len(report.worse_answers) else []),
        ("together", "total", report.total),
    ]
    for name, key, lengths in parts:
        percentiles = [f"{lengths.percentile(percent):,}" for percent in PERCENTILES]
        cells = [f"{lengths.mean:,.0f}", *percentiles, f"{lengths.longest:,}"]
        table.add_row(name, *cells, *([f"{limits[key]:,}" if key in limits else ""] if model else []))
    return table


def _print_findings(severity: str, kind: str, count: int, findings: list[Finding]) -> None:
    console = get_console()
    console.print()
    console.print(Text.assemble((severity, _STYLES[severity]), f" {kind}: {count:,}  ", (describe_kind(kind), "dim")))
    for finding in findings:
        line = Text.assemble((f"  {finding.where}", "cyan"), f"  {escape_controls(finding.message)}")
        if finding.excerpt:
            line.append(f"  {finding.excerpt}", style="dim")
        console.print(line)
    hint = next((finding.hint for finding in findings if finding.hint), None)
    if hint:
        console.print(Text(f"  {hint}", style="dim"))
    if count > len(findings):
        console.print(Text(f"  and {count - len(findings):,} more (--json lists all)", style="dim"))
