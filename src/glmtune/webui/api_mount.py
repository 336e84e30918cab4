"""The API of `glmtune serve` on the page's port, below `/api`: clients use http://127.0.0.1:7860/api/v1."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from glmtune.errors import ServerError
from glmtune.serve.app import make_app
from glmtune.serve.context import ServeContext
from glmtune.serve.request_guard import AccessRules
from glmtune.utils.network import is_loopback

API_PATH = "/api"


class ApiMount:
    """An ASGI application: requests below `API_PATH` go to the API, which has a guard and a key of its own, since its
    clients are programs; all others to the page.

    Args:
        page: the page with its guard.
        api: see `make_api`.
        root_path: see `PageRules`.
    """

    def __init__(self, page: ASGIApp, api: ASGIApp, root_path: str = ""):
        self._page = page
        self._api = api
        self._prefixes = [API_PATH, *([f"{root_path}{API_PATH}"] if root_path else [])]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        prefix = next((each for each in self._prefixes if path == each or path.startswith(f"{each}/")), None)
        if scope["type"] != "http" or prefix is None:
            await self._page(scope, receive, send)
            return
        inner = path.removeprefix(prefix) or "/"
        await self._api({**scope, "path": inner, "raw_path": inner.encode(), "root_path": ""}, receive, send)


def make_api(context: ServeContext, host: str, api_key: str | None, lang: str, *, is_proxied: bool = False) -> ASGIApp:
    """The API's application.

    Args:
        context: see `serve.model_loading.load_context`.
        host: address that the server listens on.
        api_key: that requests have to name; None: none, on this machine alone.
        lang: of its chat page.
        is_proxied: whether the page is reached by other names than this machine's own.

    Raises:
        ServerError: others could reach the API, and no key keeps them out.
    """
    is_local = is_loopback(host) and not is_proxied
    if not is_local and api_key is None:
        place = "behind a proxy" if is_proxied else f"on --host {host}"
        raise ServerError(
            f"--serve {place}: everybody who reaches this machine could use the model.",
            "Set a key: GLMTUNE_API_KEY=... glmtune ui --serve ...",
        )
    return make_app(context, AccessRules(api_key, is_local=is_local), lang=lang)
