"""The command line: all commands, and the entry point."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.bench import bench
from glmtune.cli.chat import chat
from glmtune.cli.compare import compare, forget
from glmtune.cli.data import data_app
from glmtune.cli.device_errors import find_device_error, is_cause_known
from glmtune.cli.doctor import doctor
from glmtune.cli.eval import eval_
from glmtune.cli.export import export
from glmtune.cli.fetch import fetch
from glmtune.cli.interrupts import repeat_lost_interrupts
from glmtune.cli.migrate import register as register_migrate
from glmtune.cli.option_spellings import normalize_words
from glmtune.cli.plan import plan
from glmtune.cli.report import report
from glmtune.cli.run_script import register as register_run
from glmtune.cli.score import score
from glmtune.cli.serve import serve
from glmtune.cli.train import train
from glmtune.cli.ui import ui
from glmtune.cli.verify_files import verify
from glmtune.errors import GlmtuneError, ReportedInterrupt
from glmtune.utils.documents import shorten_path
from glmtune.utils.file_access import load_file_limit
from glmtune.utils.gpu_allocator import allow_mps_fallback, set_allocator_defaults
from glmtune.utils.streams import flush_streams, prepare_streams, restart_in_utf8
from glmtune.utils.user_folders import provide_home

# Raised while a file is written, without its name.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)

# What pathlib raises as RuntimeError.
_PATH_ERRORS = {
    "Could not determine home directory": "A path begins with ~ and a name that is no user of this machine.",
    "Symlink loop": "A path is a link that leads back to itself.",
}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich's help costs a quarter of the time that --help may take
    pretty_exceptions_enable=False,
    help="Fine-tune ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4, and chat with the result.",
)
app.add_typer(data_app, name="data")
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(train)
app.command()(plan)
app.command()(chat)
app.command("eval")(eval_)
app.command()(compare)
app.command()(forget)
app.command()(score)
app.command()(export)
app.command()(bench)
app.command()(report)
app.command()(serve)
app.command()(ui)
app.command()(doctor)
app.command()(fetch)
app.command()(verify)
register_migrate(app)
register_run(app)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the demo's files.")] = Path("glmtune-demo"),
) -> None:
    """Tune a tiny model on the CPU in about a minute: replies before and after, the loss curve. No download."""
    from glmtune.demo.run_demo import run_demo

    run_demo(output)


@app.command()
def version() -> None:
    """Print the versions of glmtune and of the libraries that decide its numbers."""
    from glmtune.utils.installation import collect_versions

    for name, number in collect_versions().items():
        typer.echo(f"{name} {number}")
    _print_unknown_version()


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from glmtune.utils.installation import read_version

        typer.echo(f"glmtune {read_version()}")
        _print_unknown_version()
        raise typer.Exit


def _print_unknown_version() -> None:
    from glmtune.utils.installation import describe_unknown_version, read_version

    reason = describe_unknown_version(read_version())
    if reason:
        typer.echo(f"glmtune {read_version()}: {reason}.", err=True)


@app.callback()
def _read_common_options(
    version_: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version of glmtune.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run a command. Errors that a user can fix are printed without a traceback."""
    restart_in_utf8()
    prepare_streams()
    repeat_lost_interrupts()
    set_allocator_defaults()
    allow_mps_fallback()
    problem = provide_home()
    if problem:
        typer.echo(problem, err=True)
    sys.argv[1:] = normalize_words(app, sys.argv[1:])  # in place: train reads the words of other projects from there
    code = _run()
    flush_streams()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from glmtune.training.distributed import hard_exit

        hard_exit(code)
    sys.exit(code)


def _run() -> int:
    """Run the command and return its exit code."""
    try:
        load_file_limit()
        app()
    except GlmtuneError as error:
        _print_error(str(error))
        return 1
    except BrokenPipeError:  # the reader of our output is gone: `| head`
        return 1
    except OSError as error:
        # A path that the system refuses: too long, a loop of links, no permission, a folder, a full disk.
        if not isinstance(error.filename, (str, bytes, os.PathLike)) and error.errno not in _DISK_ERRORS:
            return _report_device_error(error)
        place = f"{shorten_path(os.fsdecode(error.filename))}: " if error.filename else ""
        _print_error(f"{place}{error.strerror or error}.")
        return 1
    except RuntimeError as error:
        problem = next((text for start, text in _PATH_ERRORS.items() if str(error).startswith(start)), None)
        if problem is None:
            return _report_device_error(error)
        _print_error(problem)
        return 1
    except (ImportError, AssertionError, AttributeError) as error:  # what broken installations raise
        return _report_device_error(error)
    except SystemExit as end:  # how typer ends every command
        interrupt = getattr(end.__context__, "__cause__", None)
        if isinstance(interrupt, KeyboardInterrupt) and not isinstance(interrupt, ReportedInterrupt):
            typer.echo("Interrupted.", err=True)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _report_device_error(error: Exception) -> int:
    """Name `glmtune doctor` for an error of the device or a native library; raise any other again."""
    line = find_device_error(error)
    if not line:
        raise error
    if not is_cause_known(line):
        traceback.print_exception(error)
    _print_error(f"{line.rstrip('.')}.\nFind the cause and the command that fixes it: glmtune doctor")
    return 1


def _print_error(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        typer.secho(f"Error: {text}", fg="red", err=True)


if __name__ == "__main__":
    main()
