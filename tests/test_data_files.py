"""Files of other shapes and encodings: each is read, or named for what it is."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pyarrow
import pytest

from glmtune.data.sources import open_source
from glmtune.data.text_encoding import score_characters
from glmtune.errors import DataError

ROWS = [{"content": "裙", "summary": "裙子，很好看。"}, {"content": "裤", "summary": "裤子。"}]
PAIRS = [("裙", "裙子，很好看。"), ("裤", "裤子。")]
TALK = [{"role": "user", "content": "早"}, {"role": "assistant", "content": "早上好"}]
SHAREGPT = [{"from": "human", "value": "早"}, {"from": "gpt", "value": "早上好"}]


def _dump(value, **options):
    return json.dumps(value, ensure_ascii=False, **options)


def _lines(*values, **options):
    return "\n".join(_dump(value, **options) for value in values)


@pytest.fixture
def open_file(tmp_path):
    """`open_file("a.json", content)`: the opened source of a file with this text, or these bytes."""

    def run(name, content, **options):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return open_source(path, **options)

    return run


def _read(source):
    """Pairs of question and answer, with the lines of the rows."""
    rows = list(source)
    return [tuple(message["content"] for message in row.messages) for row in rows], [
        int(row.where.rpartition(":")[2]) for row in rows
    ]


# Layouts of JSON


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a.csv"])
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (_lines(*ROWS), [1, 2]),
        (_dump(ROWS), [1, 1]),
        (_dump(ROWS, indent=2), [2, 6]),
        (_lines(*ROWS, indent=2), [1, 5]),  # objects of several lines, one after the other
        (",\n".join(_dump(row, indent=1) for row in ROWS), [1, 5]),
        (",\n".join(map(_dump, ROWS)) + ",\n", [1, 2]),
        (_lines(*[[row] for row in ROWS]), [1, 2]),
        (_lines([ROWS[0]], indent=2) + "\n" + _lines([ROWS[1]], indent=2), [2, 8]),
        (_dump({"data": ROWS}), [1, 1]),
        (_dump({"version": "1.0", "rows": ROWS, "count": 2}, indent=1), [4, 8]),
        (_dump({"a": ROWS[0], "b": ROWS[1]}, indent=1), [2, 6]),
    ],
    ids=(
        *("lines", "array", "array of lines", "values", "values and commas", "lines and commas", "lists on lines"),
        *("arrays", "wrapper", "wrapper of lines", "rows by name"),
    ),
)
def test_rows_are_read_from_every_layout(name, text, lines, open_file):
    assert _read(open_file(name, text)) == (PAIRS, lines)


@pytest.mark.parametrize("block", [1, 7, 1 << 16])
def test_layouts_do_not_depend_on_blocks(block, open_file, monkeypatch):
    monkeypatch.setattr("glmtune.data.json_layout._BLOCK", block)
    texts = [_lines(*ROWS, indent=2), _dump({"x": "裙" * 99, "data": ROWS}), _lines(*[[row] for row in ROWS])]
    for text in texts:
        assert _read(open_file("a.json", text))[0] == PAIRS


@pytest.mark.parametrize("messages", [TALK, SHAREGPT])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_messages_is_one_row(messages, indent, open_file):
    one = [("早", "早上好")]
    assert _read(open_file("a.json", _dump(messages, indent=indent)))[0] == one
    assert _read(open_file("b.json", _lines(messages, messages, indent=indent)))[0] == 2 * one
    assert _read(open_file("c.json", _dump([messages, messages], indent=indent)))[0] == 2 * one
    assert _read(open_file("d.json", _dump({"data": [messages] * 3}, indent=indent)))[0] == 3 * one


def test_keys_beside_the_list_of_rows_are_named(open_file):
    source = open_file("a.json", _dump({"version": "1", "data": ROWS, "info": {"n": 2}}))
    assert source.notes == [f"{source.files[0]}: one object; its rows are the list in 'data'; not used: version, info"]
    assert open_file("b.json", _dump(ROWS)).notes == []


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK, "tools": [{"name": "f", "parameters": {}}]},
        {"conversations": SHAREGPT},
        {"prompt": "早", "response": "早上好", "sources": [{"path": "a.html"}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_with_lists_of_its_own_is_a_row(row, indent, open_file):
    source = open_file("a.json", _dump(row, indent=indent))
    assert (_read(source)[0], source.notes) == ([("早", "早上好")], [])


def test_a_column_that_the_user_names_is_not_a_list_of_rows(open_file):
    row = {"talk": [{"who": "user", "say": "早"}, {"who": "assistant", "say": "早上好"}]}
    from glmtune.data.catalog import SourceSpec

    path = open_file("rows.json", _dump(ROWS)).files[0]
    path.write_text(_dump(row), "utf-8")
    tags = {"role_tag": "who", "content_tag": "say", "user_tag": "user", "assistant_tag": "assistant"}
    source = open_source(SourceSpec(str(path), columns={"messages": "talk"}, tags=tags))
    assert _read(source)[0] == [("早", "早上好")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"content": ["裙", "裤"], "summary": ["a", "b"]}, "one object with a list for each column"),
        (
            {"content": {"0": "裙", "1": "裤"}, "summary": {"0": "a", "1": "b"}},
            "one object with a list for each column",
        ),
        ({"columns": ["content"], "index": [0], "data": [["裙"]]}, "names of columns and lists of cells"),
        ({"train": ROWS, "test": ROWS}, r"several lists of rows: 'train' \(2 rows\), 'test' \(2 rows\)"),
    ],
)
def test_objects_that_are_not_rows_are_named(value, message, open_file):
    for indent in (None, 2):
        with pytest.raises(DataError, match=rf"a\.json:1: .*{message}") as error:
            open_file("a.json", _dump(value, indent=indent))
        assert error.value.hint


def test_a_broken_object_of_several_lines_does_not_end_the_reading(open_file):
    broken = '{\n  "content": "a"\n  "summary": "b"\n}'
    source = open_file("a.json", "\n".join([_dump(ROWS[0], indent=2), broken, _dump(ROWS[1], indent=2)]))
    assert _read(source) == (PAIRS, [1, 9])
    assert source.invalid_lines == [f"{source.files[0]}:5: invalid JSON (Expecting ',' delimiter, line 7)"]


def test_a_broken_first_or_last_line_is_skipped(open_file):
    for text in (_dump(ROWS[0])[:-4] + "\n" + _lines(*ROWS), _lines(*ROWS) + "\n" + _dump(ROWS[0])[:-4]):
        source = open_file("a.jsonl", text)
        assert _read(source)[0] == PAIRS
        assert source.invalid_line_count == 1


def test_plain_text_stays_text(open_file):
    text = '[第一章] 开始\n{x} 正文\n{"a": 1} 是 JSON\n普通的一行\n'
    source = open_file("a.txt", text)
    assert [row.text for row in source] == text.splitlines()
    assert source.format == "text"


# Tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "content\tsummary\n裙\t裙子，很好看。\n裤\t裤子。\n"),
        ("a.csv", "content;summary\n裙;裙子，很好看。\n裤;裤子。\n"),
        ("a.csv", "content\tsummary\n裙\t裙子，很好看。\n裤\t裤子。\n"),
        ("a.csv", "content|summary\n裙|裙子，很好看。\n裤|裤子。\n"),
        ("a.csv", "sep=;\r\ncontent;summary\r\n裙;裙子，很好看。\r\n裤;裤子。\r\n"),
        ("a.tsv", "content,summary\n裙,裙子，很好看。\n裤,裤子。\n"),
    ],
)
def test_the_delimiter_of_a_table_is_detected(name, text, open_file):
    source = open_file(name, text)
    assert _read(source)[0] == PAIRS
    is_usual = (name, "\t" in text) == ("a.tsv", True)
    assert len(source.notes) == (not is_usual)


def test_other_delimiters_in_cells_change_nothing(open_file):
    source = open_file("a.csv", 'content,summary\n"a;b",c;d\n"x\t1\t2",y;;\n')
    assert _read(source)[0] == [("a;b", "c;d"), ("x\t1\t2", "y;;")]
    assert source.notes == []


# Encodings

GB_TEXT, BIG5_TEXT = "类型#裙子，颜色很漂亮，穿上显得很高。", "類型#裙子，一條裙子，顏色很漂亮。"


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        (GB_TEXT, "gb18030", "GB18030 (it is not UTF-8)"),
        (GB_TEXT, "gbk", "GB18030 (it is not UTF-8)"),
        (BIG5_TEXT, "big5", "Big5 (it is not UTF-8)"),
        (BIG5_TEXT, "gb18030", "GB18030 (it is not UTF-8)"),
        (GB_TEXT, "utf-16", "UTF-16"),
        (GB_TEXT, "utf-16-le", "UTF-16"),
        (BIG5_TEXT, "utf-16-be", "UTF-16"),
        (BIG5_TEXT, "utf-32", "UTF-32"),
    ],
)
@pytest.mark.parametrize("file", ["a.json", "a.csv", "a.txt"])
def test_encodings_are_told_apart_and_named(text, codec, name, file, open_file):
    contents = {"a.json": _dump([{"content": text, "summary": text}]), "a.csv": f"content,summary\n{text},{text}\n"}
    source = open_file(file, contents.get(file, f"text: {text}\n").encode(codec))
    assert source.notes == [f"{source.files[0]}: read as {name}"]
    row = next(iter(source))
    assert text in (row.text or row.messages[0]["content"])


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("Été à la mode, voilà", "latin-1"),
        ("Über größere Füße", "cp1252"),
        ("Привет, как дела? Хорошо", "cp1251"),
        ("今日はとても良い天気ですね。どこへ行きますか", "shift-jis"),
        (
            "日本語は日本国内で使用されている言語である。日本は法令によって公用語を規定していないが、全て日本語で記述され、話される",
            "euc-jp",
        ),
        (
            "대한민국은 동아시아의 한반도 남부에 있는 민주공화국이다. 서울은 대한민국의 수도이며 최대 도시이다.",
            "euc-kr",
        ),
    ],
)
def test_text_in_other_encodings_is_refused_instead_of_garbled(text, codec, open_file):
    with pytest.raises(DataError, match=r"a\.txt:1: neither UTF-8 nor GB18030 nor Big5 text"):
        open_file("a.txt", text.encode(codec))


def test_usual_characters_tell_the_encodings_apart(open_file):
    for text, right, wrong in ((GB_TEXT, "gb18030", "big5hkscs"), (BIG5_TEXT, "big5hkscs", "gb18030")):
        other = text.encode(right).decode(wrong, "replace")
        assert score_characters(Counter(text)) > score_characters(Counter(other)) + 0.5


def test_a_guess_that_may_be_wrong_is_called_one(open_file):
    """Two characters, rare ones in both encodings."""
    content = "龘靐\n".encode("gb18030")
    try:
        notes = open_file("a.txt", content).notes
    except DataError as error:
        notes = [str(error)]
    assert "it may be" in notes[0] or "neither UTF-8" in notes[0]


def test_a_character_cut_at_the_end_costs_the_last_line_only(open_file):
    text = _lines(*ROWS, ROWS[0])
    source = open_file("a.jsonl", text.encode()[:-4])
    assert _read(source)[0] == PAIRS
    assert source.invalid_line_count == 1
    assert source.notes == [f"{source.files[0]}:3: the file ends in the middle of a character"]
    plain = open_file("a.txt", "第一行\n第二行".encode()[:-1])
    assert [row.text for row in plain] == ["第一行"]
    table = open_file("a.csv", "content,summary\n裙,裙子。\n裤,裤子".encode()[:-1])
    assert _read(table)[0] == [("裙", "裙子。")]


# Other files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"PK\x03\x04" + bytes(60), "a zip archive or an Excel workbook"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        ("a.json", b"\n<!DOCTYPE html>\n<html>", "a web page"),
        ("a.csv", b"\xd0\xcf\x11\xe0" + bytes(60), "an Office document"),
        ("a.txt", b"%PDF-1.4\n", "a PDF document"),
        ("a.xlsx", b"PK", r"not a supported type of data file \(a workbook\)"),
        ("a.zip", b"PK", r"not a supported type of data file \(an archive\)"),
        ("a.arrow", b"ARROW1\0\0" + bytes(60), "not a valid Arrow file"),
    ],
)
def test_files_that_are_no_rows_are_named(name, content, message, open_file):
    with pytest.raises(DataError, match=rf"{name}: {message}") as error:
        open_file(name, content)
    assert error.value.hint


def test_content_decides_what_a_file_is(open_file, tmp_path):
    assert _read(open_file("a.json", gzip.compress(_lines(*ROWS).encode())))[0] == PAIRS
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "b.json")
    assert [row.messages[0]["content"] for row in open_source(tmp_path / "b.json")] == ["裙", "裤"]


# Folders of the package `datasets`


def _save_dataset(folder, rows, files=("data-00000-of-00001.arrow",), **state):
    """What `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    for name in files:
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.OSFile(str(folder / name), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    state = {"_data_files": [{"filename": name} for name in files], "_fingerprint": "0", "_split": "train", **state}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text('{"features": {}}')


def test_saved_data_sets_are_read(tmp_path):
    _save_dataset(tmp_path / "new", ROWS, ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow"))
    # Results of `map` lie in the folder too, and are not its rows.
    (tmp_path / "new" / "cache-1.arrow").write_bytes(b"x")
    source = open_source(tmp_path / "new")
    assert [row.where.rpartition("/")[2] for row in source] == [
        f"data-0000{part}-of-00002.arrow:row {row}" for part in (0, 1) for row in (1, 2)
    ]
    _save_dataset(tmp_path / "old", [{"conversations": TALK}] * 3, ("dataset.arrow",))
    assert [row.messages for row in open_source(tmp_path / "old")] == [TALK] * 3
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(str(tmp_path / "feather.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert len(list(open_source(tmp_path / "feather.arrow"))) == 2


def test_saved_data_sets_that_are_no_rows_are_named(tmp_path):
    _save_dataset(tmp_path / "splits" / "train", ROWS)
    _save_dataset(tmp_path / "splits" / "test", ROWS)
    (tmp_path / "splits" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="a saved DatasetDict with the splits train, test") as error:
        open_source(tmp_path / "splits")
    assert error.value.hint == f"Give one of them: {tmp_path / 'splits' / 'train'}"
    assert len(list(open_source(tmp_path / "splits" / "train"))) == 2
    (tmp_path / "splits" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert len(list(open_source(tmp_path / "splits"))) == 2

    _save_dataset(tmp_path / "ids", [{"input_ids": [5, 6], "seq_len": 2}])
    with pytest.raises(DataError, match=r"rows of token ids \(input_ids, seq_len\)"):
        open_source(tmp_path / "ids")
    _save_dataset(tmp_path / "part", ROWS)
    (tmp_path / "part" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match="a saved data set without its file"):
        open_source(tmp_path / "part")
    _save_dataset(tmp_path / "cut", ROWS)
    file = tmp_path / "cut" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-120])
    with pytest.raises(DataError, match=r"arrow.* Arrow file"):
        list(open_source(tmp_path / "cut"))


def test_the_command_that_fixes_is_the_typed_one(glmtune_command, tmp_path):
    file = tmp_path / "my rows.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": ""}\n', encoding="utf-8")
    result = glmtune_command("data", "check", file, "--set", "data.max_length=64")
    command = result.out.split("duplicates: ")[1].splitlines()[0]
    assert command == f"glmtune data check '{file}' --set data.max_length=64 --fix 'my rows-clean.jsonl'"
