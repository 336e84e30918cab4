"""Which attention kernel a card takes, and that rows compute on each path what they compute alone."""

from __future__ import annotations

import random
from functools import wraps

import pytest
import torch
import varlen_reference
from torch.nn import functional as F
from torch.nn.attention import varlen
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import glmtune
from glmtune.config import PTuningConfig, load_config
from glmtune.data.batches import BlockCollator
from glmtune.data.encoding import EncodedRow
from glmtune.families import get_family
from glmtune.methods.ptuning import PTuning
from glmtune.models import attention_kernels, packed_attention, varlen_attention
from glmtune.models.attention_kernels import (
    AMPERE,
    EFFICIENT,
    FLASH,
    MATH,
    TURING,
    VARLEN,
    Card,
    attend_sdpa,
    find_card,
    find_kernel,
    make_additive_mask,
    plan_for_card,
    takes_varlen,
)
from glmtune.models.packed_attention import make_packed_rows, set_packed_attention
from glmtune.training.loss import step_loss
from glmtune.training.plan.device import PlanDevice
from glmtune.training.plan.plan_report import format_attention
from glmtune.training.plan.planner import make_plan
from tiny import FAMILIES

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("card", "dtype", "masked", "grouped", "kernel"),
    [
        (AMPERE, BF16, False, True, FLASH),
        (AMPERE, FP16, False, False, FLASH),
        (AMPERE, BF16, True, False, EFFICIENT),
        (AMPERE, BF16, True, True, MATH),
        (AMPERE, FP32, False, False, EFFICIENT),
        (AMPERE, FP32, False, True, MATH),
        (TURING, FP16, False, False, EFFICIENT),
        (TURING, FP16, False, True, MATH),
        (TURING, FP32, True, False, EFFICIENT),
        (TURING, BF16, False, False, MATH),
        (Card((6, 0)), FP16, True, False, EFFICIENT),
        (Card((9, 0), disabled=frozenset({FLASH})), BF16, False, False, EFFICIENT),
        (Card((9, 0), disabled=frozenset({FLASH})), BF16, False, True, MATH),
    ],
)
def test_the_kernel_of_a_card(card, dtype, masked, grouped, kernel):
    assert find_kernel(card, dtype, masked=masked, grouped=grouped) == kernel


@pytest.mark.parametrize(
    ("card", "dtype", "size", "dropout", "expected"),
    [
        (AMPERE, BF16, 128, 0.0, True),
        (AMPERE, FP32, 128, 0.0, False),
        (AMPERE, BF16, 128, 0.1, False),
        (AMPERE, BF16, 12, 0.0, False),
        (TURING, FP16, 128, 0.0, False),
        (None, BF16, 128, 0.0, False),
    ],
)
def test_rows_of_varying_length_need_ampere_and_16_bits(card, dtype, size, dropout, expected):
    with plan_for_card(card):
        assert takes_varlen(torch.zeros(1, 2, 5, size, dtype=dtype), dropout) is expected


def test_autocast_decides_the_dtype():
    with plan_for_card(AMPERE), torch.autocast("cpu", dtype=BF16):
        assert takes_varlen(torch.zeros(1, 2, 5, 64), 0.0)


def _make_glm_attention(heads, groups):
    from transformers import GlmConfig
    from transformers.models.glm.modeling_glm import GlmAttention

    config = GlmConfig(hidden_size=64, num_attention_heads=heads, num_key_value_heads=groups, head_dim=16)
    return GlmAttention(config, 0)


@pytest.mark.parametrize("card", [TURING, AMPERE, None])
@pytest.mark.parametrize("mask", ["none", "bool", "additive", "one for all rows"])
@pytest.mark.parametrize("queries", [1, 6])
@pytest.mark.parametrize(("batch", "dtype"), [(1, FP32), (3, FP32), (2, FP16)])
def test_grouped_queries_on_every_card(card, mask, queries, batch, dtype, monkeypatch):
    """Outputs and gradients of transformers' function, never with grouped queries where they take the math kernel."""
    module, keys = _make_glm_attention(4, 2), 6
    torch.manual_seed(0)
    query = torch.randn(batch, 4, queries, 16, dtype=dtype, requires_grad=True)
    key, value = (torch.randn(batch, 2, keys, 16, dtype=dtype, requires_grad=True) for _ in range(2))
    attention_mask = None
    if mask != "none":
        attention_mask = torch.rand(1 if mask == "one for all rows" else batch, 1, queries, keys) > 0.3
        attention_mask[..., 0] = True
    if mask == "additive":
        attention_mask = make_additive_mask(attention_mask, dtype)
    expected = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=0.3)[0]
    expected_gradients = torch.autograd.grad(expected.square().sum(), (query, key, value))

    calls, sdpa = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append((a, k)) or sdpa(*a, **k))
    with plan_for_card(card) as plan:
        output, weights = attend_sdpa(module, query, key, value, attention_mask, scaling=0.3)
    gradients = torch.autograd.grad(output.square().sum(), (query, key, value))
    assert weights is None
    assert output.is_contiguous()
    tolerances = {"atol": 1e-5, "rtol": 1e-5} if dtype is FP32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(output, expected, **tolerances)
    torch.testing.assert_close(gradients, expected_gradients, **tolerances)
    ((_, options),) = calls
    is_flash = card is AMPERE and dtype is FP16 and mask == "none"
    if card is not None:
        assert plan.kernels == {FLASH if is_flash else EFFICIENT}
    # A CPU's kernel takes groups, but goes through the heads of a single query one by one.
    if (card is not None or queries == 1) and not is_flash:
        assert not options.get("enable_gqa")


