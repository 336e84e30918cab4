"""The engine: what transformers' `generate` says, in every way that a reply can end or a model can be held."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache

import glmtune
from glmtune.generation import cpu_prepack
from glmtune.generation.cpu_prepack import (
    PrepackedLinear,
    PrepackedPart,
    pick_format,
    prepack_weights,
    prepacked,
    restore_weights,
)
from glmtune.generation.engine import decode_tokens, pick_greedy
from glmtune.generation.kv_cache import new_preallocated_cache
from glmtune.generation.sampling import Sampling, make_sampler
from glmtune.quantization import kernels
from glmtune.quantization.quantizer import list_packed_layers, pack_model
from tiny import FAMILIES

TEXTS = ["你好", "类型#上衣*材质#牛仔布*颜色#白色", "hello world"]


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    """Prepack the matrices of tiny models too."""
    monkeypatch.setattr(cpu_prepack, "_MIN_ELEMENTS", 0)


@pytest.fixture(scope="module")
def held(tiny):
    made = {}

    def get(family):
        if family not in made:
            folder = tiny(family)
            tokenizer, found = glmtune.load_tokenizer(folder), glmtune.detect_family(folder)
            prompts = [found.encode_prompt([{"role": "user", "content": text}], tokenizer) for text in TEXTS]
            model = glmtune.load_model(folder, dtype="fp32", device="cpu")
            made[family] = model, prompts, found.get_stop_ids(tokenizer), tokenizer.pad_token_id
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
    changed = prepack_weights(model) if in_order else []
    try:
        assert decode_tokens(model, prompts, pick_greedy, max_new_tokens=16, stops=(), padding=padding) == expected
        for prompt, ids in zip(prompts, expected, strict=True):
            assert decode_tokens(model, [prompt], pick_greedy, max_new_tokens=16, stops=(), padding=padding) == [ids]
    finally:
        restore_weights(model, changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_repetition_penalty_is_that_of_transformers_and_blind_to_padding(family, held):
    model, prompts, _, padding = held(family)
    expected = [_generate(model, prompt, max_new_tokens=12, repetition_penalty=1.7) for prompt in prompts]
    choose = make_sampler(Sampling(12, repetition_penalty=1.7), [0] * 3, model.device)
    assert decode_tokens(model, prompts, choose, max_new_tokens=12, stops=(), padding=padding) == expected
    assert expected != [_generate(model, prompt, max_new_tokens=12) for prompt in prompts]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_are_done_leave_and_change_no_other(family, held):
    model, prompts, _, padding = held(family)
    free = decode_tokens(model, prompts, pick_greedy, max_new_tokens=14, stops=(), padding=padding)
    stop = free[0][3]
    sizes, told = [], []

    def choose(ids_BS, logits_BV, rows):
        sizes.append(len(rows))
        return pick_greedy(ids_BS, logits_BV, rows)

    replies = decode_tokens(
        model, prompts, choose, max_new_tokens=14, stops=[stop], padding=padding, on_step=lambda new: told.append(new)
    )
    for reply, whole in zip(replies, free, strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert reply == whole[:end]
    assert sizes[0] == 3 > sizes[-1]
    assert [[new[row] for new in told if row in new] for row in range(3)] == replies


def test_the_cache_holds_what_transformers_cache_holds():
    torch.manual_seed(0)
    ours, theirs = new_preallocated_cache(), DynamicCache()
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
    if pick_format(model.dtype) is None:
        pytest.skip(f"this machine has no order for {dtype}")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    held = dict(model.named_parameters())
    with prepacked(model):
        inside = [module for module in model.modules() if isinstance(module, (PrepackedLinear, PrepackedPart))]
        assert len(inside) > 4
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        with prepacked(model):
            pass
        assert any(isinstance(module, PrepackedLinear) for module in model.modules())
    assert not any(isinstance(module, PrepackedLinear) for module in model.modules())
    after = dict(model.named_parameters())
    assert held.keys() == after.keys()
    assert all(held[name] is after[name] and torch.equal(after[name], before[name]) for name in held)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_arranged_products_are_as_near_as_plain_ones(dtype):
    if pick_format(dtype) is None:
        pytest.skip(f"this machine has no order for {dtype}")
    torch.manual_seed(0)
    linear = torch.nn.Linear(192, 320, dtype=dtype).requires_grad_(False)
    model = torch.nn.Sequential(copy.deepcopy(linear))
    prepack_weights(model)
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
    with prepacked(model):
        assert type(model.lm_head) is type(watched) is type(sharded) is torch.nn.Linear
        assert model.model.layers[0].mlp.down_proj is watched
        assert model.model.layers[1].mlp.down_proj is sharded


def _in_order(model):
    """The layers that lie in another order."""
    packed = [layer for layer in list_packed_layers(model) if layer._prepacked is not None]
    return packed + [module for module in model.modules() if isinstance(module, (PrepackedLinear, PrepackedPart))]


@pytest.fixture(params=[None, 8])
def failing_model(request, tiny, monkeypatch):
    """From an error to a model that raises it when its third layer is arranged."""
    layout = pick_format(torch.float32)
    if layout is None or not kernels.is_int8_exact():
        pytest.skip("this machine has no other order")
    model = glmtune.load_model(tiny("chatglm3"), dtype="fp32", device="cpu")
    calls = []

    def fails_with(error):
        def third(pack, *args):
            calls.append(pack)
            if len(calls) == 3:
                raise error
            return pack(*args)

        pack, pack_int8 = layout.pack, kernels.prepack_int8
        failing = replace(layout, pack=lambda weight, rows: third(pack, weight, rows))
        monkeypatch.setattr(cpu_prepack, "pick_format", lambda dtype: failing)
        monkeypatch.setattr(kernels, "prepack_int8", lambda packed: third(pack_int8, packed))
        return model, calls

    if request.param:
        pack_model(model, request.param)
    return fails_with


@pytest.mark.parametrize("error", [ValueError("broken"), MemoryError(), KeyboardInterrupt()])
def test_an_error_while_arranging_leaves_the_model_as_it_was(error, failing_model):
    model, calls = failing_model(error)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(type(error)):
        prepack_weights(model)
    assert len(calls) == 3
    assert not _in_order(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_memory_for_another_order_the_usual_one_answers(failing_model, held):
    model, calls = failing_model(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"))
    _, prompts, _, padding = held("chatglm3")
    expected = decode_tokens(model, prompts, pick_greedy, max_new_tokens=4, stops=(), padding=padding)
    with prepacked(model):
        assert len(calls) == 3
        assert not _in_order(model)
        assert decode_tokens(model, prompts, pick_greedy, max_new_tokens=4, stops=(), padding=padding) == expected


def test_what_fails_inside_is_not_taken_for_a_lack_of_memory_outside(held):
    model = held("chatglm3")[0]
    with pytest.raises(MemoryError), prepacked(model):
        raise MemoryError
    assert not _in_order(model)


def test_full_training_goes_on_after_answers_in_its_middle(tiny, held):
    _, prompts, _, padding = held("chatglm3")

    def trained(answers):
        torch.manual_seed(0)
        model = glmtune.load_model(tiny("chatglm3"), dtype="fp32", device="cpu").requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        ids = torch.tensor(prompts[1:2])
        for step in range(4):
            model(input_ids=ids, labels=ids).loss.backward()
            if answers:  # after a step, and while gradients add up
                before = {name: value.clone() for name, value in model.state_dict().items()}
                with prepacked(model):
                    assert _in_order(model) or pick_format(torch.float32) is None
                    decode_tokens(model, prompts, pick_greedy, max_new_tokens=3, stops=(), padding=padding)
                assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            if step % 2:
                optimizer.step()
                optimizer.zero_grad()
        return model.state_dict()

    plain, answered = trained(False), trained(True)
    assert all(torch.equal(value, answered[name]) for name, value in plain.items())
    first = glmtune.load_model(tiny("chatglm3"), dtype="fp32", device="cpu").state_dict()
    assert not any(torch.equal(value, first[name]) for name, value in plain.items() if value.ndim == 2)


def test_wide_adapters_are_left_alone_and_what_they_adapt_is_not(tiny):
    if pick_format(torch.float32) is None:
        pytest.skip("this machine has no other order")
    model = glmtune.load_model(tiny("chatglm3"), dtype="fp32", device="cpu")
    model = get_peft_model(model, LoraConfig(r=32, target_modules=["q_proj", "down_proj"])).eval()
    with prepacked(model):
        arranged_names = {name for name, module in model.named_modules() if isinstance(module, PrepackedLinear)}
    assert any(name.endswith("down_proj.base_layer") for name in arranged_names)
    assert any(name.endswith("o_proj") for name in arranged_names)
    assert not any("lora_" in name for name in arranged_names)


def test_half_precision_with_an_infinity_keeps_it():
    linear = torch.nn.Linear(64, 64, dtype=torch.float16)
    model = torch.nn.Sequential(linear, torch.nn.Linear(64, 64, dtype=torch.float16))
    linear.weight.data[3, 5] = float("-inf")
    with prepacked(model):
        assert model[0] is linear
        assert pick_format(torch.float16) is None or isinstance(model[1], PrepackedLinear)
    assert linear.weight[3, 5] == float("-inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_is_exact_to_the_inputs_24_bits(dtype):
    if not kernels.is_int8_exact():
        pytest.skip("this processor's integer products overflow")
    torch.manual_seed(0)
    numbers_OI = torch.randint(-127, 128, (192, 320), dtype=torch.int8)
    scale_O = torch.rand(192) + 0.5
    inputs_MI = torch.randn(5, 320).to(dtype)
    inputs_MI[1, 7] = 900  # an outlier must not cost the others their precision
    inputs_MI[2] = 0
    expected_MO = inputs_MI.double() @ (numbers_OI.double() * scale_O.double()[:, None]).T
    packed = kernels.prepack_int8(numbers_OI)
    product_MO = kernels.multiply_prepacked_int8(inputs_MI, packed, scale_O)
    largest_M1 = inputs_MI.double().abs().amax(1, keepdim=True)
    assert ((product_MO - expected_MO).abs() <= 1e-5 * largest_M1 * 127 * 10).all()
    assert torch.equal(product_MO[2], torch.zeros(192))
    assert torch.equal(kernels.unpack_prepacked_int8(packed), numbers_OI)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_models_answer_the_same_arranged(family, tiny, held):
    model = pack_model(glmtune.load_model(tiny(family), dtype="fp32", device="cpu"), 8)
    _, prompts, _, padding = held(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = decode_tokens(model, prompts, pick_greedy, max_new_tokens=8, stops=(), padding=padding)
    with prepacked(model):
        if kernels.is_int8_exact():
            assert all(layer.weight.numel() == 0 for layer in list_packed_layers(model))
        assert decode_tokens(model, prompts, pick_greedy, max_new_tokens=8, stops=(), padding=padding) == expected
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
