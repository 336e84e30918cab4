"""Tokens that were added to a published vocabulary: their ids in prompts, rows, exports; and files that do not fit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import glmtune
from glmtune.errors import ModelError
from glmtune.families.family import tokenize_text
from tiny import FAMILIES

TEXT = "上衣<ENTITY>白色"


@pytest.fixture(params=FAMILIES)
def base(request, tiny, tmp_path):
    """A tiny checkpoint whose embedding and head have grown, and the first free id of its tokenizer."""
    folder = tmp_path / "base"
    shutil.copytree(tiny(request.param), folder)
    _grow(folder, len(glmtune.load_tokenizer(folder)) + 8)
    return folder, len(glmtune.load_tokenizer(folder))


def _grow(folder, rows):
    """Give config.json, embedding and head this many rows, as a resized checkpoint has them."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    key = "padded_vocab_size" if "padded_vocab_size" in config else "vocab_size"
    old, config[key] = config[key], rows
    path.write_text(json.dumps(config), "utf-8")
    for file in folder.glob("*.safetensors"):
        state = load_file(file)
        for name, weight in state.items():
            if weight.dim() == 2 and len(weight) == old:
                more = torch.randn(rows - old, weight.shape[1], generator=torch.Generator().manual_seed(0))
                state[name] = torch.cat((weight, more.to(weight.dtype) * weight.std()))
        save_file(state, file, metadata={"format": "pt"})


def _write_tokens(folder, tokens):
    (folder / "added_tokens.json").write_text(json.dumps(tokens), "utf-8")


def test_an_added_token_is_one_id_in_every_text(base):
    folder, free = base
    before = glmtune.load_tokenizer(folder)
    assert free not in tokenize_text(before, TEXT)
    _write_tokens(folder, {"<DESC>": free + 1, "<ENTITY>": free})  # the order of the file does not matter
    tokenizer, family = glmtune.load_tokenizer(folder), glmtune.detect_family(folder)
    ids = tokenize_text(tokenizer, TEXT)
    assert ids.count(free) == 1
    assert ids == tokenizer(TEXT, add_special_tokens=False, split_special_tokens=True).input_ids
    place = ids.index(free)
    assert ids[:place] == tokenize_text(before, "上衣")
    assert ids[place + 1 :] == tokenize_text(before, "白色")
    assert "<ENTITY>" in tokenizer.decode(ids)
    row = family.encode([{"role": "user", "content": TEXT}, {"role": "assistant", "content": "<DESC>"}], tokenizer)
    assert free in row.input_ids
    assert free + 1 in [label for label in row.labels if label >= 0]


def test_role_tokens_stay_text_beside_added_ones(base):
    folder, free = base
    _write_tokens(folder, {"<ENTITY>": free})
    tokenizer = glmtune.load_tokenizer(folder)
    specials = set(tokenizer.all_special_ids)
    assert not specials & set(tokenize_text(tokenizer, "<|user|><ENTITY>[gMASK]</s>"))


def test_tokens_of_tokenizer_config_with_their_flags(base):
    folder, free = base
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    decoder = {str(free): {"content": "<ENTITY>", "lstrip": False, "rstrip": True, "special": True}}
    path.write_text(json.dumps(config | {"added_tokens_decoder": decoder}), "utf-8")
    tokenizer = glmtune.load_tokenizer(folder)
    assert tokenize_text(tokenizer, "<ENTITY>") == [free]
    assert tokenize_text(tokenizer, "<ENTITY>  白色") == tokenize_text(tokenizer, "<ENTITY>白色")  # rstrip


def test_exports_have_them(base, glmtune_command, tmp_path):
    folder, free = base
    _write_tokens(folder, {"<ENTITY>": free})
    expected = tokenize_text(glmtune.load_tokenizer(folder), TEXT)
    logits = glmtune.load_model(folder)(input_ids=torch.tensor([expected])).logits
    for layout in ("hf", "official"):
        out = tmp_path / layout
        result = glmtune_command("export", folder, out, "--format", layout)
        assert result.code == 0, result.err
        ids = tokenize_text(glmtune.load_tokenizer(out), TEXT)
        assert ids == expected
        exported = glmtune.load_model(out, dtype="fp32")(input_ids=torch.tensor([ids])).logits
        torch.testing.assert_close(exported, logits, atol=1e-2, rtol=1e-2)


def test_tokens_that_the_vocabulary_has_may_be_listed_with_their_ids(base):
    folder, _ = base
    tokenizer = glmtune.load_tokenizer(folder)
    token = tokenizer.all_special_tokens[-1]
    _write_tokens(folder, {token: tokenizer.convert_tokens_to_ids(token)})
    assert glmtune.load_tokenizer(folder).get_vocab() == tokenizer.get_vocab()
    _write_tokens(folder, {token: 3})
    with pytest.raises(ModelError, match="has id 3, but"):
        glmtune.load_tokenizer(folder)


def test_tokens_of_a_transformers_folder_are_exported_to_the_published_layout(tiny, glmtune_command, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny("chatglm3"), folder)
    free = len(glmtune.load_tokenizer(folder))
    _grow(folder, free + 8)
    _write_tokens(folder, {"<ENTITY>": free})
    assert glmtune_command("export", folder, tmp_path / "hf", "--format", "hf").code == 0
    result = glmtune_command("export", tmp_path / "hf", tmp_path / "official", "--format", "official")
    assert result.code == 0, result.err
    assert free in tokenize_text(glmtune.load_tokenizer(tmp_path / "official"), TEXT)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (lambda free: {"<ENTITY>": free + 5}, "has id {0}, but the embedding has {1} rows \\(the weights\\)"),
        (lambda free: {"<ENTITY>": free - 5}, "which is that of '"),
        (lambda free: {"<ENTITY>": str(free)}, "'<ENTITY>' with id '[0-9]+' is not valid"),
        (lambda free: {f"<{i}>": free + i for i in range(5000)}, "but the embedding has"),
        (lambda free: ["<ENTITY>"], "added_tokens.json"),
    ],
)
def test_files_that_do_not_fit_are_refused(tiny, tmp_path, tokens, message):
    folder = tmp_path / "base"
    shutil.copytree(tiny("chatglm3"), folder)
    free = len(glmtune.load_tokenizer(folder))
    _write_tokens(folder, tokens(free))
    with pytest.raises(ModelError, match=message.format(free + 5, free)) as caught:
        glmtune.load_tokenizer(folder)
    assert caught.value.hint


@pytest.mark.parametrize("decoder", ["[1]", '{"x": {"content": "<A>"}}', '{"5": {"content": ""}}', '{"5": 1}'])
def test_a_broken_list_in_tokenizer_config_is_named(tiny, tmp_path, decoder):
    folder = tmp_path / "base"
    shutil.copytree(tiny("chatglm2"), folder)
    (folder / "tokenizer_config.json").write_text(f'{{"added_tokens_decoder": {decoder}}}', "utf-8")
    with pytest.raises(ModelError, match=r"added_tokens_decoder.* is not"):
        glmtune.load_tokenizer(folder)
