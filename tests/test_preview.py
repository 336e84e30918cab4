"""`glmtune data preview` shows what training sees; `glmtune data tokenize` writes it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

import glmtune
from glmtune.data.conversation import Conversation
from glmtune.data.encoding import EncodingCounts, EncodingRules, encode_conversations
from glmtune.data.preview import (
    SPECIAL_STYLE,
    SPECIAL_TARGET_STYLE,
    PreviewRow,
    decode_tokens,
    make_token_views,
    render_text,
)
from glmtune.run_dir import RunDir
from tiny import FAMILIES

TURNS = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "您好，\n请说"},
    {"role": "user", "content": "魑魅😀 <script>alert('x')</script>"},
    {"role": "assistant", "content": "好的 <b>&amp;</b>"},
]
RULES = EncodingRules(512, 512)
ID_LINE = re.compile(r"^ *(\d+) +(\d+)  (yes|→\S+)? +\S", re.MULTILINE)


@pytest.fixture
def talk(tmp_path):
    path = tmp_path / "talk.jsonl"
    rows = [{"conversations": TURNS[2 * i : 2 * i + 2]} for i in range(2)] + [{"conversations": TURNS}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def _encode(folder, messages=TURNS):
    family, tokenizer = glmtune.detect_family(folder), glmtune.load_tokenizer(folder)
    conversation = Conversation([dict(message) for message in messages], "a:1")
    return list(encode_conversations([conversation], family, tokenizer, RULES, EncodingCounts())), tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_shown_are_the_encoded_ones(family, talk, tiny, glmtune_command):
    result = glmtune_command("data", "preview", talk, "--row", 3, "--model", tiny(family), "--ids")
    assert result.code == 0, result.err
    rows, _ = _encode(tiny(family))
    shown = [(int(token), mark == "yes") for _, token, mark in ID_LINE.findall(result.out)]
    # A label that differs from its token is shown as what should follow; the token itself is not learnt.
    wanted = [(token, label == token) for row in rows for token, label in zip(row.input_ids, row.labels, strict=True)]
    assert shown == wanted
    assert f"{talk}:3" in result.out
    assert f"{len(wanted)} tokens, {sum(label != -100 for row in rows for label in row.labels)} of them" in result.out
    assert "within the length limits" in result.out
    assert "\ufffd" not in result.out


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_together_are_the_text(family, tiny):
    rows, tokenizer = _encode(tiny(family))
    for row in rows:
        texts = decode_tokens(row.input_ids, tokenizer)
        assert "".join(text for text in texts if text).lstrip() == tokenizer.decode(row.input_ids).lstrip()
        spread = [text for text in texts if text and any(char in text for char in "魑魅😀")]
        assert [text.strip() for text in spread] in (["魑", "魅", "😀"], [])


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3", "glm4"])  # ChatGLM-6B's normaliser removes it
def test_a_lost_character_in_the_text_is_not_joined_with_the_next(family, tiny):
    tokenizer = glmtune.load_tokenizer(tiny(family))
    ids = tokenizer("\ufffdzz", add_special_tokens=False)["input_ids"]
    assert [text.strip() for text in decode_tokens(ids, tokenizer) if text and text.strip()] == ["\ufffd", "z", "z"]


def test_without_colours_a_fence_marks_what_is_learnt(talk, tiny, glmtune_command):
    out = glmtune_command("data", "preview", talk, "--row", 3, "--model", tiny("chatglm3")).out
    running = out[out.index("[gMASK]") :]
    assert "\x1b" not in out
    learnt = re.findall("⟦(.*?)⟧", running, re.DOTALL)
    assert [text.replace("↵\n", "|").replace(" ", "") for text in learnt] == [
        "|您好，|请说<|user|>",
        "|好的<b>&amp;</b></s>",
    ]
    assert re.sub("[⟦⟧ \n]", "", running.replace("↵", "")) == (
        "[gMASK]sop<|user|>你好<|assistant|>您好，请说<|user|>魑魅😀<script>alert('x')</script>"
        "<|assistant|>好的<b>&amp;</b></s>"
    )


def test_an_end_token_of_the_labels_alone_is_marked(talk, tiny, glmtune_command):
    out = glmtune_command("data", "preview", talk, "--row", 3, "--model", tiny("chatglm2"), "--ids").out
    assert "请说→</s>⟧↵\n" in out
    assert len(re.findall(r"^ *\d+ +\d+  →</s>", out, re.MULTILINE)) == 1
    single = glmtune_command("data", "preview", talk, "--model", tiny("chatglm2")).out
    assert "→</s>" not in single


def test_colours_tell_special_learnt_and_read_tokens_apart(tiny):
    (row,), tokenizer = _encode(tiny("chatglm3"))
    text = render_text(PreviewRow(make_token_views(row, tokenizer)), colours=True)
    styles = {(text.plain[span.start : span.end], str(span.style)) for span in text.spans}
    assert {
        ("[gMASK]", SPECIAL_STYLE),
        ("<|user|>", SPECIAL_STYLE),
        ("<|user|>", SPECIAL_TARGET_STYLE),
        ("</s>", SPECIAL_TARGET_STYLE),
    } <= styles
    assert {("魑", "dim"), ("您", "green")} <= styles
    assert "⟦" not in text.plain


def test_one_answer_per_row_shows_all_rows(talk, tiny, glmtune_command):
    out = glmtune_command("data", "preview", talk, "--row", 3, "--model", tiny("chatglm")).out
    assert "row 1 of 2" in out
    assert "row 2 of 2" in out
    assert out.count("[gMASK]<sop>") == 2
    assert out.index("row 2 of 2") < out.index("[Round 1]")


def test_what_the_limits_take_is_said(talk, tiny, glmtune_command):
    command = ("data", "preview", talk, "--row", 3, "--model", tiny("chatglm3"), "--set", "data.max_length=40")
    out = glmtune_command(*command).out
    assert "over the length limits: its oldest turns are dropped" in out
    assert "您好" not in out
    out = glmtune_command(*command, "--set", "data.overlength=drop").out
    assert "left out of training: " in out
    assert "more than 40 together (data.max_length)" in out
    assert "您好" in out  # all of it is shown
    refusal = glmtune_command(*command, "--set", "data.overlength=error")
    assert refusal.code == 1
    assert f"{talk}:3: " in refusal.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--row", "4"], "there is no row 4; it has 3 rows."),
        (["--html", "page.json"], "ends with .html"),
        (["--set", "data.nonsense=1"], "unknown key"),
        (["--set", "data.max_length=1"], "from 8"),
    ],
)
def test_mistakes_are_one_or_two_lines(arguments, said, talk, tiny, glmtune_command):
    result = glmtune_command("data", "preview", talk, "--model", tiny("chatglm3"), *arguments)
    assert result.code == 1
    assert said in result.err
    assert len(result.err.strip().splitlines()) <= 2


def test_a_row_that_is_none_says_why(tmp_path, tiny, glmtune_command):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "一", "response": "甲"}\n{"prompt": \n', "utf-8")
    result = glmtune_command("data", "preview", path, "--row", 2, "--model", tiny("chatglm3"))
    assert result.code == 1
    assert f"{path}:2: invalid JSON" in result.err
    assert f"{path}:2 is left out of training; the row is:\n" + '{"prompt": ' in result.out


def test_what_is_said_of_the_file_stands_above_the_row(tmp_path, tiny, glmtune_command):
    path, page = tmp_path / "a.jsonl", tmp_path / "page.html"
    path.write_bytes('{"prompt": "联通", "response": "移动"}\n'.encode("gb18030"))
    command = ("data", "preview", path, "--model", tiny("chatglm3"))
    note = f"{path}: read as GB18030 (it is not UTF-8)"
    out = glmtune_command(*command).out
    assert note in out[: out.index("[gMASK]")]
    assert note in glmtune_command(*command, "--html", page).out
    assert f"<p>{note}</p>" in page.read_text("utf-8")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["alpaca_zh_demo.json", "glaive_toolcall_zh_demo.json"])
def test_published_files_as_each_generation_sees_them(name, family, asset, tiny, glmtune_command):
    path = asset("data", name)
    refuses = "glaive" in name and family in ("chatglm", "chatglm2")
    limits = ("--model", tiny(family), "--set", "data.max_length=100000")

    checked = glmtune_command("data", "check", path, *limits, "--json")
    report = json.loads(checked.out)
    count = 300 if "alpaca" in name else 100
    assert (report["counts"]["rows"], report["counts"]["with_tools"] > 0) == (count, "glaive" in name)
    kinds = {item["kind"] for item in report["kinds"]}
    assert ("refused-by-model" in kinds, checked.code) == (refuses, int(refuses))
    assert kinds <= {"refused-by-model", "duplicate"}

    shown = glmtune_command("data", "preview", path, *limits)
    if refuses:
        assert report["counts"]["errors"] == report["counts"]["with_tools"]
        assert shown.code == 1
        error, hint = shown.err.strip().splitlines()
        assert re.search(rf"{path}:\d+: ChatGLM2?-6B has no format for tools\.$", error)
        assert "remove the tools" in hint
        return
    assert report["counts"]["training_rows"] == count
    assert report["counts"]["targets"] > count
    assert shown.code == 0, shown.err
    assert "within the length limits" in shown.out
    learnt = "".join(re.findall("⟦(.*?)⟧", shown.out, re.DOTALL)).replace("↵\n", "").replace(" ", "")
    assert ("generate_invoice" if "glaive" in name else "细胞理论") in learnt


def test_control_characters_do_not_reach_the_terminal(tmp_path, tiny, glmtune_command):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "\x1b[2J\tx", "response": "\x07\u202ey"}) + "\n", "utf-8")
    out = glmtune_command("data", "preview", path, "--model", tiny("chatglm3")).out
    assert not {"\x1b", "\x07", "\u202e", "\t"} & set(out)
    assert "\\x1b[2J⇥x" in out
    assert "\\x07\\u202ey" in out


class _Page(HTMLParser):
    """Tags, the text of the rows, and the titles of the tokens in them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.titles, self.inside, self.small = [], "", [], False, False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        named = dict(attributes)
        self.inside = self.inside or named.get("class") == "row"
        self.small = tag == "sub"
        if self.inside and "title" in named:
            self.titles += named["title"].split("+")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "div"
        self.small = False

    def handle_data(self, data):
        self.text += data if self.inside and not self.small else ""


