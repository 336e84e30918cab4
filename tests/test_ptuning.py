"""P-Tuning v2: the official numbers, whatever the path through the model, and files that both sides read."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from prefixes import KINDS, OFFICIAL, compute_logits, make_prompts, prepare_ptuning, write_published_prefix
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

import glmtune
from glmtune.config import PTuningConfig
from glmtune.data.batches import BlockCollator
from glmtune.data.encoding import EncodedRow
from glmtune.errors import ConfigError
from glmtune.families import get_family
from glmtune.methods.base_info import BaseInfo
from glmtune.methods.method import count_trainable_parameters
from glmtune.methods.prefix_attention import attach_prefix, disable_prefix, find_prefix, remove_prefix
from glmtune.methods.prefix_encoder import PrefixEncoder, PrefixShape, Projection
from glmtune.methods.ptuning import (
    PTuning,
    allow_quantized_training,
    load_prefix,
)
from glmtune.models.packed_attention import set_packed_attention
from glmtune.training.loss import step_loss
from tiny import FAMILIES

EXACT = {"atol": 1e-5, "rtol": 0}
BASE_INFO = BaseInfo("base", "0123456789abcdef", "chatglm2")


@pytest.fixture(scope="module")
def expected(golden):
    return {name: load_file(golden / name / "expected.safetensors") for name in OFFICIAL}


@pytest.fixture
def official(golden, tmp_path):
    """`official(name, kind)`: a folder as the published training scripts write it."""
    return lambda name, kind="plain": write_published_prefix(name, kind, golden, tmp_path / f"official-{name}-{kind}")


def inputs_of(name, expected, kind="single"):
    """Official rows. ChatGLM-6B's derives its mask from the padding, ChatGLM2's pads on the right and needs none."""
    ids = expected[name][f"{kind}_ids"]
    mask = {"attention_mask": (ids != 3).long()} if name == "chatglm" else {}
    return {"input_ids": ids, "labels": expected[name][f"{kind}_labels"], **mask}


def training_rows(name, folder, count=6):
    tokenizer, rng = glmtune.load_tokenizer(folder), random.Random(3)
    rows = []
    for number in range(count):
        messages = [
            {"role": "user", "content": "问" * rng.randint(1, 9)},
            {"role": "assistant", "content": "".join(rng.choices("上衣裙裤白色", k=rng.randint(1, 12)))},
        ]
        row = get_family(name).encode(messages, tokenizer)
        rows.append((number, EncodedRow(row.input_ids, row.labels, row.context, number, f"x:{number}")))
    return rows


def losses_and_gradients(model, batch):
    set_packed_attention(model)
    model.zero_grad()
    losses = step_loss(model, batch)
    losses.sum().backward()
    encoder = find_prefix(model)
    return losses.detach(), {name: p.grad.clone() for name, p in encoder.named_parameters()}


# Numbers of the published code


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_checkpoints_give_the_official_logits_and_losses(name, kind, attention, golden, official, expected):
    model = glmtune.load_model(golden / name)
    model.set_attn_implementation(attention)
    load_prefix(model, official(name, kind))
    for rows, key in (("single", ""), ("batch", "batch_")):
        inputs = inputs_of(name, expected, rows)
        with torch.no_grad():
            output = model(**inputs)
        # The official ChatGLM-6B lets padding see other things than ours; nobody reads those logits.
        real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        wanted = expected[name][f"prefix_{kind}_{key}logits"]
        torch.testing.assert_close(output.logits[real], wanted[real], **EXACT)
        torch.testing.assert_close(output.loss, expected[name][f"prefix_{kind}_{key}loss"], **EXACT)


def test_the_front_door_puts_an_official_checkpoint_onto_its_base(golden, official, expected):
    model = glmtune.load_model(golden / "chatglm2", adapter=official("chatglm2"))
    wanted = expected["chatglm2"]["prefix_plain_logits"]
    torch.testing.assert_close(compute_logits(model, input_ids=expected["chatglm2"]["single_ids"]), wanted, **EXACT)
    assert count_trainable_parameters(model) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OFFICIAL)
def test_fresh_encoders_have_the_official_names_and_shapes(name, kind, golden):
    model = prepare_ptuning(golden / name, tokens=6, projection=kind == "proj")
    wanted = load_file(golden / name / f"prefix_{kind}.safetensors")
    found = PTuning(PTuningConfig()).trained_state(model)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in wanted.items()}


# Paths through the model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointed_layers_give_the_same_loss_and_gradients(name, attention, tiny):
    model = prepare_ptuning(tiny(name), attention, projection=True).train()
    batch = BlockCollator(get_family(name))([[row] for row in training_rows(name, tiny(name))])
    losses, gradients = losses_and_gradients(model, batch)
    calls = []
    model.base_model.layers[0].input_layernorm.register_forward_pre_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable({"use_reentrant": False})
    recomputed = losses_and_gradients(model, batch)
    assert len(calls) == 2  # forward, and again for backward
    torch.testing.assert_close(recomputed[0], losses, atol=1e-6, rtol=0)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    torch.testing.assert_close(recomputed[1], gradients, atol=1e-6, rtol=1e-6)


def test_reentrant_checkpointing_is_refused(tiny):
    model = prepare_ptuning(tiny("chatglm2")).train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ConfigError, match="no gradients"):
        model(input_ids=torch.tensor([[5, 6, 7]]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_equals_unpacked(name, attention, tiny):
    model = prepare_ptuning(tiny(name), attention)
    rows, family = training_rows(name, tiny(name)), get_family(name)
    packed = losses_and_gradients(model, BlockCollator(family)([rows[:4], rows[4:]]))
    single = [losses_and_gradients(model, BlockCollator(family)([[row]])) for row in rows]
    torch.testing.assert_close(packed[0], torch.cat([losses for losses, _ in single]), **EXACT)
    for key, gradient in packed[1].items():
        torch.testing.assert_close(gradient, sum(g[key] for _, g in single), atol=1e-4, rtol=1e-4)
    with disable_prefix(model), torch.no_grad():
        base = step_loss(model, BlockCollator(family)([rows]))
    assert (base - packed[0]).abs().max() > 1e-2  # the prefix is in use


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_generation_is_the_same_with_and_without_cache_alone_and_in_a_batch(name, attention, tiny):
    model = prepare_ptuning(tiny(name), attention)
    singles, batch = make_prompts(name, tiny(name))
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, ids in enumerate(singles):
        cached = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        plain = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
        assert torch.equal(cached, plain)
        assert torch.equal(together[row], cached[0, ids.shape[1] :])
    with disable_prefix(model):
        assert not torch.equal(model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :], together)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefix_is_not_in_the_cache_and_a_cache_of_fixed_size_changes_nothing(name, tiny):
    model = prepare_ptuning(tiny(name))
    _, batch = make_prompts(name, tiny(name))
    cache = model(**batch, use_cache=True).past_key_values
    assert cache.get_seq_length() == batch["input_ids"].shape[1]
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 3}
    fixed = model.generate(**batch, **options, cache_implementation="static", disable_compile=True)
    assert torch.equal(fixed, model.generate(**batch, **options))


def test_several_tokens_after_a_cache_are_causal_without_a_mask(tiny):
    model = prepare_ptuning(tiny("chatglm2"))
    ids = torch.tensor([[9, 8, 7, 6, 5, 4]])
    whole = compute_logits(model, input_ids=ids)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :3], use_cache=True).past_key_values
    torch.testing.assert_close(
        compute_logits(model, input_ids=ids[:, 3:], past_key_values=cache), whole[:, 3:], **EXACT
    )


def test_masks_that_add_and_masks_that_choose_agree(tiny):
    for attention in ("sdpa", "eager"):
        model = prepare_ptuning(tiny("glm4"), attention)
        ids, seen = torch.tensor([[9, 8, 7, 6]]), torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
        added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        wanted = compute_logits(model, input_ids=ids)
        for mask in (seen, added):
            torch.testing.assert_close(compute_logits(model, input_ids=ids, attention_mask=mask), wanted, **EXACT)


# What is trained


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_the_encoder_alone_and_a_few_steps_lower_the_loss(name, tiny):
    model = prepare_ptuning(tiny(name)).train()
    batch = BlockCollator(get_family(name))([training_rows(name, tiny(name))])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    set_packed_attention(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    means = []
    for _ in range(6):
        loss = step_loss(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        means.append(loss.item())
    assert means[-1] < means[0] - 0.02
    assert sum(p.numel() for p in trained) == count_trainable_parameters(find_prefix(model))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{model.base_model_prefix}.prefix_encoder.embedding.weight"}
    assert {key for key, p in model.named_parameters() if p.grad is not None} == changed


@pytest.mark.parametrize("name", FAMILIES)
def test_the_base_comes_back(name, tiny):
    base = glmtune.load_model(tiny(name))
    ids = make_prompts(name, tiny(name), 1)[0][0]
    wanted, names = compute_logits(base, input_ids=ids), set(base.state_dict())
    model = prepare_ptuning(tiny(name))
    tuned = compute_logits(model, input_ids=ids)
    assert (tuned - wanted).abs().max() > 1e-2
    with disable_prefix(model) as bare:
        assert torch.equal(compute_logits(bare, input_ids=ids), wanted)
    assert torch.equal(compute_logits(model, input_ids=ids), tuned)
    encoder = remove_prefix(model)
    assert torch.equal(compute_logits(model, input_ids=ids), wanted)
    assert set(model.state_dict()) == names
    assert model.config._attn_implementation == "sdpa"
    attach_prefix(model, encoder)
    assert torch.equal(compute_logits(model, input_ids=ids), tuned)


def test_dropout_acts_while_training_alone(tiny):
    model = prepare_ptuning(tiny("chatglm3"), dropout=0.5)
    ids = torch.tensor([[9, 8, 7]])
    model.train()
    assert not torch.equal(compute_logits(model, input_ids=ids), compute_logits(model, input_ids=ids))
    model.eval()
    assert torch.equal(compute_logits(model, input_ids=ids), compute_logits(model, input_ids=ids))


def test_a_16_bit_base_has_an_fp32_encoder(tiny):
    ids = torch.tensor([[9, 8, 7, 6]])
    exact = prepare_ptuning(tiny("chatglm2"), projection=True)
    model = prepare_ptuning(tiny("chatglm2"), projection=True, dtype="bf16")
    assert {p.dtype for p in find_prefix(model).parameters()} == {torch.float32}
    assert model.dtype is torch.bfloat16
    output = model(input_ids=ids, labels=ids)
    assert (output.logits.float() - compute_logits(exact, input_ids=ids)).abs().max() < 0.1
    output.loss.backward()
    assert all(p.grad.dtype is torch.float32 and p.grad.abs().max() > 0 for p in find_prefix(model).parameters())


def test_mixed_precision_leaves_the_encoder_in_fp32(tiny):
    encoder = find_prefix(prepare_ptuning(tiny("chatglm"), projection=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(), encoder._encode_prefix())
        mixed = encoder()
    assert torch.equal(mixed, encoder())


def test_what_is_kept_for_generation_follows_the_weights(tiny):
    model = prepare_ptuning(tiny("chatglm2"))
    ids = torch.tensor([[9, 8, 7]])
    before = compute_logits(model, input_ids=ids)
    with torch.no_grad():
        assert find_prefix(model)() is find_prefix(model)()
        find_prefix(model).embedding.weight.mul_(-1)
    assert not torch.equal(compute_logits(model, input_ids=ids), before)


def test_a_copy_has_its_own_prefix(tiny):
    model = prepare_ptuning(tiny("chatglm2"))
    ids = torch.tensor([[9, 8, 7]])
    before = compute_logits(model, input_ids=ids)
    other = copy.deepcopy(model)
    assert torch.equal(compute_logits(other, input_ids=ids), before)
    with torch.no_grad():
        find_prefix(other).embedding.weight.zero_()
    assert torch.equal(compute_logits(model, input_ids=ids), before)
    assert not torch.equal(compute_logits(other, input_ids=ids), before)
    remove_prefix(other)
    assert torch.equal(compute_logits(model, input_ids=ids), before)


# bitsandbytes computes nf4 on the CPU for multiples of 64 alone, which the other model's MLP is not.
@pytest.mark.parametrize(
    ("name", "quantization"), [("chatglm", "nf4"), ("chatglm", "packed4"), ("chatglm2", "packed4")]
)
def test_a_quantised_base_trains_a_prefix(name, quantization, golden, expected):
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    model = prepare_ptuning(golden / name, quantization=quantization).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-2)
    losses = []
    for _ in range(4):
        loss = model(**inputs_of(name, expected, "batch")).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert find_prefix(model).embedding.weight.dtype is torch.float32


def test_the_trainer_takes_a_quantised_base_with_a_prefix(tiny, tmp_path):
    model = prepare_ptuning(tiny("chatglm2"))
    model.is_quantized = True
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="purely quantized"):
        Trainer(model=model, args=arguments)
    with allow_quantized_training(model):
        Trainer(model=model, args=arguments)
    assert not model._hf_peft_config_loaded
    remove_prefix(model)
    with allow_quantized_training(model), pytest.raises(ValueError, match="purely quantized"):
        Trainer(model=model, args=arguments)


# What is refused


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefix_longer_than_the_model_is_refused(name, tiny):
    model = glmtune.load_model(tiny(name))
    with pytest.raises(ConfigError, match="num_virtual_tokens is 513; the model has 512 positions"):
        PTuning(PTuningConfig(513)).prepare(model)
    assert find_prefix(model) is None


def test_attention_that_cannot_take_a_prefix_is_refused(tiny):
    model = glmtune.load_model(tiny("chatglm2"))
    model.config._attn_implementation_internal = "flash_attention_2"  # cannot be chosen without its package
    with pytest.raises(ConfigError, match="flash_attention_2 cannot take a prefix"):
        PTuning(PTuningConfig(5)).prepare(model)
    model = prepare_ptuning(tiny("chatglm2"))
    model.set_attn_implementation("eager")
    with pytest.raises(ConfigError, match="leaves the prefix out"):
        model(input_ids=torch.tensor([[5]]))


def test_the_default_initialisation_is_that_of_an_embedding():
    torch.manual_seed(0)
    encoder = PrefixEncoder(64, PrefixShape(4, 2, 8), Projection(32, 16), 0.1)
    assert abs(encoder.embedding.weight.mean()) < 0.05
    assert abs(encoder.embedding.weight.std() - 1) < 0.05
    prefix = encoder.eval()()
    assert prefix.shape == (4, 2, 2, 64, 8)
    flat = encoder.trans(encoder.embedding.weight)
    assert torch.equal(prefix[3, 1, 0], F.linear(flat, torch.eye(128))[:, 112:120])
