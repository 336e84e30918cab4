"""The command line: all commands, and the entry point."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.bench import bench
from glmtune.cli.chat import chat
from glmtune.cli.compare import compare, forget
from glmtune.cli.data import data_app
from glmtune.cli.eval import eval_
from glmtune.cli.export import export
from glmtune.cli.migrate import register as register_migrate
from glmtune.cli.plan import plan
from glmtune.cli.report import report
from glmtune.cli.train import train
from glmtune.cli.ui import ui
from glmtune.errors import GlmtuneError

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
app.command()(export)
app.command()(bench)
app.command()(report)
app.command()(ui)
register_migrate(app)


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
    from glmtune.training.summary import collect_versions

    for name, number in collect_versions().items():
        typer.echo(f"{name} {number}")


def main() -> None:
    """Run a command. Errors that a user can fix are printed without a traceback."""
    # If it is installed, it advises at every start to fetch kernels from the hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    code = _run()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from glmtune.training.distributed import hard_exit

        hard_exit(code)
    sys.exit(code)


def _run() -> int:
    """Run the command and return its exit code."""
    try:
        app()
    except GlmtuneError as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        return 1
    except SystemExit as end:  # how typer ends every command
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    main()
