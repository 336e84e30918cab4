"""Short commands whose output the page shows: in processes of their own, since whatever asks the GPU holds a part of
its memory from then on."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from glmtune.errors import GlmtuneError
from glmtune.utils.file_access import make_limit_variable
from glmtune.webui.errors import JobError

_POLL_S = 0.2
_MAX_ERROR = 600


@dataclass(frozen=True)
class CommandOutput:
    """What a command that has ended printed."""

    code: int
    output: str
    errors: str

    def find_error(self) -> str:
        """The error with its hint, else the last lines."""
        lines = self.errors.strip().splitlines()
        first = next((i for i, line in enumerate(lines) if line.startswith("Error: ")), max(len(lines) - 2, 0))
        return "\n".join(lines[first:]).removeprefix("Error: ")[:_MAX_ERROR]

    def to_error(self) -> GlmtuneError:
        """The error that the command ended with, its hint apart from its message."""
        message, _, hint = self.find_error().partition("\n")
        return GlmtuneError(message, hint or None)


async def run_command(
    arguments: list[str], root: Path, *, timeout_s: float, timeout_message: str, request: Request | None = None
) -> CommandOutput:
    """Run `glmtune ARGUMENTS`.

    Args:
        arguments: what follows `glmtune`.
        root: folder in which it runs.
        timeout_s: seconds after which it is ended.
        timeout_message: of the error then.
        request: the process ends when its client is gone.

    Raises:
        JobError: it took too long, or nobody waits for it.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "glmtune", *arguments),
        cwd=root,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **make_limit_variable()},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
    )
    work = asyncio.ensure_future(process.communicate())
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        while not (await asyncio.wait({work}, timeout=_POLL_S))[0]:
            if request is not None and await request.is_disconnected():
                raise JobError("The browser does not wait for it any more.")
            if asyncio.get_running_loop().time() > deadline:
                raise JobError(timeout_message)
    finally:
        if process.returncode is None and not work.done():
            process.kill()
            await work
    output, errors = work.result()
    return CommandOutput(process.returncode or 0, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace"))
