"""The page speaks one language: messages of the code are translated, and what is not says that it is English."""

from __future__ import annotations

import ast
import json
import re
import string
from importlib.resources import files
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from list_messages import SOURCE, list_messages, list_untranslated

from glmtune.webui.error_texts import localize_message, translate_message
from glmtune.webui.machine_view import render_diagnosis, render_verification
from glmtune.webui.rendering import render_problem

UNTRANSLATED_SHARE = 0.02
"""Of the messages: what a change may add before its author translates it."""

COMPOSED = {
    *("{config}.yaml with {model}", "from {low} to below {high}", "{count} tokens, {rows} rows, shown uncut"),
    *("the end of the better answer is cut", "the end of the worse answer is cut", "{count} tokens, shown uncut"),
}
"""Messages that the code puts together from words."""


def load_messages() -> dict[str, str]:
    path = files("glmtune.html") / "locales" / "messages.zh.json"
    messages: dict[str, str] = json.loads(path.read_text("utf-8"))
    return messages


def list_names(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def remove_names(template: str) -> str:
    return re.sub(r"\{\w+\}", "{}", template)


def test_messages_that_the_page_may_show_have_a_chinese_text():
    messages, untranslated = list_messages(), list_untranslated("zh")
    lines = "\n".join(f"{message.place}\t{message.template}" for message in untranslated)
    assert len(messages) > 1_000
    assert len(untranslated) <= UNTRANSLATED_SHARE * len(messages), f"add them to messages.zh.json:\n{lines}"


def test_the_list_of_messages_finds_what_is_raised(tmp_path):
    (tmp_path / "module.py").write_text(
        "def read(path, found, count):\n"
        "    problem = f'holds {found}' if found else 'is empty'\n"
        "    if count > 3:\n"
        "        raise DataError(f'{path}: {problem}.', hint='Give ' + 'rows.')\n"
        "    return Diagnosis('code', ERROR, 'no card', f'{path} is slow', install_package(facts))\n"
    )
    templates = [message.template for message in list_messages(tmp_path)]
    assert sorted(templates) == sorted(
        ["{path}: holds {found}.", "{path}: is empty.", "Give rows.", "no card", "{path} is slow"]
    )


def test_translations_are_of_messages_that_the_code_has_and_name_what_they_name():
    written = "\n".join(
        node.value
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ) + "".join(path.read_text("utf-8") for path in Path(SOURCE).rglob("*.j2"))
    listed = {remove_names(template) for template in COMPOSED.union(message.template for message in list_messages())}
    stale = []
    for template, translation in load_messages().items():
        assert list_names(translation) <= list_names(template), template
        pieces = [literal.strip(" .,:()") for literal, *_ in string.Formatter().parse(template)]
        if remove_names(template) not in listed and max(pieces, key=len) not in written:
            stale.append(template)
    assert len(stale) <= UNTRANSLATED_SHARE * len(listed), stale


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lora.rank must be a whole number, not 'many'.", "lora.rank 必须是整数，不能是 'many'。"),
        ("a.yaml: lora.rank must be a whole number, not 'x'.", "lora.rank 必须是整数，不能是 'x'。"),
        ("/x/y: there is no run (any more).", "/x/y：这次运行不存在"),
        (
            "rows: no usable rows. The first: /d/r.json:4: not a JSON object but 3.",
            "/d/r.json:4：不是 JSON 对象，而是 3。",
        ),
        ("lora.rank is 0; it must be from 1 to 100, or -1.", "必须在 1 到 100 之间，或为 -1。"),
        ("Try, in this order: method=lora, model.quantization=nf4 (a quarter of the weights' memory).", "四分之一"),
        ("/d: no row is left, all 1,200 rows are too long.", "1,200 行都太长"),
        ("runs/a: another process is training in this folder.", "正在这个文件夹里训练"),
        ("Set it: --set 'data.new_tokens=[\"x\"]'.", None),
        ("A stranger's sentence about a row", None),
        ("training: there is no {such} thing", None),
        ("training: no such file.", "training：没有这个文件。"),
    ],
)
def test_a_message_is_translated_with_the_messages_inside_it(line, words):
    translation = translate_message(line, "zh")
    assert translation is None if words is None else words in translation
    assert translate_message(line, "en") is None


@pytest.mark.parametrize(
    "line", ["a: " * 600, "a: " + ", ".join(f"{number} of it" for number in range(180)), "not " * 499]
)
def test_hostile_messages_are_looked_up_a_few_times(line):
    """Messages inside messages: each place, item and value once, not every combination of them."""
    translate_message.cache_clear()
    assert translate_message(line, "zh") is None
    assert 1 < translate_message.cache_info().misses < 20


def test_a_message_without_translation_stands_below_a_remark():
    assert localize_message("Nobody knows <b>", "zh") == (
        '<span class="note">以下为英文原文：</span> <span lang="en">Nobody knows &lt;b&gt;</span>'
    )
    assert localize_message("Nobody knows <b>", "en") == "Nobody knows &lt;b&gt;"
    problem = str(render_problem("Nobody knows <b>\nReload the page.", "zh"))
    assert '以下为英文原文：</p><p lang="en">Nobody knows &lt;b&gt;</p>' in problem
    assert "请刷新页面。" in problem
    assert "<details>" not in str(render_problem("Nobody knows.", "zh"))
    assert "<details>" not in str(render_problem("No rows are chosen.", "en"))


def test_what_doctor_and_verify_find_is_in_the_language_of_the_page():
    finding = {
        "code": "cpu-build",
        "severity": "error",
        "what": "torch 2.13 is a build for CPUs, and the machine has NVIDIA L4",
        "why": "A run would not use the card",
        "fix": "pip install torch  # or update the driver",
    }
    page = str(render_diagnosis({"findings": [finding]}, "zh"))
    assert "torch 2.13 是 CPU 版本，而机器有 NVIDIA L4" in page
    assert "一次训练不会用到显卡" in page
    assert "pip install torch  # 或更新驱动" in page
    result = {"ok": False, "faults": [{"file": "a.bin", "problem": "cut short: it ends after 12 bytes"}], "fix": ""}
    assert "不完整：在 12 字节后结束" in str(render_verification({**result, "notes": []}, "zh"))
    page = str(render_diagnosis({"findings": [finding]}, "en"))
    assert "A run would not use the card" in page