def test_keys_and_values_of_a_packed_sequence_are_not_copied(monkeypatch):
    calls, sdpa = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or sdpa(*a, **k))
    key, value = torch.randn(1, 9, 2, 16).transpose(1, 2), torch.randn(1, 2, 9, 16)
    query = torch.randn(1, 9, 4, 16).transpose(1, 2)
    with plan_for_card(TURING):
        attend_sdpa(_make_glm_attention(4, 2), query, key, value, None)
    ((taken_query, taken_key, taken_value),) = calls
    for taken, states in ((taken_query, query), (taken_key, key), (taken_value, value)):
        assert taken.untyped_storage().data_ptr() == states.untyped_storage().data_ptr()
        assert taken.shape == (2, 2, 9, 16)


def test_a_longer_cache_is_cut_to_the_queries():
    """A prompt with a cache of fixed size: its places after the prompt are empty."""
    module, query = _make_glm_attention(4, 2), torch.randn(1, 4, 3, 16)
    key, value = torch.randn(1, 2, 8, 16), torch.randn(1, 2, 8, 16)
    expected = sdpa_attention_forward(module, query, key, value, None)[0]
    with plan_for_card(TURING):
        torch.testing.assert_close(attend_sdpa(module, query, key, value, None)[0], expected)


# --- whether varlen_attn serves on a card ---


def _fail(*args, window_size, scale, enable_gqa):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


def _count_from_the_start(*args, window_size, scale, enable_gqa):
    """An earlier convention: the causal mask of fewer queries than keys counts from the first key."""
    *states, ends_q, ends_k, _, _ = args
    parts = []
    for i in range(len(ends_q) - 1):
        (a, b), (c, d) = ends_q[i : i + 2].tolist(), ends_k[i : i + 2].tolist()
        q, k, v = (x[s] for x, s in zip(states, (slice(a, b), slice(c, d), slice(c, d)), strict=True))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        output = F.scaled_dot_product_attention(q, k, v, is_causal=window_size == (-1, 0), enable_gqa=True)
        parts.append(output[0].transpose(0, 1))
    return torch.cat(parts)


def _forget_gradients(query, key, value, *args, window_size, scale, enable_gqa):
    options = {"window_size": window_size, "scale": scale, "enable_gqa": enable_gqa}
    return varlen_reference.varlen_attn(query, key.detach(), value, *args, **options) + 0 * key.sum()


def _of_torch_2_11(*args, return_aux=None, scale=None, window_size=(-1, -1)):
    return varlen_reference.varlen_attn(*args, scale=scale, window_size=window_size, enable_gqa=True)


def _of_torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    window = (-1, 0) if is_causal else (-1, -1)
    ends = cu_seq_q, cu_seq_k, max_q, max_k
    return varlen_reference.varlen_attn(query, key, value, *ends, window_size=window, enable_gqa=True)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (varlen_reference.varlen_attn, None),
        (_of_torch_2_11, None),
        (_of_torch_2_10, None),
        (_fail, "does not run here (RuntimeError: FlashAttention only supports Ampere"),
        (_count_from_the_start, "gives other numbers on this card"),
        (_forget_gradients, "gives other numbers on this card"),
    ],
)
def test_varlen_attention_is_tried_before_it_is_used(kernel, reason, monkeypatch, capsys):
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    varlen_attention.runs_varlen.cache_clear()
    try:
        assert varlen_attention.runs_varlen(torch.device("cpu")) is (reason is None)
    finally:
        varlen_attention.runs_varlen.cache_clear()
    output = " ".join("".join(capsys.readouterr()).split())
    assert (reason or "") in output
    assert bool(output) is (reason is not None)


def test_kernels_that_were_switched_off_are_not_expected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(attention_kernels, "runs_varlen", lambda device: True)
    device = torch.device("cuda")
    assert find_card(device, try_varlen=True) == Card((8, 6), varlen=True)
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: False)
    assert find_card(device, try_varlen=True) == Card((8, 6), disabled=frozenset({FLASH}))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not find_card(device, try_varlen=True).varlen


