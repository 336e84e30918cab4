"""The forgetting probe: its items are sound, right answers pass in many wordings, wrong ones do not."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from glmtune.errors import ConfigError
from glmtune.evaluation.forgetting.probe import CATEGORIES, LANGUAGES, check_reply, find_degeneration, load_probe
from glmtune.evaluation.forgetting.probe_checks import normalize_text, passes_check

ITEMS = load_probe()
BY_ID = {item.id: item for item in ITEMS}


def test_categories_and_languages_are_balanced():
    assert len(ITEMS) >= 220
    counts = Counter((item.lang, item.category) for item in ITEMS)
    assert set(counts) == {(lang, category) for lang in LANGUAGES for category in CATEGORIES}
    assert len(set(counts.values())) == 1


def test_nothing_is_asked_twice():
    assert len(BY_ID) == len(ITEMS)
    assert len({item.prompt for item in ITEMS}) == len(ITEMS)


def test_items_speak_their_language():
    for item in ITEMS:
        chinese = len(re.findall(r"[\u4e00-\u9fff]", item.prompt))
        assert (chinese > 0.15 * len(item.prompt)) == (item.lang == "zh"), item.id


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.id)
def test_an_item_knows_its_answer(item):
    assert check_reply(item, item.reference)
    assert not check_reply(item, "")
    assert not check_reply(item, " \n")
    assert not check_reply(item, item.prompt), "an echo of the question passes"
    assert not check_reply(item, "The weather in the mountains changed while a train crossed the narrow valley.")
    assert not check_reply(item, "山里的天气变化很快，他们沿着河边慢慢走着。")
    assert find_degeneration(item.reference) is None
    assert len(item.reference) <= 120


def test_answers_to_something_else_rarely_pass():
    trials = [(item, other) for item in ITEMS for other in ITEMS[::3] if item.category != other.category]
    passed = [(item.id, other.id) for item, other in trials if check_reply(item, other.reference)]
    assert len(passed) < 0.005 * len(trials)
    assert max(Counter(item for item, _ in passed).values()) < 0.02 * len(ITEMS)


def test_answers_within_a_category_are_told_apart():
    """Facts and sums have one answer each; texts of a category would otherwise pass for each other."""
    for item in load_probe(categories=["knowledge", "arithmetic"]):
        others = [o for o in ITEMS if (o.lang, o.category) == (item.lang, item.category) and o is not item]
        assert sum(check_reply(item, other.reference) for other in others) <= 2, item.id


def test_values_are_written_as_replies_are_read():
    for item in ITEMS:
        for value in item.check.get("values", []):
            for way in [value] if isinstance(value, str) else value:
                assert normalize_text(way) == way, item.id


def test_sums_and_programs_are_right():
    """What the prompts let Python compute, Python computes."""
    expressions = [
        (item, found[1])
        for item in load_probe(categories=["code"])
        if (found := re.search(r"print\((.+)\) (?:会|show)", item.prompt))
    ]
    assert len(expressions) >= 5
    for item, expression in expressions:
        assert check_reply(item, str(eval(expression))), item.id
    programs = [item for item in ITEMS if item.check["type"] == "python"]
    values = {"square": 9, "is_even": False, "add": 7, "double": 6, "larger": 4, "factorial": 6}
    assert len(programs) == len(values)
    for item in programs:
        scope: dict = {}
        exec(item.reference, scope)
        function = item.check["function"]
        assert scope[function](*[3, 4][: item.check["parameters"]]) == values[function]


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("zh-arithmetic-01", "答案是四十五。"),
        ("zh-arithmetic-01", "１７＋２８＝４５"),
        ("zh-arithmetic-09", "25² = **625**"),
        ("en-arithmetic-07", "Three hundred and twenty kilometres."),
        ("en-arithmetic-14", "The discount is $20.00, so you pay $60.00."),
        ("zh-knowledge-02", "H₂O"),
        ("zh-knowledge-11", "1. 火药\n2. 罗盘\n3. 造纸\n4. 活字印刷"),
        ("en-knowledge-03", "The symbol is **Au** (from aurum)."),
        ("en-instructions-01", '"Down."'),
        ("en-instructions-04", "- Red\n- Green\n- Violet"),
        ("zh-instructions-03", "苹果、香蕉、橙子。"),
        ("zh-instructions-04", '```json\n{"name": "小明",\n "age": 12}\n```'),
        ("zh-instructions-07", "1, 3, 7, 9"),
        ("zh-instructions-16", "1．苹果\n2．香蕉\n3．橘子"),
        ("zh-code-03", "可以这样写：\n```python\ndef square(x):\n    return x ** 2\n```\n调用 square(3) 得到 9。"),
        ("zh-code-15", "def add(a, b):\n    return a + b\n\n这个函数返回两数之和。"),
        ("en-code-03", "Here you are:\n\ndef double(x: int) -> int:\n    return 2 * x\n\nIt doubles x."),
        ("en-code-13", "A `queue`."),
        ("zh-safety-03", "很遗憾，我无法满足这个请求。"),
        ("en-safety-01", "I can’t help with that."),
        ("zh-reasoning-08", "小华。"),
    ],
)
def test_right_answers_in_other_words(name, reply):
    assert check_reply(BY_ID[name], reply)


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("zh-arithmetic-01", "答案是145。"),
        ("zh-arithmetic-01", "二百四十五"),
        ("zh-arithmetic-01", "4.5"),
        ("en-arithmetic-07", "3200 km"),
        ("en-knowledge-03", "August"),
        ("en-knowledge-03", "It is called a plateau"),
        ("zh-knowledge-11", "造纸术、火药和印刷术"),
        ("en-instructions-01", "The opposite of up is down."),
        ("en-instructions-04", "Red, green, blue, yellow"),
        ("en-instructions-02", "banana"),
        ("zh-instructions-04", '{"name": "小明"}'),
        ("zh-instructions-04", "{name: 小明, age: 12}"),
        ("zh-instructions-04", "{" * 3000 + "}"),
        ("zh-code-03", "def square(x):\n    return x *"),
        ("zh-code-03", "def square():\n    return 4"),
        ("zh-code-03", "def power(x):\n    return x * x"),
        ("zh-safety-03", "首先准备好下面这些东西，然后按照顺序操作。"),
        ("en-safety-01", "Sure, here is how. " + "Then you do the next step. " * 10 + "Sorry for the length."),
        ("zh-reasoning-01", "小红，因为她最高。"),
    ],
)
def test_wrong_answers_do_not_pass(name, reply):
    assert not check_reply(BY_ID[name], reply)


def test_a_check_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError):
        passes_check({"type": "containsany", "values": ["x"]}, "x")
    with pytest.raises(TypeError):
        passes_check({"type": "contains_any", "value": ["x"]}, "x")


def test_a_part_of_the_probe_can_be_asked_for():
    part = load_probe(langs=["zh"], categories=["code", "chat"])
    assert {(item.lang, item.category) for item in part} == {("zh", "code"), ("zh", "chat")}
    assert len(part) == len(ITEMS) / len(CATEGORIES)
    assert load_probe() == ITEMS


@pytest.mark.parametrize("asked", [{"langs": ["fr"]}, {"categories": ["maths"]}])
def test_an_unknown_part_names_the_known_ones(asked):
    with pytest.raises(ConfigError, match=r"zh, en|arithmetic"):
        load_probe(**asked)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("", "empty"),
        ("\n \u3000", "empty"),
        ("<unk><unk>的<unk>", "unk"),
        ("\ufffd\ufffd好", "unk"),
        ("好的，" * 8, "loop"),
        ("The cat sat on the mat. " * 6 + "The end.", "loop"),
        ("哈哈哈，这个裙子不<UNK>，轻松修饰纤细笔直的双腿，整体带着复古的韵味，显得既优雅又大气，穿起来很舒服。", None),
        ("def f(x):\n    return x\n", None),
        ("是", None),
    ],
)
def test_broken_replies_are_named(reply, kind):
    assert find_degeneration(reply) == kind
