"""`glmtune fetch`: download a model from a hub, resumable and with its sums compared."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import Hub, number_option
from glmtune.config_ranges import NumberRange
from glmtune.errors import ConfigError, ModelError, ReportedInterrupt
from glmtune.utils.documents import shorten_value
from glmtune.utils.shell_words import join_words

# Other options of the hubs' own clients that people type have no meaning here; typer names the nearest one.
Mirror = Annotated[
    str | None,
    typer.Option(help="Address of a server that answers as the hub does: https://hf-mirror.com.", metavar="URL"),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit. Default: main (ModelScope: master).")]


def fetch(
    model: Annotated[str, typer.Argument(help="Hub id: THUDM/chatglm3-6b.", metavar="MODEL")],
    hub: Hub = "huggingface",
    mirror: Mirror = None,
    revision: Revision = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the files. Default: the model's name.")] = None,
    file: Annotated[list[str] | None, typer.Option(help="Only this file; may be repeated.")] = None,
    parallel: Annotated[int, number_option("Files at a time.", NumberRange(1, 32))] = 4,
    json_: Annotated[bool, typer.Option("--json", help="Print files, sizes and sums as JSON.")] = False,
) -> None:
    """Download a model: settings, tokenizer and the weights in one format; no Python files.

    The same command continues a download that was interrupted, and replaces files that are damaged. Every file's sum
    is compared with the hub's.
    """
    import json

    check_hub_id(model)
    check_mirror(mirror)
    folder = output or Path(model.rsplit("/", 1)[-1])

    from glmtune.download.fetcher import FetchRequest, FetchResult, fetch_model
    from glmtune.utils.console import count_noun, format_bytes, print_message, print_warning, use_stderr

    with use_stderr():
        request = FetchRequest(model, hub, folder, revision, mirror, file or [], parallel)
        try:
            result: FetchResult = fetch_model(request)
        except KeyboardInterrupt:
            print_message(f"Interrupted. Continue: {join_words(['glmtune', *sys.argv[1:]])}")
            raise ReportedInterrupt from None
        if result.unproven:
            print_warning(f"The hub publishes no sum of {', '.join(result.unproven)}; nothing was compared.")
    if json_:
        files = [
            {"name": name, "size": entry.size, "sha256": entry.sum.digits if entry.sum else None}
            for name, entry in sorted(result.repository.files.items())
        ]
        content = {
            "folder": str(folder),
            "hub": hub,
            "repository": result.repository.id,
            "revision": result.repository.revision,
            "downloaded": result.downloaded,
            "files": files,
        }
        typer.echo(json.dumps(content, ensure_ascii=False, indent=2))
        return
    present = f", {count_noun(len(result.present), 'file')} were there" if result.present else ""
    size = format_bytes(result.downloaded_bytes)
    print_message(
        f"{folder}: {count_noun(len(result.downloaded), 'file')} downloaded ({size}){present}; "
        f"{result.repository.id} at {result.repository.revision[:12]}.",
        "green",
    )


def check_hub_id(name: str) -> None:
    """Require a hub id.

    Raises:
        ModelError: it is something else.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise ModelError(f"{shorten_value(name)} is no hub id.", "Give one like THUDM/chatglm3-6b.")


def check_mirror(mirror: str | None) -> None:
    """Require an address.

    Raises:
        ConfigError: it is something else.
    """
    if mirror is not None and not re.fullmatch(r"https?://[^\s/]+.*", mirror):
        raise ConfigError(f"--mirror cannot be {shorten_value(mirror)}.", "An address: https://hf-mirror.com")
