"""Tokens and rows that a checkpoint's owner added, in the forms that resizing and saving with other tools leave."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_added_tokens import TEXT, _grow, _write_tokens
from transformers import AutoModel, PreTrainedTokenizerFast

import glmtune
from glmtune.errors import ModelError
from glmtune.families.family import tokenize_text
from glmtune.models.tokenizers.tokenizer_files import write_published_tokenizer, write_tokenizer
from tiny import FAMILIES

ROLE_TOKENS = "<|user|>[gMASK]sop <sop></s><|endoftext|><|system|><eop>"


@pytest.fixture(params=FAMILIES)
def base(request, tiny, tmp_path):
    """A tiny checkpoint with 8 more rows than tokens, and the number of its tokens."""
    folder = tmp_path / "base"
    shutil.copytree(tiny(request.param), folder)
    count = len(glmtune.load_tokenizer(folder))
    _grow(folder, count + 8)
    return folder, count


def _set_config_rows(folder, rows):
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["padded_vocab_size" if "padded_vocab_size" in config else "vocab_size"] = rows
    path.write_text(json.dumps(config), "utf-8")


def test_a_special_token_of_the_owner_matches_in_a_tokenizer_json(base, tmp_path):
    folder, count = base
    write_tokenizer(folder, glmtune.detect_family(folder).name, tmp_path / "hf")
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path / "hf")
    controls = set(saved.all_special_ids)
    saved.add_special_tokens({"extra_special_tokens": [*saved.extra_special_tokens, "<ENTITY>"]})
    saved.save_pretrained(str(tmp_path / "hf"))
    shutil.copy(folder / "config.json", tmp_path / "hf")
    tokenizer = glmtune.load_tokenizer(tmp_path / "hf")
    ids = tokenize_text(tokenizer, TEXT)
    assert ids.count(count) == 1
    assert tokenizer(TEXT, add_special_tokens=False, split_special_tokens=True).input_ids == ids
    assert "<ENTITY>" in tokenizer.decode(ids, skip_special_tokens=True)
    assert not controls & set(tokenize_text(tokenizer, f"{ROLE_TOKENS}<ENTITY>"))
    assert controls <= set(tokenizer.all_special_ids)
    tokenizer.save_pretrained(str(tmp_path / "again"))
    assert tokenize_text(glmtune.load_tokenizer(tmp_path / "again", family="glm4"), TEXT) == ids


def test_a_token_behind_padded_rows_keeps_its_id(base, tmp_path):
    folder, count = base
    _write_tokens(folder, {"<ENTITY>": count + 3, "<DESC>": count + 5})
    tokenizer = glmtune.load_tokenizer(folder)
    ids = tokenize_text(tokenizer, f"{TEXT}<DESC>")
    assert [index for index in ids if index >= count] == [count + 3, count + 5]
    between = tokenizer.decode([count])
    assert count not in tokenize_text(tokenizer, f"a{between}b")
    family = glmtune.detect_family(folder).name
    for source, write, out in (
        (folder, write_tokenizer, tmp_path / "hf"),
        (tmp_path / "hf", write_published_tokenizer, tmp_path / "official"),
    ):
        out.mkdir()
        shutil.copy(folder / "config.json", out)
        write(source, family, out)
        exported = glmtune.load_tokenizer(out)
        assert tokenize_text(exported, f"{TEXT}<DESC>") == ids
        assert count not in tokenize_text(exported, f"a{between}b")
    listed = json.loads((tmp_path / "official" / "added_tokens.json").read_text("utf-8"))
    assert listed == {"<ENTITY>": count + 3, "<DESC>": count + 5}


def test_a_huge_gap_is_refused(tiny, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny("chatglm2"), folder)
    _set_config_rows(folder, 9_000_000)
    _write_tokens(folder, {"<ENTITY>": 8_000_000})
    with pytest.raises(ModelError, match="but the vocabulary ends at"):
        glmtune.load_tokenizer(folder, family="chatglm2")


def test_the_number_of_rows_is_that_of_the_weights(base, glmtune_command, tmp_path):
    folder, count = base
    _set_config_rows(folder, count)
    _write_tokens(folder, {"<ENTITY>": count + 2})
    result = glmtune_command("export", folder, tmp_path / "official", "--format", "official")
    assert result.code == 0, result.err
    line = f"embedding and head have {count + 8} rows; config.json's "
    assert (result.out + result.err).count(line) == 1
    ids = torch.tensor([tokenize_text(glmtune.load_tokenizer(folder), TEXT)])
    logits = glmtune.load_model(folder)(input_ids=ids).logits
    assert logits.shape[-1] == count + 8
    assert AutoModel.from_pretrained(folder)(input_ids=ids).logits.equal(logits)
    exported = json.loads((tmp_path / "official" / "config.json").read_text("utf-8"))
    assert count + 8 in (exported.get("padded_vocab_size"), exported.get("vocab_size"))


def test_rows_that_were_cut_to_the_tokens(base):
    folder, count = base
    _set_config_rows(folder, count + 64)
    assert glmtune.load_model(folder).config.vocab_size == count + 8
    _cut_rows(folder, count - 1, ("embed", "lm_head", "output_layer"))
    with pytest.raises(ModelError) as caught:
        glmtune.load_model(folder)
    assert f"the embedding has {count - 1} rows, the head has {count - 1}" in str(caught.value)
    assert f" is {count + 64}, but its tokenizer has {count} tokens" in str(caught.value)


def test_embedding_and_head_of_different_sizes_are_refused_with_all_numbers(base):
    folder, count = base
    _cut_rows(folder, count + 1, ("lm_head", "output_layer"))
    with pytest.raises(ModelError) as caught:
        glmtune.load_model(folder)
    assert f"the embedding has {count + 8} rows, the head has {count + 1}" in str(caught.value)
    assert str(caught.value).splitlines()[0].endswith(f"vocab_size is {count + 8}.")


def _cut_rows(folder, rows, parts):
    for file in folder.glob("*.safetensors"):
        state = load_file(file)
        cut = {
            name: weight[:rows].clone() if any(part in name for part in parts) else weight
            for name, weight in state.items()
        }
        save_file(cut, file, metadata={"format": "pt"})
