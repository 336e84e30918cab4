"""GGUF files on llama.cpp: prompts token for token, greedy replies, adapters, and how far quantisation moves."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from engine_models import (
    DEMO,
    LENGTH,
    MODELS,
    answer_greedily,
    begin_replies,
    compute_next_logprobs,
    drop_stop_ids,
    export,
    load_ours,
    make_adapter,
    make_case,
    make_conversations,
    run_in,
)
from safetensors.torch import load_file, save_file

import glmtune
from conftest import GOLDEN, find_asset
from glmtune.families import get_family
from glmtune.families.family import tokenize_text
from tiny import make_tiny

LARGEST_KL = {"f16": 1e-4, "q8_0": 1e-3, "q4_0": 0.05, "q4_k_m": 0.05}
"""Mean divergence of the next token's distribution from ours, in nats."""


@pytest.fixture(scope="module", params=MODELS)
def case(request, tmp_path_factory):
    return make_case(request.param, tmp_path_factory.mktemp("base") / request.param)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_case(DEMO, tmp_path_factory.mktemp("demo"))


def ask(model, case, out, **options):
    job = {"model": str(model), "prompts": case.prompts, "max_tokens": LENGTH} | options
    return run_in("llamacpp", "llamacpp_worker.py", job, out)


def test_prompts_and_replies_are_ours(case, tmp_path):
    export(case.folder, tmp_path / "gguf", layout="gguf", gguf_type="f32", dtype="fp32")
    texts = [talk[-1]["content"] for talk in case.conversations]
    found = ask(
        tmp_path / "gguf" / "model-f32.gguf", case, tmp_path / "out.json", conversations=case.conversations, texts=texts
    )
    assert found["texts"] == [tokenize_text(case.tokenizer, text) for text in texts]
    assert found["prompts"] == case.prompts
    assert drop_stop_ids(found["replies"], case) == answer_greedily(load_ours(case), case)


def test_an_adapter_beside_its_base(case, tmp_path):
    adapter = make_adapter(case, tmp_path / "adapter")
    export(case.folder, tmp_path / "base", layout="gguf", gguf_type="f32", dtype="fp32")
    export(adapter, tmp_path / "lora", layout="gguf", adapter_only=True)
    found = ask(
        tmp_path / "base" / "model-f32.gguf",
        case,
        tmp_path / "out.json",
        lora=str(tmp_path / "lora" / "adapter.gguf"),
    )
    ours = answer_greedily(load_ours(case, adapter), case)
    assert drop_stop_ids(found["replies"], case) == ours
    assert ours != answer_greedily(load_ours(case), case)


def test_a_merged_adapter(demo, tmp_path):
    adapter = make_adapter(demo, tmp_path / "adapter")
    export(adapter, tmp_path / "gguf", layout="gguf", gguf_type="f32", dtype="fp32")
    found = ask(tmp_path / "gguf" / "model-f32.gguf", demo, tmp_path / "out.json")
    assert drop_stop_ids(found["replies"], demo) == answer_greedily(load_ours(demo, adapter), demo)


@pytest.mark.parametrize("name", ["chatglm3", "glm4"])
def test_calls_of_tools_are_rendered(name, tmp_path):
    """By llama.cpp's own reading of the chat template, which gets arguments as text."""
    case = make_case(name, tmp_path / "base")
    export(case.folder, tmp_path / "gguf", layout="gguf")
    arguments = {"city": "北'京\n", "days": [1, True, None], "more": {"x": 0.5}}
    function = {"name": "get_weather", "arguments": json.dumps(arguments)}
    question = {"role": "user", "content": "天气"}
    sent = [
        question,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "晴"},
    ]
    own = [question, {"role": "tool", "name": "get_weather", "parameters": arguments, "observation": "晴"}]
    job = {"model": str(tmp_path / "gguf" / "model-f16.gguf"), "max_tokens": 1, "conversations": [sent]}
    found = run_in("llamacpp", "llamacpp_worker.py", job, tmp_path / "out.json")
    assert found["prompts"] == [case.family.encode_prompt(own, case.tokenizer)]


@pytest.mark.parametrize("kind", LARGEST_KL)
def test_types_stay_near(kind, demo, tmp_path, capsys):
    """Over the whole vocabulary, amid the replies."""
    if kind == "q4_k_m" and shutil.which("llama-quantize") is None:
        pytest.skip("llama-quantize is not on PATH")
    export(demo.folder, tmp_path / "gguf", layout="gguf", gguf_type=kind)
    model = load_ours(demo)
    replies = answer_greedily(model, demo)
    begun = begin_replies(demo, replies)
    ours = compute_next_logprobs(model, begun)
    file = tmp_path / "gguf" / f"model-{kind}.gguf"
    found = ask(file, demo, tmp_path / "next.json", prompts=begun, max_tokens=1, top=ours.shape[1])
    theirs = torch.full_like(ours, -torch.inf)
    for row, steps in enumerate(found["logprobs"]):
        for token, value in steps[0].items():
            theirs[row, int(token)] = value
    known = torch.isfinite(theirs)  # tokens of probability 0 are not listed
    terms = torch.where(known, ours.exp() * (ours - theirs.where(known, ours)), 0)
    divergence = terms.sum(-1).mean().item()
    written = drop_stop_ids(ask(file, demo, tmp_path / "out.json")["replies"], demo)
    same = sum(a == b for a, b in zip(written, replies, strict=True))
    with capsys.disabled():
        print(f"\n{kind}: KL {divergence:.2e} nats, {same} of {len(replies)} greedy replies are ours")
    assert ours.exp().masked_fill(known, 0).sum(-1).max() < 0.01
    assert divergence <= LARGEST_KL[kind]
    assert same == len(replies) or kind != "f16"


def test_the_published_vocabulary_cuts_as_the_published_tokenizer(tmp_path):
    """llama.cpp's tokenizer with the scores of tokenizer.model, on the golden texts and conversations."""
    vocabulary = find_asset("assets", "chatglm3-6b", "tokenizer.model")
    base, rows = make_tiny("chatglm3", tmp_path / "base"), 65024
    shutil.copyfile(vocabulary, base / "tokenizer.model")
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"padded_vocab_size": rows}), "utf-8")
    state = load_file(base / "model.safetensors")
    for name in ("transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"):
        state[name] = torch.zeros(rows, state[name].shape[1])
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    export(base, tmp_path / "gguf", layout="gguf")
    golden = [json.loads(line) for line in (GOLDEN / "tokenizer.jsonl").read_text("utf-8").splitlines()]
    family, tokenizer, talks = get_family("chatglm3"), glmtune.load_tokenizer(base), make_conversations()
    job = {"model": str(tmp_path / "gguf" / "model-f16.gguf"), "max_tokens": 1}
    job |= {"texts": [row["text"] for row in golden], "conversations": talks}
    found = run_in("llamacpp", "llamacpp_worker.py", job, tmp_path / "out.json")
    assert found["texts"] == [row["chatglm2"] for row in golden]
    assert found["prompts"] == [family.encode_prompt(talk, tokenizer) for talk in talks]
