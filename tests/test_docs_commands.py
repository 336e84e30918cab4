"""Commands and config files on the pages: commands, options and values exist, and blocks are read as what they are."""

from __future__ import annotations

import ast
import json
import re

import pytest
import yaml

from docs_pages import Command, get_commands, list_blocks, list_commands, list_pages, name_page
from glmtune.cli.main import app
from glmtune.cli.option_spellings import normalize_words
from glmtune.cli.train import format_overrides
from glmtune.config import TRAINING_DEFAULTS, RunConfig, load_config, read_tree
from glmtune.config_checks import check_config
from glmtune.config_parsing import build_dataclass
from glmtune.data.sources import open_source
from glmtune.errors import ConfigError, GlmtuneError
from glmtune.migrate import translate_command
from glmtune.training.arguments import check_training_keys

PAGES = list_pages()
_DATA_KEYS = {"messages", "conversations", "prompt", "instruction", "content", "query", "chosen", "question", "text"}
# Rows of data.md are encoded by test_docs_data.py.
_DATA_PAGES = [page for page in PAGES if page.name not in ("data.md", "data.zh.md")]


def check_command(command: Command) -> None:
    """Parse a command line as the command would, without running it.

    Raises:
        Exception: it is wrong.
    """
    words = normalize_words(app, list(command.words))
    words = ["8" if word == "N" else word for word in words]
    if words[0] == "--version":
        return
    parsed, name = get_commands().get(words[0]), words.pop(0)
    assert parsed is not None, f"glmtune has no command {name}"
    if getattr(parsed, "commands", None):
        name, parsed = words[0], parsed.commands.get(words.pop(0))
        assert parsed is not None, f"glmtune has no command {name}"
    try:
        context = parsed.make_context(name, list(words))
    except Exception as error:
        if type(error).__name__ == "MissingParameter" and not command.is_whole:
            return
        raise
    check_settings(name, context, words, command.is_whole)


def check_settings(name: str, context, words: list[str], is_whole: bool) -> None:
    """Check the config that the options of train and plan make, and the keys of --set anywhere."""
    settings = [setting for setting in context.params.get("set_") or () if not re.search(r"KEY=|键=|…|\.\.\.", setting)]
    if context.args and name == "train":
        try:
            assert translate_command(words) is not None, f"unknown option {context.args[0]}"
        except GlmtuneError as error:
            if "no such file" not in error.message and (is_whole or "needs a value" not in error.message):
                raise
        return
    values = {"model.path": "MODEL", "data.train": "FILE"}  # what a command names as an argument, or in its config file
    if name in ("train", "plan"):
        values |= {key: context.params[key] for key in ("method", "stage", "reward") if context.params.get(key)}
    config = build_dataclass(RunConfig, read_tree(None, [*format_overrides(values), *settings]), "options")
    if name in ("train", "plan"):
        check_config(config)
        check_training_keys(config.training)


# What is generated from the commands (cli.md) has no example.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "cli.md"], ids=name_page)
def test_commands_have_these_options_and_values(page):
    wrong = []
    for command in list_commands(page):
        try:
            check_command(command)
        except Exception as error:
            wrong.append(f"line {command.line}: {command}\n    {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "words",
    [
        "trian --model x",
        "data chek f",
        "train --modle x",
        "train --method lora2 --model x",
        "train --set data.max_lenght=3 --model x",
        "train --set training.max_step=3 --model x",
        "eval RUN --data f --dtype bf8",
        "export RUN OUT --bits 5",
        "bench M --repeats many",
        "score RM",
    ],
)
def test_wrong_commands_are_found(words):
    with pytest.raises(Exception):  # noqa: B017, PT011 - of several libraries
        check_command(Command(tuple(words.split()), 1, True))


def test_commands_are_found():
    assert sum(len(list_commands(page)) for page in PAGES) > 250
    readme = [str(command) for command in list_commands(PAGES[0])]
    assert "glmtune train --model ./chatglm3-6b --data train.json --output runs/mine" in readme


def _list_blocks(pages, *languages):
    return [
        pytest.param(block.text, id=f"{name_page(page)}:{block.line}")
        for page in pages
        for block in list_blocks(page)
        if block.language in languages
    ]


@pytest.mark.parametrize("text", _list_blocks(PAGES, "yaml", "yml"))
def test_configs_are_read(text, tmp_path):
    tree = yaml.safe_load(text)
    if isinstance(tree, dict) and set(tree) <= set(TRAINING_DEFAULTS):
        tree = {"training": tree}
    if not set(tree) & set(RunConfig.__dataclass_fields__):
        return  # a file of something else, such as a scheduler's or a container's
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree), "utf-8")
    try:
        config = load_config(path)
    except ConfigError:
        if translate_command([str(path)]) is None:
            raise
        return  # of a project whose configs are read too
    config.model.path = config.model.path or "MODEL"  # a block may show a part of a config
    config.data.train = config.data.train or "FILE"
    check_config(config)
    check_training_keys(config.training)


@pytest.mark.parametrize("text", _list_blocks(_DATA_PAGES, "json", "jsonl"))
def test_rows_are_read(text, tmp_path):
    text = re.sub(r'"\.\.\."(?!.*"\.\.\.")', '"another text"', text)  # the last of a row: two answers differ
    try:
        values = [json.loads(text)]
    except ValueError:
        values = [json.loads(line) for line in text.splitlines() if line.strip()]
    rows = values[0] if isinstance(values[0], list) else values
    if not any(isinstance(row, dict) and _DATA_KEYS & set(row) for row in rows):
        return  # settings, or a reply of an API
    for number, row in enumerate(rows):  # of several formats in one block
        path = tmp_path / f"rows-{number}.json"
        path.write_text(json.dumps([row], ensure_ascii=False), "utf-8")
        preference = "labels" if {"label", "kto_tag"} & set(row) else "pairs" if _has_pair(row) else "refuse"
        source = open_source(path, preference=preference)
        assert len(list(source)) == 1, source.invalid_lines


def _has_pair(row: dict) -> bool:
    return bool({"rejected", "rejected_response", "non_preferred_output"} & set(row)) or isinstance(
        row.get("output"), list
    )


@pytest.mark.parametrize("text", _list_blocks(PAGES, "python", "py"))
def test_python_compiles(text):
    ast.parse(text)
