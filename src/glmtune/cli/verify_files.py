"""`glmtune verify`: whether a checkpoint is complete and undamaged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.fetch import Mirror, Revision, check_hub_id, check_mirror
from glmtune.cli.options import FamilyName, Hub
from glmtune.errors import ModelError
from glmtune.utils.documents import shorten_path


def verify(
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder, an adapter, a run, or the id of a model in Hugging Face's cache.", metavar="MODEL"
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(help="Compare sizes and sums with this repository of the hub.", metavar="ORG/NAME"),
    ] = None,
    hub: Hub = "huggingface",
    mirror: Mirror = None,
    revision: Revision = None,
    family: FamilyName = None,
    values: Annotated[
        bool, typer.Option("--values/--no-values", help="Read every weight: finite, and not all zero.")
    ] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check a model's files: sums, form, code in them, index, shapes, finite weights, tokenizer.

    Sums are compared with the list of `glmtune fetch`, with what Hugging Face's client recorded, or with published
    ones; with --against, with the hub's list of today. The exit code is 1 if there is a fault.
    """
    import json

    check_mirror(mirror)
    if against is not None:
        check_hub_id(against)
    elif mirror or revision or hub != "huggingface":
        raise ModelError("--hub, --mirror and --revision belong to --against.", "Add --against ORG/NAME.")
    folder = _find_folder(model)

    from glmtune.download.listing import list_repository
    from glmtune.utils.console import silence_libraries, use_quiet_console, use_stderr
    from glmtune.verification.expected_sums import ExpectedFiles
    from glmtune.verification.verification_output import describe_verification, print_verification
    from glmtune.verification.verifier import verify_folder

    silence_libraries()
    expected = None
    if against is not None:
        listing = list_repository(against, hub, revision, mirror)
        expected = ExpectedFiles(listing, f"{listing.id} on the hub")
    with use_quiet_console() if json_ else use_stderr():
        result = verify_folder(folder, expected, family=family, values=values)
    if json_:
        typer.echo(json.dumps(describe_verification(result), ensure_ascii=False, indent=2))
    else:
        print_verification(result, values)
    if result.faults:
        raise typer.Exit(1)


def _find_folder(model: str) -> Path:
    """The folder of a model that is on this machine; nothing is downloaded."""
    from glmtune.hub import find_local_folder
    from glmtune.run_dir import RunDir, is_run

    folder = find_local_folder(model)
    if folder is not None and is_run(folder):
        run = RunDir(folder)
        return next((result for result in (run.adapter, run.model) if result.is_dir()), folder)
    if folder is None:
        raise ModelError(
            f"{shorten_path(model)}: no such folder, and not in Hugging Face's cache.",
            f"Download it: glmtune fetch {model}" if model.count("/") == 1 else "Give the folder of a model.",
        )
    return folder
