"""Batched generation: batches, stops, seeds and memory change nothing that they should not."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from glmtune.errors import ModelError
from glmtune.generation import batched
from glmtune.generation.batched import generate_batched, run_in_batches
from glmtune.generation.load import load_for_generation
from glmtune.generation.reply import Sampling, generate_reply
from tiny import FAMILIES

QUESTIONS = [
    "你好",
    "类型#上衣*材质#牛仔布*颜色#白色",
    "hello world",
    "类型#裙*风格#简约*裙长#长裙*图案#条纹",
    "问",
    "答案是什么？",
]


@pytest.fixture(scope="module")
def opened(tiny):
    made = {}

    def get(family):
        if family not in made:
            made[family] = load_for_generation(str(tiny(family)), device="cpu", dtype="fp32")
        return made[family]

    return get


def _prompts(opened):
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [opened.family.encode_prompt(messages, opened.tokenizer) for messages in asked]


def _run(opened, sampling, **options):
    replies = generate_batched(opened.model, opened.tokenizer, opened.family, _prompts(opened), sampling, **options)
    assert [reply.index for reply in replies] == list(range(len(QUESTIONS)))
    return replies


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_size_changes_no_greedy_reply(family, opened):
    alone = _run(opened(family), Sampling(12), batch_size=1)
    assert _run(opened(family), Sampling(12), batch_size=4) == alone
    assert _run(opened(family), Sampling(12), batch_size=99) == alone
    assert len({tuple(reply.ids) for reply in alone}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_are_those_of_chat(family, opened):
    one = opened(family)
    for question, reply in zip(QUESTIONS, _run(one, Sampling(10), batch_size=3), strict=True):
        asked = [{"role": "user", "content": question}]
        chat = generate_reply(one.model, one.tokenizer, one.family, asked, sampling=Sampling(10))
        assert one.family.parse_reply(reply.text) == chat


@pytest.mark.parametrize("family", FAMILIES)
def test_every_stop_id_ends_a_reply(family, opened, monkeypatch):
    """Whichever of them comes: a row is cut there, its stop id is no part of it, and the others go on."""
    one = opened(family)
    stops = one.family.get_stop_ids(one.tokenizer)
    letters = one.family.encode_prompt([{"role": "user", "content": "ab"}], one.tokenizer)[-3:-1]

    def fake(model, prompts, choose, **options):
        assert set(options["stops"]) == set(stops)
        ends = [[letters[0]] * 2 + [stop] for stop in stops]
        return [ends[row] if row < len(ends) else [letters[0]] * 4 for row in range(len(prompts))]

    monkeypatch.setattr(batched, "decode_tokens", fake)
    replies = sorted(_run(one, Sampling(4), batch_size=6), key=lambda reply: -len(_prompts(one)[reply.index]))
    for reply in replies[: len(stops)]:
        assert (reply.ids, reply.stop, reply.tokens) == ([letters[0]] * 2, "stop", 3)
    for reply in replies[len(stops) :]:
        assert (reply.ids, reply.stop, reply.tokens) == ([letters[0]] * 4, "length", 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_replies_depend_on_their_seed_alone(family, opened):
    sampling = Sampling(8, temperature=0.9, top_p=0.9)
    seeds = [7, 1, 2, 3, 4, 7]
    together = _run(opened(family), sampling, seeds=seeds, batch_size=6)
    assert _run(opened(family), sampling, seeds=seeds, batch_size=2) == together
    assert _run(opened(family), sampling, seeds=[8, 9, 10, 11, 12, 13], batch_size=6) != together
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = opened(family)
    last = generate_batched(one.model, one.tokenizer, one.family, _prompts(one)[4:5], sampling, seeds=[4])
    assert last[0].ids == together[4].ids
    assert torch.equal(torch.get_rng_state(), before), "sampling must leave a training's random numbers alone"


def test_draws_have_the_model_s_probabilities(opened):
    one = opened("chatglm3")
    prompt = _prompts(one)[0]
    with torch.no_grad():
        logits = one.model(input_ids=torch.tensor([prompt])).logits[0, -1].float()
    chances, order = (logits / 2).softmax(-1).sort(descending=True)
    kept = int((chances.cumsum(0) < 0.6).sum()) + 1
    expected = dict(zip(order[:kept].tolist(), (chances[:kept] / chances[:kept].sum()).tolist(), strict=True))
    draws = 1500
    replies = generate_batched(
        *(one.model, one.tokenizer, one.family, [prompt] * draws),
        Sampling(1, temperature=2.0, top_p=0.6),
        batch_size=500,
    )
    stops = one.family.get_stop_ids(one.tokenizer)
    drawn = Counter(reply.ids[0] if reply.ids else stops[0] for reply in replies)
    assert set(drawn) <= set(expected) | {stops[0]}
    for token, chance in list(expected.items())[:5]:
        spread = 4 * (draws * chance * (1 - chance)) ** 0.5 + 1
        assert abs(drawn[token] - draws * chance) < spread


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_halves_the_batch_and_loses_nothing(opened, monkeypatch, error):
    one = opened("chatglm2")
    alone = _run(one, Sampling(6), batch_size=6)
    real, sizes, said, done = batched.decode_tokens, [], [], []

    def small(model, prompts, *arguments, **options):
        sizes.append(len(prompts))
        if len(prompts) > 1:
            raise error
        return real(model, prompts, *arguments, **options)

    monkeypatch.setattr(batched, "decode_tokens", small)
    replies = _run(one, Sampling(6), batch_size=6, warn=said.append, on_done=lambda batch: done.extend(batch))
    assert replies == alone
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    assert len(said) == 1
    assert "6 rows" in said[0]
    assert sorted(reply.index for reply in done) == list(range(6))


def test_no_memory_for_one_row_is_an_error():
    def never(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ModelError, match="Out of memory with a single row"):
        list(run_in_batches([1, 2, 3], 4, never))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def broken(batch):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(run_in_batches([1, 2], 2, broken))
