"""Rows laid end to end compute what single rows compute, for every generation."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import glmtune
from glmtune.data.batches import BlockCollator, pack_rows
from glmtune.data.encoding import EncodedRow
from glmtune.families import IGNORE_INDEX, get_family
from glmtune.models.packed_attention import make_packed_rows, set_packed_attention
from glmtune.training import loss as loss_module
from glmtune.training.loss import step_loss
from tiny import FAMILIES

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=200)


@given(LENGTHS)
def test_every_row_lands_in_one_block_and_none_overflows(lengths):
    blocks = pack_rows(lengths, 40)
    assert sorted(row for block in blocks for row in block) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in block) <= 40 for block in blocks)


@given(LENGTHS)
def test_best_fit_keeps_its_bound(lengths):
    fewest = -(-sum(lengths) // 40)
    assert len(pack_rows(lengths, 40)) <= max(len(lengths) and 1, 11 / 9 * max(fewest, _lower_bound(lengths)) + 1)


def _lower_bound(lengths):
    """No two rows of more than half a block share one."""
    return sum(length > 20 for length in lengths)


def test_the_tightest_block_is_taken():
    assert pack_rows([6, 5, 4, 5], 10) == [[0, 2], [1, 3]]
    with pytest.raises(ValueError, match="row 1 has 11 tokens"):
        pack_rows([3, 11], 10)


def test_a_hundred_thousand_rows_take_no_time_to_speak_of():
    lengths = np.random.default_rng(0).integers(20, 400, 100_000)
    blocks = pack_rows(lengths, 1024)
    assert lengths.sum() / (len(blocks) * 1024) > 0.999


@pytest.mark.parametrize("single", [True, False])
def test_a_position_sees_its_own_row_and_no_other(single):
    """Whatever the groups, and whether rows are read causally or have a context."""
    lengths, contexts = [3, 17, 1, 20, 40, 2], [0, 5, 1, 0, 40, 2]
    rows = make_packed_rows(lengths, contexts, torch.device("cpu"), single=single)
    assert len(rows.groups) == (6 if single else 3)
    total = sum(lengths)
    positions_1HTD = torch.arange(total, dtype=torch.float32)[None, None, :, None]
    row_T = torch.repeat_interleave(torch.arange(6), torch.tensor(lengths))
    place_T = torch.cat([torch.arange(length) for length in lengths])

    seen = []
    for group in rows.groups:
        keys_Rt = group.select(positions_1HTD)[:, 0, :, 0]
        visible = torch.zeros(len(keys_Rt), group.length, total)
        visible.scatter_add_(
            2,
            keys_Rt.long()[:, None].expand(-1, group.length, -1),
            group.find_mask()[:, 0].expand(len(keys_Rt), -1, -1).float(),
        )
        seen.append(visible[:, :, None])  # R, t, one head, every position
    visible_TT = rows.join(seen)[0, :, 0] > 0
    same = row_T[:, None] == row_T[None]
    context_T = torch.tensor(contexts)[row_T]
    wanted = same & ((place_T[None] <= place_T[:, None]) | (place_T < context_T)[None])
    assert torch.equal(visible_TT, wanted)


@pytest.fixture(scope="module")
def loaded(tiny):
    models = {}

    def get(name, attention):
        if name not in models:
            models[name] = glmtune.load_model(tiny(name)), glmtune.load_tokenizer(tiny(name))
        model, tokenizer = models[name]
        model.set_attn_implementation(attention)
        return model, tokenizer

    return get


def _rows(name, tokenizer, seed, count):
    """Rows of the family's own making, of many lengths."""
    family, rng = get_family(name), random.Random(seed)
    rows = []
    for number in range(count):
        messages = []
        for _ in range(rng.randint(1, 3)):
            messages.append({"role": "user", "content": "问" * rng.randint(0, 9)})
            messages.append(
                {"role": "assistant", "content": "".join(rng.choices("上衣裙裤白色", k=rng.randint(0, 12)))}
            )
        encoded = family.encode(messages, tokenizer)
        if number % 4 == 3:
            encoded = family.encode_text("白色上衣" * rng.randint(1, 4), tokenizer)
        rows.append(EncodedRow(encoded.input_ids, encoded.labels, encoded.context, number, f"x:{number}"))
    return rows


