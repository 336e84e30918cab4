"""Print the section of a release in CHANGELOG.md, for the notes of the release.

python tools/read_changelog.py 0.1.0

Without a version it prints the newest section. The section of a release that is published has a date:
`## 0.1.0 (2026-12-01)`; a section without one ends the program with exit code 1.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"
_HEADING = re.compile(r"## (?P<version>\d+\.\d+\.\d+) \((?P<date>\d{4}-\d{2}-\d{2}|unreleased)\)")


class ChangelogSection(NamedTuple):
    """A release in the changelog."""

    version: str
    date: str
    """`unreleased`, or the day of the release."""
    text: str


def read_sections(text: str) -> list[ChangelogSection]:
    """The releases of a changelog, newest first.

    Raises:
        ValueError: a heading of the second level that is not `## X.Y.Z (YYYY-MM-DD)` or `## X.Y.Z (unreleased)`.
    """
    sections: list[tuple[str, str, list[str]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("## "):
            match = _HEADING.fullmatch(line)
            if match is None:
                raise ValueError(f"line {number}: {line!r} is not of the form ## X.Y.Z (YYYY-MM-DD)")
            sections.append((match["version"], match["date"], []))
        elif sections:
            sections[-1][2].append(line)
    return [ChangelogSection(version, date, "\n".join(lines).strip()) for version, date, lines in sections]


def find_section(text: str, version: str | None) -> ChangelogSection:
    """The section of a version; of its release for a candidate (1.0.0rc1); the newest for None.

    Raises:
        SystemExit: there is none, it is empty, or the version is a release and its section has no date.
    """
    sections = read_sections(text)
    if version is None:
        return sections[0]
    base = re.sub(r"(a|b|rc)\d+$", "", version)
    section = next((section for section in sections if section.version == base), None)
    if section is None:
        raise SystemExit(f"CHANGELOG.md has no section for {base}; its newest is {sections[0].version}.")
    if base == version and section.date == "unreleased":
        raise SystemExit(f"CHANGELOG.md: the section of {version} has no date; write ## {version} (YYYY-MM-DD).")
    if not section.text:
        raise SystemExit(f"CHANGELOG.md: the section of {base} is empty.")
    return section


if __name__ == "__main__":
    print(find_section(CHANGELOG.read_text("utf-8"), sys.argv[1] if len(sys.argv) > 1 else None).text)
