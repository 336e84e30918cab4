"""`glmtune data ...`: look at rows before training on them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmtune.config import RunConfig, check, help_of, load_config
from glmtune.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from glmtune.data.check_fix import Fix
    from glmtune.data.check_rows import Checker, ModelCheck, Report
    from glmtune.data.sources import Source

data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Check rows, see them as the model does, encode them once.",
)

File = Annotated[str, typer.Argument(help="A file, folder, glob, hub id or dataset_info name.", metavar="FILE")]
Family = Annotated[str | None, typer.Option(help=help_of("model.family"))]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Any key of the config: --set data.max_length=1024")]


@data_app.command("check")
def check_data(
    file: File,
    model: Annotated[str | None, typer.Option(help="Count its tokens, and find what it refuses.")] = None,
    eval_data: Annotated[str | None, typer.Option(help="Evaluation rows, which must not be trained on.")] = None,
    fix: Annotated[Path | None, typer.Option(help="Write the clean rows here (.jsonl), the others beside it.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the lengths as a picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with all findings.")] = False,
    family: Family = None,
    set_: Settings = None,
) -> None:
    """Look for what is wrong with rows. Exits with 1 if there are errors; warnings deserve a look."""
    run = _config(file, model, family, set_)
    _refuse_encoded(file)
    _check_output("--png", png, ".png")

    from rich.console import Console

    from glmtune.data.check_fix import Fix
    from glmtune.data.check_report import print_report, to_json
    from glmtune.data.check_rows import Checker, Report, read
    from glmtune.data.histogram import draw

    fixer = Fix(fix) if fix is not None else None
    sources = _open(run, run.data.train)
    judge = _model_check(run) if model else None
    report = Report("tokens" if judge else "characters", keep_all=as_json)
    checker = Checker(report, judge)
    if eval_data is not None:
        checker.add_evaluation(read(_open(run, eval_data)))
    with fixer or nullcontext():
        _check_rows(checker, sources, fixer)
    fixed = fixer.fixed if fixer else None
    if png is not None:
        draw(report.total, png, report.unit, _limit(judge))
    if as_json:
        typer.echo(json.dumps(to_json(report, sources, judge, fixed), ensure_ascii=False, indent=2))
    else:
        print_report(report, sources, judge, fixed, Console(soft_wrap=True))
    if report.errors:
        raise typer.Exit(1)


@data_app.command()
def preview(
    file: File,
    model: Annotated[str, typer.Option(help=help_of("model.path"))],
    row: Annotated[int, typer.Option(help="Which row, from 1.", min=1)] = 1,
    ids: Annotated[bool, typer.Option("--ids", help="Show every token's id too.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page to look at in a browser.")] = None,
    family: Family = None,
    set_: Settings = None,
) -> None:
    """Show a row exactly as the model sees it, and which of its tokens are learnt."""
    run = _config(file, model, family, set_)
    _refuse_encoded(file)
    _check_output("--html", html, ".html")

    from rich.console import Console

    from glmtune.data.preview import find_row, print_preview
    from glmtune.data.preview import preview as preview_row
    from glmtune.data.preview_html import render_html
    from glmtune.utils.io import write_text

    source, conversation = find_row(_open(run, run.data.train), row, file)
    judge = _model_check(run)
    shown = preview_row(source, conversation, judge.family, judge.tokenizer, judge.rules)
    console = Console(soft_wrap=True)
    if html is None:
        print_preview(shown, console, ids)
        return
    write_text(html, render_html(shown, ids))
    console.print("\n".join(shown.heading()), f"Page: {html}", sep="\n", highlight=False, markup=False)


@data_app.command()
def tokenize(
    file: File,
    model: Annotated[str, typer.Option(help=help_of("model.path"))],
    save: Annotated[Path, typer.Option(help="A new folder for the encoded rows.")],
    family: Family = None,
    set_: Settings = None,
) -> None:
    """Encode rows once, to train on them often or on another machine."""
    run = _config(file, model, family, set_)
    _refuse_encoded(file)
    if save.exists() and (not save.is_dir() or any(save.iterdir())):
        raise RunError(f"{save}: not an empty folder.", "Give a new folder; encoded rows are never mixed with others.")

    from rich.console import Console

    from glmtune.training.training_data import encoding_rules, load_encoded

    console = Console(soft_wrap=True)
    judge = _model_check(run)
    rules, seed = encoding_rules(run.data), int(run.training["seed"])
    new = not save.exists()
    try:
        encoded = load_encoded(
            run.data.train, run.data, rules, judge.family, judge.tokenizer, console, seed, folder=save
        )
        if not len(encoded.rows):
            raise DataError(
                f"{file}: no row is left within the limits.", "Raise them: --set data.max_source_length=1024"
            )
    except BaseException:
        _forget(save, new)
        raise
    (save / ".lock").unlink(missing_ok=True)
    counts = encoded.meta.counts
    size = sum(path.stat().st_size for path in save.iterdir())
    console.print(
        f"{counts['rows']:,} {'row' if counts['rows'] == 1 else 'rows'}, {counts['tokens']:,} tokens "
        f"({counts['targets']:,} learnt), {size:,} bytes in {save}\n"
        f"Train on them: glmtune train --model {_quoted(model)} --data {_quoted(save)}",
        highlight=False,
        markup=False,
    )


def _config(file: str, model: str | None, family: str | None, settings: list[str] | None) -> RunConfig:
    named = {"data.train": file, "model.path": model, "model.family": family}
    quoted = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in named.items() if value is not None]
    run = load_config(None, [*quoted, *(settings or [])])
    if model is not None:
        check(run)
    return run


def _refuse_encoded(file: str) -> None:
    """A folder of encoded rows holds a .json file, and would be read as rows."""
    from glmtune.data.files import holds_encoded

    if holds_encoded(Path(file)):
        raise DataError(f"{file}: holds encoded rows.", "Give the file that they were made from.")


def _check_output(option: str, path: Path | None, suffix: str) -> None:
    """A picture or page may replace an older one; the suffix keeps a slip of the hand from replacing data."""
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise ConfigError(f"{option} {path}: not a {suffix} file.", f"Give a name that ends with {suffix}.")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder.", "Make it first.")


def _open(run: RunConfig, entries: Any) -> list[Source]:
    from glmtune.data.sources import open_sources

    return open_sources(entries, run.data.columns, run.data.format, int(run.training["seed"]))


def _model_check(run: RunConfig) -> ModelCheck:
    from glmtune.data.check_rows import ModelCheck
    from glmtune.families import detect_family, get_family
    from glmtune.models.tokenizers import load_tokenizer
    from glmtune.training.training_data import encoding_rules
    from glmtune.utils.console import silence_libraries

    silence_libraries()
    model = run.model
    family = get_family(model.family) if model.family else detect_family(model.path, model.hub)
    return ModelCheck(family, load_tokenizer(model.path, model.hub, family.name), encoding_rules(run.data))


def _check_rows(checker: Checker, sources: list[Source], fixer: Fix | None) -> None:
    from rich.console import Console

    from glmtune.data.check_fix import read_with_rows
    from glmtune.data.check_rows import read

    progress = Console(stderr=True)
    if fixer is None:
        for row in _told(read(sources), checker.report, progress):
            checker.check(row)
        return
    for read_row, row, raw in _told(read_with_rows(sources), checker.report, progress):
        fixer.add(row, raw, checker.check(read_row))


def _told(rows: Iterator[Any], report: Report, console: Console) -> Iterator[Any]:
    with console.status("Checking rows") as status:
        for row in rows:
            if report.rows % 500 == 0:
                status.update(f"Checking rows: {report.rows:,}, {report.errors:,} errors, {report.warnings:,} warnings")
            yield row


def _limit(judge: ModelCheck | None) -> int | None:
    return judge.rules.longest if judge else None


def _forget(folder: Path, new: bool) -> None:
    """Leave nothing of an encoding that failed, so that the next one finds the folder new or empty."""
    from glmtune.data.files import ENCODED

    for name in (".lock", *ENCODED):
        (folder / name).unlink(missing_ok=True)
    if new and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _quoted(path: str | Path) -> str:
    import shlex

    return shlex.quote(str(path))
