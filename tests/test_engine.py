"""The engine: what transformers' `generate` says, in every way that a reply can end or a model can be held."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

import glmtune
from glmtune.generation.arrange import ArrangedLinear, arrange, arranged, layout_for, restore
from glmtune.generation.cache import roomy_cache
from glmtune.generation.choose import Sampling, chooser
from glmtune.generation.engine import decode, greedy
from glmtune.quantization import kernels
from glmtune.quantization.loading import pack_model, packed_layers
from tiny import FAMILIES

TEXTS = ["你好", "类型#上衣*材质#牛仔布*颜色#白色", "hello world"]


@pytest.fixture(scope="module")
def held(tiny):
    made = {}

    def get(family):
        if family not in made:
            folder = tiny(family)
            tokenizer, found = glmtune.load_tokenizer(folder), glmtune.detect_family(folder)
            prompts = [found.encode_prompt([{"role": "user", "content": text}], tokenizer) for text in TEXTS]
            model = glmtune.load_model(folder, dtype="fp32", device="cpu")
            made[family] = model, prompts, found.stop_ids(tokenizer), tokenizer.pad_token_id
        return made[family]

    return get


def _generate(model, prompt, **options):
    ids = torch.tensor([prompt])
    options = {"eos_token_id": None, "do_sample": False, **options}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("in_order", [False, True])
def test_greedy_replies_are_those_of_transformers(family, in_order, held):
    model, prompts, _, padding = held(family)
    expected = [_generate(model, prompt, max_new_tokens=16) for prompt in prompts]
    changed = arrange(model) if in_order else []
    try:
        assert decode(model, prompts, greedy, max_new_tokens=16, stops=(), padding=padding) == expected
        for prompt, ids in zip(prompts, expected, strict=True):
            assert decode(model, [prompt], greedy, max_new_tokens=16, stops=(), padding=padding) == [ids]
    finally:
        restore(model, changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_repetition_penalty_is_that_of_transformers_and_blind_to_padding(family, held):
    model, prompts, _, padding = held(family)
    expected = [_generate(model, prompt, max_new_tokens=12, repetition_penalty=1.7) for prompt in prompts]
    choose = chooser(Sampling(12, repetition_penalty=1.7), [0] * 3, model.device)
    assert decode(model, prompts, choose, max_new_tokens=12, stops=(), padding=padding) == expected
    assert expected != [_generate(model, prompt, max_new_tokens=12) for prompt in prompts]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_done_leave_and_change_no_other(family, held):
    model, prompts, _, padding = held(family)
    free = decode(model, prompts, greedy, max_new_tokens=14, stops=(), padding=padding)
    stop = free[0][3]
    sizes, told = [], []

    def choose(ids_BS, logits_BV, rows):
        sizes.append(len(rows))
        return greedy(ids_BS, logits_BV, rows)

    replies = decode(
        model, prompts, choose, max_new_tokens=14, stops=[stop], padding=padding, on_step=lambda new: told.append(new)
    )
    for reply, whole in zip(replies, free, strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert reply == whole[:end]
    assert sizes[0] == 3 > sizes[-1]
    assert [[new[row] for new in told if row in new] for row in range(3)] == replies


def test_the_cache_holds_what_transformers_cache_holds():
    torch.manual_seed(0)
    ours, theirs = roomy_cache(), DynamicCache()
    for step in (300, 1, 1, 260, 1):
        pair = torch.randn(3, 2, step, 8), torch.randn(3, 2, step, 8)
        for got, expected in zip(ours.update(*pair, 0), theirs.update(*pair, 0), strict=True):
            assert torch.equal(got, expected)
        if step == 260:
            ours.batch_select_indices(torch.tensor([2, 0]))
            theirs.batch_select_indices(torch.tensor([2, 0]))
        if ours.get_seq_length() == 562:
            pair = torch.randn(2, 2, 1, 8), torch.randn(2, 2, 1, 8)
            assert torch.equal(ours.update(*pair, 0)[1], theirs.update(*pair, 0)[1])
            break
    assert ours.get_seq_length() == theirs.get_seq_length() == 563


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_weights_come_back_bit_for_bit(dtype, tiny):
    model = glmtune.load_model(tiny("chatglm3"), dtype=dtype, device="cpu")
    if layout_for(model.dtype) is None:
        pytest.skip(f"this machine has no order for {dtype}")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    held = dict(model.named_parameters())
    with arranged(model):
        inside = [module for module in model.modules() if isinstance(module, ArrangedLinear)]
        assert len(inside) > 4
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        with arranged(model):
            pass
        assert any(isinstance(module, ArrangedLinear) for module in model.modules())
    assert not any(isinstance(module, ArrangedLinear) for module in model.modules())
    after = dict(model.named_parameters())
    assert held.keys() == after.keys()
    assert all(held[name] is after[name] and torch.equal(after[name], before[name]) for name in held)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_arranged_products_are_as_near_as_plain_ones(dtype):
    if layout_for(dtype) is None:
        pytest.skip(f"this machine has no order for {dtype}")
    torch.manual_seed(0)
    linear = torch.nn.Linear(192, 320, dtype=dtype).requires_grad_(False)
    model = torch.nn.Sequential(copy.deepcopy(linear))
    arrange(model)
    for rows in (1, 3, 70):
        inputs = torch.randn(rows, 192).to(dtype)
        exact = inputs.double() @ linear.weight.double().T + linear.bias.double()
        off = (model(inputs).double() - exact).abs().max()
        assert off <= 1.5 * (linear(inputs).double() - exact).abs().max() + 1e-6


def test_what_others_share_or_watch_is_left_alone(tiny):
    model = glmtune.load_model(tiny("chatglm3"), dtype="fp32", device="cpu")
    model.lm_head.weight = model.model.embed_tokens.weight
    watched = model.model.layers[0].mlp.down_proj
    watched.register_forward_hook(lambda *_: None)
    flat = torch.zeros(2 * model.model.layers[1].mlp.down_proj.weight.numel())
    sharded = model.model.layers[1].mlp.down_proj
    sharded.weight.data = flat[: sharded.weight.numel()].view_as(sharded.weight)
    with arranged(model):
        assert type(model.lm_head) is type(watched) is type(sharded) is torch.nn.Linear
        assert model.model.layers[0].mlp.down_proj is watched
        assert model.model.layers[1].mlp.down_proj is sharded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_is_exact_to_the_inputs_24_bits(dtype):
    if not kernels.int8_is_exact():
        pytest.skip("this processor's integer products overflow")
    torch.manual_seed(0)
    numbers_OI = torch.randint(-127, 128, (192, 320), dtype=torch.int8)
    scale_O = torch.rand(192) + 0.5
    inputs_MI = torch.randn(5, 320).to(dtype)
    inputs_MI[1, 7] = 900  # an outlier must not cost the others their precision
    inputs_MI[2] = 0
    expected_MO = inputs_MI.double() @ (numbers_OI.double() * scale_O.double()[:, None]).T
    packed = kernels.arrange_int8(numbers_OI)
    product_MO = kernels.multiply_arranged_int8(inputs_MI, packed, scale_O)
    largest_M1 = inputs_MI.double().abs().amax(1, keepdim=True)
    assert ((product_MO - expected_MO).abs() <= 1e-5 * largest_M1 * 127 * 10).all()
    assert torch.equal(product_MO[2], torch.zeros(192))
    assert torch.equal(kernels.restore_int8(packed), numbers_OI)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_models_answer_the_same_arranged(family, tiny, held):
    model = pack_model(glmtune.load_model(tiny(family), dtype="fp32", device="cpu"), 8)
    _, prompts, _, padding = held(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = decode(model, prompts, greedy, max_new_tokens=8, stops=(), padding=padding)
    with arranged(model):
        if kernels.int8_is_exact():
            assert all(layer.weight.numel() == 0 for layer in packed_layers(model))
        assert decode(model, prompts, greedy, max_new_tokens=8, stops=(), padding=padding) == expected
        assert torch.equal(
            model.state_dict()[next(n for n in before if n.endswith("_scale"))].isnan().any(), torch.tensor(False)
        )
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
