"""How a run that fails is recorded, and advice in terms of its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from glmtune.config import RunConfig
from glmtune.errors import GlmtuneError, ReportedInterrupt, TrainingError
from glmtune.run_dir import RunDir
from glmtune.training.checkpoint_files import WRITE_ERRORS
from glmtune.training.memory import explain_out_of_memory, is_out_of_memory
from glmtune.utils.console import is_main_process, print_message
from glmtune.utils.io import write_json
from glmtune.utils.shell_words import quote_word


@contextmanager
def record_failure(run: RunDir, summary: dict[str, Any]) -> Iterator[None]:
    """Write into summary.json why a run ended; turn a disk that cannot be written to into advice.

    Args:
        run: its folder.
        summary: what summary.json holds, filled in by the block; empty before anything was written.
    """
    command = f"glmtune train --resume --output {quote_word(str(run.root))}"
    try:
        yield
    except KeyboardInterrupt:
        if is_main_process() and summary:
            print_message(f"Interrupted. Resume: {command}")
            raise ReportedInterrupt from None
        raise
    except GlmtuneError as error:
        if is_main_process() and summary:
            with suppress(OSError):
                write_json(run.summary, summary | {"state": "stopped", "error": error.message})
        raise
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        place = error.filename or run.root
        raise TrainingError(
            f"{place}: cannot be written ({error.strerror}); the checkpoints are complete.",
            f"Free some space, or make it writable, then: {command}",
        ) from None


@contextmanager
def explain_memory(config: RunConfig, moment: str | Callable[[], str]) -> Iterator[None]:
    """Turn a lack of memory into advice in terms of the run's settings.

    Args:
        config: of the run.
        moment: "at step 3"; a function if it is known only when the error occurs.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise explain_out_of_memory(error, moment() if callable(moment) else moment, config) from None
