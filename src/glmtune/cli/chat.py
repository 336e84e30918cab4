"""`glmtune chat`: a conversation with a model or a run in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

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
    number_option,
)
from glmtune.config_ranges import SEED, TOKENS


def chat(
    target: RunOrModel,
    prompt: Annotated[str | None, typer.Option(help="Answer this message and print only the reply.")] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    base: Base = None,
    max_new_tokens: Annotated[
        int | None,
        number_option(
            "Maximum length of a reply in tokens. Default: 512, or half of a shorter context window.", TOKENS
        ),
    ] = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 0.8,
    seed: Annotated[int | None, number_option("Seed of sampling.", SEED)] = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device: Device = None,
    family: FamilyName = None,
    hub: Hub = "huggingface",
    compile_: Compile = False,
) -> None:
    """Chat with a model or a run. Commands: /clear, /system TEXT, /exit."""
    from glmtune.generation.chat_session import ChatSession, format_calls, run_chat
    from glmtune.generation.compiled_step import compile_step, require_gpu
    from glmtune.generation.context_window import get_default_reply_length
    from glmtune.generation.cpu_prepack import prepack_weights
    from glmtune.generation.load import load_for_generation
    from glmtune.generation.reply import Sampling
    from glmtune.utils.console import show_status, use_stderr

    if compile_:
        require_gpu(device)
    with use_stderr(), show_status("Loading the model"):
        loaded = load_for_generation(
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
            compile_step(loaded.model)
        prepack_weights(loaded.model)
    length = max_new_tokens or get_default_reply_length(loaded.model)
    sampling = Sampling(length, temperature, top_p)
    session = ChatSession(loaded.model, loaded.tokenizer, loaded.family, sampling, system, loaded.prefix)
    if prompt is None:
        run_chat(session)
        return
    reply = session.ask(prompt)
    typer.echo(format_calls(reply) if reply.tool_calls else reply.content)
