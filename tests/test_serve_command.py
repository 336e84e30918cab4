"""`glmtune serve` as a process: a tiny model behind a socket, asked with the `openai` client and with bare HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from glmtune import load_model, load_tokenizer
from glmtune.config import LoraConfig
from glmtune.families import get_family
from glmtune.generation.json_grammar import START
from glmtune.generation.load import load_for_generation
from glmtune.generation.reply import Sampling, generate_reply
from glmtune.generation.token_constraint import JSON_OBJECT, advance_grammar
from glmtune.methods.base_info import BaseInfo
from glmtune.methods.lora import Lora
from glmtune.models.checkpoints import inspect_checkpoint

pytest.importorskip("fastapi", reason="fastapi is not installed (extra: serve)")
openai = pytest.importorskip("openai", reason="the openai client is not installed (extra: test)")

from fastapi.testclient import TestClient  # noqa: E402

from glmtune.serve.app import make_app  # noqa: E402
from glmtune.serve.model_loading import ServeOptions, load_context  # noqa: E402

KEY = "a-key"
QUESTION = [{"role": "user", "content": "写一段广告"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


class ServerProcess:
    """A server on a free port.

    Args:
        arguments: of `glmtune serve`.
    """

    def __init__(self, *arguments):
        environment = {**os.environ, "GLMTUNE_API_KEY": KEY, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "glmtune", "serve", *map(str, arguments), "--port", "0"]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address, line + self.process.stderr.read()
        self.url = address[0]
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60)

    def read_metric(self, name):
        request = urllib.request.Request(f"{self.url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read().decode()
        return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])


@pytest.fixture(scope="module")
def folder(tiny):
    return tiny("glm4")


@pytest.fixture(scope="module")
def server(folder):
    server = ServerProcess(folder, "--name", "mine", "--max-batch", 4)
    yield server
    server.process.kill()
    server.process.communicate()


def test_the_openai_client_gets_the_reply_of_chat(server, folder):
    loaded = load_for_generation(str(folder), device="cpu")
    expected = generate_reply(
        loaded.model, loaded.tokenizer, loaded.family, QUESTION, sampling=Sampling(max_new_tokens=24)
    ).content
    fields = {"model": "mine", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    reply = server.client.chat.completions.create(**fields)
    assert reply.choices[0].message.content == expected
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    stream = list(server.client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == expected
    assert stream[-1].usage.completion_tokens == reply.usage.completion_tokens
    assert [model.id for model in server.client.models.list()] == ["mine"]
    text = server.client.completions.create(model="mine", prompt="你好", max_tokens=4, extra_body={"ignore_eos": True})
    assert text.usage.completion_tokens == 4


def test_tools_and_log_probabilities(server, folder):
    named = {"type": "function", "function": {"name": "weather"}}
    tokenizer = load_tokenizer(folder)
    braces = {str(tokenizer.convert_tokens_to_ids(brace)): 60 for brace in "{}"}
    fields = {"model": "mine", "messages": QUESTION, "tools": [WEATHER], "tool_choice": named, "temperature": 0}
    reply = server.client.chat.completions.create(
        **fields, max_tokens=8, logit_bias=braces, logprobs=True, top_logprobs=2
    )
    (call,) = reply.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {})
    messages = [*QUESTION, reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    after = server.client.chat.completions.create(model="mine", messages=messages, tools=[WEATHER], max_tokens=2)
    assert after.usage.prompt_tokens > reply.usage.prompt_tokens
    # Cut within the arguments it is no call, and its text is content.
    cut = server.client.chat.completions.create(**fields, max_tokens=1)
    assert cut.choices[0].message.tool_calls is None
    assert cut.choices[0].message.content.startswith("weather")
    tokens = reply.choices[0].logprobs.content
    assert [token.token for token in tokens] == ["{", "}"]
    assert reply.usage.completion_tokens == 3  # and the end
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)


def test_a_json_object_is_one(server, folder):
    tokenizer = load_tokenizer(folder)
    closing = {str(tokenizer.convert_tokens_to_ids("}")): 30}
    fields = {"model": "mine", "messages": QUESTION, "response_format": {"type": "json_object"}, "max_tokens": 60}
    reply = server.client.chat.completions.create(**fields, temperature=1, seed=3, logit_bias=closing, n=4)
    assert [choice.finish_reason for choice in reply.choices] == ["stop"] * 4
    assert all(isinstance(json.loads(choice.message.content), dict) for choice in reply.choices)
    # Without the bias these weights write no end; what they write can become an object.
    reply = server.client.chat.completions.create(**fields, temperature=0)
    state = advance_grammar(JSON_OBJECT, START, reply.choices[0].message.content.encode())
    assert state is not None


def test_errors_are_those_of_the_client(server):
    create = server.client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="mine"):
        create(model="gpt-4o", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="temperature") as info:
        create(model="mine", messages=QUESTION, temperature=3)
    assert info.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as info:
        create(model="mine", messages=QUESTION, max_tokens=10_000)
    assert info.value.code == "context_length_exceeded"
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="other", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_a_client_that_leaves_ends_its_reply(server):
    body = {"model": "mine", "messages": QUESTION, "max_tokens": 400, "ignore_eos": True}
    for stream in (False, True):
        data = json.dumps({**body, "stream": stream}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as connection:
            connection.sendall(head.encode() + data)
            wait_until(lambda: server.read_metric("glmtune_engine_running") == 1)
        start = time.monotonic()
        wait_until(lambda: server.read_metric("glmtune_engine_running") == 0)
        assert time.monotonic() - start < 5


def test_sigterm_answers_what_was_accepted(server):
    replies = []

    def ask():
        stream = server.client.chat.completions.create(
            model="mine", messages=QUESTION, temperature=0, max_tokens=150, stream=True, extra_body={"ignore_eos": True}
        )
        replies.append([chunk.choices[0].finish_reason for chunk in stream][-1])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.read_metric("glmtune_engine_running") >= 2)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert replies == ["length"] * 6
    assert server.process.wait(30) == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{server.url}/health", timeout=5)
    assert "Traceback" not in server.process.stderr.read()


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_adapters_answer_under_their_names_though_their_base_moved(tiny, tmp_path):
    base = tiny("chatglm3")
    torch.manual_seed(0)
    model = load_model(base, device="cpu")
    model = Lora(LoraConfig(rank=2, alpha=32), get_family("chatglm3")).prepare(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.3)
    info = BaseInfo(str(tmp_path / "gone"), inspect_checkpoint(str(base)).fingerprint, "chatglm3")
    Lora(LoraConfig(rank=2, alpha=32), get_family("chatglm3")).save(model, tmp_path / "poet", info)
    expected = {None: load_model(base, device="cpu"), "poet": load_model(base, tmp_path / "poet", device="cpu")}
    context = load_context(ServeOptions(str(base), [f"poet={tmp_path / 'poet'}"], name="base", device="cpu"))
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 12}
    with TestClient(make_app(context), base_url="http://localhost") as client:
        replies = {}
        for name in ("base", "poet"):
            answer = client.post("/v1/chat/completions", json={**body, "model": name}).json()
            replies[name] = answer["choices"][0]["message"]["content"]
    assert replies["base"] != replies["poet"]
    for name, loaded in expected.items():
        reply = generate_reply(
            loaded, context.tokenizer, context.family, QUESTION, sampling=Sampling(max_new_tokens=12)
        )
        assert replies[name or "base"] == reply.content


def test_what_cannot_be_served_is_said_before_a_model_is_loaded(glmtune_command, tmp_path, folder):
    result = glmtune_command("serve", folder, "--port", "0", "--adapter", "no-path")
    assert result.code == 1
    assert "NAME=RUN_OR_ADAPTER" in result.err
    result = glmtune_command("serve", folder, "--port", "0", "--adapter", f"x={folder}")
    assert "has no adapter" in result.err
    result = glmtune_command("serve", folder, "--port", "0", "--api-key", " ")
    assert "--api-key" in result.err
    result = glmtune_command("serve", folder, "--port", "0", "--max-context", "100000")
    assert "Give at most 512" in result.err
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = glmtune_command("serve", tmp_path / "absent", "--port", port)
    assert f"glmtune serve --port {port + 1}" in result.err


def test_without_fastapi_the_extra_is_named(glmtune_command, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "fastapi" else Path())
    result = glmtune_command("serve", folder)
    assert result.code == 1
    assert '[serve]"' in result.err
