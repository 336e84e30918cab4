"""The routes of `glmtune serve`, with an engine that answers what a test says."""

from __future__ import annotations

import asyncio
import json
import time

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (extra: serve)")

from fastapi.testclient import TestClient

from fake_engine import FakeEngine
from glmtune import detect_family, load_tokenizer
from glmtune.serve.app import make_app
from glmtune.serve.context import ServeContext, ServedModel, ServeLimits
from glmtune.serve.request_guard import AccessRules

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALLS = {
    "chatglm3": "get_weather\n```python\ntool_call(city='北京', days=2)\n```",
    "glm4": 'get_weather\n{"city": "北京", "days": 2}',
}


@pytest.fixture(scope="module")
def parts(tiny):
    folders = {name: tiny(name) for name in ("chatglm", "chatglm2", "chatglm3", "glm4")}
    return {name: (load_tokenizer(folder), detect_family(folder)) for name, folder in folders.items()}


@pytest.fixture
def server(parts):
    """`server(family, engine, rules=..., limits=...)`: a client of the routes."""
    clients = []

    def start(family="glm4", engine=None, rules=None, limits=None, **options):
        tokenizer, detected = parts[family]
        engine = engine or FakeEngine()
        models = [ServedModel("base"), ServedModel("poet", "poet", prefix="诗：")]
        context = ServeContext(engine, tokenizer, detected, models, limits or ServeLimits(4096))
        app = make_app(context, rules, **options)
        client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        client.engine, client.context = engine, context
        clients.append(client)
        return client.__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


def ask(client, **fields):
    return client.post(CHAT, json={"model": "base", "messages": [{"role": "user", "content": "你好"}], **fields})


