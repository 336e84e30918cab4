"""`glmtune data check`: every kind of finding is found where it is, and nowhere else."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from glmtune.data.check_kinds import (
    CHECKS,
    KINDS,
    MAX_EXCERPT,
    check_conversation,
    escape_controls,
    make_excerpt,
)
from glmtune.data.conversation import Conversation
from glmtune.data.histogram import LengthCounts, make_bins, render_bars
from glmtune.data.mojibake import find_mojibake

USER, ANSWER = {"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好！"}
CALL = {"role": "tool", "name": "weather", "parameters": {"city": "北京"}}
RESULT = {"role": "observation", "content": "晴"}


def _kinds(*messages, text=None):
    return [problem.kind for problem in check_conversation(Conversation(list(messages), "a.json:1", text=text))]


def _said(role, content, **more):
    return {"role": role, "content": content, **more}


CLEAN = {
    "a turn": [USER, ANSWER],
    "two turns": [USER, ANSWER, USER, _said("assistant", "再见")],
    "a system message": [_said("system", "简短"), USER, ANSWER],
    "a call and its result": [USER, {**CALL, "observation": {"weather": "晴"}}, ANSWER],
    "a call at the end": [USER, CALL],
    "a call in two messages": [USER, CALL, RESULT, ANSWER],
    "a raw call": [USER, _said("assistant", "tool_call()", metadata="weather"), RESULT, ANSWER],
    "a call in words": [USER, _said("assistant", "Action: weather"), RESULT, RESULT, ANSWER],
    "an answer that is not learnt may be empty": [USER, _said("assistant", "", loss=False), USER, ANSWER],
    "code and markup": [
        _said("user", "```python\nprint('{{name}}', '<NAME>')\n```"),
        _said("assistant", "<NOTE>a</NOTE> <TABLE> \\frac{{a}}{b} list<INT> {x: {y}} x < NAME > y"),
    ],
    "words that are no prompt format": [
        _said("user", "## 问题\n问：一加一？\n- Assistant: a role\n用户：你好\n客服：您好 [Round 1]"),
        _said("assistant", "答：二。\n### 回答的依据"),
    ],
    "HTML that is struck through": [USER, _said("assistant", "now <s>10</s> 8, sop and eop, a[MAS]")],
}

FAULTY = {
    "empty-answer": [[USER, _said("assistant", " \n")], [USER, _said("assistant", ""), USER, ANSWER]],
    "empty-question": [[_said("user", text), ANSWER] for text in ("", " \n", "\u200b\ufeff", "\u3000\n")],
    "chat-template": [
        [_said("user", text), ANSWER]
        for text in (
            *(
                "[Round 0]\n问：喝什么茶？\n答：",
                "问：喝什么茶？\n\n答：",
                "喝什么茶？<bot>:",
                "User: tea? Assistant:",
                "<human>:喝什么茶？\n<bot>:",
            ),
            *("### Instruction:\nTea?\n\n### Response:", "Human: tea?\n\nAssistant:", "[INST] tea? [/INST]"),
            *("USER: tea? \nASSISTANT:", "用户：喝什么茶？\n助手："),
        )
    ],
    "placeholder": [
        [USER, _said("assistant", text)]
        for text in (
            "我是 {{name}}。",
            "我是 <NAME>。",
            "由 {{ author }} 开发",
            "我是{name}。",
            "<COMPANY_NAME>的",
            "{{公司}}",
        )
    ],
    "answer-is-question": [[USER, _said("assistant", " 你好\n")]],
    "no-target": [[USER, {**ANSWER, "loss": False}], [USER]],
    "same-role-twice": [[USER, USER, ANSWER], [USER, ANSWER, ANSWER]],
    "assistant-first": [[ANSWER, USER, ANSWER], [_said("system", "简短"), ANSWER, USER, ANSWER]],
    "no-final-answer": [[USER, ANSWER, USER], [USER, {**CALL, "observation": "晴"}], [USER, ANSWER, RESULT]],
    "call-without-result": [[USER, CALL, ANSWER], [USER, _said("assistant", "x", metadata="f"), USER, ANSWER]],
    "result-without-call": [[USER, RESULT, ANSWER], [USER, {**CALL, "observation": "晴"}, RESULT, ANSWER]],
    "replacement-character": [
        [USER, _said("assistant", "您\ufffd！")],
        [USER, {**CALL, "observation": "\ufffd"}, ANSWER],
    ],
    "mojibake": [[_said("user", "ä½\xa0å¥½"), ANSWER], [USER, _said("assistant", "浣犲ソ锛屼笘鐣")]],
    "special-token": [
        [_said("user", f"a {token} b"), ANSWER]
        for token in ("<|user|>", "[gMASK]", "</s>", "<eop>", "<sop>", "[MASK]", "<|im_end|>")
    ],
}
ABOUT_ONE_ROW = [(kind, messages) for kind, cases in FAULTY.items() for messages in cases]


@pytest.mark.parametrize("messages", CLEAN.values(), ids=CLEAN)
def test_a_clean_row_has_no_problem(messages):
    assert _kinds(*messages) == []


@pytest.mark.parametrize(("kind", "messages"), ABOUT_ONE_ROW)
def test_each_problem_is_found(kind, messages):
    others = {"no-final-answer"} if messages == [USER] else set()
    assert set(_kinds(*messages)) - others == {kind}


def test_every_check_has_a_test():
    elsewhere = {*("unreadable", "refused-by-model", "over-limit", "duplicate", "eval-overlap", "eval-same-prompt")}
    elsewhere |= {"unread-key", "worse-answer"}  # in test_row_kinds.py
    elsewhere |= {"similar-answers", "same-after-cut", "contradicting-pair", "length-bias"}  # test_preference_data.py
    elsewhere |= {"left-out"}  # test_row_repairs.py
    assert set(FAULTY) | elsewhere == set(KINDS)
    found = {p.kind for check in CHECKS for _, m in ABOUT_ONE_ROW for p in check(Conversation(m, "a:1"))}
    assert found == set(FAULTY)


def test_plain_text_is_checked_too():
    assert _kinds(text="一段文字") == []
    assert _kinds(text="一段\ufffd文字</s>") == ["replacement-character", "special-token"]


@pytest.mark.parametrize(
    "right", ["你好，世界！", "don’t — “stop”", "café, déjà vu", "привет, мир", "よろしく", "😀 ok"]
)
def test_utf8_read_as_latin_is_found(right):
    wrong = right.encode().decode("latin-1")
    assert find_mojibake(f"text: {wrong}") is not None
    windows = bytes(right, "utf-8").decode("cp1252", "ignore")
    if "мир" not in right and "よ" not in right:  # some of their bytes are undefined in Windows-1252
        assert find_mojibake(windows) is not None
    assert find_mojibake(right) is None


@pytest.mark.parametrize("right", ["你好，世界！", "今天的天气真不错", "人工智能是什么？"])
def test_other_wrong_encodings_are_found(right):
    assert find_mojibake(right.encode().decode("gbk", "ignore")) is not None
    assert (
        find_mojibake(right.replace("，", "").replace("！", "").replace("？", "").encode("gbk").decode("latin-1")) == 0
    )


@pytest.mark.parametrize(
    "text",
    [
        "«\xa0CAFÉ\xa0» et «É»: voilà\xa0! été\xa0» là\xa0» Ü… MENÜ…",
        "São João é ÃO, MAÇÃ, coração; œuvre; Straße; Þórður ræðir; Nguyễn Ái Quốc; Çağrı",
        "±±±±±±±± ·········· ¿¿¿¿¿¿¿¿ ÀÀÀÀÀÀÀÀ §§§§ ©®™",
        "联通联通联通联通，中文里的生僻字：龘靐齉爨，繁體字與標點「」『』。",
        "日本語のテキスト、ｶﾀｶﾅ、한국어 텍스트",
        "ασδφ δεν ξέρω; съешь ещё этих мягких французских булок",
    ],
)
def test_good_text_is_not_taken_for_mojibake(text):
    assert find_mojibake(text) is None


def test_an_excerpt_is_short_and_harmless():
    text = "x" * 500 + "\x1b[31m</s>\r\n\u202e" + "y" * 500
    shown = make_excerpt(text, 500)
    assert len(shown) <= MAX_EXCERPT
    assert "\\x1b[31m</s>\\r\\n\\u202e" in shown
    assert shown[0] == shown[-1] == "…"
    assert make_excerpt("short") == "short"
    assert len(make_excerpt("\x01" * 60)) <= MAX_EXCERPT
    assert escape_controls("好é😀") == "好é😀"


def test_lengths_are_counted_exactly():
    lengths = LengthCounts()
    for length in range(1, 101):
        lengths.add_length(length)
    assert lengths.as_dict() == {"min": 1, "mean": 50.5, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    assert LengthCounts().as_dict()["max"] == 0
    assert make_bins(LengthCounts()) == []


def test_bins_hold_every_row_once_and_a_giant_does_not_squeeze_them():
    lengths = LengthCounts()
    for length in [*range(100, 400), 90_000]:
        lengths.add_length(length)
    found = make_bins(lengths)
    assert sum(item.count for item in found) == 301
    assert found[-1].last == 90_000
    assert found[-1].count == 1
    assert all(one.last + 1 == two.first for one, two in pairwise(found))
    drawn = render_bars(found, width=20)
    assert len(drawn) == len(found)
    assert max(line.count("█") for line in drawn) == 20
    assert drawn[-1].endswith(" 1")


# --- the command ---


@pytest.fixture
def rows(tmp_path):
    """`rows("name.jsonl", row, ...)`: a file of rows; texts are lines as they are."""

    def write(name, *values):
        lines = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def check(glmtune_command):
    """`check(file, ...)`: exit code and the JSON report."""

    def run(*arguments):
        result = glmtune_command("data", "check", *arguments, "--json")
        assert result.out.startswith("{"), result.err
        return result.code, json.loads(result.out)

    return run


def _found(report):
    return sorted((item["kind"], item["line"]) for item in report["findings"])


def _row(prompt, response, **more):
    return {"prompt": prompt, "response": response, **more}


def _talk(*pairs):
    return {"conversations": [{"role": role, "content": content} for role, content in pairs]}


def test_a_clean_file_has_no_finding(check, adgen_file, glmtune_command):
    path = adgen_file(30)
    code, report = check(path)
    assert (code, report["findings"], report["kinds"]) == (0, [], [])
    assert report["counts"]["rows"] == report["counts"]["conversations"] == report["counts"]["answers"] == 30
    assert report["lengths"]["unit"] == "characters"
    assert sum(count for _, _, count in report["lengths"]["histogram"]) == 30
    shown = glmtune_command("data", "check", path)
    assert shown.code == 0
    assert "No problems in 30 rows." in shown.out
    assert "█" in shown.out


def test_faults_doubles_and_damage_are_reported_with_their_lines(check, rows, glmtune_command):
    path = rows(
        *("a.jsonl", _row("一", "甲"), "{broken", _row("一", "甲"), _row("二", ""), {"prompt": "三"}, "[1]"),
        *(_row("四", 5), _row("五", "x\ufffd"), _row("一", "乙")),
    )
    code, report = check(path)
    assert code == 1
    assert _found(report) == [
        ("broken-json", 2),
        ("duplicate", 3),
        ("empty-answer", 4),
        ("missing-column", 5),
        ("not-an-object", 6),
        ("replacement-character", 8),
        ("wrong-type", 7),
    ]
    double = next(item for item in report["findings"] if item["kind"] == "duplicate")
    assert double["message"] == f"the same as {path}:1"
    assert double["file"] == str(path)
    assert double["row"] == 3
    assert report["counts"]["rows"] == 9
    assert report["counts"]["unusable"] == 4
    assert (report["counts"]["errors"], report["counts"]["warnings"]) == (5, 2)
    shown = glmtune_command("data", "check", path)
    assert shown.code == 1
    assert f"{path}:2  invalid JSON" in shown.out
    assert "5 errors, 2 warnings in 9 rows." in shown.out


def test_unknown_roles_and_lonely_results_are_faults(check, rows):
    path = rows(
        "a.jsonl",
        _talk(("user", "一"), ("assistant", "甲")),
        _talk(("user", "二"), ("robot", "乙")),
        _talk(("user", "三"), ("tool", "乙"), ("assistant", "丙")),
        _talk(("user", "四"), ("system", "乙"), ("assistant", "丙")),
    )
    code, report = check(path)
    assert code == 1
    assert _found(report) == [("bad-tool-call", 3), ("role-order", 4), ("unknown-role", 2)]


def test_the_terminal_shows_five_of_a_kind_and_json_all(check, rows, glmtune_command):
    path = rows("a.jsonl", *[_row(f"问{i}", "") for i in range(8)])
    shown = glmtune_command("data", "check", path)
    assert shown.out.count(f"{path}:") == 5 + 1  # and once as the name of the source
    assert "and 3 more" in shown.out
    assert len(check(path)[1]["findings"]) == 8


def test_a_broken_array_is_reported_with_the_rows_before_it(check, tmp_path, glmtune_command):
    path = tmp_path / "a.json"
    path.write_text(
        '[\n{"prompt": "一", "response": "甲"},\n' + '{"prompt": "二", "response": "乙"},\n' * 300 + '{"prompt": ]',
        "utf-8",
    )
    code, report = check(path)
    assert code == 1
    assert [(item["kind"], item["line"]) for item in report["findings"] if item["severity"] == "error"] == [
        ("unreadable", 303)
    ]
    fixed = glmtune_command("data", "check", path, "--fix", tmp_path / "out.jsonl")
    assert fixed.code == 1
    assert ":303: invalid JSON" in fixed.err
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_rows_of_one_line_are_told_apart(check, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([_row("一", "甲"), _row("二", "乙"), _row("一", "甲")]), "utf-8")
    _, report = check(path)
    assert report["findings"][0]["message"] == f"the same as row 1 ({path}:1)"
    assert report["findings"][0]["row"] == 3


def test_other_tools_or_loss_flags_make_another_row(check, rows):
    talk = _talk(("user", "一"), ("assistant", "甲"), ("user", "二"), ("assistant", "乙"))
    other = json.loads(json.dumps(talk))
    other["conversations"][1]["loss"] = False
    path = rows("a.jsonl", talk, {**talk, "tools": [{"name": "f"}]}, other, {**talk, "id": 7})
    assert _found(check(path)[1]) == [("duplicate", 4), ("unread-key", 4)]


def test_overlap_with_the_evaluation_rows(check, rows):
    train = rows("train.jsonl", _row("一", "甲"), _row("二", "乙"), _row("三", "丙"))
    held = rows("eval.jsonl", _row("四", "丁"), _row("一", "甲"), "{broken", _row("二", "丙"))
    code, report = check(train, "--eval-data", held)
    assert code == 1
    assert [(item["severity"], item["kind"], item["line"], item["message"]) for item in report["findings"]] == [
        ("error", "eval-overlap", 1, f"the evaluation data has the same question and answer in {held}:2"),
        ("warning", "eval-same-prompt", 2, f"the evaluation data has the same question in {held}:4"),
    ]
    assert report["counts"]["eval_rows"] == 3
    assert check(train, "--eval-data", rows("other.jsonl", _row("五", "甲")))[0] == 0


def test_with_a_model_lengths_are_tokens_and_limits_are_judged(check, rows, tiny):
    path = rows("a.jsonl", _row("一", "甲"), _row("长" * 60, "甲"), _row("二", "乙" * 60))
    model = ("--model", tiny("chatglm3"))
    limits = ("--set", "data.max_source_length=40", "--set", "data.max_target_length=40")
    code, report = check(path, *model, *limits)
    assert code == 0
    assert _found(report) == [("over-limit", 2), ("over-limit", 3)]
    assert "the end of its question is cut" in report["findings"][0]["message"]
    assert "the end of its answer is cut" in report["findings"][1]["message"]
    assert report["model"] == "chatglm3"
    assert report["lengths"]["unit"] == "tokens"
    assert report["lengths"]["limits"] == {"prompt": 40, "answer": 40}
    assert report["lengths"]["prompt"]["max"] > 60
    assert report["counts"]["targets"] > 60

    code, report = check(path, *model, *limits, "--set", "data.overlength=error")
    assert code == 1
    assert {item["severity"] for item in report["findings"]} == {"error"}
    assert "more than 40 and 40" in report["findings"][0]["message"]
    code, report = check(path, *model, *limits, "--set", "data.overlength=drop")
    assert "it is dropped" in report["findings"][0]["message"]
    assert check(path, *model)[1]["findings"] == []
    together = check(path, *model, "--set", "data.max_length=50")[1]
    assert _found(together) == [("over-limit", 2), ("over-limit", 3)]
    assert together["lengths"]["limits"] == {"total": 50}


def test_what_the_generation_refuses_is_an_error(check, rows, tiny):
    path = rows(
        "a.jsonl",
        _talk(("user", "一"), ("assistant", "甲")),
        {**_talk(("user", "二"), ("assistant", "乙")), "tools": [{"name": "f"}]},
        _talk(("user", "三"), ("user", "四"), ("assistant", "丙")),
    )
    code, report = check(path, "--model", tiny("chatglm2"))
    assert code == 1
    assert _found(report) == [("refused-by-model", 2), ("refused-by-model", 3), ("same-role-twice", 3)]
    assert "no format for tools" in report["findings"][0]["message"]
    assert report["findings"][0]["hint"]
    assert check(path, "--model", tiny("chatglm3"))[0] == 0
    turns = rows("b.jsonl", _talk(("user", "一"), ("assistant", "甲"), ("user", "二"), ("assistant", "乙")))
    assert check(turns, "--model", tiny("chatglm"))[1]["counts"]["training_rows"] == 2
    assert check(turns, "--model", tiny("chatglm3"))[1]["counts"]["training_rows"] == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_fix_loses_no_row_and_leaves_a_clean_file(check, rows, tmp_path, name, glmtune_command):
    good = [_row(f"问{i}", f"答{i}", extra=str(i)) for i in range(5)]
    bad = [_row("问1", "答1", extra="1"), _row("空", "", extra="x")]
    if name == "a.csv":
        lines = [f"{row['prompt']},{row['response']},{row['extra']}" for row in good + bad]
        path = rows(name, "prompt,response,extra", *lines, "too,many,fields,here")
    elif name == "a.json":
        path = rows(name, json.dumps([*good, *bad, 7], ensure_ascii=False))
    else:
        path = rows(name, *good, *bad, '{"prompt": 甲')
    before = path.read_bytes()
    out, refused = tmp_path / "clean.jsonl", tmp_path / "clean.refused.jsonl"
    code, report = check(path, "--fix", out)
    assert code == 1
    files = {"clean": str(out), "clean_rows": 5, "refused": str(refused), "refused_rows": 3}
    assert report["fixed"] == {**files, "changed": None, "changed_rows": 0, "repairs": {}}
    assert [json.loads(line) for line in out.read_text("utf-8").splitlines()] == good
    kept = [json.loads(line) for line in refused.read_text("utf-8").splitlines()]
    assert [entry["row"] for entry in kept[:2]] == bad
    assert kept[0]["reasons"][0].startswith("duplicate: the same as ")
    assert kept[1]["where"].startswith(str(path))
    raw = {"a.csv": "too,many,fields,here", "a.jsonl": '{"prompt": 甲', "a.json": before.decode().strip()}[name]
    assert kept[2]["line"] == raw
    assert path.read_bytes() == before

    code, again = check(out)
    assert (code, _found(again), again["counts"]["rows"]) == (0, [("unread-key", 1)], 5)
    for other in (out, tmp_path / "clean"):  # neither the clean file nor the refused one may be overwritten
        refusal = glmtune_command("data", "check", path, "--fix", other.with_suffix(".jsonl"))
        assert refusal.code == 1
        assert "does not overwrite files" in refusal.err
    out.unlink()
    assert "does not overwrite files" in glmtune_command("data", "check", path, "--fix", out).err
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "clean.refused.jsonl"])


def test_fix_puts_model_and_evaluation_errors_aside(check, rows, tiny, tmp_path):
    path = rows("a.jsonl", _row("一", "甲"), _row("二", "乙", tools=[{"name": "f"}]), _row("三", "丙"))
    held = rows("eval.jsonl", _row("三", "丙"))
    more = ("--model", tiny("chatglm2"), "--eval-data", held)
    assert check(path, *more, "--fix", tmp_path / "out.jsonl")[0] == 1
    code, report = check(tmp_path / "out.jsonl", *more)
    assert (code, report["counts"]["rows"]) == (0, 1)


def test_the_picture_is_a_png(rows, tmp_path, glmtune_command):
    path = rows("a.jsonl", *[_row("问" * (i % 7 + 1), f"答{i}") for i in range(40)])
    assert glmtune_command("data", "check", path, "--png", tmp_path / "l.png").code == 0
    assert (tmp_path / "l.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    refusal = glmtune_command("data", "check", path, "--png", path)
    assert refusal.code == 1
    assert "ends with .png" in refusal.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.jsonl"], "no such file"),
        (["FILE", "--set", "data.max_lenght=5"], "Did you mean max_length?"),
        (["FILE", "--fix", "out.txt"], "ends with .jsonl"),
        (["FILE", "--fix", "nowhere/out.jsonl"], "no such folder"),
        (["FILE", "--model", "nowhere"], "nowhere"),
        (["FILE", "--eval-data", "missing.jsonl"], "no such file"),
    ],
)
def test_mistakes_are_one_or_two_lines(arguments, said, rows, glmtune_command):
    path = rows("a.jsonl", _row("一", "甲"))
    result = glmtune_command("data", "check", *[str(path) if part == "FILE" else part for part in arguments])
    assert result.code == 1
    assert said in result.err
    assert 1 <= len(result.err.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("name", "warnings"),
    [
        # What is found there is there: the last 2 of the 900 rows are one, and 3 of the 100 are doubles.
        ("adgen/train.json", ["duplicate"]),
        ("alpaca_zh_demo.json", []),
        ("glaive_toolcall_zh_demo.json", ["duplicate"] * 3),
    ],
)
def test_published_data_has_no_errors(name, warnings, asset, check):
    code, report = check(asset("data", name))
    assert code == 0
    assert [item["kind"] for item in report["findings"]] == warnings
