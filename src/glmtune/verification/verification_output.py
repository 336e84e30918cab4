"""A verification as terminal lines and as JSON, with the command that fetches faulty files again."""

from __future__ import annotations

from typing import Any

from glmtune.utils.console import count_noun, format_bytes, print_message, print_warning
from glmtune.utils.shell_words import join_words
from glmtune.verification.expected_sums import guess_repository
from glmtune.verification.verifier import Verification


def make_fetch_command(result: Verification) -> str:
    """The command that fetches the faulty files again; empty where the repository is not known or nothing is wrong."""
    names = result.faulty_files
    if not names:
        return ""
    repository = result.expected.repository if result.expected else None
    name = (repository.id if repository else "") or guess_repository(result.folder)
    if not name:
        return ""
    words = ["glmtune", "fetch", name]
    if repository and repository.hub != "huggingface":
        words += ["--hub", repository.hub]
    if repository and repository.id and repository.revision not in ("", "main", "master"):
        words += ["--revision", repository.revision]
    if repository and repository.mirror:
        words += ["--mirror", repository.mirror]
    if result.expected and result.expected.cached:
        return join_words([*words, "--output", name.rsplit("/", 1)[-1]])
    for file in names:
        words += ["--file", file]
    return join_words([*words, "--output", str(result.folder)])


def is_source_guessed(result: Verification) -> bool:
    """Whether the repository is that which config.json names: a tuned model names its base there, whose files would
    not belong to it."""
    return bool(result.faults) and not (result.expected and result.expected.repository.id)


def describe_verification(result: Verification) -> dict[str, Any]:
    """The result as JSON."""
    return {
        "folder": str(result.folder),
        "ok": not result.faults,
        "sums": result.expected.source if result.expected else None,
        "files": [
            {"name": file.name, "size": file.size, "sha256": file.sha256 or None, "sum_matches": file.sum_matches}
            for file in result.files.values()
        ],
        "faults": [{"file": fault.file, "kind": fault.kind, "problem": fault.problem} for fault in result.faults],
        "notes": result.notes,
        "fix": make_fetch_command(result) or None,
        "fix_is_a_guess": is_source_guessed(result),
    }


def print_verification(result: Verification, values: bool) -> None:
    """Print faults with their files, what was compared with what, and the command that fixes it.

    Args:
        result: of the folder.
        values: whether weights were read.
    """
    for fault in result.faults:
        print_message(f"{fault.file}: {fault.problem}.", "red")
    for note in result.notes:
        print_warning(note)
    if result.faults:
        command = make_fetch_command(result)
        names = ", ".join(result.faulty_files)
        if command and is_source_guessed(result):
            print_message(f"Download again from where this folder came from: {names}")
            print_message(f"If it is the published model as it is: {command}")
        elif command:
            cached = result.expected is not None and result.expected.cached
            start = "Fetch the model into a folder" if cached else "Fetch again"
            print_message(f"{start}: {command}")
        else:
            print_message(f"Download again from where this folder came from: {names}")
        return
    matched = sum(file.sum_matches is True for file in result.files.values())
    total = format_bytes(sum(file.size for file in result.files.values()))
    print_message(f"{result.folder}: no fault found in {count_noun(len(result.files), 'file')} ({total}).", "green")
    if result.expected and matched:
        print_message(f"Sums: {count_noun(matched, 'file')} as in {result.expected.source}.")
    else:
        print_message("Sums: none known for these files; compare with the hub: --against ORG/NAME.")
    is_adapter = "config.json" not in result.files
    checked = "form" if is_adapter else "form, index, shapes, tokenizer"
    checked += ", every weight finite" if values else "; weights were not read"
    print_message(f"Checked: {checked}.")
