"""Ids to text: a stream's pieces are the text of all ids, and bytes without a character cost no other character."""

from __future__ import annotations

import random

import pytest

import glmtune
from glmtune.generation.reply_text import ReplyText
from glmtune.models.tokenizers.text_decoding import decode_text, make_text_decoder
from tiny import FAMILIES

TEXT = "你好 👩‍🚀 world\n龘龘\n  x 𠮷野家 ok\t  "


def draw_ids(tokenizer, rng):
    """Runs of byte tokens, any tokens, parts of a text, special tokens and spaces."""
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    # Not 0x20, of which the decoders of fast tokenizers and SentencePiece make different things at a text's beginning.
    single_bytes = [i for i, piece in enumerate(pieces) if (piece or "").startswith("<0x") and piece != "<0x20>"]
    text = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    spaces = tokenizer("a ", add_special_tokens=False)["input_ids"][-1]
    while True:
        ids = []
        for _ in range(rng.randint(1, 12)):
            kind, start = rng.random(), rng.randrange(len(text))
            if kind < 0.35 and single_bytes:
                ids += rng.choices(single_bytes, k=rng.randint(1, 6))
            elif kind < 0.6:
                ids += rng.choices(range(len(tokenizer)), k=rng.randint(1, 4))
            elif kind < 0.85:
                ids += text[start : start + rng.randint(1, 8)]
            elif kind < 0.95:
                ids.append(rng.choice(tokenizer.all_special_ids))
            else:
                ids += [spaces] * rng.randint(1, 20)
        yield ids


def check_streams(folder, count):
    tokenizer, rng = glmtune.load_tokenizer(folder), random.Random(0)
    decode = make_text_decoder(tokenizer)
    for ids, _ in zip(draw_ids(tokenizer, rng), range(count), strict=False):
        text = ReplyText(decode)
        pieces = [text.add([token]) for token in ids] + [text.finish()]
        assert "".join(pieces) == decode_text(tokenizer, ids), ids
        plain = tokenizer.decode(ids, skip_special_tokens=True)
        if "\ufffd" not in plain:
            assert decode(ids) == plain


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_is_the_text_of_all_ids(family, tiny):
    check_streams(tiny(family), 300)


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "chatglm3-6b"])
def test_a_stream_of_a_published_tokenizer_is_the_text_of_all_ids(name, asset):
    check_streams(asset("assets", name), 400)


@pytest.mark.parametrize("name", ["chatglm2-6b", "chatglm3-6b"])
def test_text_is_that_of_sentencepiece(name, asset):
    from sentencepiece import SentencePieceProcessor

    official = SentencePieceProcessor(model_file=str(asset("assets", name) / "tokenizer.model"))
    tokenizer = glmtune.load_tokenizer(asset("assets", name))
    left_out = {*tokenizer.all_special_ids, *range(official.get_piece_size(), len(tokenizer))}
    left_out.add(tokenizer.convert_tokens_to_ids("<0x20>"))
    for ids, _ in zip(draw_ids(tokenizer, random.Random(0)), range(400), strict=False):
        ids = [token for token in ids if token not in left_out]
        assert decode_text(tokenizer, ids) == official.decode(ids), ids


def test_a_reply_cut_amid_a_character_keeps_the_characters_before_it(asset):
    tokenizer = glmtune.load_tokenizer(asset("assets", "chatglm3-6b"))
    ids = tokenizer("好𠮷𠮷", add_special_tokens=False)["input_ids"][:-1]
    assert decode_text(tokenizer, ids) == "好𠮷" + 3 * "\ufffd"
    assert "𠮷" not in tokenizer.decode(ids)  # what the fast tokenizer makes of it
