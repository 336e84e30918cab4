"""Whether a reply repeats itself, and how varied many replies are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from glmtune.evaluation.tokenize_words import tokenize_words

_TIMES = 4
"""A unit that often at the end of a reply makes it a loop."""
_SINGLE_TIMES = 16
"""The same for a unit of one character, which laughter, dots and rules repeat without being loops."""
_WORDS = 4


def has_repeated_tail(text: str) -> bool:
    """Whether `text` ends in a loop: a unit of two or more characters at least 4 times in a row, or one character at
    least 16 times; whitespace does not count. A loop that was cut off in the middle of its unit is one."""
    text = "".join(text.split())
    if len(text) >= _SINGLE_TIMES and len(set(text[-_SINGLE_TIMES:])) == 1:
        return True
    return any(_ends_in_repeats(text, size) for size in range(2, len(text) // _TIMES + 1))


def _ends_in_repeats(text: str, size: int) -> bool:
    unit = text[-size:]
    # The comparison of two units is here for speed: it fails for nearly every size.
    return text[-2 * size : -size] == unit and len(set(unit)) > 1 and text.endswith(unit * _TIMES)


def compute_repeated_share(text: str) -> float:
    """The share, 0 to 1, of runs of 4 words (spaces left out) that stood earlier in the same text."""
    runs = _list_runs([word for word in tokenize_words(text) if not word.isspace()], _WORDS)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def compute_distinct(replies: Iterable[str], size: int) -> float:
    """The share, 0 to 1, of different ones among all runs of `size` characters of all replies together (distinct-n); 0
    where there is none."""
    total = 0
    different: set[tuple[str, ...]] = set()
    for reply in replies:
        runs = _list_runs(reply.strip(), size)
        total += len(runs)
        different.update(runs)
    return len(different) / total if total else 0.0


def _list_runs(items: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(items[start:] for start in range(size)), strict=False))
