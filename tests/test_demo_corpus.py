"""The demo's texts hold every value of their prompts; its base has the layout of the published checkpoints."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import sentencepiece
from safetensors import safe_open

import glmtune.demo
from demo_corpus import corpus, vocabulary
from write_demo_data import render_files

DEMO = Path(glmtune.demo.__file__).parent
BASE = DEMO / "base"
SPECIAL_TOKENS = 9


@pytest.fixture(scope="module")
def rows():
    return corpus.make_adgen_rows(2000, seed=1)


@pytest.fixture(scope="module")
def config():
    return json.loads((BASE / "config.json").read_text())


@pytest.fixture(scope="module")
def pieces():
    return sentencepiece.SentencePieceProcessor(str(BASE / "tokenizer.model"))


def test_every_value_is_in_its_advertisement(rows):
    for row in rows:
        assert set(row) == {"content", "summary"}
        attributes = corpus.split_attributes(row["content"])
        assert attributes[0][0] == "类型"
        assert 3 <= len(attributes) <= 6
        assert all(value in row["summary"] for _, value in attributes), row
        assert row["summary"].endswith("。")
        assert corpus.join_attributes(attributes) == row["content"]


def test_advertisements_do_not_contradict_themselves(rows):
    for row in rows:
        terms = set(itertools.chain(*corpus.split_attributes(row["content"])))
        assert not any(pair <= terms for pair in vocabulary.EXCLUSIVE), row


def test_rows_depend_on_the_seed_alone():
    assert corpus.make_adgen_rows(50, seed=3) == corpus.make_adgen_rows(80, seed=3)[:50]
    assert corpus.make_adgen_rows(50, seed=3) != corpus.make_adgen_rows(50, seed=4)
    assert corpus.make_dialogues(50, seed=3) == corpus.make_dialogues(50, seed=3)


def test_splits_share_no_content():
    splits = corpus.make_adgen_splits({"train": 300, "dev": 60, "test": 40}, seed=2)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 300, "dev": 60, "test": 40}
    contents = [row["content"] for row in itertools.chain(*splits.values())]
    assert len(set(contents)) == len(contents)


def test_a_value_is_part_of_no_other_phrase():
    templates = itertools.chain(
        *vocabulary.CLAUSES.values(),
        *(vocabulary.OPENINGS, vocabulary.CLOSINGS, vocabulary.TOP_CLOSINGS, vocabulary.STYLE_CLOSINGS),
    )
    phrases = [("", template) for template in templates]
    phrases += [(value, effect) for value, effects in vocabulary.EFFECTS.items() for effect in effects]
    for value in vocabulary.EFFECTS:
        for owner, phrase in phrases:
            assert value in owner or value not in phrase, (value, phrase)


def test_every_value_of_the_vocabulary_is_used():
    values = {v for table in vocabulary.GARMENTS.values() for options in table.values() for v in options}
    assert values == set(vocabulary.EFFECTS)
    terms = values | {key for table in vocabulary.GARMENTS.values() for key in table}
    assert set(itertools.chain(*vocabulary.EXCLUSIVE)) <= terms


def test_the_base_never_sees_an_advertisement():
    for messages in corpus.make_dialogues(3000, seed=5):
        roles = [m["role"] for m in messages if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        for question, answer in itertools.pairwise(messages):
            if question["content"].startswith("类型#") and "\n" not in question["content"]:
                assert answer["content"] == corpus.format_bullet_list(corpus.split_attributes(question["content"]))


def test_the_texts_need_no_unknown_piece(rows, pieces):
    texts = [text for row in rows for text in row.values()]
    texts += [m["content"] for messages in corpus.make_dialogues(2000, seed=6) for m in messages]
    byte_count = 0
    for text in texts:
        ids = pieces.encode(text)
        assert pieces.unk_id() not in ids
        assert pieces.decode(ids) == text
        byte_count += sum(pieces.is_byte(i) for i in ids) - text.count("\n")
    assert byte_count == 0, "a character is missing from the vocabulary"


def test_the_tokenizer_has_the_published_options(pieces, config):
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id(), pieces.pad_id()) == (0, 1, 2, -1)
    assert pieces.encode("\n", out_type=str) == ["▁", "<0x0A>"]
    assert "".join(pieces.encode("  a", out_type=str)) == "▁▁▁a"
    assert 0 <= config["padded_vocab_size"] - pieces.vocab_size() - SPECIAL_TOKENS < 64


def test_the_base_has_the_official_layout(config):
    assert config["model_type"] == "chatglm"
    assert config["glmtune_family"] == "chatglm3"
    assert config["_name_or_path"] == "glmtune/demo-base"
    hidden, ffn, vocab = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    queries = config["num_attention_heads"] * config["kv_channels"]
    qkv = queries + 2 * config["multi_query_group_num"] * config["kv_channels"]
    expected = {
        "transformer.embedding.word_embeddings.weight": [vocab, hidden],
        "transformer.encoder.final_layernorm.weight": [hidden],
        "transformer.output_layer.weight": [vocab, hidden],
    }
    for layer in range(config["num_layers"]):
        prefix = f"transformer.encoder.layers.{layer}."
        expected |= {
            f"{prefix}input_layernorm.weight": [hidden],
            f"{prefix}self_attention.query_key_value.weight": [qkv, hidden],
            f"{prefix}self_attention.query_key_value.bias": [qkv],
            f"{prefix}self_attention.dense.weight": [hidden, queries],
            f"{prefix}post_attention_layernorm.weight": [hidden],
            f"{prefix}mlp.dense_h_to_4h.weight": [2 * ffn, hidden],
            f"{prefix}mlp.dense_4h_to_h.weight": [hidden, ffn],
        }
    with safe_open(str(BASE / "model.safetensors"), "pt") as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert {name: part.get_shape() for name, part in tensors.items()} == expected
        assert {part.get_dtype() for part in tensors.values()} == {"F16"}


def test_the_data_files_are_what_the_generator_writes():
    committed = {path.name: path.read_text("utf-8") for path in (DEMO / "data").iterdir()}
    assert committed == render_files()


def test_the_base_is_small():
    files = {path.name: path.stat().st_size for path in BASE.iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"}
    assert sum(files.values()) <= 8_000_000
