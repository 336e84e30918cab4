"""ChatGLM-6B against the published code's outputs (tests/golden/chatglm, random weights, fp32), and its behaviour."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmtune.models.chatglm import (
    ChatGLMConfig,
    ChatGLMForCausalLM,
    ChatGLMModel,
    prefix_attention_mask,
    prefix_position_ids,
)
from glmtune.models.chatglm.layers import eager_attention_forward

PAD, MASK, GMASK, SOP, EOP = 3, 300, 301, 304, 305
EXACT = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def expected(golden):
    return load_file(golden / "chatglm" / "expected.safetensors")


@pytest.fixture(scope="module")
def loaded(golden):
    return ChatGLMForCausalLM.from_pretrained(golden / "chatglm", attn_implementation="sdpa").eval()


@pytest.fixture(params=["eager", "sdpa"])
def model(request, loaded):
    """A fresh copy, so that a test may train it."""
    fresh = copy.deepcopy(loaded)
    fresh.set_attn_implementation(request.param)
    return fresh


@pytest.fixture
def sdpa(loaded):
    return copy.deepcopy(loaded)


def mask_of(ids):
    return (ids != PAD).long()


def training_batch(expected):
    ids = expected["batch_ids"]
    return {"input_ids": ids, "attention_mask": mask_of(ids), "labels": expected["batch_labels"]}


def left_batch(expected):
    return {"input_ids": expected["left_ids"], "attention_mask": mask_of(expected["left_ids"])}


def logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


def row(expected, index=0):
    """One prompt of the left-padded batch, without its padding."""
    ids = expected["left_ids"][index]
    return ids[ids != PAD][None]


# Numbers of the published code


def test_single_row_matches_the_published_code(model, expected):
    with torch.no_grad():
        out = model(input_ids=expected["single_ids"], labels=expected["single_labels"])
    torch.testing.assert_close(out.logits, expected["single_logits"], **EXACT)
    torch.testing.assert_close(out.loss, expected["single_loss"], **EXACT)


def test_training_batch_and_gradients_match_the_published_code(model, expected):
    batch = training_batch(expected)
    out = model(**batch)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(out.logits[real], expected["batch_logits"][real], **EXACT)
    torch.testing.assert_close(out.loss, expected["batch_loss"], **EXACT)
    out.loss.backward()
    wanted = {name[5:]: value for name, value in expected.items() if name.startswith("grad.")}
    parameters = dict(model.named_parameters())
    assert len(wanted) == 12
    for name, gradient in wanted.items():
        torch.testing.assert_close(parameters[name].grad, gradient, **EXACT)


def test_left_padded_prompts_and_greedy_tokens_match_the_published_code(model, expected):
    batch = left_batch(expected)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits(model, **batch)[real], expected["left_logits"][real], **EXACT)
    tokens = model.generate(**batch, max_new_tokens=12, do_sample=False)
    assert torch.equal(tokens, expected["left_greedy"])


def test_full_fine_tuning_follows_the_published_losses(model, expected):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        loss = model(**training_batch(expected)).loss
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(torch.stack(losses), expected["sgd_losses"], atol=1e-4, rtol=0)


# Files


def test_save_and_load_keep_names_bytes_and_logits(loaded, expected, golden, tmp_path):
    loaded.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    official = load_file(golden / "chatglm" / "model.safetensors")
    # The rotary frequencies are computed, not stored.
    official = {name: value for name, value in official.items() if "inv_freq" not in name}
    assert saved.keys() == official.keys()
    for name, value in official.items():
        assert torch.equal(saved[name], value), name

    config = json.loads((tmp_path / "config.json").read_text())
    published = json.loads((golden / "chatglm" / "config.json").read_text())
    same = published.keys() - {"architectures", "torch_dtype", "transformers_version"}
    assert {key: config[key] for key in same} == {key: published[key] for key in same}

    again = ChatGLMForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    ids = expected["single_ids"]
    assert torch.equal(logits(again, input_ids=ids), logits(loaded, input_ids=ids))


def test_load_reports_nothing_missing_or_unexpected(golden):
    _, report = ChatGLMForCausalLM.from_pretrained(
        golden / "chatglm", dtype=torch.float16, device_map={"": "cpu"}, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    body, report = ChatGLMModel.from_pretrained(golden / "chatglm", output_loading_info=True)
    assert not report["missing_keys"]
    assert body.layers[0].mlp.dense_4h_to_h.weight.abs().sum() > 0


def test_rotary_frequencies_survive_any_cast(loaded, golden):
    wanted = load_file(golden / "chatglm" / "model.safetensors")["transformer.layers.0.attention.rotary_emb.inv_freq"]
    for cast in (copy.deepcopy(loaded).bfloat16(), copy.deepcopy(loaded).half()):
        bits = cast.transformer.rotary_emb.inv_freq_bits
        assert torch.equal(bits.view(torch.float16).float(), wanted)


# Configuration


def test_configuration_reads_the_published_keys():
    config = ChatGLMConfig(
        **{"bos_token_id": 130004, "eos_token_id": 130005, "mask_token_id": 130000, "gmask_token_id": 130001},
        **{"pad_token_id": 3, "hidden_size": 4096, "inner_hidden_size": 16384, "layernorm_epsilon": 1e-05},
        **{"max_sequence_length": 2048, "num_attention_heads": 32, "num_layers": 28, "vocab_size": 130528},
        **{"position_encoding_2d": True, "torch_dtype": "float16", "use_cache": True, "quantization_bit": 0},
    )
    assert (config.num_hidden_layers, config.intermediate_size, config.max_position_embeddings) == (28, 16384, 2048)
    assert (config.dtype, config.quantization_bit, config.tie_word_embeddings) == (torch.float16, 0, False)
    assert config.to_dict()["num_layers"] == 28
    assert "num_hidden_layers" not in config.to_dict()


def test_early_configuration_without_mask_ids():
    config = ChatGLMConfig(vocab_size=150528, bos_token_id=150004, eos_token_id=150005, pad_token_id=20003)
    assert (config.mask_token_id, config.gmask_token_id) == (150000, 150001)


@pytest.mark.parametrize(
    ("keys", "named"),
    [({"position_encoding_2d": False}, "position_encoding_2d"), ({"hidden_size": 72}, "hidden_size 72")],
)
def test_impossible_configurations_are_refused(keys, named):
    with pytest.raises(ValueError, match=named):
        ChatGLMConfig(**keys)


def test_special_ids_come_from_the_configuration_alone(loaded, expected):
    moved = torch.arange(320)
    for old in (MASK, GMASK, SOP, EOP):
        moved[old], moved[old + 6] = old + 6, old
    config = ChatGLMConfig(
        vocab_size=320, hidden_size=64, num_layers=3, num_attention_heads=4, bos_token_id=SOP + 6, eos_token_id=EOP + 6
    )
    other = ChatGLMForCausalLM(config).eval()
    other.load_state_dict(
        {
            name: value[moved] if name in ("lm_head.weight", "transformer.word_embeddings.weight") else value
            for name, value in loaded.state_dict().items()
        }
    )
    ids = expected["single_ids"]
    torch.testing.assert_close(logits(other, input_ids=moved[ids])[..., moved], logits(loaded, input_ids=ids), **EXACT)


# Positions and masks


def test_positions_of_a_small_row(loaded):
    ids = torch.tensor([[PAD, PAD, 10, 11, GMASK, 12, SOP, 20, EOP, PAD]])
    positions = prefix_position_ids(ids, mask_of(ids), loaded.config)
    assert positions[0, 0, 2:].tolist() == [0, 1, 2, 3, 2, 2, 2, 2]
    assert positions[0, 1].tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3, 3]


def test_mask_of_a_small_row(loaded):
    ids = torch.tensor([[PAD, 10, GMASK, SOP, 20, PAD]])
    visible = prefix_attention_mask(ids, mask_of(ids), loaded.config)
    assert visible.shape == (1, 1, 6, 6)
    assert visible[0, 0].int().tolist() == [
        [1, 1, 1, 0, 0, 0],  # padding: whatever it sees, nobody sees it
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 1],
    ]


def test_without_gmask_the_answer_stays_at_mask(loaded):
    ids = torch.tensor([[10, MASK, 11, SOP, 20], [10, MASK, GMASK, SOP, 20], [10, 11, 12, SOP, GMASK]])
    assert prefix_position_ids(ids, None, loaded.config)[:, 0, 3].tolist() == [1, 2, 2]


def test_rows_without_sop_are_causal_text(loaded):
    ids = torch.tensor([[10, 11, 12, 13], [10, GMASK, SOP, 13]])
    positions = prefix_position_ids(ids, None, loaded.config)
    assert positions[0].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert torch.equal(prefix_attention_mask(ids, None, loaded.config)[0, 0], torch.ones(4, 4).tril().bool())
    changed = ids.clone()
    changed[:, 3] = 99
    before, after = logits(loaded, input_ids=ids), logits(loaded, input_ids=changed)
    assert torch.equal(before[:, :3], after[:, :3])


def test_the_context_is_read_in_both_directions(loaded, expected):
    ids = expected["single_ids"].clone()
    before = logits(loaded, input_ids=ids)
    ids[0, 8] = 99
    assert (logits(loaded, input_ids=ids)[0, 0] - before[0, 0]).abs().max() > 1e-3


def test_padding_on_either_side_changes_nothing(model, expected):
    ids = expected["single_ids"]
    plain = logits(model, input_ids=ids)
    for sides in ((5, 0), (0, 5), (3, 2)):
        padded = functional.pad(ids, sides, value=PAD)
        real = mask_of(padded)
        got = logits(model, input_ids=padded, attention_mask=real)
        torch.testing.assert_close(got[real.bool()][None], plain, **EXACT)


def test_explicit_positions_and_mask_equal_the_derived_ones(model, expected):
    batch = left_batch(expected)
    positions = prefix_position_ids(batch["input_ids"], batch["attention_mask"], model.config)
    visible = prefix_attention_mask(batch["input_ids"], batch["attention_mask"], model.config)
    additive = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    derived = logits(model, **batch)
    given = {"input_ids": batch["input_ids"], "position_ids": positions}
    assert torch.equal(logits(model, **given, attention_mask=visible), derived)
    torch.testing.assert_close(logits(model, **given, attention_mask=additive), derived, **EXACT)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    got = logits(model, inputs_embeds=embeds, position_ids=positions, attention_mask=visible)
    assert torch.equal(got, derived)


def test_rows_laid_end_to_end_do_not_see_each_other(model, expected):
    rows = [expected["single_ids"], row(expected, 1)]
    positions = torch.cat([prefix_position_ids(ids, None, model.config) for ids in rows], dim=-1)
    visible = torch.block_diag(*(prefix_attention_mask(ids, None, model.config)[0, 0] for ids in rows))
    packed = logits(
        model, input_ids=torch.cat(rows, dim=1), position_ids=positions, attention_mask=visible.bool()[None, None]
    )
    apart = torch.cat([logits(model, input_ids=ids) for ids in rows], dim=1)
    torch.testing.assert_close(packed, apart, **EXACT)


# Generation


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_every_cache_gives_the_same_tokens(model, expected, options):
    tokens = model.generate(**left_batch(expected), max_new_tokens=12, do_sample=False, **options)
    assert torch.equal(tokens, expected["left_greedy"])


def test_one_row_alone_generates_what_it_did_in_the_batch(sdpa, expected):
    ids = row(expected)
    tokens = sdpa.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(tokens[0, ids.shape[1] :], expected["left_greedy"][0, 15:])


def test_several_tokens_after_a_cache(sdpa, expected):
    # Prompt lookup proposes tokens and checks them in one forward: several new ones behind a filled cache.
    ids = torch.cat((expected["left_greedy"][:1, 15:], row(expected)), dim=1)
    plain = sdpa.generate(ids, max_new_tokens=10, do_sample=False)
    looked_up = sdpa.generate(ids, max_new_tokens=10, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(plain, looked_up)


def test_beam_search_beats_greedy_and_needs_no_cache(model, expected):
    batch = left_batch(expected)
    kept = model.generate(**batch, max_new_tokens=6, do_sample=False, num_beams=3)
    again = model.generate(**batch, max_new_tokens=6, do_sample=False, num_beams=3, use_cache=False)
    assert torch.equal(kept, again)

    def score(tokens):
        padded = torch.cat((batch["attention_mask"], torch.ones(3, 6, dtype=torch.long)), dim=1)
        log_probs = logits(model, input_ids=tokens, attention_mask=padded).log_softmax(-1)
        return log_probs[:, 14:-1].gather(-1, tokens[:, 15:, None]).sum()

    assert score(kept) >= score(expected["left_greedy"][:, :21])


def test_decoding_by_hand(model, expected):
    tokens, real = expected["left_ids"], mask_of(expected["left_ids"])
    cache = DynamicCache(config=model.config)
    step = {"input_ids": tokens}
    for _ in range(12):
        last = logits(model, attention_mask=real, past_key_values=cache, logits_to_keep=1, **step)
        tokens = torch.cat((tokens, last.argmax(-1)), dim=1)
        real = functional.pad(real, (0, 1), value=1)
        positions = prefix_position_ids(tokens, real, model.config)
        step = {"input_ids": tokens[:, -1:], "position_ids": positions[..., -1:]}
    assert torch.equal(tokens, expected["left_greedy"])


def test_what_cannot_be_derived_is_refused(sdpa, expected):
    ids = row(expected)
    embeds = sdpa.get_input_embeddings()(ids)
    visible = prefix_attention_mask(ids, None, sdpa.config)
    with pytest.raises(ValueError, match="exactly one"):
        sdpa(input_ids=ids, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="inputs_embeds do not say"):
        sdpa(inputs_embeds=embeds)
    with pytest.raises(ValueError, match="give position_ids"):
        sdpa(input_ids=ids, attention_mask=visible)
    with pytest.raises(ValueError, match="two positions per token"):
        sdpa(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None])
    cache = sdpa(input_ids=ids).past_key_values
    new = torch.tensor([[20]])
    with pytest.raises(ValueError, match="new tokens alone"):
        sdpa(input_ids=new, past_key_values=cache)
    with pytest.raises(ValueError, match="covers 1 tokens"):
        sdpa(input_ids=new, past_key_values=cache, attention_mask=torch.ones_like(new))
    with pytest.raises(ValueError, match="several new tokens"):
        sdpa(input_ids=ids, past_key_values=cache, position_ids=prefix_position_ids(ids, None, sdpa.config))
    with pytest.raises(ValueError, match="leave them out"):
        sdpa.generate(ids, position_ids=prefix_position_ids(ids, None, sdpa.config), max_new_tokens=2)
    for cached in (4, ids.shape[1] - 1):  # the context's keys were computed before its end was known
        part = sdpa(input_ids=ids[:, :cached], use_cache=True).past_key_values
        with pytest.raises(ValueError, match="ends inside the context"):
            sdpa.generate(ids, past_key_values=part, max_new_tokens=2)
    with pytest.raises(ValueError, match="complete rows"):
        sdpa.generate(new, past_key_values=cache, max_new_tokens=2)


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
def test_attention_that_cannot_be_exact_is_refused(golden, name):
    with pytest.raises(ValueError, match='Use attn_implementation="sdpa"'):
        ChatGLMForCausalLM.from_pretrained(golden / "chatglm", attn_implementation=name)


# Outputs and training


def test_logits_to_keep(sdpa, expected):
    ids = expected["single_ids"]
    everything = logits(sdpa, input_ids=ids)
    torch.testing.assert_close(logits(sdpa, input_ids=ids, logits_to_keep=2), everything[:, -2:], **EXACT)
    chosen = torch.tensor([3, 11, 12])
    torch.testing.assert_close(logits(sdpa, input_ids=ids, logits_to_keep=chosen), everything[:, chosen], **EXACT)


def test_loss_can_be_divided_by_the_items_of_a_whole_step(sdpa, expected):
    with torch.no_grad():
        out = sdpa(**training_batch(expected), num_items_in_batch=48)
    targets = (expected["batch_labels"] != -100).sum()
    torch.testing.assert_close(out.loss, expected["batch_loss"] * targets / 48, **EXACT)


def test_attentions_and_hidden_states(loaded, expected):
    eager = copy.deepcopy(loaded)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        out = eager(input_ids=expected["single_ids"], output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in out.attentions] == [(1, 4, 19, 19)] * 3
    hidden = ~prefix_attention_mask(expected["single_ids"], None, loaded.config)
    assert out.attentions[0].masked_select(hidden).abs().max() == 0
    assert len(out.hidden_states) == 4


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(model, expected, reentrant):
    model.train()
    model(**training_batch(expected)).loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(**training_batch(expected)).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], **EXACT)


@pytest.mark.parametrize("targets", [None, ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]])
def test_lora_trains_saves_and_loads(sdpa, loaded, expected, tmp_path, targets):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets)
    tuned = peft.get_peft_model(sdpa, config).train()
    tuned.gradient_checkpointing_enable()
    tuned.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = tuned(**training_batch(expected)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    tuned.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(loaded), tmp_path).eval()
    batch = left_batch(expected)
    trained = logits(tuned, **batch)
    torch.testing.assert_close(logits(again, **batch), trained, **EXACT)
    assert (trained - logits(loaded, **batch)).abs().max() > 1e-2
    torch.testing.assert_close(logits(again.merge_and_unload(), **batch), trained, atol=1e-4, rtol=0)
    assert tuned.generate(**batch, max_new_tokens=3).shape == (3, 18)


def test_resized_vocabulary(sdpa, expected):
    before = logits(sdpa, input_ids=expected["single_ids"])
    sdpa.resize_token_embeddings(328)
    assert (sdpa.config.vocab_size, sdpa.lm_head.weight.shape) == (328, (328, 64))
    with torch.no_grad():
        out = sdpa(input_ids=expected["single_ids"], labels=expected["single_labels"])
    torch.testing.assert_close(out.logits[..., :320], before, **EXACT)
    assert out.loss.isfinite()


def test_tied_head_only_where_the_configuration_says_so(golden, loaded):
    assert loaded.lm_head.weight is not loaded.transformer.word_embeddings.weight
    config = ChatGLMConfig.from_pretrained(golden / "chatglm", tie_word_embeddings=True)
    tied = ChatGLMForCausalLM(config)
    assert tied.lm_head.weight is tied.transformer.word_embeddings.weight


# Precision


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_half_precision_is_close_to_fp32(model, expected, dtype, bound):
    batch = left_batch(expected)
    real = batch["attention_mask"].bool()
    low = logits(model.to(dtype), **batch)
    assert low.isfinite().all()  # padding too: a NaN there would reach every weight gradient
    assert (low.float()[real] - expected["left_logits"][real]).abs().max() < bound


def test_autocast(model, expected):
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**training_batch(expected), use_cache=True)
    loss = out.loss
    loss.backward()
    cached = out.past_key_values.layers[0]
    assert cached.keys.dtype == cached.values.dtype == torch.bfloat16
    assert (loss - expected["batch_loss"]).abs() < 0.05
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_fp16_scores_beyond_the_fp16_range(loaded, name):
    # Scores reach 160 * 160 * 16 / 4 = 102400 > 65504, in the third layer.
    module = loaded.transformer.layers[2].attention
    query = torch.full((1, 1, 4, 16), 160.0)
    key = query * torch.tensor([1.0, 0.5, -1.0, 1.0])[None, None, :, None]
    value = torch.randn(1, 1, 4, 16, generator=torch.Generator().manual_seed(0))
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
    wanted, _ = attention(module, query, key, value, None, scaling=0.25)
    got, _ = attention(module, query.half(), key.half(), value.half(), None, scaling=0.25)
    assert got.isfinite().all()
    torch.testing.assert_close(got.float(), wanted, atol=1e-3, rtol=1e-3)


# Compilation


def test_the_forward_is_one_graph(sdpa, expected):
    batch = left_batch(expected)
    compiled = torch.compile(sdpa, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled, **batch), logits(sdpa, **batch), **EXACT)
