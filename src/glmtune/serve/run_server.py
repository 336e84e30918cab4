"""The process of `glmtune serve`: load, listen, answer, and end without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn

from glmtune.serve.context import ServeContext

# Requests that were on their way when the signal came are read during this time.
_GRACE_S = 0.2


class GracefulServer(uvicorn.Server):
    """Returns after SIGTERM or Ctrl-C, so that the exit code is 0 and what follows is done; a second signal ends it at
    once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal. uvicorn's own raises it again at the end, which would be the exit code."""
        self.force_exit = self.should_exit
        self.should_exit = True


class DrainingServer(GracefulServer):
    """Answers what was accepted before it returns.

    Args:
        config: of uvicorn.
        context: told that the server drains.
    """

    def __init__(self, config: uvicorn.Config, context: ServeContext):
        super().__init__(config)
        self._context = context

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listening sockets first, and idle connections once what they have sent was read."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(_GRACE_S)
        self._context.is_draining = True
        await super().shutdown(sockets)


def run_server(app: Any, context: ServeContext, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        app: see `make_app`.
        context: its engine is closed at the end.
        listener: see `utils.network.listen`.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    config = uvicorn.Config(
        app,
        log_config=None,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(context.limits.request_timeout_s) + 1,
    )
    with contextlib.suppress(KeyboardInterrupt):
        DrainingServer(config, context).run(sockets=[listener])


def list_models_line(names: Sequence[str]) -> str:
    """The names that requests may have in `model`, for the terminal."""
    return ", ".join(names)
