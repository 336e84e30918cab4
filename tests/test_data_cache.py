"""The cache of encoded rows: names of this run, damage, disks that cannot be written; long rows and conversations."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path

import pytest

import glmtune
from glmtune.data import cache, encoding
from glmtune.data.cache import encode_sources, get_cache_dir, open_encoded_data
from glmtune.data.conversation import Conversation
from glmtune.data.encoding import EncodingCounts, EncodingRules, encode_conversations
from glmtune.data.row_store import JoinedRowStore
from glmtune.data.sources import open_sources
from glmtune.errors import DataError
from glmtune.families import get_family
from tiny import FAMILIES

ROOMY = EncodingRules(1000, 1000)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture
def load(tiny):
    return lambda name: (get_family(name), glmtune.load_tokenizer(tiny(name)))


@pytest.fixture
def encode_file(load):
    """`encode_file(path, ...)`: encoded rows of ChatGLM3."""

    def run(*paths, folder=None):
        return encode_sources(open_sources([str(path) for path in paths]), *load("chatglm3"), ROOMY, folder=folder)

    return run


def _write(path: Path, count=3, suffix=""):
    rows = [json.dumps({"content": f"问{i}{suffix}", "summary": "答"}, ensure_ascii=False) for i in range(count)]
    path.write_text("\n".join([*rows, "{broken"]), "utf-8")
    return path


def _read_rows(data):
    return [(list(row.input_ids), list(row.labels), row.where) for row in (data.rows[i] for i in range(len(data.rows)))]


# Names


def test_names_of_files_are_those_of_this_run(encode_file, tmp_path):
    paths = [_write(tmp_path / "a.jsonl"), _write(tmp_path / "b.jsonl", suffix="b")]
    first = encode_file(*paths)
    renamed = [path.rename(tmp_path / f"new-{path.name}") for path in paths]
    second = encode_file(*renamed)
    assert second.rows.path == first.rows.path
    assert [row[2] for row in _read_rows(second)] == [f"{path}:{line}" for path in renamed for line in (1, 2, 3)]
    assert [line.partition(": ")[0] for line in second.info.broken] == [f"{path}:4" for path in renamed]
    assert second.info.files == [str(path) for path in renamed]
    assert [row[:2] for row in _read_rows(second)] == [row[:2] for row in _read_rows(first)]

    # Two data sets whose rows had the same name when they were encoded keep names of their own.
    other = encode_file(_write(tmp_path / "a.jsonl", suffix="other"))
    other_name = (tmp_path / "a.jsonl").rename(tmp_path / "other.jsonl")
    joined = JoinedRowStore(second.rows, encode_file(other_name).rows)
    assert len(joined) == 9
    assert [joined[i].where for i in (0, 5, 6, 8)] == [
        *(f"{renamed[0]}:1", f"{renamed[1]}:3"),
        *(f"{other_name}:1", f"{other_name}:3"),
    ]
    assert list(joined[6].input_ids) == list(other.rows[0].input_ids)


def test_notes_are_those_of_this_run(encode_file, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('[{"content": "类型裙子", "summary": "很好看的裙子"}]'.encode("gb18030"))
    encode_file(path)
    renamed = path.rename(tmp_path / "b.json")
    assert encode_file(renamed).info.notes == [f"{renamed}: read as GB18030 (it is not UTF-8)"]


# Damage


def _change_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: _change_byte(folder / "rows.arrow", 300),
        lambda folder: _change_byte(folder / "rows.arrow", -300),
        lambda folder: (folder / "rows.arrow").write_bytes(b""),
        lambda folder: (folder / "rows.arrow").unlink(),
        lambda folder: (folder / "dataset.json").write_bytes(b'{"family": "chatglm3"'),
        lambda folder: (folder / "dataset.json").write_text("[]"),
        lambda folder: (folder / "dataset.json").write_bytes(b"\0" * 900),
    ],
    ids=["a byte", "a late byte", "empty", "missing", "cut info", "other info", "zeros"],
)
def test_a_damaged_entry_is_encoded_again_with_a_line(damage, encode_file, tmp_path, capsys):
    path = _write(tmp_path / "a.jsonl")
    first = encode_file(path)
    wanted, folder = _read_rows(first), first.rows.path.parent
    assert "encoding it again" not in capsys.readouterr().out
    damage(folder)
    second = encode_file(path)
    assert _read_rows(second) == wanted
    printed = capsys.readouterr().out.strip().splitlines()
    assert len(printed) == 1
    assert f"{folder}: not a complete encoded data set" in printed[0]
    assert printed[0].endswith("encoding it again.")
    assert _read_rows(encode_file(path)) == wanted
    assert capsys.readouterr().out == ""


def test_a_damaged_folder_of_encoded_rows_is_refused(encode_file, tmp_path):
    encode_file(_write(tmp_path / "a.jsonl"), folder=tmp_path / "out")
    assert len(open_encoded_data(tmp_path / "out").rows) == 3
    _change_byte(tmp_path / "out" / "rows.arrow", -300)
    with pytest.raises(DataError, match=r"checksum of rows\.arrow differs"):
        open_encoded_data(tmp_path / "out")


# Disks


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_cache_that_takes_no_files_is_said_and_the_rows_are_used(code, encode_file, tmp_path, monkeypatch, capsys):
    original = cache.write_rows

    def write(path, rows):
        if get_cache_dir() in path.parents:
            raise OSError(code, "disk trouble")
        return original(path, rows)

    path = _write(tmp_path / "a.jsonl")
    monkeypatch.setattr(cache, "write_rows", write)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = encode_file(path)
    assert len(_read_rows(data)) == 3
    printed = capsys.readouterr().out
    assert "encoded rows cannot be kept there (disk trouble)" in " ".join(printed.split())
    assert "GLMTUNE_CACHE" in printed
    assert get_cache_dir() not in data.rows.path.parents
    assert not list(get_cache_dir().rglob("*.arrow"))
    # Nor a second place: one error, and no file that looks whole.
    monkeypatch.setattr(cache, "write_rows", lambda *_: (_ for _ in ()).throw(OSError(code, "disk trouble")))
    with pytest.raises(DataError, match="disk trouble"):
        encode_file(path)


def test_a_home_that_is_none_has_no_cache_and_the_rows_are_used(encode_file, tmp_path, monkeypatch, capsys):
    """HOME=/dev/null, as users of services have; a folder that the user named is an error."""
    (tmp_path / "null").write_text("")
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "null" / "cache"))
    path = _write(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"Not a directory|cannot find the path"):
        encode_file(path)
    monkeypatch.delenv("GLMTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "null"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert len(_read_rows(encode_file(path))) == 3
    assert "encoded rows cannot be kept there" in " ".join(capsys.readouterr().out.split())


def test_an_entry_on_a_read_only_disk_is_used(encode_file, tmp_path, monkeypatch, capsys):
    path = _write(tmp_path / "a.jsonl")
    first = encode_file(path)

    class ReadOnlyLock:
        def __init__(self, _):
            raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(cache, "FileLock", ReadOnlyLock)
    assert encode_file(path).rows.path == first.rows.path
    assert capsys.readouterr().out == ""


# Long questions


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "开头", "input": "长文" * 200 + "尾巴", "output": "好"},
        {"content": "开头" + "长文" * 200 + "尾巴", "summary": "好"},
    ],
)
def test_a_long_question_in_a_column_keeps_its_start(name, row, load, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False), "utf-8")
    family, tokenizer = load(name)
    counts = EncodingCounts()
    rules = EncodingRules(80, 100)
    (encoded,) = encode_conversations(open_sources(str(path))[0], family, tokenizer, rules, counts)
    text = tokenizer.decode(encoded.input_ids)
    assert "开头" in text
    assert "尾巴" not in text
    assert text.count("长文") > 3
    assert (counts.prompts_cut, counts.question_ends_cut) == (1, 1)
    assert 70 < sum(label == -100 for label in encoded.labels) <= 80


def test_an_empty_instruction_adds_no_line_break(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"instruction": text, "input": "喝什么茶？", "output": "龙井。"} for text in ("", " \n", "问：")]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    questions = [row.messages[0]["content"] for row in open_sources(str(path))[0]]
    assert questions == ["喝什么茶？", "喝什么茶？", "问：\n喝什么茶？"]


# Conversations of many turns


def _make_talk(turns, **changed):
    """A conversation; `_5={...}` changes message 5."""
    roles = [("user", "第{}个问题是什么"), ("assistant", "第{}个回答就是这个")]
    messages = [{"role": role, "content": text.format(i)} for i in range(turns) for role, text in roles]
    for name, change in changed.items():
        messages[int(name[1:])] |= change
    return messages


@pytest.mark.parametrize("limits", [(60, 40), (200, 100)])
def test_leaving_out_old_turns_early_changes_no_row(limits, load, monkeypatch):
    family, tokenizer = load("chatglm")
    talks = [
        _make_talk(60),
        [{"role": "system", "content": "说得短。"}, *_make_talk(60, _31={"content": "很长" * 90}, _61={"loss": False})],
        _make_talk(60, _80={"content": "很长的问题" * 90}, _40={"content": ""}),
    ]
    for overlength in ("cut", "drop"):
        rules = EncodingRules(*limits, overlength=overlength, prefix="请答：")
        results = []
        for maximum in (32, 10**9):
            monkeypatch.setattr(encoding, "_MANY_MESSAGES", maximum)
            counts = EncodingCounts()
            rows = [Conversation(talk, "a:1") for talk in talks]
            results.append((list(encode_conversations(rows, family, tokenizer, rules, counts)), counts.as_dict()))
        (fast, fast_counts), (whole, counts) = results
        assert fast == whole
        estimate, exact = fast_counts.pop("tokens_cut"), counts.pop("tokens_cut")
        assert fast_counts == counts
        assert abs(estimate - exact) < 0.05 * exact


def test_many_turns_are_checked_like_few(load):
    family, tokenizer = load("chatglm")
    talk = _make_talk(60, _3={"role": "user"})
    with pytest.raises(DataError, match=r"Message 4 \(user\) does not fit"):
        list(
            encode_conversations(
                [Conversation(talk, "a:1")], family, tokenizer, EncodingRules(60, 40), EncodingCounts()
            )
        )
    talk = _make_talk(60, _3={"role": "user"})
    for message in talk[1:-1:2]:
        message["loss"] = False
    with pytest.raises(DataError, match="does not fit"):
        list(
            encode_conversations(
                [Conversation(talk, "a:1")], family, tokenizer, EncodingRules(60, 40), EncodingCounts()
            )
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_time_is_in_proportion_to_the_turns(name, load):
    family, tokenizer = load(name)
    rules = EncodingRules(256, 256)

    def measure(turns):
        seconds = []
        for _ in range(2):
            start = time.process_time()
            list(
                encode_conversations(
                    [Conversation(_make_talk(turns), "a:1")], family, tokenizer, rules, EncodingCounts()
                )
            )
            seconds.append(time.process_time() - start)
        return min(seconds)

    measure(20)  # the first call fills caches
    assert measure(800) < 8 * max(measure(200), 0.002)  # with the square, 16 times
