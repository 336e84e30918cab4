"""Which requests the page answers: names of the server, its place behind a proxy, sizes of bodies."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from glmtune.errors import ServerError
from glmtune.utils.network import get_hostname, is_loopback

FORM_BYTES = 2**20
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(:[0-9]{1,5})?|\[[0-9a-f:.]+\](:[0-9]{1,5})?")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~@%-]+)+")


@dataclass(frozen=True)
class RouteRule:
    """What is allowed below a path.

    Attributes:
        prefix: of the path, as the page's own routes have it: `/uploads` also stands for `/uploads/x`.
        body_bytes: the largest body.
        body_seconds: until the whole body has to be there; None: no limit in all (large uploads), only between parts.
        needs_token: whether changing requests carry the CSRF token in a header. False is for interfaces that programs
            use (an OpenAI client has no token); a browser's request is checked by its origin all the same.
    """

    prefix: str
    body_bytes: int = FORM_BYTES
    body_seconds: float | None = 60.0
    needs_token: bool = True


@dataclass(frozen=True)
class PageRules:
    """Whose requests are answered.

    Attributes:
        is_local: the server listens on this machine's own address only: other names in `Host` are refused unless they
            are trusted, so that no page elsewhere reaches it by a name that is made to point here (DNS rebinding).
            Without it a password is required, and a login is good for the name that the browser used: any name is
            answered, unless trusted ones are given.
        trusted_hosts: names by which a proxy is reached, in lower case, each with or without `:PORT`.
        root_path: what a proxy puts before the paths of the page, such as `/user/me/proxy/7860`; empty: nothing.
            Requests are answered with it and, from proxies that strip it, without it.
        lang: of people whose browser names no language of the page.
        routes: exceptions from `RouteRule("/")`; the longest prefix counts.
    """

    is_local: bool = True
    trusted_hosts: frozenset[str] = frozenset()
    root_path: str = ""
    lang: str = "en"
    routes: tuple[RouteRule, ...] = field(default_factory=tuple)

    @property
    def cookie_path(self) -> str:
        """Path for which the browser sends cookies back."""
        return self.root_path or "/"

    def find_route(self, path: str) -> RouteRule:
        """The rule of a path without the root path."""
        fitting = [rule for rule in self.routes if path == rule.prefix or path.startswith(f"{rule.prefix}/")]
        return max(fitting, key=lambda rule: len(rule.prefix), default=RouteRule("/"))

    def allows_host(self, host: str) -> bool:
        """Whether requests with this `Host` header are answered."""
        if not is_host_name(host.lower()):
            return False
        name = get_hostname(host.lower()).removesuffix(".")
        if is_loopback(name) or not self.trusted_hosts.isdisjoint((name, host.lower())):
            return True
        return not self.is_local and not self.trusted_hosts

    def allows_origin(self, origin: str, host: str, scheme: str) -> bool:
        """Whether a page at `origin` is this page.

        Args:
            origin: header `Origin`: `http://localhost:7860`.
            host: header `Host`: `localhost:7860`.
            scheme: as the server sees it; behind a proxy that speaks https it is http.
        """
        try:
            parts = urlsplit(origin)
        except ValueError:  # brackets that hold no address
            return False
        if parts.scheme not in ("http", "https") or (scheme == "https" and parts.scheme == "http"):
            return False
        place = parts.netloc.lower()
        default_port = ":443" if parts.scheme == "https" else ":80"
        if place.removesuffix(default_port) == host.lower().removesuffix(default_port):
            return True
        # Some proxies send the server's own address as Host. The origin is then a trusted name at its usual port, or
        # at a port that was given with it.
        return place.removesuffix(default_port) in self.trusted_hosts


def parse_trusted_host(text: str) -> str:
    """A value of `--trusted-host`: NAME or NAME:PORT, in lower case.

    Raises:
        ServerError: anything else, such as a whole address or a pattern.
    """
    name = text.strip().lower()
    if is_host_name(name):
        return name
    place = re.sub(r"^[a-z]+://", "", name).split("/")[0]
    example = place if is_host_name(place) else "hub.example.org"
    raise ServerError(
        f"--trusted-host {text}: not a host name.", f"Give the name alone, once for each: --trusted-host {example}"
    )


def parse_root_path(text: str, page_paths: frozenset[str] = frozenset()) -> str:
    """A value of `--root-path`: begins with `/`, does not end with it; empty for `/`.

    Args:
        text: as it was typed.
        page_paths: first parts of the page's own paths, such as `/runs`. A root path that equals one of them could
            not be told from it, since some proxies strip the root path and some do not.

    Raises:
        ServerError: not such a path.
    """
    path = text.strip().rstrip("/")
    if not path:
        return ""
    if not is_root_path(path):
        raise ServerError(
            f"--root-path {text}: not a path of a web address.",
            "Give what the proxy puts before the page's paths: --root-path /user/me/proxy/7860",
        )
    if path in page_paths:
        raise ServerError(
            f"--root-path {path}: the page has a path of that name.", f"Choose another one: /glmtune{path}"
        )
    return path


def is_host_name(text: str) -> bool:
    """Whether a text is a name that `--trusted-host` takes."""
    return _NAME.fullmatch(text) is not None


def is_root_path(text: str) -> bool:
    """Whether a text is a path that `--root-path` takes."""
    return _ROOT_PATH.fullmatch(text) is not None and not {".", ".."} & set(text.split("/"))


def require_password(host: str, password: str | None) -> None:
    """Refuse an open address without a password.

    Raises:
        ServerError: others could reach the page, and no password keeps them out.
    """
    if not is_loopback(host) and not password:
        raise ServerError(
            f"--host {host}: whoever reaches this machine could read and delete files in the roots and start work.",
            "Set a password: GLMTUNE_UI_PASSWORD=... glmtune ui --host ..., or stay on 127.0.0.1.",
        )
