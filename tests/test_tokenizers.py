"""The fast tokenizers against the published ones: golden ids, SentencePiece itself, tiktoken itself."""

from __future__ import annotations

import base64
import json
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import sentencepiece
import tiktoken

from glmtune.errors import ModelError
from glmtune.families.family import tokenize_text
from glmtune.models.tokenizers import build_tokenizer, load_tokenizer

GOLDEN = Path(__file__).resolve().parent / "golden"
ROWS = [json.loads(line) for line in (GOLDEN / "tokenizer.jsonl").read_text(encoding="utf-8").splitlines()]
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))
RENDERED = json.loads((GOLDEN / "render.json").read_text(encoding="utf-8"))
KEYS = {"chatglm": "chatglm1", "chatglm2": "chatglm2", "chatglm3": "chatglm2"}
FOLDERS = {"chatglm": "chatglm-6b", "chatglm2": "chatglm2-6b", "chatglm3": "chatglm3-6b"}
PUBLISHED = list(FOLDERS)
ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TALK = [
    {"role": "system", "content": "你是导游。"},
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好！"},
    {"role": "user", "content": "去哪玩"},
    {"role": "assistant", "content": "黄山。\n西湖。"},
]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def prompt_ids(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


def with_blanks(text):
    """What ChatGLM-6B's own code does to white space before SentencePiece sees it."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for length in range(80, 1, -1):
        text = text.replace(" " * length, f"<|blank_{length}|>")
    return text


# ---------------------------------------------------------------------------------------------- published tokenizers


@pytest.fixture(scope="session")
def published(asset):
    """Build (once) the tokenizer of a family from its published files."""
    built = {}

    def get(family):
        if family not in built:
            folder = asset("assets", FOLDERS[family])
            built[family] = build_tokenizer(folder, family, json.loads((folder / "config.json").read_text()))
        return built[family]

    return get


# In a run of one letter SentencePiece (single precision) and the fast tokenizer (double) may order pieces of equal
# score differently. These are the only texts that may use this excuse, and only with the very same pieces.
REORDERED_RUNS = {"chatglm": {"x" * 300}, "chatglm2": set(), "chatglm3": set()}


@pytest.mark.parametrize("family", PUBLISHED)
def test_golden_ids(published, family):
    tokenizer, key = published(family), KEYS[family]
    reordered = set()
    for row in ROWS:
        ids = ids_of(tokenizer, row["text"])
        if ids != row[key]:
            assert Counter(ids) == Counter(row[key])
            reordered.add(row["text"])
    assert reordered == REORDERED_RUNS[family]


@pytest.mark.parametrize("family", PUBLISHED)
def test_golden_decoding(published, family):
    tokenizer, key = published(family), KEYS[family]
    for row in ROWS:
        assert tokenizer.decode(row[key]) == row[f"{key}_decoded"]
        assert tokenizer.decode(row[key], skip_special_tokens=True) == row[f"{key}_decoded"]


@pytest.mark.parametrize("family", PUBLISHED)
def test_golden_ids_in_a_batch(published, family):
    tokenizer, key = published(family), KEYS[family]
    rows = [row for row in ROWS if row["text"] not in REORDERED_RUNS[family]]
    batch = tokenizer([row["text"] for row in rows], add_special_tokens=False, split_special_tokens=True)
    assert batch.input_ids == [row[key] for row in rows]


def random_texts(seed, count):
    """Chinese, English, emoji, numbers, white space, typed special tokens, odd code points; no runs of a letter."""
    rng = random.Random(seed)
    words = ["你好", "类型#裙*版型#显瘦", "黄山是世界文化遗产，", "sophisticated people", " the", "don't", "\n", "\t"]
    words += ["😀", "👨‍👩‍👧", "❤️", "𠮷", "①㎡", "ＡＢ１２", "ｶﾞ", "カ\u3099", "cafe\u0301", "，\u0336", "ﬁ", "\u200b"]
    words += ["[gMASK]", "<sop>", "<eop>", "</s>", "<unk>", "sop", "<|user|>", "<0x41>", "<n>", "<|blank_5|>", "▁"]
    words += [" ", "  ", "     ", " " * 163, "\u3000", "\r\n", "3.14159", "print(x)", "，", "。”", "<image 3>"]
    for _ in range(count):
        yield "".join(
            rng.choice(words)
            if rng.random() < 0.7
            else chr(rng.choice([rng.randrange(32, 0x2FF), rng.randrange(0x3041, 0xABFF)]))
            for _ in range(rng.randint(1, 9))
        )


def test_random_texts_against_sentencepiece(published, asset):
    unigram = sentencepiece.SentencePieceProcessor(model_file=str(asset("assets", "chatglm-6b", "ice_text.model")))
    bpe = sentencepiece.SentencePieceProcessor(model_file=str(asset("assets", "chatglm2-6b", "tokenizer.model")))
    for text in random_texts(0, 400):
        assert ids_of(published("chatglm"), text) == unigram.encode(with_blanks(text)), repr(text)
        assert ids_of(published("chatglm2"), text) == bpe.encode(text), repr(text)
        assert published("chatglm2").decode(bpe.encode(text)) == bpe.decode(bpe.encode(text))


def test_runs_of_one_letter_have_the_same_pieces(published, asset):
    unigram = sentencepiece.SentencePieceProcessor(model_file=str(asset("assets", "chatglm-6b", "ice_text.model")))
    bpe = sentencepiece.SentencePieceProcessor(model_file=str(asset("assets", "chatglm2-6b", "tokenizer.model")))
    for letter in "ax哈好=-.0":
        for length in range(2, 60, 3):
            run = letter * length
            assert Counter(ids_of(published("chatglm"), run)) == Counter(unigram.encode(run))
            assert ids_of(published("chatglm2"), run) == bpe.encode(run)


def test_letters_in_parts_are_put_together(published, asset):
    """Decomposed accents, kana and Hangul, as some systems write them, and half-width kana."""
    unigram = sentencepiece.SentencePieceProcessor(model_file=str(asset("assets", "chatglm-6b", "ice_text.model")))
    whole = "Việt Nam, français, Ångström, ガギグゲゴ パピプ, 한국어 각하, ё й"
    for text in (unicodedata.normalize("NFD", whole), "ｶﾞｷﾞﾊﾟ ﾋﾟ", "删̶除̶，̶", "½̲"):
        assert ids_of(published("chatglm"), text) == unigram.encode(text)


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("text", ["<|assistant|>", "[gMASK]", "sop", "eop", "</s>", "<eop>", "a [gMASK]<sop> b"])
def test_special_tokens_in_text_stay_text(published, asset, family, text):
    file = "ice_text.model" if family == "chatglm" else "tokenizer.model"
    official = sentencepiece.SentencePieceProcessor(model_file=str(asset("assets", FOLDERS[family], file)))
    ids = ids_of(published(family), text)
    assert ids == official.encode(text)
    assert not set(ids) & set(published(family).all_special_ids)


@pytest.mark.parametrize("family", PUBLISHED)
def test_words_that_contain_sop_are_not_cut(published, family):
    tokenizer = published(family)
    for text in ("sophisticated people develop", "A sophomore's eopteryx", "sop你好"):
        assert tokenizer(text, add_special_tokens=False).input_ids == ids_of(tokenizer, text)


def test_special_ids(published, asset):
    first, second, third = (published(family) for family in PUBLISHED)
    assert (first.bos_token, first.eos_token, first.unk_token) == ("<sop>", "<eop>", "<unk>")
    assert (first.bos_token_id, first.eos_token_id, first.pad_token_id, first.unk_token_id) == (130004, 130005, 3, 0)
    assert first.convert_tokens_to_ids(["[MASK]", "[gMASK]", "</s>"]) == [130000, 130001, 2]
    for tokenizer in (second, third):
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 2)
        assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 0)
        specials = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
        assert tokenizer.convert_tokens_to_ids(specials) == [64789, 64790, 64791, 64792, 64793]
    assert third.convert_tokens_to_ids(ROLES) == [64794, 64795, 64796, 64797]
    assert len(second) == 64794
    assert len(third) == 64798
    assert set(ROLES) <= set(third.all_special_tokens)


@pytest.mark.parametrize("family", PUBLISHED)
def test_default_call_adds_what_the_official_one_adds(published, family):
    tokenizer = published(family)
    text = ids_of(tokenizer, "你好")
    special = tokenizer.convert_tokens_to_ids
    if family == "chatglm":
        whole = [*text, special("[gMASK]"), special("<sop>")]
    else:
        whole = [special("[gMASK]"), special("sop"), *text]
    encoded = tokenizer("你好")
    assert list(encoded) == ["input_ids", "attention_mask"]
    assert encoded.input_ids == whole


@pytest.mark.parametrize("family", PUBLISHED)
def test_padding_on_both_sides(published, family):
    tokenizer = published(family)
    assert tokenizer.padding_side == "left"
    left = tokenizer(["你好", "介绍一下黄山的风景"], padding=True)
    right = tokenizer(["你好", "介绍一下黄山的风景"], padding=True, padding_side="right")
    short = tokenizer("你好").input_ids
    gap = [tokenizer.pad_token_id] * (len(left.input_ids[1]) - len(short))
    assert gap
    assert left.input_ids[0] == gap + short
    assert right.input_ids[0] == short + gap
    assert left.attention_mask[0] == [0] * len(gap) + [1] * len(short)


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("text", ["晚上睡不着应该怎么办", "hello world, 你好", "def f(x):\n    return x", "黄山\n西湖"])
def test_offsets_point_at_each_token(published, family, text):
    tokenizer = published(family)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for token, (start, end) in zip(encoded.tokens(), encoded.offset_mapping, strict=True):
        shown = re.sub(r"<n>|<0x0A>", "\n", token.replace("▁", " "))
        if token == "▁" and end == 1:  # the prefix has the offsets of the first letter, for masks by letters
            assert start == 0
        elif not token.startswith("<|blank_"):  # a run of spaces: its last one
            assert text[start:end].strip(" ") == shown.strip(" ")
    assert {i for start, end in encoded.offset_mapping for i in range(start, end)} >= {
        i for i, letter in enumerate(text) if letter != " "
    }


def test_reply_that_ends_amid_a_letter_keeps_its_line_break(published):
    tokenizer = published("chatglm2")
    cut = [*ids_of(tokenizer, "好\n"), tokenizer.convert_tokens_to_ids("<0xF0>")]
    assert tokenizer.decode(cut) == "好\n\N{REPLACEMENT CHARACTER}"


# ------------------------------------------------------------------------------------------------------ chat templates


def golden_messages(row):
    return row.get("messages") or [*row["tools_history"], {"role": row["role"], "content": row["query"]}]


# A template is one text, so a role token typed by a user becomes that role. ChatGLM3's `<|assistant|>` in the fourth
# conversation is the one case; `glmtune.families` renders it rightly. For ChatGLM-6B and ChatGLM2 it is plain text.
NOT_BY_TEMPLATE = {("chatglm3", 3)}


@pytest.mark.parametrize("family", PUBLISHED)
def test_template_gives_the_golden_prompts(published, family):
    key = family.replace("chatglm", "chatglm1") if family == "chatglm" else family
    missed = set()
    for number, row in enumerate(PROMPTS):
        if key not in row:
            continue
        ids = prompt_ids(published(family), golden_messages(row), add_generation_prompt=True)
        if ids != row[key]["input_ids"]:
            missed.add((family, number))
    assert missed == {case for case in NOT_BY_TEMPLATE if case[0] == family}


def test_template_gives_the_golden_training_rows(published):
    """ChatGLM3's whole conversations, closed by `</s>`; the row with a tool call goes through `glmtune.families`."""
    for row in RENDERED[:3]:
        messages = [{key: message[key] for key in ("role", "content")} for message in row["row"]["conversations"]]
        assert prompt_ids(published("chatglm3"), messages) == row["chatglm3"]["input_ids"]


@pytest.mark.parametrize("content", [" 前面有空格", "", "第一行\n第二行\n", "  ", "\n换行", "x"])
def test_chatglm3_content_is_cut_on_its_own(published, content):
    tokenizer = published("chatglm3")
    role = tokenizer.convert_tokens_to_ids
    expected = [role("[gMASK]"), role("sop"), role("<|user|>"), *ids_of(tokenizer, "\n"), *ids_of(tokenizer, content)]
    messages = [{"role": "user", "content": content}]
    assert prompt_ids(tokenizer, messages, add_generation_prompt=True) == [*expected, role("<|assistant|>")]


@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
def test_system_goes_in_front_of_the_first_question(published, family):
    merged = [{"role": "user", "content": "你是导游。\n你好"}, *TALK[2:4]]
    for stop in (2, 4):
        with_system = prompt_ids(published(family), TALK[:stop], add_generation_prompt=True)
        assert with_system == prompt_ids(published(family), merged[: stop - 1], add_generation_prompt=True)


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("start", [0, 3])
def test_last_reply_is_closed_as_trained(published, family, start):
    """prompt + reply (encoded on its own) + end token; one round and several."""
    tokenizer, talk = published(family), TALK[start:]
    reply = ids_of(tokenizer, talk[-1]["content"])
    if family == "chatglm3":
        reply = [*ids_of(tokenizer, "\n"), *reply]
    end = tokenizer.convert_tokens_to_ids("<eop>" if family == "chatglm" else "</s>")
    prompt = prompt_ids(tokenizer, talk[:-1], add_generation_prompt=True)
    assert prompt_ids(tokenizer, talk) == [*prompt, *reply, end]


@pytest.mark.parametrize("family", PUBLISHED)
def test_template_and_family_render_alike(published, family):
    from glmtune.families import get_family

    tokenizer, renderer = published(family), get_family(family)
    for talk in (TALK, TALK[1:], TALK[3:]):
        ids = prompt_ids(tokenizer, talk[:-1], add_generation_prompt=True)
        assert ids == renderer.encode_prompt(talk[:-1], tokenizer)
        assert prompt_ids(tokenizer, talk) == renderer.encode(talk, tokenizer).input_ids


def test_chatglm3_template_announces_tools_as_the_family_does(published):
    from glmtune.families import get_family

    tools = [{"name": "get_weather", "description": "查询天气", "parameters": {"city": "str"}}]
    talk = [{"role": "user", "content": "北京天气"}]
    ids = prompt_ids(published("chatglm3"), talk, tools=tools, add_generation_prompt=True)
    assert ids == get_family("chatglm3").encode_prompt(talk, published("chatglm3"), tools)


@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
def test_templates_without_tools_refuse_them(published, family):
    with pytest.raises(Exception, match="no format for tools"):
        prompt_ids(published(family), TALK[1:2], tools=[{"name": "f"}], add_generation_prompt=True)


# ------------------------------------------------------------------------------------------ early ChatGLM-6B releases

EARLY = {"vocab_size": 150528, "bos_token_id": 150004, "eos_token_id": 150005, "mask_token_id": 150000}
EARLY |= {"gmask_token_id": 150001, "pad_token_id": 20003}


def early_folder(asset, folder, **declared):
    (folder / "ice_text.model").symlink_to(asset("assets", "chatglm-6b", "ice_text.model"))
    if declared:
        (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    return folder


@pytest.mark.parametrize("declared", [{}, {"num_image_tokens": 20000}])
def test_early_release_shifts_every_id(published, asset, tmp_path, declared):
    early = build_tokenizer(early_folder(asset, tmp_path, **declared), "chatglm", EARLY)
    late = published("chatglm")
    assert early.convert_tokens_to_ids(["[MASK]", "[gMASK]", "<sop>", "<eop>"]) == [150000, 150001, 150004, 150005]
    assert (early.pad_token_id, early.unk_token_id) == (20003, 20000)
    for text in [*(row["text"] for row in ROWS), "<image 3>", "<image 19999> 😀"]:
        assert ids_of(early, text) == [20000 + index for index in ids_of(late, text)]
    assert early("你好").input_ids == [20000 + index for index in late("你好").input_ids]
    assert early.decode(early("你好 world\n").input_ids, skip_special_tokens=True) == "你好 world\n"


@pytest.mark.parametrize(
    ("changes", "declared", "words"),
    [
        ({}, {"num_image_tokens": 0}, ["150004", "130004", "num_image_tokens is 0"]),
        (
            {"eos_token_id": 130005, "pad_token_id": 3},
            {},
            ["eos_token_id is 130005", "150005", "pad_token_id is 3", "20003"],
        ),
        ({"vocab_size": 130528}, {}, ["150344", "130528", "wrong vocabulary"]),
        ({"bos_token_id": 5}, {}, ["bos_token_id is 5", "130004"]),
    ],
)
def test_stale_ids_are_named(asset, tmp_path, changes, declared, words):
    folder = early_folder(asset, tmp_path, **declared)
    with pytest.raises(ModelError) as caught:
        build_tokenizer(folder, "chatglm", EARLY | changes)
    assert all(word in str(caught.value) for word in words)
    assert caught.value.hint


# ------------------------------------------------------------------ small models made here, without published files

CORPUS = [
    *(row["text"] for row in ROWS if row["text"].isprintable()),
    "今天天气很好，我们去公园散步吧。The quick brown fox jumps over the lazy dog.",
    "你好！有什么可以帮你？Hello, how can I help you today?",
    "这款连衣裙采用纯棉面料，柔软亲肤，简约大方，穿着舒适。",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz 0123456789 <>[]()|/_-#*.,:;!?",
] * 3
TINY_TEXTS = [
    "你好 world",
    " 前后 空格 ",
    "多  个   空    格",
    "行\n行\t行",
    "",
    " ",
    "😀𠮷 emoji",
    "ＡＢ１２①",
    "ﬁne café",
]
TINY_TEXTS += ["<sop>[gMASK]</s><unk>", "<0x41>", "sophisticated", "<|user|>你好", "▁▁a▁", "今天天气很好，" * 5]
CONTROL = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]


def train(folder, name, **options):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / "model"),
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    (folder / "model.model").rename(folder / name)
    (folder / "model.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / name))


def write_config(folder, **config):
    (folder / "config.json").write_text(json.dumps({"model_type": "chatglm", **config}))
    return config


@pytest.fixture(scope="session")
def tiny_unigram(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-chatglm")
    blanks = [f"<|blank_{length}|>" for length in range(2, 81)]
    official = train(
        folder,
        "ice_text.model",
        model_type="unigram",
        vocab_size=1400,
        normalization_rule_name="nmt_nfkc",
        pad_id=3,
        control_symbols=CONTROL,
        user_defined_symbols=["<n>", "<|tab|>", *blanks],
    )
    names = {"bos_token_id": "<sop>", "eos_token_id": "<eop>", "gmask_token_id": "[gMASK]", "pad_token_id": "<pad>"}
    ids = {key: official.piece_to_id(piece) for key, piece in names.items()}
    write_config(folder, inner_hidden_size=64, position_encoding_2d=True, vocab_size=2048, **ids)
    return folder, official


def train_bpe(folder, family):
    official = train(
        folder,
        "tokenizer.model",
        model_type="bpe",
        vocab_size=1400,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=-1,
    )
    write_config(folder, padded_vocab_size=2048, eos_token_id=2, pad_token_id=0, glmtune_family=family)
    return folder, official


@pytest.fixture(scope="session")
def tiny_bpe(tmp_path_factory):
    return train_bpe(tmp_path_factory.mktemp("tiny-chatglm2"), "chatglm2")


def byte_pair_ranks(text, merges):
    """A tiktoken vocabulary: the bytes, then the most frequent pair of neighbours in the words, again and again."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    words = [[bytes([byte]) for byte in word.encode()] for word in re.findall(r" ?\w+|[^\w]+", text)]
    for _ in range(merges):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        ranks[left + right] = len(ranks)
        for number, word in enumerate(words):
            joined = []
            for part in word:
                if joined and joined[-1] == left and part == right:
                    joined[-1] = left + right
                else:
                    joined.append(part)
            words[number] = joined
    return ranks


@pytest.fixture(scope="session")
def tiny_glm4(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-glm4")
    ranks = byte_pair_ranks("".join(CORPUS), 200)
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items()]
    (folder / "tokenizer.model").write_text("\n".join(lines) + "\n")
    size = len(ranks)
    write_config(
        folder,
        padded_vocab_size=512,
        glmtune_family="glm4",
        eos_token_id=[size, size + 7, size + 9],
        pad_token_id=size,
    )
    return folder, tiktoken.Encoding("tiny", pat_str=GLM4_PATTERN, mergeable_ranks=ranks, special_tokens={})


def test_tiny_unigram_against_sentencepiece(tiny_unigram):
    folder, official = tiny_unigram
    tokenizer = load_tokenizer(folder)
    for text in [*TINY_TEXTS, *random_texts(1, 200)]:
        assert ids_of(tokenizer, text) == official.encode(with_blanks(text)), repr(text)
    assert tokenizer.decode(ids_of(tokenizer, "a\t b\n  c")) == "a\t b\n  c"


def test_tiny_bpe_against_sentencepiece(tiny_bpe):
    folder, official = tiny_bpe
    tokenizer = load_tokenizer(folder)
    for text in [*TINY_TEXTS, *random_texts(2, 300)]:
        ids = official.encode(text)
        assert ids_of(tokenizer, text) == ids, repr(text)
        assert tokenizer.decode(ids) == official.decode(ids)
    specials = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
    size = len(official)
    assert tokenizer.convert_tokens_to_ids(specials) == [size + i for i in range(5)]


def test_glm4_against_tiktoken(tiny_glm4):
    folder, official = tiny_glm4
    tokenizer = load_tokenizer(folder)
    texts = [*TINY_TEXTS, *random_texts(3, 300), "It's 12345 o'clock\r\n\r\n  I'LL go", "<|user|>[gMASK]<sop>"]
    for text in texts:
        ids = official.encode(text, disallowed_special=())
        assert ids_of(tokenizer, text) == ids, repr(text)
        assert tokenizer.decode(ids) == official.decode(ids)


def test_glm4_special_tokens_and_prompt(tiny_glm4):
    folder, official = tiny_glm4
    tokenizer, size = load_tokenizer(folder), official.n_vocab
    names = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *ROLES]
    names += ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
    ids = {name: size + i for i, name in enumerate(names)}
    assert tokenizer.convert_tokens_to_ids(names) == list(ids.values())
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (size, size)
    assert tokenizer("你好").input_ids == [ids["[gMASK]"], ids["<sop>"], *official.encode("你好")]
    prompt = [ids["[gMASK]"], ids["<sop>"]]
    for message in TALK:
        prompt += [ids[f"<|{message['role']}|>"], *official.encode("\n"), *official.encode(message["content"])]
    assert prompt_ids(tokenizer, TALK) == [*prompt, size]
    question = [*TALK, {"role": "user", "content": "谢谢"}]
    prompt += [ids["<|user|>"], *official.encode("\n"), *official.encode("谢谢"), ids["<|assistant|>"]]
    assert prompt_ids(tokenizer, question, add_generation_prompt=True) == prompt


RELOAD = """
import json, sys
from transformers import AutoTokenizer
text, messages = json.loads(sys.argv[1])
result = []
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    result.append([
        plain, tokenizer(text).input_ids, tokenizer.decode(plain),
        tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True),
        tokenizer.apply_chat_template(messages, return_dict=False),
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        tokenizer.padding_side, tokenizer.model_input_names, tokenizer.special_tokens_map,
        tokenizer.all_special_tokens, tokenizer.all_special_ids, len(tokenizer),
    ])
assert not any(name.partition(".")[0] == "glmtune" for name in sys.modules)
print(json.dumps(result))
"""


def test_saved_tokenizers_reload_without_glmtune(tiny_unigram, tiny_bpe, tiny_glm4, tmp_path):
    text = "你好 world\n  <|user|> sophisticated [gMASK] 😀"
    expected, folders = [], []
    cases = [("chatglm", tiny_unigram), ("chatglm2", tiny_bpe), ("chatglm3", tiny_bpe), ("glm4", tiny_glm4)]
    for family, (folder, _) in cases:
        tokenizer = build_tokenizer(folder, family, json.loads((folder / "config.json").read_text()))
        tokenizer.save_pretrained(tmp_path / family)
        folders.append(str(tmp_path / family))
        plain = ids_of(tokenizer, text)
        expected.append(
            [
                *(plain, tokenizer(text).input_ids, tokenizer.decode(plain)),
                tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True),
                tokenizer.apply_chat_template(TALK, return_dict=False),
                tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True),
                *(tokenizer.padding_side, tokenizer.model_input_names, tokenizer.special_tokens_map),
                *(tokenizer.all_special_tokens, tokenizer.all_special_ids, len(tokenizer)),
            ]
        )
        assert ids_of(load_tokenizer(tmp_path / family), text) == plain
    arguments = [sys.executable, "-c", RELOAD, json.dumps([text, TALK]), *folders]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(expected, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert json.loads(json.dumps(ours)) == theirs


# -------------------------------------------------------------------------------------------------------------- errors


def refusal(folder, family, config=None):
    with pytest.raises(ModelError) as caught:
        build_tokenizer(folder, family, config or {})
    assert caught.value.hint
    assert len(str(caught.value).splitlines()) == 2
    return str(caught.value)


@pytest.mark.parametrize(("family", "file"), [("chatglm", "ice_text.model"), ("glm4", "tokenizer.model")])
def test_missing_file_is_named(tmp_path, family, file):
    (tmp_path / "tokenization_chatglm.py").write_text("raise SystemExit('never run')")
    message = refusal(tmp_path, family)
    assert file in message
    assert ".py files are not enough" in message


@pytest.mark.parametrize("family", ["chatglm", "chatglm2", "chatglm3", "glm4"])
def test_lfs_pointer_is_named(tmp_path, family):
    for file in ("ice_text.model", "tokenizer.model"):
        (tmp_path / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1018370\n")
    assert "Git LFS pointer" in refusal(tmp_path, family)


@pytest.mark.parametrize("keep", [0, 1, 100, 2000, -1, -2000])
def test_truncated_sentencepiece(tiny_unigram, tiny_bpe, tmp_path, keep):
    for family, (folder, _), file in (
        ("chatglm", tiny_unigram, "ice_text.model"),
        ("chatglm2", tiny_bpe, "tokenizer.model"),
    ):
        data = (folder / file).read_bytes()
        (tmp_path / file).write_bytes(data[:keep] if keep else b"<!DOCTYPE html><html></html>")
        assert "truncated" in refusal(tmp_path, family)


def test_sentencepiece_cut_off_between_two_pieces(tiny_bpe, tmp_path):
    data = (tiny_bpe[0] / "tokenizer.model").read_bytes()
    end = 0
    for _ in range(100):  # 100 whole pieces: tag 0x0a, a length below 128, the piece
        assert data[end] == 0x0A
        end += 2 + data[end + 1]
    (tmp_path / "tokenizer.model").write_bytes(data[:end])
    assert "truncated" in refusal(tmp_path, "chatglm3")


def test_truncated_tiktoken(tiny_glm4, tmp_path):
    lines = (tiny_glm4[0] / "tokenizer.model").read_text().splitlines()
    (tmp_path / "tokenizer.model").write_text("\n".join(lines[:300])[:-1])
    assert "truncated" in refusal(tmp_path, "glm4")
    (tmp_path / "tokenizer.model").write_text("\n".join(lines[:100] + lines[110:]))
    assert "truncated" in refusal(tmp_path, "glm4")
    (tmp_path / "tokenizer.model").write_bytes((tiny_glm4[0] / "tokenizer.model").read_bytes()[:2001] + b" =")
    assert "tokenizer.model:" in refusal(tmp_path, "glm4")


def test_tokenizer_of_another_generation(tiny_unigram, tiny_bpe, tmp_path):
    (tmp_path / "ice_text.model").write_bytes((tiny_bpe[0] / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer.model").write_bytes((tiny_unigram[0] / "ice_text.model").read_bytes())
    assert "BPE model" in refusal(tmp_path, "chatglm")
    assert "Unigram model" in refusal(tmp_path, "chatglm2")
    assert "tiktoken" in refusal(tmp_path, "glm4")


def test_wrong_vocabulary_names_both_numbers(tiny_bpe):
    folder, official = tiny_bpe
    message = refusal(folder, "chatglm2", {"padded_vocab_size": 640})
    assert "wrong vocabulary for the tokenizer" in message
    assert str(len(official) + 5) in message
    assert "640" in message


def test_stale_ids_of_chatglm2(tiny_bpe):
    message = refusal(tiny_bpe[0], "chatglm2", {"padded_vocab_size": 2048, "eos_token_id": 130005, "pad_token_id": 3})
    assert "eos_token_id is 130005, the tokenizer's </s> is 2" in message
    assert "pad_token_id is 3" in message


def test_unknown_family_and_broken_json(tmp_path, tiny_unigram):
    assert "chatglm9" in refusal(tmp_path, "chatglm9")
    folder, _ = tiny_unigram
    (tmp_path / "ice_text.model").write_bytes((folder / "ice_text.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json" in refusal(tmp_path, "chatglm")
    (tmp_path / "tokenizer.json").write_text('{"version"')
    with pytest.raises(ModelError, match=r"tokenizer\.json does not load"):
        load_tokenizer(tmp_path)


# ------------------------------------------------------------------------------------------------ the fast way to ids


@pytest.mark.parametrize("family", PUBLISHED)
def test_official_ids_are_what_encoding_uses_and_equal_the_golden_ones(family, asset):
    tokenizer = load_tokenizer(asset("assets", FOLDERS[family]))
    assert [tokenize_text(tokenizer, row["text"]) for row in ROWS] == [row[KEYS[family]] for row in ROWS]


@pytest.mark.parametrize("family", ["chatglm", "chatglm2", "chatglm3"])
def test_official_ids_equal_the_fast_tokenizers(family, tiny):
    tokenizer = load_tokenizer(tiny(family))
    rng = random.Random(4)
    alphabet = "上衣裙裤白色风格简约 aZ9*#\n\t，。👍é"
    texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 30))) for _ in range(300)]
    texts += [" " * n + "x" for n in (1, 2, 79, 80, 81, 82, 161)]
    for text in texts:
        assert tokenize_text(tokenizer, text) == ids_of(tokenizer, text)
