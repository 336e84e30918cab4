"""`glmtune data ...`: check, show and encode rows before training on them."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmtune.cli.options import FamilyName, number_option
from glmtune.config import RunConfig, get_help, load_config
from glmtune.config_checks import check_config
from glmtune.config_ranges import COUNT
from glmtune.errors import ConfigError, DataError, RunError
from glmtune.utils.shell_words import join_words, quote_word

if TYPE_CHECKING:
    from glmtune.data.check_rows import ModelChecker
    from glmtune.data.sources import DataSource

data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Check rows, show them as the model sees them, or encode them once.",
)

File = Annotated[str, typer.Argument(help="A file, folder, glob, hub id or dataset_info name.", metavar="FILE")]
RequiredModel = Annotated[str, typer.Option("--model", help=get_help("model.path"))]
Stage = Annotated[str | None, typer.Option(help="Read rows as this stage of training does: dpo for pairs of answers.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Any key of the config: --set data.max_length=1024")]


@data_app.command("check")
def check_data(
    file: File,
    model: Annotated[str | None, typer.Option(help="Also check against this model: tokens, limits, roles.")] = None,
    eval_data: Annotated[str | None, typer.Option(help="Evaluation rows, which must not be trained on.")] = None,
    fix: Annotated[
        Path | None,
        typer.Option(help="Write the clean rows to this .jsonl file; refused rows go to a file beside it."),
    ] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(help="With --fix: repair rows with findings of this KIND, or of all that can be; several times."),
    ] = None,
    trim: Annotated[
        bool, typer.Option("--trim", help="With --fix: remove white space at the ends of all texts.")
    ] = False,
    png: Annotated[Path | None, typer.Option(help="Write a histogram of the lengths to this .png file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with all findings.")] = False,
    stage: Stage = None,
    family: FamilyName = None,
    set_: Overrides = None,
) -> None:
    """Find problems in rows. Exits with 1 if there are errors; warnings should be looked at."""
    run = _make_run_config(file, model, family, set_, stage)
    _refuse_encoded(file)
    _check_output_path("--png", png, ".png")

    from glmtune.data.check_fix import FixWriter, RowFixer, make_fix_plan, scan_fixed_rows
    from glmtune.data.check_report import print_check_report, report_to_dict
    from glmtune.data.check_rows import CheckReport, RowChecker, scan_sources
    from glmtune.data.histogram import draw_length_histogram
    from glmtune.utils.console import show_status, use_stderr

    if fix is None and (repair or trim):
        raise ConfigError(f"{'--repair' if repair else '--trim'} needs --fix.", "Add: --fix clean.jsonl")
    plan = make_fix_plan(repair or (), trims=trim)
    writer = FixWriter(fix) if fix is not None else None
    sources = _open_sources(run, run.data.train)
    model_checker = _load_model_checker(run) if model else None
    report = CheckReport("tokens" if model_checker else "characters", keep_all=as_json)
    checker = RowChecker(report, model_checker)
    if eval_data is not None:
        checker.add_evaluation_rows(scan_sources(_open_sources(run, eval_data)))
    with writer or nullcontext(), use_stderr(), show_status("Checking rows") as status:
        if writer is not None:
            checked = scan_fixed_rows(sources, checker, [RowFixer(writer, plan, checker)])
        else:
            checked = (checker.check_row(row) for row in scan_sources(sources))
        for number, _ in enumerate(checked, start=1):
            if number % 500 == 0:
                status.update(f"Checking rows: {report.rows:,}, {report.errors:,} errors, {report.warnings:,} warnings")
    checker.add_findings_of_all_rows(sources)
    fix_result = writer.result if writer else None
    if png is not None:
        limit = model_checker.rules.max_row_length if model_checker else None
        draw_length_histogram(report.total, png, report.unit, limit)
    if as_json:
        result = report_to_dict(report, sources, model_checker, fix_result)
        typer.echo(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        fix_command = join_words(["glmtune", *sys.argv[1:], "--fix", f"{Path(file).stem}-clean.jsonl"])
        print_check_report(report, sources, model_checker, fix_result, fix_command)
    if report.errors:
        raise typer.Exit(1)


@data_app.command("preview")
def preview_row(
    file: File,
    model: RequiredModel,
    row: Annotated[int, number_option("Number of the row, from 1.", COUNT)] = 1,
    ids: Annotated[bool, typer.Option("--ids", help="Also show the id of every token.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page instead.")] = None,
    stage: Stage = None,
    family: FamilyName = None,
    set_: Overrides = None,
) -> None:
    """Show a row exactly as the model sees it, and which of its tokens are trained on."""
    run = _make_run_config(file, model, family, set_, stage)
    _refuse_encoded(file)
    _check_output_path("--html", html, ".html")

    from glmtune.data.preview import (
        UnusedRowError,
        find_row,
        make_preview,
        print_preview,
        print_unused_row,
        render_html,
    )
    from glmtune.utils.console import print_message
    from glmtune.utils.io import write_text

    try:
        source, conversation = find_row(_open_sources(run, run.data.train), row, file)
        checker = _load_model_checker(run)
        preview = make_preview(source, conversation, checker.family, checker.tokenizer, checker.rules)
    except UnusedRowError as error:
        print_unused_row(error)
        raise
    if html is None:
        print_preview(preview, ids)
        return
    write_text(html, render_html(preview, ids))
    print_message("\n".join([*preview.make_heading(), f"Page: {html}"]))


@data_app.command("tokenize")
def tokenize_data(
    file: File,
    model: RequiredModel,
    output: Annotated[Path, typer.Option("--output", "--save", help="A new folder for the encoded rows.")],
    family: FamilyName = None,
    set_: Overrides = None,
) -> None:
    """Encode rows once, to train on them repeatedly or on another machine."""
    run = _make_run_config(file, model, family, set_)
    _refuse_encoded(file)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"{output}: not an empty folder.", "Give a new folder; encoded rows are not added to others.")

    from glmtune.data.files import ENCODED_FILES
    from glmtune.training.training_data import load_encoded_data
    from glmtune.utils.console import count_noun, print_message

    checker = _load_model_checker(run)
    is_new = not output.exists()
    try:
        encoded = load_encoded_data(
            run.data.train,
            run.data,
            checker.rules,
            checker.family,
            checker.tokenizer,
            int(run.training["seed"]),
            folder=output,
        )
        if not len(encoded.rows):
            raise DataError(f"{file}: no row is within the limits.", "Raise them: --set data.max_source_length=1024")
    except BaseException:  # leave the folder as it was, so that the command can be repeated
        for name in (".lock", *ENCODED_FILES):
            (output / name).unlink(missing_ok=True)
        if is_new and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
        raise
    (output / ".lock").unlink(missing_ok=True)
    counts = encoded.info.counts
    size = sum(path.stat().st_size for path in output.iterdir())
    print_message(
        f"{count_noun(counts['rows'], 'row')}, {count_noun(counts['tokens'], 'token')} "
        f"({count_noun(counts['targets'], 'target')}), {size:,} bytes in {output}\n"
        f"Train on them: glmtune train --model {quote_word(model)} --data {quote_word(str(output))}"
    )


def _make_run_config(
    file: str, model: str | None, family: str | None, overrides: list[str] | None, stage: str | None = None
) -> RunConfig:
    options = {"data.train": file, "model.path": model, "model.family": family, "stage": stage}
    quoted = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in options.items() if value is not None]
    run = load_config(None, [*quoted, *(overrides or [])])
    if model is not None:
        check_config(run)
    return run


def _refuse_encoded(file: str) -> None:
    """A folder of encoded rows has a .json file, which would be read as rows."""
    from glmtune.data.files import is_encoded_folder

    if is_encoded_folder(file):
        raise DataError(f"{file}: holds encoded rows.", "Give the file that they were made from.")


def _check_output_path(option: str, path: Path | None, suffix: str) -> None:
    """Existing files are overwritten; the suffix is checked so that these are not data by mistake."""
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise ConfigError(f"{option} {path}: not a {suffix} file.", f"Give a name that ends with {suffix}.")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder.", "Create it first.")


def _open_sources(run: RunConfig, entries: Any) -> list[DataSource]:
    from glmtune.data.sources import open_sources

    return open_sources(entries, run.data.columns, run.data.format, int(run.training["seed"]), run.data.preference)


def _load_model_checker(run: RunConfig) -> ModelChecker:
    from glmtune.data.check_rows import ModelChecker
    from glmtune.families import detect_family, get_family
    from glmtune.methods.run_tokenizer import load_run_tokenizer
    from glmtune.training.training_data import make_encoding_rules
    from glmtune.utils.console import silence_libraries

    silence_libraries()
    model = run.model
    family = get_family(model.family) if model.family else detect_family(model.path, model.hub)
    tokenizer, _ = load_run_tokenizer(run, model.path, family.name)
    return ModelChecker(family, tokenizer, make_encoding_rules(run.data))