def _losses(model, batch):
    model.zero_grad()
    losses = step_loss(model, batch)
    losses.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return losses.sum().item(), len(losses), gradients


def _plain(model, row):
    """Loss and gradients of a row by itself, as transformers computes them: all logits, no word of rows."""
    model.zero_grad()
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
    targets = torch.tensor(row.labels[1:])
    loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), int((targets != IGNORE_INDEX).sum()), gradients


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_rows_together_equal_rows_alone(name, attention, single, loaded, monkeypatch, seed):
    model, tokenizer = loaded(name, attention)
    family = get_family(name)
    rows = list(enumerate(_rows(name, tokenizer, seed, 7)))
    alone = [_plain(model, row) for _, row in rows]
    wanted = sum(loss for loss, _, _ in alone)
    targets = sum(count for _, count, _ in alone)
    gradients = {key: sum(g[key] for _, _, g in alone) for key in alone[0][2]}

    monkeypatch.setattr(loss_module, "make_packed_rows", lambda *args: make_packed_rows(*args[:3], single))
    set_packed_attention(model)
    collate = BlockCollator(family)
    blocks = pack_rows([len(row.input_ids) for _, row in rows], 200)
    shuffled = [[rows[i] for i in reversed(block)] for block in reversed(blocks)]
    for batch in (
        collate([[rows[i] for i in block] for block in blocks]),
        collate(shuffled),
        collate([[row] for row in rows]),
    ):
        assert batch["input_ids"].shape == (1, sum(len(row.input_ids) for _, row in rows))
        loss, count, found = _losses(model, batch)
        assert count == targets
        assert loss / count == pytest.approx(wanted / targets, abs=1e-5)
        for key, gradient in gradients.items():
            torch.testing.assert_close(found[key] / count, gradient / targets, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_that_would_mix_rows_is_refused(name, loaded):
    model, tokenizer = loaded(name, "sdpa")
    batch = BlockCollator(get_family(name))([list(enumerate(_rows(name, tokenizer, 1, 3)))])
    with pytest.raises(ValueError, match="set_packed_attention"):
        step_loss(model, batch)


def test_flash_attention_finds_the_rows_by_their_positions(loaded):
    _, tokenizer = loaded("chatglm3", "sdpa")
    batch = BlockCollator(get_family("chatglm3"))([list(enumerate(_rows("chatglm3", tokenizer, 1, 3)))])
    flash = SimpleNamespace(config=SimpleNamespace(_attn_implementation="flash_attention_2"))
    inputs = loss_module.select_model_inputs(flash, batch)
    assert "attention_mask" not in inputs  # with one transformers would not keep rows apart
    ends = [0, *batch["row_lengths"].cumsum(0).tolist()]
    assert inputs["cu_seq_lens_q"].tolist() == inputs["cu_seq_lens_k"].tolist() == ends
    assert inputs["cu_seq_lens_q"].dtype is torch.int32
    assert inputs["max_length_q"] == inputs["max_length_k"] == max(batch["row_lengths"].tolist())
    starts = (inputs["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    assert starts == [0, *batch["row_lengths"].cumsum(0)[:-1].tolist()]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_forward_of_the_heads_own_stays(name, loaded):
    model, tokenizer = loaded(name, "sdpa")
    set_packed_attention(model)
    head = model.get_output_embeddings()
    batch = BlockCollator(get_family(name))([list(enumerate(_rows(name, tokenizer, 1, 3)))])
    step_loss(model, batch)
    assert "forward" not in vars(head)
    head.forward = own = head.forward
    step_loss(model, batch)
    assert vars(head).pop("forward") is own


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_generation_does_not_change(name, attention, loaded):
    model, tokenizer = loaded(name, attention)
    row = _rows(name, tokenizer, 2, 1)[0]
    prompt = torch.tensor([row.input_ids[: max(row.context, 5)]])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    before = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
    set_packed_attention(model)
    after = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
    assert torch.equal(before, after)
