"""The tab `Data` through its door: lists, several data sets, findings, repairs, rows edited by hand."""

from __future__ import annotations

import json
import os
import re
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from page_client import PageClient

from glmtune.webui import root_walk
from glmtune.webui.app import make_context


@pytest.fixture
def context(tmp_path):
    """A server's settings with an empty root."""
    root = tmp_path / "root"
    root.mkdir()
    return make_context([root], "en")


@pytest.fixture
def page(context):
    return PageClient(context)


@pytest.fixture
def rows(context):
    """`rows(name, row, ...)`: a file of JSON lines in the root; a text is a line as it is."""

    def write(name, *values):
        path = context.roots[0] / name
        lines = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    "address",
    [*("/train", "/chat", "/evaluate", "/data", "/export", "/model", "/runs", "/evaluate/results"), "/choices/targets"],
)
def test_a_request_walks_the_roots_once_at_most(context, page, monkeypatch, address):
    walked = []
    walk = os.walk
    monkeypatch.setattr(root_walk.os, "walk", lambda root, *others: walked.append(root) or walk(root, *others))
    assert page.get(address).status_code == 200
    assert walked in ([], context.roots)


def test_models_and_data_are_found_by_what_is_typed(page, rows):
    for name in ("first", "second"):
        rows(f"{name}.jsonl", GOOD)
    found = page.get("/choices/datasets?field=data.train&id=datasets&data.train=sec").text
    assert re.findall("<option[^>]*>([^<]*)", found) == ["second.jsonl"]
    for tab, kinds in (("/data", ("datasets", "models")), ("/train", ("datasets", "models")), ("/model", ("models",))):
        content = page.get(tab).text
        assert all(f'hx-get="/choices/{kind}?field=' in content for kind in kinds)


GOOD = {"content": "问", "summary": "答"}


