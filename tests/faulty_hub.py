"""A model hub on this machine that answers as Hugging Face and as ModelScope do, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass
class FaultyHub:
    """Its files and the faults of its answers."""

    files: dict[str, bytes]
    name: str = "THUDM/chatglm3-6b"
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and `Range` header of every request of a file."""
    has_sums: bool = True
    listed_names: dict[str, str] = field(default_factory=dict)
    """Names that are listed in place of the real ones."""
    answer: Callable[[FaultyHub, Any, str, bytes], bool] | None = None
    """Called with the hub, the request's handler, the file's name and content; whether it has answered."""

    def count(self, name: str) -> int:
        """Requests of a file so far, this one included."""
        return sum(path == name for path, _ in self.requests)

    def list_huggingface(self) -> dict[str, Any]:
        """What `/api/models/ID/revision/REVISION?blobs=true` answers."""
        siblings = []
        for path, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": self.listed_names.get(path, path), "size": len(content)}
            if self.has_sums:
                entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                if path.endswith((".bin", ".safetensors", ".model")):
                    digits = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"sha256": digits, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"_id": "1", "id": self.name, "modelId": self.name, "sha": COMMIT, "siblings": siblings, "tags": []}

    def list_modelscope(self) -> dict[str, Any]:
        """What `/api/v1/models/ID/repo/files` answers."""
        files = [{"Name": "folder", "Path": "folder", "Type": "tree", "Size": 0}]
        for path, content in self.files.items():
            digits = hashlib.sha256(content).hexdigest() if self.has_sums else ""
            files.append({"Name": path, "Path": path, "Type": "blob", "Size": len(content), "Sha256": digits})
        return {"Code": 200, "Data": {"Files": files}, "Success": True}


@contextmanager
def run_hub(hub: FaultyHub) -> Iterator[FaultyHub]:
    """Serve a hub during the block; its address is `hub.url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path, query = unquote(parts.path), parse_qs(parts.query)
            if path.startswith("/api/v1/models/"):
                known = path.startswith(f"/api/v1/models/{hub.name}/")
                if not known:
                    send_json(self, {"Code": 404, "Message": "not exists", "Data": None}, 404)
                elif path.endswith("/repo/files"):
                    send_json(self, hub.list_modelscope())
                else:
                    self._send_file(query["FilePath"][0])
            elif path.startswith(f"/api/models/{hub.name}"):
                send_json(self, hub.list_huggingface())
            elif path.startswith(f"/{hub.name}/resolve/{COMMIT}/"):
                self._send_file(path.split(f"/resolve/{COMMIT}/", 1)[1])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _send_file(self, name: str) -> None:
            hub.requests.append((name, self.headers.get("Range", "")))
            content = hub.files[name]
            try:
                if hub.answer is None or not hub.answer(hub, self, name, content):
                    send_range(self, content)
            except (BrokenPipeError, ConnectionResetError):
                pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def send_json(handler: Any, content: Any, code: int = 200) -> None:
    """Answer with JSON."""
    text = json.dumps(content).encode()
    handler.send_response(code)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text)


def read_start(handler: Any) -> int:
    """The first byte that a request asks for."""
    text = handler.headers.get("Range", "")
    return int(text.removeprefix("bytes=").split("-")[0]) if text else 0


def send_range(
    handler: Any,
    content: bytes,
    *,
    end: int | None = None,
    length: int | None = None,
    ranges: bool = True,
    etag: str | None = None,
) -> None:
    """Answer with a file's bytes from where the request asks.

    Args:
        handler: of the request.
        content: of the file.
        end: the connection is dropped before this byte.
        length: what the answer says its length is.
        ranges: False: the whole file, whatever was asked for.
        etag: of the answer.
    """
    start = read_start(handler) if ranges else 0
    body = content[start:end]
    if start and start >= len(content):
        handler.send_response(416)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    if etag:
        handler.send_header("ETag", etag)
    handler.send_header("Content-Length", str(length if length is not None else len(content) - start))
    handler.end_headers()
    handler.wfile.write(body)
    handler.wfile.flush()
    if end is not None or length is not None:
        handler.close_connection = True
        handler.connection.close()
