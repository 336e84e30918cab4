"""A message to a chat group when a job ends: DingTalk, Feishu, WeCom and Slack in their own form, others as JSON."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from glmtune.errors import ServerError
from glmtune.utils.console import print_warning
from glmtune.utils.io import find_json_object
from glmtune.webui.jobs import Job

_TIMEOUT_S = 10
_MAX_ANSWER_BYTES = 2**16
_REPORTED = ("finished", "failed", "stopped")


def check_webhook(url: str) -> str:
    """An address of `--webhook`.

    Raises:
        ServerError: not a web address.
    """
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_address = False
    if not is_address:
        raise ServerError(f"--webhook {url}: not a web address.", "Give the address that the group's robot has.")
    return url


def send_webhook(url: str, job: Job) -> threading.Thread | None:
    """Send a message about a job that has ended, without waiting for the answer; None if it has not.

    Args:
        url: see `check_webhook`.
        job: that ended.
    """
    if job.state not in _REPORTED:
        return None
    body = json.dumps(make_message(url, job), ensure_ascii=False).encode()
    thread = threading.Thread(target=_post, args=(url, body), name="glmtune-webhook", daemon=True)
    thread.start()
    return thread


def make_message(url: str, job: Job) -> dict[str, Any]:
    """The message as the service behind an address takes it.

    Source: the services' documents of custom robots (DingTalk and WeCom `msgtype`, Feishu and Lark `msg_type`, Slack
    `text`). Any other address gets `event`, `kind`, `name`, `state`, `output` and `summary`.
    """
    name = Path(job.output).name if job.output else job.kind
    summary = find_json_object(Path(job.output) / "summary.json") if job.output else None
    line = f"glmtune: {job.kind} {name}: {job.state}"
    host = urlsplit(url).hostname or ""
    if host == "oapi.dingtalk.com" or host == "qyapi.weixin.qq.com":
        return {"msgtype": "text", "text": {"content": line}}
    if host in ("open.feishu.cn", "open.larksuite.com"):
        return {"msg_type": "text", "content": {"text": line}}
    if host == "hooks.slack.com":
        return {"text": line}
    return {
        "event": "job_ended",
        "kind": job.kind,
        "name": name,
        "state": job.state,
        "output": job.output,
        "text": line,
        "summary": summary,
    }


def find_refusal(body: bytes) -> str:
    """What a service says against a message: DingTalk, Feishu and WeCom answer 200 with an error code; empty if
    nothing."""
    try:
        answer = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(answer, dict) or not (answer.get("errcode") or answer.get("code")):
        return ""
    return str(answer.get("errmsg") or answer.get("msg") or answer)[:200]


def _post(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json; charset=utf-8"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            problem = find_refusal(answer.read(_MAX_ANSWER_BYTES))
        if problem:
            print_warning(f"--webhook: the message was refused ({problem}).")
    except (urllib.error.URLError, OSError, ValueError) as error:
        print_warning(f"--webhook: the message was not sent ({error}).")