def read_stream(response):
    """The values of a stream's events, after which it has to be complete."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def require_error(response, status, param=None, code=None, match=""):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param
    assert code is None or error["code"] == code
    assert match in error["message"]
    return error


def test_a_chat_completion_has_openais_form(server, parts):
    client = server()
    reply = ask(client, temperature=0, max_tokens=20).json()
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "base"
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": "你好！", "refusal": None}
    assert choice["finish_reason"] == "stop"
    tokenizer, family = parts["glm4"]
    prompt = family.encode_prompt([{"role": "user", "content": "你好"}], tokenizer)
    (request,) = client.engine.requests
    assert request.input_ids == prompt
    assert (request.temperature, request.max_new_tokens, request.adapter) == (0, 20, None)
    usage = reply["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
        len(prompt),
        3,
        len(prompt) + 3,
    )


def test_an_adapter_answers_under_its_name_with_its_prefix(server, parts):
    client = server()
    assert ask(client, model="poet").status_code == 200
    tokenizer, family = parts["glm4"]
    (request,) = client.engine.requests
    assert request.adapter == "poet"
    assert request.input_ids == family.encode_prompt([{"role": "user", "content": "诗：你好"}], tokenizer)
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == ["base", "poet"]
    assert client.get("/v1/models/poet").json()["id"] == "poet"
    require_error(ask(client, model="gpt-4"), 404, "model", "model_not_found", "base, poet")
    require_error(client.get("/v1/models/gpt-4"), 404, code="model_not_found")


def test_a_stream_has_the_same_content_and_its_usage(server):
    client = server(engine=FakeEngine(["\n", "你", "", "好 ", " 吗", "\n\n"]))
    whole = ask(client).json()["choices"][0]["message"]["content"]
    chunks = read_stream(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    content = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
    assert content == whole == "你好  吗"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]][-2:] == [None, "stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_sampling_fields_reach_the_engine(server):
    client = server()
    fields = {
        **{"n": 3, "seed": 5, "temperature": 0.5, "top_p": 0.25, "presence_penalty": 1, "frequency_penalty": -1.5},
        **{"stop": ["a", "b"], "logit_bias": {"7": -100}, "max_completion_tokens": 9, "top_k": 4},
        **{"repetition_penalty": 1.1, "ignore_eos": True},
    }
    reply = ask(client, **fields).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert [request.seed for request in client.engine.requests] == [5, 6, 7]
    request = client.engine.requests[0]
    assert (request.temperature, request.top_p, request.top_k) == (0.5, 0.25, 4)
    assert (request.presence_penalty, request.frequency_penalty, request.repetition_penalty) == (1, -1.5, 1.1)
    assert (request.stop, request.logit_bias, request.max_new_tokens) == (["a", "b"], {7: -100}, 9)
    assert request.ignore_eos
    # Usage counts the prompt once.
    assert reply["usage"]["prompt_tokens"] == len(request.input_ids)
    assert reply["usage"]["completion_tokens"] == 9


def test_without_a_limit_the_reply_may_fill_the_context_window(server):
    client = server()
    ask(client, stop="。")
    (request,) = client.engine.requests
    assert request.max_new_tokens == 4096 - len(request.input_ids)
    assert (request.temperature, request.top_p, request.stop) == (1.0, 1.0, ["。"])


def test_logprobs_name_tokens_and_bytes(server, parts):
    client = server("chatglm3")
    content = ask(client, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 3
    assert [token["logprob"] for token in content] == [-0.5] * 3
    assert len(content[0]["top_logprobs"]) == 2
    assert all(bytes(token["bytes"]).decode("utf-8", "replace") == token["token"] for token in content)
    chunks = read_stream(ask(client, stream=True, logprobs=True))
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert sum(len(logprobs["content"]) for logprobs in streamed) == 3
    assert client.engine.requests[-1].logprobs == 0
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "你好！"


@pytest.mark.parametrize("family", ["chatglm", "chatglm2", "chatglm3", "glm4"])
def test_the_bytes_of_tokens_together_are_the_text(parts, family):
    from glmtune.families.family import tokenize_text
    from glmtune.models.tokenizers.token_bytes import get_token_bytes

    tokenizer, _ = parts[family]
    text = "你好, hello 🙂 ok"
    ids = tokenize_text(tokenizer, text)
    assert b"".join(get_token_bytes(tokenizer, token) for token in ids).decode().strip() == text


@pytest.mark.parametrize(
    ("fields", "param", "match"),
    [
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"temperature": -0.1}, "temperature", ""),
        ({"top_p": 0}, "top_p", ""),
        ({"top_p": 1.5}, "top_p", ""),
        ({"n": 0}, "n", ""),
        ({"n": 1000}, "n", ""),
        ({"n": True}, "n", ""),
        ({"max_tokens": 0}, "max_tokens", ""),
        ({"max_tokens": 1.5}, "max_tokens", ""),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ"),
        ({"seed": "x"}, "seed", ""),
        ({"stop": ["a", 5]}, None, "stop"),
        ({"stop": ""}, "stop", ""),
        ({"stop": ["x"] * 99}, "stop", ""),
        ({"logit_bias": {"a": 1}}, "logit_bias", "'a' is not a token id"),
        ({"logit_bias": {"7": 101}}, "logit_bias", ""),
        ({"logit_bias": {"99999": 1}}, None, "99999"),
        ({"presence_penalty": 3}, "presence_penalty", ""),
        ({"stream": "yes"}, "stream", ""),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"stream": True, "stream_options": {"include": 1}}, "stream_options", "include"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ""),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"messages": []}, "messages", ""),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": ["hi"]}, "messages[0]", ""),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", '"robot"'),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "null"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", ""),
        ({"messages": [{"role": "user", "content": "x", "loss": False}]}, "messages[0].loss", "loss"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "messages", "last"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}, "messages", "without a call"),
        ({"temprature": 0}, "temprature", "Did you mean temperature?"),
        ({"audio": {}}, "audio", "no audio"),
        ({"modalities": ["audio"]}, "modalities[0]", ""),
        ({"model": 5}, "model", ""),
        ({"model": None}, "model", "missing"),
    ],
)
def test_a_wrong_field_is_named(server, fields, param, match):
    client = server()
    require_error(ask(client, **fields), 400, param, match=match)
    assert not client.engine.requests


def test_parts_of_text_are_read_and_others_refused_by_name(server):
    client = server()
    parts = [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]
    assert ask(client, messages=[{"role": "user", "content": parts}]).status_code == 200
    assert ask(client).status_code == 200
    first, second = client.engine.requests
    assert first.input_ids == second.input_ids
    image = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    message = {"role": "user", "content": [*parts, image]}
    require_error(ask(client, messages=[message]), 400, "messages[0].content[2]", match='"image_url"')


def test_keys_without_effect_are_named_and_null_is_not_given(server):
    client = server()
    response = ask(client, user="me", store=True, temperature=None, tools=None, parallel_tool_calls=False)
    assert response.status_code == 200
    assert response.headers["warning"] == '299 glmtune "no effect: user, store"'
    message = {"role": "user", "content": "hi", "name": "Li"}
    assert "messages.name" in ask(client, messages=[message], stream=True).headers["warning"]
    assert "warning" not in ask(client).headers


@pytest.mark.parametrize(
    ("body", "status", "match"),
    [
        (b"{", 400, "not valid JSON"),
        (b"", 400, "not valid JSON"),
        (b"[1]", 400, "JSON object"),
        (b"\xff\xfe", 400, "UTF-8"),
        (b"[" * 100_000, 400, "nested"),
        (b'{"a": ' + b"9" * 9999 + b"}", 400, "digits"),
        (b'{"model": "base", "messages": [{"role": "user", "content": "\\ud800"}]}', 200, ""),
    ],
)
def test_a_malformed_body_is_answered(server, body, status, match):
    response = server().post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert status == 200 or match in response.json()["error"]["message"]


def test_other_content_types_are_refused(server):
    body = json.dumps({"model": "base", "messages": [{"role": "user", "content": "x"}]})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        require_error(server().post(CHAT, content=body, headers={"content-type": kind}), 415, match="Content-Type")


def test_what_does_not_fit_is_refused_as_openai_does(server):
    client = server(limits=ServeLimits(64))
    require_error(ask(client, messages=[{"role": "user", "content": "长" * 60}]), 400, code="context_length_exceeded")
    require_error(ask(client, max_tokens=64), 400, code="context_length_exceeded", match="64 tokens")
    huge = [{"role": "user", "content": "长" * 64 * 300}]
    require_error(ask(client, messages=huge), 400, code="context_length_exceeded", match="characters")
    assert ask(client, max_tokens=8).status_code == 200


def test_a_full_queue_is_answered_with_429_and_nothing_is_left_running(server):
    client = server()
    client.engine.max_requests = 2
    client.engine.is_waiting = True
    response = ask(client, n=3)
    require_error(response, 429, code="queue_full")
    assert int(response.headers["retry-after"]) > 0
    assert len(client.engine.cancelled) == 2


def test_a_failed_reply_is_an_error_and_harms_no_other(server):
    client = server(engine=FakeEngine(reason="error"))
    require_error(ask(client), 500, match="out of memory")
    chunks = read_stream(ask(client, stream=True))
    assert chunks[-1]["error"]["message"] == "out of memory"
    client.engine.error = RuntimeError("a bug")
    error = require_error(ask(client), 500, code="internal_error")
    assert "a bug" not in error["message"]
    client.engine.error, client.engine.reason = None, "stop"
    assert ask(client).status_code == 200


def test_a_reply_that_takes_too_long_is_cancelled(server):
    client = server(limits=ServeLimits(512, request_timeout_s=0.2))
    client.engine.is_waiting = True
    require_error(ask(client), 504, code="timeout")
    assert read_stream(ask(client, stream=True))[-1]["error"]["code"] == "timeout"
    assert len(client.engine.cancelled) == 2


def test_a_stream_that_waits_is_kept_open_by_comments(server, monkeypatch):
    monkeypatch.setattr("glmtune.serve.http_messages._COMMENT_INTERVAL_S", 0.05)
    client = server(limits=ServeLimits(512, request_timeout_s=0.3))
    client.engine.is_waiting = True
    assert ": waiting\n\n" in ask(client, stream=True).text


def test_a_large_body_is_refused(server):
    client = server(limits=ServeLimits(512, body_bytes=1000))
    require_error(ask(client, messages=[{"role": "user", "content": "x" * 1000}]), 413)

    def send_pieces():
        for _ in range(50):
            yield b" " * 100

    response = client.post(CHAT, content=send_pieces(), headers={"content-type": "application/json"})
    require_error(response, 413)


def test_a_body_that_comes_too_slowly_is_refused(server):
    client = server(limits=ServeLimits(512, body_timeout_s=0.1))
    sent = []

    async def receive():
        await asyncio.sleep(5)

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"10")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b"", "root_path": ""}
    asyncio.run(asyncio.wait_for(client.app(scope, receive, send), 3))
    assert sent[0]["status"] == 408


def test_unknown_routes_and_methods_have_openais_form(server):
    client = server()
    require_error(client.get("/v1/unknown"), 404)
    require_error(client.get(CHAT), 405)
    for path in ("/docs", "/openapi.json", "/redoc", "/../../etc/passwd", "/static/..%2f..%2fetc/passwd"):
        require_error(client.get(path), 404)
    assert server(has_docs=True).get("/openapi.json").json()["paths"].keys() >= {CHAT, "/v1/completions"}


@pytest.mark.parametrize("family", ["chatglm3", "glm4"])
def test_a_call_of_a_tool_has_json_arguments(server, family):
    text = CALLS[family]
    client = server(family, FakeEngine([text[:5], text[5:20], text[20:]]))
    choice = ask(client, tools=[WEATHER]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call.keys() == {"id", "type", "function"}
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "北京", "days": 2}

    chunks = read_stream(ask(client, tools=[WEATHER], stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert not any(delta.get("content") for delta in deltas)
    (call,) = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert call["index"] == 0
    assert json.loads(call["function"]["arguments"]) == {"city": "北京", "days": 2}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    legacy = ask(client, functions=[WEATHER["function"]]).json()["choices"][0]
    assert legacy["finish_reason"] == "function_call"
    assert legacy["message"]["function_call"]["name"] == "get_weather"


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("glm4", 'get_weather\n{"city": }'),
        ("glm4", 'other_tool\n{"city": "北京"}'),
        ("glm4", "get_weather is a tool"),
        ("glm4", "get"),
        ("chatglm3", "get_weather\n```python\ntool_call(city=__import__('os').getcwd())\n```"),
        ("chatglm3", "\nget_weather\n```python\ntool_call(city='x')\n```"),
    ],
)
def test_what_is_no_call_of_an_offered_tool_is_content(server, family, text):
    client = server(family, FakeEngine(list(text)))
    choice = ask(client, tools=[WEATHER]).json()["choices"][0]
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"] == text.strip()
    assert choice["finish_reason"] == "stop"
    chunks = read_stream(ask(client, tools=[WEATHER], stream=True))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text.strip()


@pytest.mark.parametrize("family", ["chatglm3", "glm4"])
def test_results_come_back_in_the_form_of_training(server, parts, family):
    calls = [
        {"id": name, "type": "function", "function": {"name": "get_weather", "arguments": json.dumps({"city": name})}}
        for name in ("a", "b")
    ]
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None},
        {"role": "tool", "tool_call_id": "b", "content": "rain"},
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
    ]
    client = server(family)
    assert ask(client, messages=messages, tools=[WEATHER]).status_code == 200
    tokenizer, detected = parts[family]
    expected = [
        {"role": "user", "content": "weather?"},
        {"role": "tool", "name": "get_weather", "parameters": {"city": "a"}, "observation": "sun"},
        {"role": "tool", "name": "get_weather", "parameters": {"city": "b"}, "observation": "rain"},
    ]
    assert client.engine.requests[0].input_ids == detected.encode_prompt(expected, tokenizer, [WEATHER])
    older = [
        messages[0],
        {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": '{"city": "a"}'}},
        {"role": "function", "name": "get_weather", "content": "sun"},
    ]
    assert ask(client, messages=older, functions=[WEATHER["function"]]).status_code == 200
    expected = detected.encode_prompt(expected[:2], tokenizer, [WEATHER["function"]])
    assert client.engine.requests[-1].input_ids == expected
    require_error(ask(client, messages=messages[:2], tools=[WEATHER]), 400, "messages", match="no result")
    require_error(ask(client, messages=messages[:3], tools=[WEATHER]), 400, "messages", match="no result")


def test_a_choice_of_a_tool_is_kept(server, parts):
    tokenizer, family = parts["glm4"]
    client = server(engine=FakeEngine(['{"city": "北京"}']))
    named = {"type": "function", "function": {"name": "get_weather"}}
    other = {"type": "function", "function": {"name": "other"}}
    for choice in (named, "required"):
        reply = ask(client, tools=[WEATHER], tool_choice=choice).json()["choices"][0]
        assert reply["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
        # The prompt ends with the name, so that the model can only write the arguments.
        end = family.encode_call_start("get_weather", tokenizer)
        assert client.engine.requests[-1].input_ids[-len(end) :] == end
    ask(client, tools=[WEATHER], tool_choice="none")
    ask(client)
    assert client.engine.requests[-1].input_ids == client.engine.requests[-2].input_ids
    require_error(ask(client, tools=[WEATHER], tool_choice=other), 400, "tool_choice", match="'other'")
    assert client.engine.requests[-3].constraint is not None
    assert client.engine.requests[-1].constraint is None
    require_error(ask(client, tool_choice=named), 400, "tool_choice", match="needs tools")
    require_error(ask(client, tools=[WEATHER, WEATHER]), 400, match="twice")
    require_error(ask(client, tools=[{"type": "retrieval"}]), 400, match='"retrieval"')


@pytest.mark.parametrize("family", ["chatglm3", "glm4"])
def test_a_required_call_names_one_of_the_tools(server, family):
    client = server(family)
    other = {"type": "function", "function": {"name": "get_time"}}
    ask(client, tools=[WEATHER, other], tool_choice="required", n=2)
    table = client.context.get_token_table()
    ends = set()
    for request, name in zip(client.engine.requests, ("get_weather", "get_time"), strict=True):
        text = b""
        while not text.endswith(b"\n"):
            allowed = np.flatnonzero(request.constraint.list_allowed())
            token = next(token for token in allowed if f"{name}\n".encode().startswith(text + table.bytes[token]))
            request.constraint.advance(int(token))
            text += table.bytes[token]
        allowed = request.constraint.list_allowed()
        ends.add(text)
        if family == "glm4":  # then a JSON object
            assert {table.bytes[token].strip()[:1] for token in np.flatnonzero(allowed)} == {b"", b"{"}
        else:
            assert allowed is None
    assert ends == {b"get_weather\n", b"get_time\n"}


def test_a_json_object_is_asked_for(server):
    client = server("chatglm2")
    assert ask(client, response_format={"type": "json_object"}, n=2).status_code == 200
    first, second = (request.constraint for request in client.engine.requests)
    assert first is not second
    allowed = {client.context.get_token_table().bytes[token][:1] for token in np.flatnonzero(first.list_allowed())}
    assert b"{" in allowed
    assert b"[" not in allowed
    tools = ask(client, response_format={"type": "json_object"}, tools=[WEATHER])
    require_error(tools, 400, "response_format", match="tools")
    ask(client, response_format={"type": "text"})
    assert client.engine.requests[-1].constraint is None


def test_a_schema_is_followed(server):
    client = server("chatglm2")
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
    described = {"name": "place", "strict": True, "schema": schema}
    assert ask(client, response_format={"type": "json_schema", "json_schema": described}).status_code == 200
    constraint, table = client.engine.requests[-1].constraint, client.context.get_token_table()
    for byte in b'{"city":"Rome"}':
        token = table.by_bytes[bytes([byte])][0]
        assert constraint.list_allowed()[token]
        constraint.advance(token)
    stops = client.context.family.get_stop_ids(client.context.tokenizer)
    assert np.flatnonzero(constraint.list_allowed()).tolist() == sorted(stops)
    for change, match in (
        ({"schema": {**schema, "maxProperties": 3}}, "schema: maxProperties: this keyword is not supported"),
        ({"schema": {"type": "array"}}, "root"),
        ({"grammar": "x"}, "name, schema and strict"),
    ):
        answer = ask(client, response_format={"type": "json_schema", "json_schema": {**described, **change}})
        require_error(answer, 400, "response_format", match=match)
    other = ask(client, response_format={"type": "json_object", "schema": {}})
    require_error(other, 400, "response_format", match="schema is unknown")


def test_a_generation_without_tools_refuses_them(server):
    for family in ("chatglm", "chatglm2"):
        require_error(ask(server(family), tools=[WEATHER]), 400, match="no format for tools")


def test_text_completions(server, parts):
    client = server("chatglm2")
    reply = client.post("/v1/completions", json={"model": "base", "prompt": ["你好", "x"], "n": 2, "echo": True}).json()
    assert reply["object"] == "text_completion"
    assert [choice["text"] for choice in reply["choices"]] == ["你好你好！", "你好你好！", "x你好！", "x你好！"]
    requests = client.engine.requests
    tokenizer, _ = parts["chatglm2"]
    assert requests[0].input_ids == tokenizer("你好")["input_ids"]
    assert requests[0].max_new_tokens == 16
    assert reply["usage"]["prompt_tokens"] == len(requests[0].input_ids) + len(requests[2].input_ids)
    body = {"model": "base", "prompt": [5, 6], "stream": True, "logprobs": 1, "max_tokens": 3}
    chunks = read_stream(client.post("/v1/completions", json=body))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "你好！"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    offsets = [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks[:-1]]
    assert offsets == [[0], [1], [2]]
    assert requests[-1].input_ids == [5, 6]
    for wrong in ([], [[]], "", 5, ["a", 5]):
        response = client.post("/v1/completions", json={"model": "base", "prompt": wrong})
        # An empty text is the start tokens alone.
        assert response.status_code == (200 if wrong == "" else 400), wrong
    best = client.post("/v1/completions", json={"model": "base", "prompt": "x", "best_of": 1})
    assert best.status_code == 200  # what clients send that change nothing
    for key, value in {"suffix": "x", "best_of": 3, "messages": []}.items():
        response = client.post("/v1/completions", json={"model": "base", "prompt": "x", key: value})
        require_error(response, 400, key)


def test_tokenize(server, parts):
    tokenizer, family = parts["glm4"]
    client = server()
    reply = client.post("/tokenize", json={"prompt": "你好"}).json()
    assert reply == {"count": len(reply["tokens"]), "max_model_len": 4096, "tokens": tokenizer("你好")["input_ids"]}
    messages = [{"role": "user", "content": "你好"}]
    reply = client.post("/tokenize", json={"messages": messages, "model": "base"}).json()
    assert reply["tokens"] == family.encode_prompt(messages, tokenizer)
    require_error(client.post("/tokenize", json={}), 400)


def test_the_contract_of_api_py(server, parts):
    tokenizer, family = parts["chatglm"]
    client = server("chatglm")
    reply = client.post("/", json={"prompt": "再说", "history": [["你好", "好"]]}).json()
    assert reply["response"] == "你好！"
    assert reply["history"] == [["你好", "好"], ["再说", "你好！"]]
    assert reply["status"] == 200
    assert time.strptime(reply["time"], "%Y-%m-%d %H:%M:%S")
    (request,) = client.engine.requests
    messages = [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "好"},
        {"role": "user", "content": "再说"},
    ]
    assert request.input_ids == family.encode_prompt(messages, tokenizer)
    assert (request.top_p, request.temperature) == (0.7, 0.95)
    length = len(request.input_ids) + 5
    client.post("/", json={"prompt": "再说", "history": [["你好", "好"]], "max_length": length, "temperature": 0})
    assert (client.engine.requests[-1].max_new_tokens, client.engine.requests[-1].temperature) == (5, 0)
    # ChatGLM3-6B's chat has messages as its history.
    reply = client.post("/", json={"prompt": "再说", "history": messages[:2]}).json()
    assert reply["history"] == [*messages, {"role": "assistant", "content": "你好！"}]
    require_error(client.post("/", json={"history": []}), 400, "prompt")
    require_error(client.post("/", json={"prompt": "x", "history": [["a"]]}), 400, "history")
    require_error(client.post("/", json={"prompt": "x", "max_length": 2}), 400, code="context_length_exceeded")


def test_the_stream_of_openai_api_py(server):
    """ChatGLM2-6B's clients: the role, pieces of content, an empty delta with the reason, the end."""
    chunks = read_stream(ask(server("chatglm2"), stream=True, max_length=100))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert [delta["content"] for delta in deltas[1:-1]] == ["你", "好", "！"]
    assert deltas[-1] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_key_is_asked_for(server):
    client = server(rules=AccessRules("secret", is_local=False))
    for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "secret"}, {"authorization": "Bearer "}):
        response = client.get("/v1/models", headers=headers)
        require_error(response, 401, code="invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
    for path in ("/metrics", "/unknown", "/openapi.json"):
        assert client.get(path).status_code == 401
    assert client.post("/", json={"prompt": "x"}).status_code == 401
    assert client.get("/health").status_code == 200
    assert client.get("/").status_code == 200


def test_names_of_other_hosts_are_refused(server):
    client = server()
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        assert client.get("/v1/models", headers={"host": host}).status_code == 421
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200
    assert server(rules=AccessRules("secret", is_local=False)).get("/health", headers={"host": "x"}).status_code == 200


def test_other_pages_may_ask_only_if_allowed(server):
    origin = {"origin": "https://example.org"}
    preflight = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    closed, opened = server(), server(cors_origins=["https://example.org"], rules=AccessRules("secret"))
    assert "access-control-allow-origin" not in closed.get("/v1/models", headers=origin).headers
    assert closed.options(CHAT, headers=preflight).status_code == 405
    assert opened.options(CHAT, headers=preflight).headers["access-control-allow-origin"] == "https://example.org"
    refused = opened.get("/v1/models", headers=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://example.org"
    other = opened.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_metrics_and_health(server):
    client = server()
    ask(client)
    ask(client, temperature=9)
    client.get("/no/such/path")
    text = client.get("/metrics").text
    assert 'glmtune_http_requests_total{route="/v1/chat/completions",status="200"} 1' in text
    assert 'glmtune_http_requests_total{route="/v1/chat/completions",status="400"} 1' in text
    assert 'glmtune_http_requests_total{route="other",status="404"} 1' in text
    assert "# TYPE glmtune_engine_generated_tokens_total counter\nglmtune_engine_generated_tokens_total 7" in text
    assert "glmtune_engine_running 1" in text
    assert 'glmtune_time_to_first_token_seconds_bucket{le="+Inf"} 1' in text
    for line in text.splitlines():
        assert line.startswith("#") or float(line.rsplit(" ", 1)[1]) >= 0
    assert client.get("/health").json() == {"status": "ok"}
    client.context.is_draining = True
    assert client.get("/health").status_code == 503
    require_error(ask(client), 503, code="shutting_down")


def test_the_page_needs_no_other_host(server):
    response = server(lang="zh").get("/")
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "http://" not in response.text
    assert "https://" not in response.text
    assert 'id="lang-zh" class="choice" checked' in response.text
    assert response.headers["x-content-type-options"] == "nosniff"
