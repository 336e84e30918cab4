"""docs/data.md, kept honest: every row on the page is read and encoded, and must look as the page says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path

import pytest

import glmtune
from glmtune.config import DataConfig, load_config
from glmtune.data.catalog import SourceSpec
from glmtune.data.column_formats import COLUMN_ROLES
from glmtune.data.encoding import EncodingCounts, EncodingRules, encode_conversations
from glmtune.data.sources import open_source, open_sources
from glmtune.errors import DataError
from glmtune.families import IGNORE_INDEX, get_family
from tiny import FAMILIES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "data.md"
TEXT = PAGE.read_text(encoding="utf-8")
ROOMY = EncodingRules(1000, 1000)
# A marker, then a fenced block: `<!-- row -->`, `<!-- seen: FAMILY KEY=VALUE -->` or `<!-- refused: FAMILY -->`. What
# is seen holds for every row since the last such block, so two rows may share it.
_BLOCK = re.compile(
    r"<!-- (?P<kind>row|seen|refused)(?:: (?P<family>\w+)(?: (?P<key>\w+)=(?P<value>\S+))?)? -->\n"
    r"(?P<fence>`{3,})(?:json|text)\n(?P<body>.*?)(?P=fence)\n",
    re.DOTALL,
)
_BAD_ROW = re.compile(r"^\| `(.+)` \| (skipped|stops) \| `(.+)` \|$", re.MULTILINE)


@dataclass
class Case:
    """What the page says of one row for one generation."""

    row: str
    family: str
    said: str
    refused: bool = False
    settings: dict[str, str] = field(default_factory=dict)


def _cases() -> Iterator[Case]:
    rows, shared = [], False
    for block in _BLOCK.finditer(TEXT):
        kind, body = block["kind"], block["body"].removesuffix("\n")
        if kind == "row":
            rows = [body] if shared else [*rows, body]
        else:
            settings = {block["key"]: block["value"]} if block["key"] else {}
            yield from (Case(row, block["family"], body, kind == "refused", settings) for row in rows)
        shared = kind != "row"


CASES = list(_cases())


@pytest.fixture(scope="module")
def tokenizer_of(tiny):
    return lru_cache(lambda family: glmtune.load_tokenizer(tiny(family)))


def said_of(case: Case, tokenizer, folder: Path) -> str:
    """What the page should say: rows in the look of `data preview`, or the error."""
    path = folder / "rows.json"
    path.write_text(json.dumps(json.loads(case.row), ensure_ascii=False) + "\n", encoding="utf-8")
    rules = replace(ROOMY, **case.settings)
    try:
        rows = encode_conversations(open_source(path), get_family(case.family), tokenizer, rules, EncodingCounts())
        return "\n---\n".join(_shown(row.input_ids, row.labels, tokenizer) for row in rows)
    except DataError as error:
        return f"{error.message} {error.hint}".replace(f"{folder}/", "")


def _shown(ids: list[int], labels: list[int], tokenizer) -> str:
    """The text of a row; stretches of one kind are decoded whole, so characters of several tokens stay together."""
    text, stretch, inside = "", [], False
    specials = set(tokenizer.all_special_ids)
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]  # decoding drops the first space of a text

    def flush() -> str:
        decoded = tokenizer.decode([*anchor, *stretch])[len(tokenizer.decode(anchor)) :]
        stretch.clear()
        return decoded

    for token, label in zip(ids, labels, strict=True):
        learnt = label == token
        if label not in (IGNORE_INDEX, token):  # ChatGLM2's end of an earlier answer, which stands in the labels only
            text += f"{flush()}→{tokenizer.convert_ids_to_tokens(label)}"
        if learnt != inside:
            text, inside = text + flush() + ("⟦" if learnt else "⟧"), learnt
        if token in specials:
            text += flush() + tokenizer.convert_ids_to_tokens(token)
        else:
            stretch.append(token)
    return (text + flush() + "⟧" * inside).replace("\n", "↵\n")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.row[:40]}")
def test_rows_look_as_the_page_says(case, tokenizer_of, tmp_path):
    said = said_of(case, tokenizer_of(case.family), tmp_path)
    assert said.splitlines() == case.said.splitlines()
    assert case.refused == ("⟦" not in said)


def test_every_block_of_the_page_is_looked_at():
    assert {case.family for case in CASES} == set(FAMILIES)
    assert len({case.row for case in CASES}) > 10
    blocks = list(_BLOCK.finditer(TEXT))
    assert len(blocks) == len(re.findall(r"^`{3,}(?:json|text)$", TEXT, re.MULTILINE))
    assert len(_BAD_ROW.findall(TEXT)) == len(re.findall(r"^\| .* \| (?:skipped|stops) \|", TEXT, re.MULTILINE)) > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_and_the_preview_command_agree(family, glmtune_command, tiny, tmp_path):
    case = next(case for case in CASES if case.family == family and not case.refused)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(json.loads(case.row)), encoding="utf-8")
    printed = glmtune_command("data", "preview", path, "--model", tiny(family)).out
    assert all(row in printed for row in case.said.split("\n---\n"))


@pytest.mark.parametrize(("row", "what", "message"), _BAD_ROW.findall(TEXT))
def test_bad_rows_are_said_as_the_page_says(row, what, message, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"content": "一", "summary": "壹"}\n' + row.strip() + "\n", encoding="utf-8")
    source = open_source(path)
    try:
        rows = len(list(source))
        (said,) = source.invalid_lines
        assert (rows, what) == (1, "skipped")
    except DataError as error:
        said = error.message
        assert what == "stops"
    assert said.replace(f"{tmp_path}/", "").rstrip(".") == message.rstrip(".")


def test_settings_and_columns_on_the_page_are_all_there_are():
    named = set(re.findall(r"(?<![\w/])data\.(\w+)", TEXT)) | set(re.findall(r"^  (\w+):", TEXT, re.MULTILINE))
    assert named - {"KEY"} == {option.name for option in fields(DataConfig)}
    roles = re.search(r"The roles are (.*?)\.\s", TEXT, re.DOTALL)
    assert tuple(re.findall(r"`(\w+)`", roles[1])) == COLUMN_ROLES


def test_formats_on_the_page_exist(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"content": "一", "summary": "壹", "text": "字"}', encoding="utf-8")
    listed = re.search(r"`data\.format` sets the\nformat if it is not detected correctly: (.*?)\.\n", TEXT, re.DOTALL)
    formats = re.findall(r"`([\w/]+)`", listed[1])
    assert len(formats) == 11
    for name in formats:
        with suppress(DataError):  # the row is of another format; a format that does not exist is a ConfigError
            open_source(path, format=name)


def test_the_config_on_the_page_is_one(tmp_path, monkeypatch):
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "config.yaml"
    path.write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("ads.json").write_text('{"content": "一", "summary": "壹"}', encoding="utf-8")
    Path("chat.jsonl").write_text('{"text": "字"}', encoding="utf-8")
    Path("faq.csv").write_text("question,reply\n一,壹\n", encoding="utf-8")
    sources = open_sources(load_config(path).data.train)
    assert [source.format for source in sources] == ["content/summary", "text", "question/reply"]
    assert [(source.spec.weight, source.spec.num_samples) for source in sources] == [(1, None), (2, None), (1, 500)]
    listed = re.search(r"An entry may also have (.*?)\.", TEXT)
    assert set(re.findall(r"`(\w+)`", listed[1])) < {option.name for option in fields(SourceSpec)}


def test_commands_on_the_page_know_their_options(glmtune_command):
    for command in ("data check", "data preview", "data tokenize", "train"):
        help = glmtune_command(*command.split(), "--help").out
        shown = re.findall(rf"(?:^|`)glmtune {command} ([^`\n]*)", TEXT, re.MULTILINE)
        assert shown
        for option in re.findall(r"--[\w-]+", " ".join(shown)):
            assert option in help, f"glmtune {command} has no {option}"


CHINESE = PAGE.with_suffix(".zh.md").read_text(encoding="utf-8")
_TRANSLATED = {"--set data.KEY=VALUE": "--set data.键=值", '"output": ["better", "worse"]': '"output": ["好", "坏"]'}


def _without_fences(text: str) -> str:
    return re.sub(r"(`{3,}).*?\1", "", text, flags=re.DOTALL)


def _list_codes(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", _without_fences(text)))


def test_the_chinese_page_has_the_same_examples():
    assert [block[0] for block in _BLOCK.finditer(CHINESE)] == [block[0] for block in _BLOCK.finditer(TEXT)]
    assert _BAD_ROW.findall(CHINESE) == _BAD_ROW.findall(TEXT)


def test_the_chinese_page_has_the_same_sections_commands_names_and_figures():
    assert re.findall("^#+ ", _without_fences(CHINESE), re.MULTILINE) == re.findall(
        "^#+ ", _without_fences(TEXT), re.MULTILINE
    )
    assert {_TRANSLATED.get(code, code) for code in _list_codes(TEXT)} == _list_codes(CHINESE)
    commands, figures = (
        re.compile(r"^glmtune [^#\n]*", re.MULTILINE),
        re.compile(r"\| [^|]*\d[^|]* \| [^|]*\d[^|]* \|$", re.MULTILINE),
    )
    assert [line.rstrip() for line in commands.findall(CHINESE)] == [line.rstrip() for line in commands.findall(TEXT)]
    numbers = [[re.findall(r"\d[\d.,]*\d", line) for line in figures.findall(text)] for text in (TEXT, CHINESE)]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) > 10
