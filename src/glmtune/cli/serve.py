"""`glmtune serve`: a model behind an HTTP API."""

from __future__ import annotations

from typing import Annotated

import typer

from glmtune.cli.options import (
    Base,
    Device,
    Dtype,
    FamilyName,
    Hub,
    Quantization,
    RunOrModel,
    number_option,
)
from glmtune.config_ranges import BATCH_SIZE, COUNT, PROBABILITY, TEMPERATURE, TOKENS, NumberRange
from glmtune.errors import ConfigError
from glmtune.utils.optional_packages import require_extra


def serve(
    target: RunOrModel,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH: an adapter of this base that answers under its name, several times."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model in requests. Default: that of its folder.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; whoever reaches it may ask, unless there is a key.")
    ] = "127.0.0.1",
    port: Annotated[int, number_option("Port; 0 is a free one", NumberRange(0, 65535))] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="GLMTUNE_API_KEY",
            help="Key that requests must have. In the environment variable other users cannot see it.",
        ),
    ] = None,
    max_batch: Annotated[int, number_option("Replies generated at the same time", BATCH_SIZE)] = 16,
    max_queue: Annotated[int, number_option("Requests that wait; further ones get status 429", COUNT)] = 256,
    max_context: Annotated[
        int | None, number_option("Tokens of prompt and reply together. Default: the model's", TOKENS)
    ] = None,
    timeout: Annotated[
        float, number_option("Seconds that a request may take", NumberRange(0, 10**6, excludes_low=True))
    ] = 600.0,
    temperature: Annotated[
        float, number_option("Of requests that do not give it (OpenAI's default is 1)", TEMPERATURE)
    ] = 1.0,
    top_p: Annotated[
        float, number_option("Of requests that do not give it (OpenAI's default is 1)", PROBABILITY)
    ] = 1.0,
    cors: Annotated[
        list[str] | None,
        typer.Option(help="Web page that may ask, such as https://example.org, several times. Default: none."),
    ] = None,
    docs: Annotated[
        bool,
        typer.Option("--docs", help="Describe the routes at /docs; that page loads a script from cdn.jsdelivr.net."),
    ] = False,
    base: Base = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device: Device = None,
    family: FamilyName = None,
    hub: Hub = "huggingface",
) -> None:
    """Serve a model: OpenAI's API, the older ChatGLM contracts, and a page with a chat."""
    require_extra("serve", "glmtune serve")
    if api_key is not None and not api_key.strip():
        raise ConfigError("--api-key (or GLMTUNE_API_KEY) is empty.", "Give a key, or leave it out.")
    from glmtune.html.i18n import default_language
    from glmtune.serve.app import make_app
    from glmtune.serve.context import SamplingDefaults
    from glmtune.serve.model_loading import ServeOptions, load_context
    from glmtune.serve.request_guard import AccessRules
    from glmtune.serve.run_server import run_server
    from glmtune.utils.console import print_warning, show_status, use_stderr
    from glmtune.utils.network import format_url, is_loopback, listen

    options = ServeOptions(
        target,
        adapters=adapter or [],
        name=name,
        base=base,
        dtype=dtype,
        device=device,
        family=family,
        hub=hub,
        quantization=quantization,
        max_batch=max_batch,
        max_queue=max_queue,
        max_context=max_context,
        request_timeout_s=timeout,
        defaults=SamplingDefaults(temperature, top_p),
    )
    with use_stderr(), listen(host, port, "serve") as listener:
        with show_status("Loading the model"):
            context = load_context(options)
        if api_key is None and not is_loopback(host):
            print_warning(
                f"--host {host} without --api-key: everybody who reaches this machine can use the model. "
                "Set a key: GLMTUNE_API_KEY=... glmtune serve ..."
            )
        rules = AccessRules(api_key, is_local=is_loopback(host) and api_key is None)
        app = make_app(context, rules, cors_origins=cors, has_docs=docs, lang=default_language())
        url = format_url(host, listener.getsockname()[1])
        names = ", ".join(model.name for model in context.models)
        typer.echo(f"glmtune serve: {url}  (API: {url}/v1, models: {names}; Ctrl-C ends it)")
        run_server(app, context, listener)
