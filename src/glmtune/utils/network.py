"""Addresses that a server listens on, and the names by which a browser reaches it."""

from __future__ import annotations

import ipaddress
import socket

from glmtune.errors import ServerError
from glmtune.utils.operating_system import claim_address


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def get_hostname(host_header: str) -> str:
    """The name in a request's `Host` header, without the port."""
    return host_header.rsplit(":", 1)[0] if not host_header.endswith("]") else host_header


def parse_content_length(header: str) -> int:
    """The bytes that a request's `Content-Length` header announces; 0 where it is missing or no number."""
    return int(header[:20]) if header.isascii() and header.isdigit() else 0


def format_url(host: str, port: int) -> str:
    """The address of a server as it is typed into a browser."""
    return f"http://[{host}]:{port}" if ":" in host and not host.startswith("[") else f"http://{host}:{port}"


def listen(host: str, port: int, command: str) -> socket.socket:
    """Open a socket that listens.

    Args:
        host: name or address of this machine.
        port: 0: a free one.
        command: that listens, such as `ui`; part of the advice when the port is in use.

    Raises:
        ServerError: the port is in use or not available, or there is no such host.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ServerError(f"--host {host}: {error}.", "Give an address of this machine.") from None
    try:
        claim_address(listener)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ServerError(
            f"{host}:{port}: cannot be listened on ({error.strerror}).",
            f"Choose another port: glmtune {command} --port {port + 1}",
        ) from None
    return listener
