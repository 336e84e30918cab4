"""The command line: one small function per command. Heavy imports happen inside them, so that --help is instant."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.bench import bench
from glmtune.cli.compare import compare, forget
from glmtune.cli.data import data_app
from glmtune.cli.eval import eval_
from glmtune.cli.export import export
from glmtune.cli.migrate import register as register_migrate
from glmtune.cli.options import (
    Base,
    Compile,
    Device,
    Dtype,
    FamilyName,
    Hub,
    Quantization,
    RunOrModel,
    Temperature,
    TopP,
)
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
    help="Fine-tune ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4, and talk to the result.",
)
app.add_typer(data_app, name="data")
app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(train)
app.command()(plan)
app.command("eval")(eval_)
app.command()(compare)
app.command()(forget)
app.command()(export)
app.command()(bench)
app.command()(report)
app.command()(ui)
register_migrate(app)


@app.command()
def chat(
    target: RunOrModel,
    prompt: Annotated[str | None, typer.Option(help="Answer this one message, print the reply alone.")] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    base: Base = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply in tokens.", min=1)] = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 0.8,
    seed: Annotated[int | None, typer.Option(help="Makes sampled replies repeat.")] = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device: Device = None,
    family: FamilyName = None,
    hub: Hub = "huggingface",
    compile_: Compile = False,
) -> None:
    """Talk to a model or a tuned run. Inside: /clear, /system TEXT, /exit."""
    from rich.console import Console

    from glmtune.generation.chat_session import ChatSession, format_calls, run_chat
    from glmtune.generation.compiled_step import compile_step, require_gpu
    from glmtune.generation.cpu_prepack import prepack_weights
    from glmtune.generation.load import load_for_generation
    from glmtune.generation.reply import Sampling

    console = Console(soft_wrap=True)
    if compile_:
        require_gpu(device)
    with Console(stderr=True).status("Loading the model"):
        opened = load_for_generation(
            target,
            base=base,
            dtype=dtype,
            device=device,
            family=family,
            hub=hub,
            seed=seed,
            quantization=quantization,
        )
        if compile_:
            compile_step(opened.model)
        prepack_weights(opened.model)
    sampling = Sampling(max_new_tokens, temperature, top_p)
    talk = ChatSession(opened.model, opened.tokenizer, opened.family, sampling, system, opened.prefix)
    if prompt is None:
        run_chat(talk, console)
        return
    reply = talk.ask(prompt)
    typer.echo(format_calls(reply) if reply.tool_calls else reply.content)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the demo's files.")] = Path("glmtune-demo"),
) -> None:
    """Tune a tiny model on the CPU in about a minute: replies before and after, the loss curve. No download."""
    from glmtune.demo.run_demo import run_demo

    run_demo(output)


@app.command()
def version() -> None:
    """Versions of glmtune and of what it computes with."""
    from glmtune.training.summary import collect_versions

    for name, number in collect_versions().items():
        typer.echo(f"{name} {number}")


def main() -> None:
    """Entry point: errors a user can mend are printed as they are, without a traceback."""
    # Where it is installed, it advises on every start to fetch kernels from the hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    code = _run()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from glmtune.training.distributed import hard_exit

        hard_exit(code)
    sys.exit(code)


def _run() -> int:
    """Returns:
    The exit status.
    """
    try:
        app()
    except GlmtuneError as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        return 1
    except SystemExit as end:  # typer's way to end, for better or worse
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    main()