@pytest.mark.parametrize("ids", [False, True])
def test_the_page_shows_a_script_as_text(ids, talk, tiny, tmp_path, glmtune_command):
    page = tmp_path / "page.html"
    more = ["--ids"] if ids else []
    result = glmtune_command("data", "preview", talk, "--row", 3, "--model", tiny("chatglm3"), "--html", page, *more)
    assert result.code == 0, result.err
    html = page.read_text("utf-8")
    read = _Page(html)
    (row,), _ = _encode(tiny("chatglm3"))
    assert read.titles == [str(token) for token in row.input_ids]
    assert ("sub" in read.tags) == ids
    assert not {"script", "b", "link", "img"} & set(read.tags)
    assert "<script>alert('x')</script>" in read.text
    assert "好的 <b>&amp;</b></s>" in read.text
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert "http" not in html


def test_encoded_once_and_trained_on(adgen_file, tiny, tmp_path, glmtune_command):
    data, folder = adgen_file(12), tmp_path / "encoded rows"
    result = glmtune_command("data", "tokenize", data, "--model", tiny("chatglm3"), "--output", folder)
    assert result.code == 0, result.err
    assert "12 rows" in result.out
    assert f"glmtune train --model {tiny('chatglm3')} --data '{folder}'" in result.out
    assert {file.name for file in folder.iterdir()} == {"rows.arrow", "dataset.json"}

    again = glmtune_command("data", "tokenize", data, "--model", tiny("chatglm3"), "--save", folder)
    assert again.code == 1
    assert "not an empty folder" in again.err
    for command in (["check"], ["preview", "--model", tiny("chatglm3")]):
        refusal = glmtune_command("data", command[0], folder, *command[1:])
        assert refusal.code == 1
        assert "holds encoded rows" in refusal.err

    train = glmtune_command(
        *("train", "--model", tiny("chatglm3"), "--data", folder, "--output", tmp_path / "run"),
        *("--set", "training.max_steps=2", "--set", "training.logging_steps=1"),
    )
    assert train.code == 0, train.err
    assert [entry["step"] for entry in RunDir(tmp_path / "run").read_metrics() if "loss" in entry] == [1, 2]


def test_a_failed_encoding_leaves_no_folder(adgen_file, tiny, tmp_path, glmtune_command):
    command = ("data", "tokenize", adgen_file(4), "--model", tiny("chatglm3"), "--output", tmp_path / "encoded")
    none_left = glmtune_command(*command, "--set", "data.max_length=8", "--set", "data.overlength=drop")
    assert none_left.code == 1
    assert "no row is within the limits" in none_left.err
    assert not (tmp_path / "encoded").exists()
    assert glmtune_command(*command, "--set", "data.max_length=8", "--set", "data.overlength=error").code == 1
    assert not (tmp_path / "encoded").exists()
    assert glmtune_command(*command).code == 0
