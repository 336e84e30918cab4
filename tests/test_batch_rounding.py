"""Replies in a batch in 16 bits and with bitsandbytes: those of single rows, but where rounding decides."""

from __future__ import annotations

import contextlib
import threading

import pytest

import glmtune
from glmtune.generation.batch_requests import BatchRequest, FinishEvent
from glmtune.generation.continuous import BatchEngine
from tiny import make_tiny

LENGTH = 24
TEXTS = ["你好", "上衣" * 9, "白色牛仔布", "世界" * 20, "衣", "牛仔布上衣白色", "好" * 5, "你好世界" * 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Wide enough for bitsandbytes."""
    return make_tiny("chatglm3", tmp_path_factory.mktemp("wide") / "model", hidden=128)


def answer(engine, prompts):
    """Ids and the likeliest tokens of each step."""
    replies = [([], []) for _ in prompts]
    ends = [threading.Event() for _ in prompts]
    for (ids, tops), end, prompt in zip(replies, ends, prompts, strict=True):

        def on_event(event, ids=ids, tops=tops, end=end):
            if isinstance(event, FinishEvent):
                end.set()
                return
            ids += event.token_ids
            tops += [dict(logprob.top) for logprob in event.logprobs or []]

        engine.submit(BatchRequest(prompt, LENGTH, logprobs=8, ignore_eos=True), on_event)
    assert all(end.wait(30) for end in ends)
    return replies


@pytest.mark.parametrize(
    ("dtype", "quantization", "gap"),
    # In bf16 a logit of 4 to 8 is a multiple of 1/32, and two computations of it differ by a few such steps.
    [("fp32", "nf4", 0.0), ("bf16", None, 0.2), ("bf16", "nf4", 0.2)],
)
def test_only_rounding_distinguishes_a_batch(folder, dtype, quantization, gap):
    tokenizer, family = glmtune.load_tokenizer(folder), glmtune.detect_family(folder)
    model = glmtune.load_model(folder, dtype=dtype, device="cpu", quantization=quantization)
    prompts = [family.encode_prompt([{"role": "user", "content": text}], tokenizer) for text in TEXTS]
    engine = BatchEngine(model, tokenizer, family, max_batch=8, prefix_cache_bytes=0)
    engine.start()
    with contextlib.closing(engine):
        batch = answer(engine, prompts)
        alone = [answer(engine, [prompt])[0] for prompt in prompts]
    same = 0
    for (ids, tops), (single_ids, single_tops) in zip(batch, alone, strict=True):
        for place in range(LENGTH):
            top, single_top = tops[place], single_tops[place]
            common = top.keys() & single_top.keys()
            assert max(abs(top[token] - single_top[token]) for token in common) <= max(gap, 1e-4)
            first, other = ids[place], single_ids[place]
            if first != other:  # nearly equal logits in both; what follows is another text
                assert abs(top[first] - top[other]) <= gap
                assert abs(single_top[first] - single_top[other]) <= gap
                break
        same += ids == single_ids
    assert same == len(TEXTS) if dtype == "fp32" else same > 0
