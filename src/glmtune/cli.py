"""The command line: one small function per command. Heavy imports happen inside them, so that --help is instant."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmtune.cli_data import data_app
from glmtune.config import RunConfig, help_of, load_config
from glmtune.errors import ConfigError, GlmtuneError
from glmtune.rundir import RunDir

if TYPE_CHECKING:
    from glmtune.training.train import Outcome

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich's help costs a quarter of the time that --help may take
    pretty_exceptions_enable=False,
    help="Fine-tune ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4, and talk to the result.",
)
app.add_typer(data_app, name="data")

RunOrModel = Annotated[
    str, typer.Argument(help="A run, an adapter, a checkpoint folder or a hub id.", metavar="RUN_OR_MODEL")
]


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="YAML or JSON file that describes the run.")] = None,
    model: Annotated[str | None, typer.Option(help=help_of("model.path"))] = None,
    data: Annotated[str | None, typer.Option(help=help_of("data.train"))] = None,
    eval_data: Annotated[str | None, typer.Option(help=help_of("data.eval"))] = None,
    method: Annotated[str | None, typer.Option(help=help_of("method"))] = None,
    output: Annotated[str | None, typer.Option(help=help_of("output"))] = None,
    family: Annotated[str | None, typer.Option(help=help_of("model.family"))] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output where it stopped.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any key of the config: --set training.max_steps=100")
    ] = None,
) -> None:
    """Tune a model on your rows; the run folder then holds the adapter, the curve and the numbers."""
    named = {
        "model.path": model,
        "data.train": data,
        "data.eval": eval_data,
        "method": method,
        "output": output,
        "model.family": family,
    }
    run = _run_config(config, {key: value for key, value in named.items() if value is not None}, set_ or [], resume)

    from rich.console import Console

    from glmtune.training.prepare import say
    from glmtune.training.train import train as train_run

    console = Console(soft_wrap=True)
    outcome = train_run(run, resume=resume, console=console)
    if not outcome.finished:
        say(console, f"Stopped at step {outcome.step}; the checkpoint is saved.")
        say(console, f"Continue it: glmtune train --resume --output {shlex.quote(str(outcome.run.root))}")
        raise typer.Exit(130)
    for line in _report(outcome):
        say(console, line)


@app.command()
def chat(
    target: RunOrModel,
    prompt: Annotated[str | None, typer.Option(help="Answer this one message, print the reply alone.")] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    base: Annotated[str | None, typer.Option(help="Where the adapter's base lies now.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply in tokens.", min=1)] = 512,
    temperature: Annotated[float, typer.Option(help="0: greedy, the same reply every time.", min=0.0)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from this share of the probability.", min=0.0, max=1.0)] = 0.8,
    seed: Annotated[int | None, typer.Option(help="Makes sampled replies repeat.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; the checkpoint's own by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu; a GPU if there is one by default.")] = None,
    family: Annotated[str | None, typer.Option(help=help_of("model.family"))] = None,
    hub: Annotated[str, typer.Option(help=help_of("model.hub"))] = "huggingface",
) -> None:
    """Talk to a model or a tuned run. Inside: /clear, /system TEXT, /exit."""
    from rich.console import Console

    from glmtune.generation.chat import Chat, converse, show_calls
    from glmtune.generation.open import open_model
    from glmtune.generation.reply import Sampling

    console = Console(soft_wrap=True)
    with Console(stderr=True).status("Loading the model"):
        opened = open_model(target, base=base, dtype=dtype, device=device, family=family, hub=hub, seed=seed)
    sampling = Sampling(max_new_tokens, temperature, top_p)
    talk = Chat(opened.model, opened.tokenizer, opened.family, sampling, system, opened.prefix)
    if prompt is None:
        converse(talk, console)
        return
    reply = talk.ask(prompt)
    typer.echo(show_calls(reply) if reply.tool_calls else reply.content)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the demo's files.")] = Path("glmtune-demo"),
) -> None:
    """Tune a tiny model on the CPU in about a minute: replies before and after, the loss curve. No download."""
    from glmtune.demo.run import run_demo

    run_demo(output)


@app.command()
def version() -> None:
    """Versions of glmtune and of what it computes with."""
    from glmtune.training.summary import versions

    for name, number in versions().items():
        typer.echo(f"{name} {number}")


def main() -> None:
    """Entry point: errors a user can mend are printed as they are, without a traceback."""
    try:
        app()
    except GlmtuneError as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(1)


def _run_config(config: Path | None, named: dict[str, str], overrides: list[str], resume: bool) -> RunConfig:
    if resume and config is None:
        if "output" not in named:
            raise ConfigError("--resume needs the run folder.", "Give it with --output RUN.")
        config = RunDir(named["output"]).config
        if not config.is_file():
            raise ConfigError(f"{named['output']}: not a run folder (no config.yaml).", "Give an existing run.")
    # JSON is YAML, so quoting this way keeps a path such as `a: b` or `123` one string.
    quoted = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in named.items()]
    return load_config(config, [*quoted, *overrides])


def _report(outcome: Outcome) -> list[str]:
    summary, run = outcome.summary, outcome.run
    said = [f"{summary['steps']} steps in {summary['seconds']:.0f} s"]
    losses = [f"{summary[key]:.4f}" for key in ("first_loss", "last_loss") if summary[key] is not None]
    if losses:
        said.append(f"loss {' to '.join(losses)}")
    if summary["eval_loss"] is not None:
        said.append(f"evaluation loss {summary['eval_loss']:.4f}")
    said.append(f"{summary['tokens_per_second']:,.0f} tokens/s")
    return [
        f"Done: {', '.join(said)}.",
        f"Adapter: {run.adapter}   curve: {run.curve}   numbers: {run.summary}",
        f"Talk to it: glmtune chat {shlex.quote(str(run.root))}",
    ]


if __name__ == "__main__":
    main()
