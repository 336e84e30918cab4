"""Packed blocks compute what single rows compute, for every generation."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glmtune
from glmtune.data.batches import Collate, block_mask
from glmtune.data.encoding import EncodedRow
from glmtune.data.packing import pack
from glmtune.families import IGNORE, get_family
from glmtune.training.loss import target_losses
from tiny import FAMILIES

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=200)


@given(LENGTHS)
def test_every_row_lands_in_one_block_and_none_overflows(lengths):
    blocks = pack(lengths, 40)
    assert sorted(row for block in blocks for row in block) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in block) <= 40 for block in blocks)


@given(LENGTHS)
def test_best_fit_keeps_its_bound(lengths):
    fewest = -(-sum(lengths) // 40)
    assert len(pack(lengths, 40)) <= max(len(lengths) and 1, 11 / 9 * max(fewest, _lower_bound(lengths)) + 1)


def _lower_bound(lengths):
    """No two rows of more than half a block share one."""
    return sum(length > 20 for length in lengths)


def test_the_tightest_block_is_taken():
    assert pack([6, 5, 4, 5], 10) == [[0, 2], [1, 3]]
    with pytest.raises(ValueError, match="row 1 has 11 tokens"):
        pack([3, 11], 10)


def test_a_hundred_thousand_rows_take_no_time_to_speak_of():
    lengths = np.random.default_rng(0).integers(20, 400, 100_000)
    blocks = pack(lengths, 1024)
    assert lengths.sum() / (len(blocks) * 1024) > 0.999


def test_a_position_sees_its_own_row_and_no_other():
    segments = torch.tensor([[1, 1, 2, 2, 2, 0]])
    context = torch.tensor([[False, False, True, True, False, False]])
    rows = block_mask(segments, context)[0, 0].int().tolist()
    assert rows == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


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
    losses = target_losses(model, model.get_output_embeddings(), batch)
    losses.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return losses.sum().item(), len(losses), gradients


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_packed_equals_unpacked(name, attention, loaded, seed):
    model, tokenizer = loaded(name, attention)
    family = get_family(name)
    rows = list(enumerate(_rows(name, tokenizer, seed, 7)))
    single = Collate(0, family, packed=False)
    packed = Collate(0, family, packed=True)
    one_by_one = [_losses(model, single([[row]])) for row in rows]
    wanted = sum(loss for loss, _, _ in one_by_one)
    targets = sum(count for _, count, _ in one_by_one)
    gradients = {key: sum(g[key] for _, _, g in one_by_one) for key in one_by_one[0][2]}

    blocks = pack([len(row.input_ids) for _, row in rows], 200)
    shuffled = [[rows[i] for i in reversed(block)] for block in reversed(blocks)]
    for batch in (
        packed([[rows[i] for i in block] for block in blocks]),
        packed(shuffled),
        packed([rows]),
        single([[row] for row in rows]),
    ):
        loss, count, found = _losses(model, batch)
        assert count == targets
        assert loss / count == pytest.approx(wanted / targets, abs=1e-5)
        for key, gradient in gradients.items():
            torch.testing.assert_close(found[key] / count, gradient / targets, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_is_asked_for_targets_only_and_says_the_same(name, loaded):
    model, tokenizer = loaded(name, "sdpa")
    rows = list(enumerate(_rows(name, tokenizer, 1, 3)))
    batch = Collate(0, get_family(name), packed=False)([[row] for row in rows])
    seen = []
    handle = model.get_output_embeddings().register_forward_hook(lambda m, i, o: seen.append(o.shape))
    losses = target_losses(model, model.get_output_embeddings(), batch)
    handle.remove()
    assert seen == [(len(batch["targets"]), model.config.vocab_size)]
    whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    wanted = torch.nn.functional.cross_entropy(whole.transpose(1, 2), labels, ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(losses.sum(), wanted, atol=1e-3, rtol=1e-6)
