"""The pages of the documentation as tests read them: headings, links, blocks of code, and the commands on them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import typer.main
from markdown_it import MarkdownIt
from markdown_it.token import Token

from glmtune.cli.main import app

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
_MARKDOWN = MarkdownIt("commonmark").enable("table")
_SHELLS = ("", "bash", "sh", "shell", "console", "powershell", "text")
_ENDS = ("|", "||", "&&", ";", ">", ">>", "2>&1", "&", "<", "...", "…")
# At the start of a line, after variables, or where a launcher or a message names it.
_START = re.compile(r"(?:^\s*(?:[$>] )?(?:[A-Z_]+=\S* )*|-m )glmtune (?=\S)")
_LATER = re.compile(r"(?<=[ :：(])glmtune (?=(\w+))")


@lru_cache
def get_commands() -> dict[str, Any]:
    """The commands of glmtune by name."""
    return typer.main.get_command(app).commands


def list_pages() -> list[Path]:
    """README, CONTRIBUTING and everything in docs/."""
    names = ("README.md", "README.zh.md", "CONTRIBUTING.md", "benchmarks/README.md")
    return [*(REPOSITORY / name for name in names), *sorted(DOCS.rglob("*.md"))]


def name_page(path: Path) -> str:
    """Path below the repository, for ids and messages of tests."""
    return path.relative_to(REPOSITORY).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A command line of glmtune on a page."""

    words: tuple[str, ...]
    """After `glmtune`."""
    line: int
    is_whole: bool
    """Given to be typed as it is; otherwise words may be missing."""

    def __str__(self) -> str:
        return "glmtune " + shlex.join(self.words)


@lru_cache
def _parse(path: Path) -> list[Token]:
    return _MARKDOWN.parse(path.read_text("utf-8"))


def list_blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page."""
    return [
        Block(token.info.split(" ")[0], token.content, token.map[0] + 1)
        for token in _parse(path)
        if token.type == "fence" and token.map
    ]


def _list_inline(path: Path) -> Iterator[tuple[Token, int]]:
    for token in _parse(path):
        line = token.map[0] + 1 if token.map else 0
        for child in token.children or []:
            yield child, line


def list_anchors(path: Path) -> set[str]:
    """The anchors that a git host makes of a page's headings."""
    anchors: dict[str, int] = {}
    tokens = _parse(path)
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            children = tokens[number + 1].children or []
            text = "".join(child.content for child in children if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = anchors.get(slug, 0)
            anchors[slug] = count + 1
            if count:
                anchors[f"{slug}-{count}"] = 1
    return set(anchors)


def list_links(path: Path) -> list[tuple[str, int]]:
    """Targets of links and pictures that are no addresses, and their lines."""
    links = []
    for token, line in _list_inline(path):
        target = token.attrs.get("href") or token.attrs.get("src") if token.type in ("link_open", "image") else None
        if target and not re.match(r"[a-z]+:", str(target)):
            links.append((unquote(str(target)), line))
    return links


def list_commands(path: Path) -> list[Command]:
    """The command lines of a page: in blocks and between backticks."""
    commands = []
    for block in list_blocks(path):
        if block.language in _SHELLS:
            for number, line in enumerate(_join_lines(block.text), start=block.line + 1):
                commands += _read_line(line, number, True)
    for token, line in _list_inline(path):
        if token.type == "code_inline" and re.match(r"(?:.*-m )?glmtune \S", token.content):
            commands += _read_line(token.content, line, False)
    return commands


def _join_lines(text: str) -> list[str]:
    """Lines with their continuations; the lines of a usage that continue in brackets too."""
    return re.sub(r"\\\n\s*|\n +(?=\[--)", " ", text).splitlines()


def _read_line(line: str, number: int, is_whole: bool) -> list[Command]:
    later = next((found for found in _LATER.finditer(line) if found[1] in get_commands()), None)
    found = _START.search(line) or later
    if found is None:
        return []
    try:
        words = shlex.split(line[found.end() :], comments=True)
    except ValueError:  # a quote that ends on another line: the body of a request
        return []
    # A usage has brackets around what may be left out; a pipe without spaces is a choice in it.
    is_usage = any(word.startswith("[") and not word.startswith('["') for word in words)
    words = [word.strip("[]") if is_usage else word for word in words]
    end = next((place for place, word in enumerate(words) if word in _ENDS), len(words))
    is_cut = end < len(words) and words[end] in ("...", "…")
    words = [word for word in words[:end] if word != "..."]
    return [Command(tuple(words), number, is_whole and not is_cut)] if words else []
