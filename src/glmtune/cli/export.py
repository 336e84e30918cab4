"""`glmtune export`: folders for other engines."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import Base, Device, Dtype, FamilyName, Hub, RunOrModel, allow_values


def export(
    target: RunOrModel,
    out: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="OUT")],
    format: Annotated[
        str,
        typer.Option(
            help="hf: for transformers and vLLM. official: the layout of the published repositories. gguf: for "
            "llama.cpp and Ollama.",
            callback=allow_values(("hf", "official", "gguf")),
        ),
    ] = "hf",
    bits: Annotated[
        int,
        typer.Option(
            help="16: not quantised. 8, 4: bitsandbytes (hf) or packed (official).", callback=allow_values((16, 8, 4))
        ),
    ] = 16,
    type: Annotated[
        str | None,
        typer.Option(
            help="Number format of a GGUF file: f32, f16 (usual), bf16, q8_0, q5_1, q5_0, q4_1, q4_0; with llama.cpp's "
            "llama-quantize also q6_k, q5_k_m, q4_k_m and others."
        ),
    ] = None,
    adapter_only: Annotated[bool, typer.Option("--adapter-only", help="Write the adapter without its base.")] = False,
    base: Base = None,
    max_shard_size: Annotated[str, typer.Option(help="Maximum size of a weight file: 5GB, 500MB.")] = "5GB",
    dtype: Dtype = None,
    device: Device = None,
    family: FamilyName = None,
    hub: Hub = "huggingface",
) -> None:
    """Merge an adapter or convert a model, quantise it, and verify the result by loading it again."""
    from glmtune.export.export_request import ExportRequest
    from glmtune.export.exporter import export_model
    from glmtune.export.finalize import format_result
    from glmtune.utils.console import use_stderr

    # The incomplete folder is removed on the way out, also after a kill.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    request = ExportRequest(format, bits, adapter_only, max_shard_size, dtype, device, type)
    with use_stderr():
        result = export_model(target, out, request, base=base, family=family, hub=hub)
    for line in [*result.messages, *format_result(result, request)]:
        typer.echo(line)
