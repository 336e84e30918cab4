"""A client of the page without a browser: it sends what the page's scripts send."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from fastapi.testclient import TestClient

from glmtune.webui.app import make_app
from glmtune.webui.context import Context


class PageClient:
    """Requests to a page.

    Args:
        context: the server's settings.
    """

    def __init__(self, context: Context):
        self.client = TestClient(make_app(context), base_url="http://127.0.0.1:7860", follow_redirects=False)
        self.token = re.search(r'data-csrf="([^"]+)"', self.client.get("/train").text).group(1)

    def get(self, path: str, **headers: str) -> Any:
        return self.client.get(path, headers=headers)

    def post(self, path: str, fields: Any = (), **headers: str) -> Any:
        """A form, as htmx sends it: `fields` is a dict, or pairs where a name occurs several times."""
        pairs = list(fields.items()) if isinstance(fields, dict) else list(fields)
        shared = {"X-CSRF-Token": self.token, "HX-Request": "true", "Origin": "http://127.0.0.1:7860"}
        shared["Content-Type"] = "application/x-www-form-urlencoded"
        return self.client.post(path, content=urlencode(pairs), headers={**shared, **headers})