# --- rows together, on every path ---


@pytest.fixture(scope="module")
def models(tiny):
    loaded = {}

    def get(name, method):
        if (name, method) not in loaded:
            model = glmtune.load_model(tiny(name))
            if method == "ptuning":
                torch.manual_seed(1)
                model = PTuning(PTuningConfig(5)).prepare(model)
            set_packed_attention(model)
            loaded[name, method] = model
        return loaded[name, method]

    return get


def _make_rows(name, lengths):
    rng, rows = random.Random(0), []
    for number, length in enumerate(lengths):
        ids = [rng.randrange(5, 60) for _ in range(length)]
        context = 0 if name != "chatglm" or number == 1 else max(1, length * 2 // 3)
        rows.append(EncodedRow(ids, [-100, *ids[1:]], context, number, f"x:{number}"))
    return list(enumerate(rows))


def _compute(model, batch):
    model.zero_grad()
    losses = step_loss(model, batch)
    losses.sum().backward()
    return losses.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _compute_alone(model, name, rows):
    collate = BlockCollator(get_family(name))
    results = [_compute(model, collate([[row]])) for row in rows]
    return torch.cat([losses for losses, _ in results]), {n: sum(g[n] for _, g in results) for n in results[0][1]}


@pytest.mark.parametrize("lengths", [(3, 17, 2, 20, 40), (12,)])
@pytest.mark.parametrize("path", ["varlen", "groups"])
@pytest.mark.parametrize("method", ["full", "ptuning"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_together_equal_rows_alone(name, method, path, lengths, models, monkeypatch):
    model, rows = models(name, method), _make_rows(name, lengths)
    losses, gradients = _compute_alone(model, name, rows)
    calls = []
    if path == "varlen":
        monkeypatch.setattr(packed_attention, "takes_varlen", lambda *_: True)
        monkeypatch.setattr(
            varlen,
            "varlen_attn",
            wraps(varlen_reference.varlen_attn)(
                lambda *a, **k: calls.append(1) or varlen_reference.varlen_attn(*a, **k)
            ),
        )
    monkeypatch.setattr("glmtune.training.loss.make_packed_rows", lambda *a: make_packed_rows(*a[:3], False))
    card = TURING if path == "groups" else None
    with plan_for_card(card):
        together, found = _compute(model, BlockCollator(get_family(name))([rows]))
    torch.testing.assert_close(together, losses, atol=2e-5, rtol=0)
    assert found.keys() == gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-4, rtol=1e-4)
    layers = model.config.num_hidden_layers
    assert len(calls) == {"varlen": layers * (2 if name == "chatglm" else 1), "groups": 0}[path]


# --- the memory plan ---


@pytest.fixture
def plan_run(tiny, adgen_file, monkeypatch):
    def make(family, *settings, card=None):
        if card is not None:
            device = PlanDevice("a GPU", 2**34, True, False, 0, 0.0, card)
            monkeypatch.setattr("glmtune.training.plan.planner.pick_device", lambda *_: device)
        options = [f"model.path={tiny(family)}", f"data.train={adgen_file(24)}", "data.max_length=200", *settings]
        return make_plan(load_config(None, options), None if card else "24GB")

    return make


@pytest.mark.parametrize(
    ("family", "settings", "card", "kernel"),
    [
        ("chatglm", ("method=ptuning",), None, VARLEN),
        ("chatglm3", (), None, VARLEN),
        ("chatglm", ("model.precision=fp16",), None, EFFICIENT),
        ("chatglm3", ("training.fp16=true",), None, EFFICIENT),
        ("chatglm3", ("model.precision=fp32",), None, EFFICIENT),
        ("chatglm3", (), Card((7, 5)), MATH),
        ("chatglm3", (), Card((8, 6)), FLASH),  # torch without varlen_attn
        ("chatglm3", ("method=ptuning",), Card((8, 6)), EFFICIENT),
        ("chatglm3", ("model.attention=eager",), None, "eager"),
    ],
)
def test_a_plan_says_the_kernel_of_its_card(family, settings, card, kernel, plan_run):
    plan = plan_run(family, *settings, card=card)
    assert plan.attention == (kernel,)
    assert plan.attention[0] in format_attention(plan)[0]


def test_the_math_kernel_is_planned_with_its_scores(plan_run):
    """In the first layer's forward pass: fp32 scores of all heads, beside those that are computed from them."""
    settings = ("data.packing=false", "training.per_device_train_batch_size=1", "method=full")
    other = plan_run("chatglm3", *settings, card=AMPERE).estimate.parts["activations"]
    plan = plan_run("chatglm3", *settings, card=Card((7, 5)))
    length = plan.largest_batch["positions"]
    assert plan.estimate.parts["activations"] - other > 4 * 4 * length**2
    assert "all scores in fp32" in format_attention(plan)[1]
