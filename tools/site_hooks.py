"""Hooks of mkdocs (mkdocs.yml): what reads differently on the site than on a git host.

- The line that links a page to its other language goes: the site has a switch.
- Links out of docs/ lead to the repository (`repo_url`), and are plain text where it is not known.
- A Chinese page that links to an English one, which has a Chinese version too, means the English one:
  mkdocs-static-i18n would take the Chinese one.
- A line break between two Chinese characters is no space.
- Python-Markdown shows the backslash of a `\\|` inside code in a table, which GitHub needs; it does not need it itself.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

from mkdocs.utils import get_relative_url

_LANGUAGE_LINE = re.compile(r"^\[(?:中文|English)\]\([^)]*\)\n+", re.MULTILINE)
_FENCE = re.compile(r"(^ *(`{3,}|~{3,}).*?^ *\2[ \t]*$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^][]|\[[^][]*\])*)\]\((?P<path>[^)#:\s]*)(?P<anchor>#[^)\s]*)?\)")
_CHINESE = "\u3000-\u303f\u4e00-\u9fff\uff00-\uffef“”‘’—…"
_CHINESE_BREAK = re.compile(rf"(?<=[{_CHINESE}])\n(?=[{_CHINESE}])")
_CODE = re.compile(r"(`+)[^`]+\1")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite a page's text outside its blocks of code."""
    parts = _FENCE.split(_LANGUAGE_LINE.sub("", markdown, count=1))
    # The pattern has two groups: text, block, fence, text, block, fence, ...
    for index in range(0, len(parts), 3):
        parts[index] = _rewrite_text(parts[index], page, config, files)
    return "".join(part for index, part in enumerate(parts) if index % 3 != 2)


def _rewrite_text(text: str, page: Any, config: Any, files: Any) -> str:
    text = _CHINESE_BREAK.sub("", text)
    text = _LINK.sub(lambda link: _rewrite_link(link, page, config, files), text)
    return re.sub(r"^\|.*$", lambda row: _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), text, flags=re.M)


def _rewrite_link(link: re.Match[str], page: Any, config: Any, files: Any) -> str:
    if not link["path"]:
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link["path"]))
    anchor = link["anchor"] or ""
    if path.startswith("../"):
        if not config.repo_url:
            return link["text"]
        return f"[{link['text']}]({config.repo_url.rstrip('/')}/blob/main/{path[3:]}{anchor})"
    is_chinese_build = page.file.locale_alternate_of == "zh"
    names_english_page = path.endswith(".md") and not path.endswith(".zh.md")
    chinese_path = path.removesuffix(".md") + ".zh.md"
    is_meant = page.file.src_uri.endswith(".zh.md") or bool(anchor)
    if not (is_chinese_build and names_english_page and is_meant and files.src_uris.get(chinese_path)):
        return link[0]
    url = posixpath.join("" if path == "index.md" else path.removesuffix(".md"), "")
    return f'<a href="{get_relative_url(url, page.url)}{anchor}">{link["text"]}</a>'
