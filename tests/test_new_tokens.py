"""`data.new_tokens`: tokens that a run adds to its base, their trained rows, and what is made of the run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import TrainableTokensWrapper
from safetensors.torch import load_file
from test_added_tokens import _grow, _write_tokens
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import glmtune
from glmtune.config import load_config
from glmtune.errors import ModelError
from glmtune.evaluation.candidates import open_candidates
from glmtune.evaluation.model_switcher import ModelSwitcher
from glmtune.families.family import tokenize_text
from glmtune.generation.load import load_for_generation
from glmtune.methods.lora_merge import merge_adapter
from glmtune.methods.lora_tokens import patch_token_rows
from glmtune.models.embedding_rows import grow_vocabulary, initialize_rows
from glmtune.training.head import compute_head_losses
from tiny import FAMILIES, make_tiny

TOKENS = ["<ENTITY>", "面料甲", "ΔT_max"]
TEXT = "上衣<ENTITY>白色面料甲"
FAST = ("training.max_steps=4", "training.gradient_accumulation_steps=1", "lora.dropout=0", "data.eval_fraction=0")


@pytest.fixture
def rows_file(tmp_path):
    """Questions and answers with the tokens."""
    path = tmp_path / "rows.json"
    rows = [{"prompt": f"类型#ΔT_max上衣<ENTITY>{i}", "response": f"面料甲 白色<ENTITY>{i}"} for i in range(8)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return path


@pytest.fixture
def train(glmtune_command, rows_file, tmp_path):
    """`train(base, "key=value", ...)`: a run with the new tokens, and what the command printed."""

    def run(base, *settings, output="run", tokens=TOKENS, more=()):
        settings = (*FAST, "training.learning_rate=1e-2", *settings)
        if tokens:
            settings = (*settings, f"data.new_tokens={json.dumps(tokens, ensure_ascii=False)}")
        result = glmtune_command(
            *("train", "--model", base, "--data", rows_file, "--output", tmp_path / output, *more),
            *(part for setting in settings for part in ("--set", setting)),
        )
        return tmp_path / output, result

    return run


def _logits(model, tokenizer, text=TEXT):
    ids = tokenize_text(tokenizer, text)
    mask = torch.ones(1, len(ids), dtype=torch.long)
    return model(input_ids=torch.tensor([ids]), attention_mask=mask).logits.detach()


def _weights(model):
    return model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_trains_their_rows_and_no_others(family, tiny, train, glmtune_command, tmp_path):
    base_tokenizer = glmtune.load_tokenizer(tiny(family))
    free = len(base_tokenizer)
    run, result = train(tiny(family))
    assert result.code == 0, result.err
    assert f"New tokens: 3, ids {free} to {free + 2}" in result.out

    loaded = load_for_generation(str(run), device="cpu")
    ids = tokenize_text(loaded.tokenizer, TEXT)
    assert ids.count(free) == ids.count(free + 1) == 1
    assert loaded.tokenizer.decode(ids) == TEXT
    before = glmtune.load_model(tiny(family))
    for old, new in zip(_weights(before), _weights(loaded.model), strict=True):
        assert torch.equal(new[:free], old[:free])
        for number, token in enumerate(TOKENS):
            pieces = old[tokenize_text(base_tokenizer, token)].mean(0)
            assert (new[free + number] - pieces).abs().max() > 1e-4, token

    logits = _logits(loaded.model, loaded.tokenizer)
    again = load_for_generation(str(run / "adapter"), base=str(tiny(family)), device="cpu")
    assert torch.equal(_logits(again.model, again.tokenizer), logits)

    # ChatGLM-6B and GLM-4 have no free rows here, so their embeddings grow; the others' exports are one each.
    exports = {
        "chatglm": (("--format", "hf"), ("--format", "official", "--adapter-only")),
        "chatglm2": (("--format", "official"),),
        "chatglm3": (("--format", "hf", "--adapter-only"),),
        "glm4": (("--format", "official"), ("--format", "hf", "--adapter-only")),
    }
    for more in exports[family]:
        out = tmp_path / more[1]
        result = glmtune_command("export", run, out, *more)
        assert result.code == 0, result.err
        exported = load_for_generation(str(out), base=str(tiny(family)) if more[2:] else None, device="cpu")
        assert tokenize_text(exported.tokenizer, TEXT) == ids
        torch.testing.assert_close(_logits(exported.model, exported.tokenizer), logits, atol=1e-5, rtol=1e-5)


def test_without_the_key_an_adapter_has_none_of_it(tiny, train):
    run, result = train(tiny("chatglm3"), tokens=[])
    assert result.code == 0, result.err
    assert not (run / "adapter" / "added_tokens.json").exists()
    assert not any("token_adapter" in name for name in load_file(run / "adapter" / "adapter_model.safetensors"))
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["trainable_token_indices"] is None


def test_plain_peft_loads_the_adapter(tiny, train):
    run, _ = train(tiny("glm4"), tokens=TOKENS[:2])
    loaded = load_for_generation(str(run), device="cpu")
    base = AutoModelForCausalLM.from_pretrained(tiny("glm4"))
    base.resize_token_embeddings(base.config.vocab_size + 2, mean_resizing=False)
    plain = PeftModel.from_pretrained(base, run / "adapter").eval()
    torch.testing.assert_close(_logits(plain, loaded.tokenizer), _logits(loaded.model, loaded.tokenizer))
    tokenizer = AutoTokenizer.from_pretrained(run)
    assert tokenizer("<ENTITY>", add_special_tokens=False).input_ids == [len(tokenizer) - 2]
    # Where glmtune is imported, the base grows by itself.
    grown = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny("glm4")), run / "adapter").eval()
    torch.testing.assert_close(_logits(grown, loaded.tokenizer), _logits(loaded.model, loaded.tokenizer))


def test_full_grows_embedding_and_head(tiny, train):
    run, result = train(tiny("chatglm"), "method=full", "training.learning_rate=1e-3")
    assert result.code == 0, result.err
    loaded = load_for_generation(str(run), device="cpu")
    free = len(glmtune.load_tokenizer(tiny("chatglm")))
    assert tokenize_text(loaded.tokenizer, TEXT).count(free) == 1
    old, new = _weights(glmtune.load_model(tiny("chatglm"))), _weights(loaded.model)
    assert all(len(after) == len(before) + 3 for before, after in zip(old, new, strict=True))


def test_resumed_is_uninterrupted(tiny, train):
    whole, result = train(tiny("chatglm3"), "training.save_steps=2", output="whole")
    assert result.code == 0, result.err
    half, _ = train(tiny("chatglm3"), "training.save_steps=2", output="half")
    shutil.rmtree(half / "adapter")
    shutil.rmtree(half / "checkpoints" / "checkpoint-4")
    _, result = train(tiny("chatglm3"), "training.save_steps=2", output="half", more=("--resume",))
    assert result.code == 0, result.err
    states = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (whole, half)]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    checkpoint = load_for_generation(str(half / "checkpoints" / "checkpoint-2"), device="cpu")
    assert "<ENTITY>" in checkpoint.tokenizer.get_vocab()


def test_a_run_starts_from_an_adapter_with_tokens(tiny, train):
    first, _ = train(tiny("glm4"))
    second, result = train(tiny("glm4"), f"adapter={first}", output="second", tokens=[])
    assert result.code == 0, result.err
    tokenizer = load_for_generation(str(second), device="cpu").tokenizer
    assert [tokenizer.get_vocab()[token] for token in TOKENS] == [len(tokenizer) - 3 + i for i in range(3)]
    _, result = train(tiny("glm4"), f"adapter={first}", output="third", tokens=[*TOKENS, "<MORE>"])
    assert result.code
    assert "data.new_tokens: <MORE> is no token of the adapter" in result.err


def test_nf4_and_a_file_of_tokens(train, tmp_path, glmtune_command):
    base = make_tiny("chatglm3", tmp_path / "base", hidden=64)
    file = tmp_path / "tokens.txt"
    file.write_text("﻿<ENTITY>\r\n\n面料甲\n", "utf-8")
    run, result = train(base, "method=qlora", f"data.new_tokens={file}", tokens=[])
    assert result.code == 0, result.err
    assert load_config(run / "config.yaml").data.new_tokens == ["<ENTITY>", "面料甲"]
    file.unlink()  # the run does not need it any more
    result = glmtune_command("chat", run, "--prompt", TEXT, "--max-new-tokens", 4)
    assert result.code == 0, result.err


def test_models_take_turns_on_a_base_that_an_adapter_made_larger(tiny, train):
    run, _ = train(tiny("glm4"))
    base, tuned = open_candidates([str(tiny("glm4")), str(run)])
    assert base.vocabulary == tuned.vocabulary
    switcher = ModelSwitcher(device="cpu")
    before = _logits(switcher.load(base)[0].model, base.tokenizer)
    with_adapter = _logits(switcher.load(tuned)[0].model, tuned.tokenizer)
    assert with_adapter.shape[-1] == before.shape[-1] + 3
    again = switcher.load(base)[0].model
    assert torch.equal(_logits(again, base.tokenizer), before)
    assert again.config.vocab_size == before.shape[-1]
    assert torch.equal(_logits(switcher.load(tuned)[0].model, tuned.tokenizer), with_adapter)


@pytest.mark.parametrize(
    ("settings", "tokens", "message"),
    [
        (["method=ptuning"], TOKENS, "method ptuning does not train the embedding"),
        (["method=freeze"], TOKENS, "method freeze does not train the embedding"),
        ([], ["<|user|>"], "<|user|> is a special token"),
        ([], ["<A>", "<A>"], "token '<A>' is listed twice"),
        ([], [" <A>"], "begins or ends with white space"),
        ([], [""], "a token is empty"),
        ([], "nowhere.txt", "nowhere.txt is not a file"),
        (["lora.targets=[q_proj,lm_head]"], TOKENS, "lora.targets: lm_head cannot have an update"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tiny, train, settings, tokens, message):
    _, result = train(tiny("chatglm3"), *settings, tokens=tokens)
    assert result.code
    assert message in result.err


def test_a_token_of_the_vocabulary_is_left_out_and_named(tiny, train):
    piece = next(token for token in glmtune.load_tokenizer(tiny("chatglm3")).get_vocab() if token.isalpha())
    run, result = train(tiny("chatglm3"), tokens=[piece, "<ENTITY>"])
    assert result.code == 0, result.err
    assert f"{piece} in the vocabulary already, so not added" in result.out
    assert list(json.loads((run / "adapter" / "added_tokens.json").read_text("utf-8"))) == ["<ENTITY>"]


def test_check_and_preview_have_single_ids(tiny, glmtune_command, rows_file):
    tokens = ("--set", 'data.new_tokens=["<ENTITY>"]')
    result = glmtune_command("data", "preview", rows_file, "--model", tiny("chatglm3"), *tokens)
    assert result.code == 0, result.err
    assert "上衣<ENTITY> 0" in result.out  # the number is cut apart, with a prefix of its own
    counts = []
    for more in ((), tokens):
        out = rows_file.with_name(f"encoded{len(more)}")
        result = glmtune_command("data", "tokenize", rows_file, "--model", tiny("chatglm3"), "--output", out, *more)
        assert result.code == 0, result.err
        counts.append(int(result.out.split(" tokens")[0].rpartition(" ")[2].replace(",", "")))
    assert counts[1] < counts[0]


@pytest.fixture
def foreign(tiny, tmp_path):
    """`foreign(family, **options)`: an adapter of peft alone on a tiny base, in a folder of its own."""

    def make(family, *, more_rows=0, tokens=None, base=None, **options):
        base = base or tiny(family)
        model = glmtune.load_model(base)
        grow_vocabulary(model, model.config.vocab_size + more_rows)
        options = {"target_modules": ["q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"} | options
        wrapped = get_peft_model(model, LoraConfig(base_model_name_or_path=str(base), **options))
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name or "trainable_tokens" in name:
                parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        wrapped.save_pretrained(tmp_path / "foreign", save_embedding_layers=False)
        if tokens:
            _write_tokens(tmp_path / "foreign", tokens)
        return tmp_path / "foreign", wrapped.eval()

    return make


def test_tokens_beside_an_adapter_of_another_tool(tiny, foreign, glmtune_command, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny("chatglm3"), base)
    free = len(glmtune.load_tokenizer(base))
    _grow(base, free + 8)  # free rows, as every published checkpoint has them
    folder, model = foreign("chatglm3", tokens={"<ENTITY>": free}, base=base)
    loaded = load_for_generation(str(folder), device="cpu")
    assert tokenize_text(loaded.tokenizer, TEXT).count(free) == 1
    assert torch.equal(_logits(loaded.model, loaded.tokenizer), _logits(model, loaded.tokenizer))
    (candidate,) = open_candidates([str(folder)])
    assert tokenize_text(candidate.tokenizer, TEXT).count(free) == 1
    result = glmtune_command("export", folder, tmp_path / "out", "--format", "official")
    assert result.code == 0, result.err
    assert tokenize_text(glmtune.load_tokenizer(tmp_path / "out"), TEXT).count(free) == 1


@pytest.mark.parametrize("file", ["tokenizer_config.json", "tokenizer.json"])
def test_the_other_files_of_a_tokenizer_beside_an_adapter(foreign, tiny, file):
    free = len(glmtune.load_tokenizer(tiny("chatglm2")))
    folder, _ = foreign("chatglm2")
    entry = {"content": "<ENTITY>", "special": True}
    content = {"added_tokens_decoder": {str(free): entry}, "added_tokens": [{"id": free, **entry}]}
    (folder / file).write_text(json.dumps(content), "utf-8")
    assert tokenize_text(load_for_generation(str(folder), device="cpu").tokenizer, TEXT).count(free) == 1


def test_an_adapter_with_larger_embeddings(foreign, tiny):
    free = len(glmtune.load_tokenizer(tiny("chatglm3")))
    modules = ["embed_tokens", "lm_head"]
    folder, model = foreign("chatglm3", more_rows=8, modules_to_save=modules, tokens={"<ENTITY>": free})
    loaded = load_for_generation(str(folder), device="cpu")
    assert tokenize_text(loaded.tokenizer, TEXT).count(free) == 1
    assert torch.equal(_logits(loaded.model, loaded.tokenizer), _logits(model, loaded.tokenizer))


def test_a_token_without_a_row_is_refused(foreign, tiny):
    free = len(glmtune.load_tokenizer(tiny("chatglm3")))
    folder, _ = foreign("chatglm3", tokens={"<ENTITY>": free})
    with pytest.raises(ModelError, match=f"token '<ENTITY>' has id {free}, but the embedding of base and adapter"):
        load_for_generation(str(folder), device="cpu")
    _write_tokens(folder, {"[gMASK]": 3})
    with pytest.raises(ModelError, match="has id 3, but"):
        load_for_generation(str(folder), device="cpu")


@pytest.mark.parametrize("indices", [{"embed_tokens": [2, 5, 9], "lm_head": [2, 5, 9]}, [9, 2]])
def test_trained_rows_are_those_of_peft(foreign, tiny, indices):
    folder, model = foreign("chatglm3", trainable_token_indices=indices)
    ids = torch.tensor([[2, 9, 5, 7, 2]])
    expected = model(input_ids=ids).logits
    assert (expected - glmtune.load_model(tiny("chatglm3"))(input_ids=ids).logits).abs().max() > 0.1
    loaded = load_for_generation(str(folder), device="cpu").model
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
    merged = merge_adapter(loaded)
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_head_losses_have_the_gradients_of_the_trained_rows(smoothing, monkeypatch):
    monkeypatch.setattr("glmtune.training.head._BYTES", 4 * 40 * 3)  # three rows in a chunk
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 8, generator=generator)
    wrapper = TrainableTokensWrapper(nn.Linear(8, 40, bias=False), "default", token_indices=[3, 17])
    wrapper.token_adapter.base_layer.weight = nn.Parameter(weight, requires_grad=False)
    patch_token_rows(wrapper)
    rows = wrapper.token_adapter.trainable_tokens_delta["default"]
    rows.data = torch.randn(2, 8, generator=generator)
    hidden = torch.randn(7, 8, generator=generator, requires_grad=True)
    targets, scales = torch.tensor([3, 5, 17, 17, 39, 0, 3]), torch.rand(7, generator=generator)
    (compute_head_losses(wrapper, wrapper.forward, hidden, targets, smoothing) * scales).sum().backward()
    found = hidden.grad, rows.grad
    hidden.grad = rows.grad = None
    whole = weight.index_copy(0, torch.tensor([3, 17]), rows)
    losses = nn.functional.cross_entropy(hidden @ whole.T, targets, reduction="none", label_smoothing=smoothing)
    (losses * scales).sum().backward()
    for ours, reference in zip(found, (hidden.grad, rows.grad), strict=True):
        torch.testing.assert_close(ours, reference)


def test_new_rows_are_the_mean_of_their_pieces(tiny):
    model = glmtune.load_model(tiny("chatglm3"))
    old = [weight.clone() for weight in _weights(model)]
    size = len(old[0])
    grow_vocabulary(model, size + 2)
    initialize_rows(model, {"<A>": size, "<B>": size + 1}, {"<A>": [3, 4, 7], "<B>": []})
    for before, after in zip(old, _weights(model), strict=True):
        assert torch.equal(after[:size], before)
        torch.testing.assert_close(after[size], before[[3, 4, 7]].mean(0))
        torch.testing.assert_close(after[size + 1], before.mean(0))
