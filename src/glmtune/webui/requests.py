"""Reading what a browser sends: fields of forms, in limited size."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qsl

from starlette.requests import Request

from glmtune.errors import ConfigError

MAX_FIELDS = 5_000
MAX_FORM_BYTES = 4 * 2**20
Pairs = list[tuple[str, str]]
"""Names and values of a form in the order of the page; a name may occur several times."""


async def read_form(request: Request) -> FormData:
    """The fields of a form, or of the query of a GET request.

    Raises:
        ConfigError: too large, or not a form.
    """
    if request.method == "GET":
        return FormData(request.query_params.multi_items())
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            raise ConfigError("The form is too large.", f"Keep it under {MAX_FORM_BYTES:,} bytes.")
    try:
        return FormData(parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise ConfigError("The form cannot be read.", "Reload the page.") from None


class FormData:
    """The fields of a form.

    Args:
        pairs: names and values.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()):
        self.pairs: Pairs = [(str(name), str(value)) for name, value in pairs]

    def get(self, name: str, default: str = "") -> str:
        """The last value of a name, without spaces around it."""
        return next((value.strip() for key, value in reversed(self.pairs) if key == name), default)

    def get_all(self, name: str) -> list[str]:
        """All values of a name that are not empty."""
        return [value.strip() for key, value in self.pairs if key == name and value.strip()]

    def get_number(self, name: str, default: int, low: int = 0, high: int = 10**9) -> int:
        """A whole number between two bounds; the default where there is none."""
        try:
            number = int(float(self.get(name) or default))
        except (ValueError, OverflowError):
            raise ConfigError(f"{name}: {self.get(name)[:40]!r} is not a whole number.", "Correct it.") from None
        return min(max(number, low), high)

    def has(self, name: str) -> bool:
        """Whether a box is ticked, or a field is not empty."""
        return self.get(name) not in ("", "false")

    def without(self, *names: str) -> FormData:
        """The other fields."""
        return FormData([(key, value) for key, value in self.pairs if key not in names])