def _talk(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _finish(page, answer):
    """The result of a check that was started."""
    for _ in range(400):
        poll = re.search(r'hx-get="(/data/check/[^"]+)" hx-trigger="load', answer.text)
        if poll is None:
            return answer
        time.sleep(0.02)
        answer = page.get(poll.group(1))
    raise AssertionError("the check does not end")


def _check(page, fields):
    answer = _finish(page, page.post("/data/check", fields))
    assert 'name="check"' in answer.text, answer.text
    id = re.search(r'name="check" value="([^"]+)"', answer.text).group(1)
    return answer.text, [*fields, ("check", id)]


def _fields(*entries, **others):
    pairs = [pair for entry in entries for pair in zip(("data.train", "weight"), entry, strict=False)]
    return [*pairs, *others.items()]


def _read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_rows_are_repaired_into_a_new_file_and_used(context, page, rows):
    root = context.roots[0]
    bad = _talk(("user", "一"), ("user", "二\ufffd"), ("assistant", "答"))
    path = rows(
        "a.jsonl", _talk(("user", "x"), ("assistant", "y")), bad, "{broken", _talk(("user", "z"), ("assistant", ""))
    )
    before = path.read_bytes()
    _, fields = _check(page, _fields(("a.jsonl", "2")))
    panel = page.post("/data/repair", fields).text
    choices = {
        kind: re.findall(r'<option value="(\w+)"', options)
        for kind, options in re.findall(r'name="fix.([\w-]+)"(.*?)</select>', panel)
    }
    assert choices == {
        "broken-json": ["repair", "remove"],
        "empty-answer": ["repair", "remove"],
        "same-role-twice": ["repair", "keep", "remove"],
        "replacement-character": ["repair", "keep", "remove"],
    }
    assert 'name="fix" value="a-clean.jsonl"' in panel
    plan = [(f"fix.{kind}", actions[0]) for kind, actions in choices.items()]
    done = _finish(page, page.post("/data/fix", [*fields, *plan, ("fix", "a-clean.jsonl")]))
    assert "a-clean.jsonl: 2 rows, 1 of them changed; 2 left out" in done.text
    assert "join the messages; remove the character" in done.text.replace(
        "remove the character; join the messages", "join the messages; remove the character"
    )
    assert _read(root / "a-clean.jsonl")[1] == _talk(("user", "一\n二"), ("assistant", "答"))
    assert path.read_bytes() == before
    id = re.search(r'name="check" value="([^"]+)"', done.text).group(1)
    assert page.post("/data/use", [*_fields(("a.jsonl", "2")), ("check", id)]).headers["HX-Redirect"] == "/data"
    shown = page.get("/data").text
    assert 'name="data.train" value="a-clean.jsonl"' in shown
    assert 'name="weight" value="2"' in shown


def test_kinds_that_are_kept_or_left_out_are(context, page, rows):
    rows("a.jsonl", GOOD, {"content": "问\ufffd", "summary": "答"}, {"content": "你", "summary": "你"}, GOOD)
    plan = [("fix.replacement-character", "keep"), ("fix.answer-is-question", "remove"), ("fix.duplicate", "keep")]
    _finish(page, page.post("/data/fix", [*_fields(("a.jsonl",)), *plan, ("fix", "b.jsonl")]))
    assert [row["content"] for row in _read(context.roots[0] / "b.jsonl")] == ["问", "问\ufffd", "问"]
    assert (
        page.post("/data/fix", [*_fields(("a.jsonl",)), ("fix.nonsense", "remove"), ("fix", "c.jsonl")]).status_code
        == 422
    )


def test_several_data_sets_are_checked_and_go_to_training_with_their_shares(context, page, rows):
    rows("a.jsonl", GOOD, GOOD, {"content": "x", "summary": "y"})
    rows("b.jsonl", {"q": "甲", "a": "乙"}, {"q": "丙", "a": ""})
    catalog = context.roots[0] / "dataset_info.json"
    entry = {"file_name": "b.jsonl", "columns": {"prompt": "q", "response": "a"}}
    catalog.write_text(json.dumps({"mine": entry}))
    chosen = _fields(("a.jsonl", "2"), (f"{catalog}:mine", "0.5"))
    result, fields = _check(page, chosen)
    assert "a.jsonl:2</button>" in result
    assert "b.jsonl:2</button>" in result
    counts = re.findall(r'<td class="number">([\d.,]+)</td>', result)
    assert counts == ["3", "1", "2", "6", "2", "1", "0.5", "1"], "rows, with findings, share, rows in training"
    table = page.post("/data/rows", [*fields, ("findings_only", "true")]).text
    assert table.count("<tr>") == 3, "the head and a row of each"
    assert "dataset_info.json:mine: q/a" in table

    panel = page.post("/data/repair", fields).text
    names = re.findall(r'name="fix" value="([^"]+)"', panel)
    assert names == ["a-clean.jsonl", "repaired/mine/mine-clean.jsonl"]
    done = _finish(page, page.post("/data/fix", [*fields, *(("fix", name) for name in names)]))
    id = re.search(r'name="check" value="([^"]+)"', done.text).group(1)
    page.post("/data/use", [*chosen, ("check", id)])
    used = page.get("/data").text
    assert re.findall(r'name="(?:data.train|weight)" value="([^"]*)"', used) == [
        *("a-clean.jsonl", "2", "repaired/mine/dataset_info.json:mine-clean", "0.5")
    ]
    assert "乙" in page.post("/data/rows", _fields(("repaired/mine/dataset_info.json:mine-clean",))).text

    clean = _fields((f"{catalog}:mine",), ("a-clean.jsonl",))
    panel = page.post("/data/repair", _check(page, clean)[1]).text
    names = re.findall(r'name="fix" value="([^"]+)"', panel)
    assert names == ["repaired/mine-2/mine-clean.jsonl", "a-clean-clean.jsonl"]
    done = _finish(page, page.post("/data/fix", [*clean, *(("fix", name) for name in names)]))
    assert "a-clean.jsonl: nothing to change" in done.text
    assert not (context.roots[0] / names[1]).exists()

    assert page.post("/data/train", fields).headers["HX-Redirect"] == "/train"
    train = page.get("/train").text
    sent = re.findall(r'name="(?:data.train|weight)" value="([^"]*)"', train)
    assert sent == ["a.jsonl", "2", f"{catalog}:mine", "0.5"]


def test_an_empty_form_has_no_rows_to_train_on(page):
    refused = page.post("/data/train", _fields(("", "1")))
    assert refused.status_code == 422
    assert "No data is given" in refused.text
    assert page.post("/data/train", _fields(("a.jsonl", "many"))).status_code == 422


@pytest.mark.parametrize(
    ("preference", "stage", "expected"),
    [
        ("pairs", "sft", "dpo"),
        ("pairs", "orpo", "orpo"),
        ("labels", "", "kto"),
        ("prompts", "", "grpo"),
        ("chosen", "dpo", "sft"),
    ],
)
def test_the_stage_follows_how_rows_are_read(page, rows, preference, stage, expected):
    rows("a.jsonl", {"prompt": "问", "chosen": "好", "rejected": "坏"})
    page.post("/train/check", {"stage": stage})
    page.post("/data/train", [*_fields(("a.jsonl",)), ("data.preference", preference)])
    assert f'value="{expected}" selected' in page.get("/train").text


def test_a_row_is_edited_by_hand_and_written_to_a_new_file(context, page, rows):
    path = rows("a.jsonl", GOOD, {"content": "空", "summary": ""}, {"content": "丙", "summary": ""})
    before = path.read_bytes()
    result, fields = _check(page, _fields(("a.jsonl",)))
    assert result.count("is an answer, is empty") + result.count(", an answer, is empty") == 2
    row = page.post("/data/row", [*fields, ("row", "2")]).text
    assert "&#34;content&#34;: &#34;空&#34;" in row
    assert "a trained answer is empty" in row
    change = [*fields, ("row", "2"), ("action", "keep")]
    for wrong in ("{'a'", "[]", '{"content": "空"}'):
        refused = page.post("/data/edit", [*change, ("edited", wrong)])
        assert refused.status_code == 422
        assert refused.headers["HX-Retarget"] == "#edit-problem", "what was typed stays"
    kept = page.post("/data/edit", [*change, ("edited", '{"content": "空", "summary": "满"}')])
    assert kept.headers["HX-Trigger-After-Settle"] == "data-edited"
    page.post("/data/edit", [*fields, ("row", "3"), ("action", "leave_out")])
    id = dict(fields)["check"]
    stale = page.get(f"/data/check/{id}").text
    assert ", an answer, is empty" not in stale
    assert "2 rows were changed after this check" in stale
    table = page.post("/data/rows", fields).text
    assert "满" in table
    assert "left out by hand" in table
    assert page.post("/data/rows", [*fields, ("findings_only", "true")]).text.count("<tr>") == 0

    again, fields = _check(page, _fields(("a.jsonl",)))
    assert "a trained answer is empty" not in again, "the change is checked, not the file"
    assert page.post("/data/repair", fields).text.count('class="tag"') == 2
    done = _finish(page, page.post("/data/fix", [*fields, ("fix", "b.jsonl")]))
    assert "changed by hand" in done.text
    assert _read(context.roots[0] / "b.jsonl") == [GOOD, {"content": "空", "summary": "满"}]
    assert path.read_bytes() == before
    page.post("/data/edit", [*fields, ("row", "3"), ("action", "undo")])
    page.post("/data/edits/drop", fields)
    assert "满" not in page.post("/data/rows", fields).text


def test_changes_of_a_file_that_was_written_anew_are_not_used(page, rows):
    path = rows("a.jsonl", GOOD, GOOD)
    fields = _fields(("a.jsonl",))
    page.post("/data/edit", [*fields, ("row", "2"), ("action", "leave_out")])
    assert "left out by hand" in page.post("/data/rows", fields).text
    rows("a.jsonl", GOOD, GOOD, GOOD)
    os.utime(path, (1, 1))
    table = page.post("/data/rows", fields).text
    assert "left out by hand" not in table
    assert "has changed since rows of it were edited" in table


def test_findings_beyond_the_limit_are_said_to_be_cut(page, rows, monkeypatch):
    from glmtune.webui import data_checks, data_tab

    for module in (data_checks, data_tab):
        monkeypatch.setattr(module, "MAX_FOUND_ROWS", 2)
    rows("a.jsonl", *(GOOD for _ in range(5)))
    result, fields = _check(page, _fields(("a.jsonl",)))
    note = "Only the first 2 rows with findings"
    assert note in result
    assert note in page.post("/data/rows", [*fields, ("findings_only", "true")]).text
    assert note not in page.post("/data/rows", fields).text


def test_rows_of_a_kind_and_texts_after_the_first_characters_are_found(page, rows):
    rows("a.jsonl", GOOD, GOOD, {"content": "长" * 1000 + "针", "summary": "答"}, {"content": "x", "summary": ""})
    _, fields = _check(page, _fields(("a.jsonl",)))
    table = page.post("/data/rows", [*fields, ("kind", "empty-answer")]).text
    assert table.count("<tr>") == 2
    assert '"kind": "empty-answer"' in table, "other pages have the same rows"
    assert page.post("/data/rows", [*fields, ("search", "针")]).text.count("<tr>") == 2


def test_findings_of_other_settings_do_not_filter_the_table(page, rows):
    rows("a.jsonl", GOOD, GOOD)
    _, fields = _check(page, _fields(("a.jsonl",)))
    asked = [*fields, ("findings_only", "true")]
    assert "Check the data first" not in page.post("/data/rows", asked).text
    for changed in (("data.max_source_length", "7"), ("data.format", "adgen"), ("column.prompt", "content")):
        assert "Check the data first" in page.post("/data/rows", [*asked, changed]).text
        assert "fix.duplicate" not in page.post("/data/repair", [*fields, changed]).text


def test_rows_with_two_answers_a_label_or_none_are_shown_as_such(page, rows):
    rows("pairs.jsonl", {"prompt": "问", "chosen": "好", "rejected": "坏"})
    rows(
        "labels.jsonl",
        {"prompt": "问", "response": "甲", "label": True},
        {"prompt": "问", "response": "乙", "label": False},
    )
    rows("prompts.jsonl", {"prompt": "问", "response": "参考"})

    def table(name, preference):
        return page.post("/data/rows", [*_fields((name,)), ("data.preference", preference)]).text

    pair = table("pairs.jsonl", "pairs")
    assert re.search(r'class="answer better"><span class="tag">better</span> 好', pair)
    assert re.search(r'class="answer worse"><span class="tag">worse</span> 坏', pair)
    labels = table("labels.jsonl", "labels")
    assert re.search(r'class="answer better"><span class="tag">good</span> 甲', labels)
    assert re.search(r'class="answer worse"><span class="tag">bad</span> 乙', labels)
    assert re.search(r'<span class="tag">reference</span> 参考', table("prompts.jsonl", "prompts"))


def test_changes_that_are_not_written_are_limited(page, rows, monkeypatch):
    from glmtune.webui import data_edits

    rows("a.jsonl", GOOD, GOOD, GOOD)
    leave_out = [*_fields(("a.jsonl",)), ("action", "leave_out")]
    monkeypatch.setattr(data_edits, "MAX_EDITS", 1)
    assert page.post("/data/edit", [*leave_out, ("row", "1")]).status_code == 200
    refused = page.post("/data/edit", [*leave_out, ("row", "2")])
    assert "1 rows are changed and not written yet" in refused.text
    monkeypatch.setattr(data_edits, "MAX_EDITS", 9)
    monkeypatch.setattr(data_edits, "MAX_BYTES", 9)
    assert "bytes of rows are changed" in page.post("/data/edit", [*leave_out, ("row", "2")]).text


def test_attributes_that_depend_on_a_field_are_written_as_such(page):
    assert 'id="data-file-input"' in page.get("/data").text
    train = page.get("/train").text
    assert 'inputmode="decimal"' in train
    assert 'aria-describedby="models-help"' in train
