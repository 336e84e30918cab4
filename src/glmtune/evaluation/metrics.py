"""The scores of one reply against its reference.

Scores are on 0 to 100 (shares in percent), but for `length_ratio`. A score that a row cannot have is left out of its
dictionary; `summary.summarise` counts rows per score.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from itertools import chain

import jieba
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

EMPTY = "empty"
"""The flag, 0 or 100, of a prediction without a character to read."""


def score_pair(prediction: str, reference: str, *, truncated: bool = False) -> dict[str, float]:
    """All scores of one prediction.

    Args:
        prediction: the reply without special tokens.
        reference: what it should have written.
        truncated: whether the reply reached the maximum length without a stop token.

    Returns:
        `bleu4_characters`, `rouge_1`, `rouge_2`, `rouge_l` (as ChatGLM's published tables) and `bleu4_words`;
        `exact_match` (whitespace around the texts does not count); `length_ratio`, characters of the prediction per
        character of the reference, left out for an empty reference; the flags, 0 or 100, `empty`, `truncated` and
        `repeated_tail` (ends in a loop); `repeated_4grams`, the percentage of 4-word runs that stood before.
    """
    predicted, expected = prediction.strip(), reference.strip()
    scores = compute_overlap(prediction, reference)
    scores["exact_match"] = 100.0 * (predicted == expected)
    if expected:
        scores["length_ratio"] = len(predicted) / len(expected)
    scores[EMPTY] = 100.0 * (not predicted)
    scores["truncated"] = 100.0 * truncated
    scores["repeated_tail"] = 100.0 * has_repeated_tail(predicted)
    scores["repeated_4grams"] = 100 * compute_repeated_share(predicted)
    return scores


def measure_variety(predictions: Iterable[str]) -> dict[str, float]:
    """`distinct_1` and `distinct_2`: the percentage of different characters and pairs of characters among all that the
    predictions contain. It falls with the number of predictions: compare sets of the same size."""
    predictions = list(predictions)
    return {f"distinct_{size}": 100 * compute_distinct(predictions, size) for size in (1, 2)}


_SMOOTHING = SmoothingFunction().method3
_ROUGE_N = Rouge(metrics=["rouge-1", "rouge-2"], stats=["f"])


def compute_overlap(prediction: str, reference: str) -> dict[str, float]:
    """BLEU-4 over characters and over words, ROUGE-1, -2 and -L over words, each 0 to 100 and rounded to 4 digits.

    `bleu4_characters` and the ROUGE scores are the published ones. `bleu4_words` is reported by other tools under the
    same name; the two cannot be compared. All are 0 where either text is empty or only whitespace, which the libraries
    refuse.
    """
    if not prediction.strip() or not reference.strip():
        return dict.fromkeys(("bleu4_characters", "bleu4_words", "rouge_1", "rouge_2", "rouge_l"), 0.0)
    predicted, expected = tokenize_words(prediction), tokenize_words(reference)
    scores = {
        "bleu4_characters": _compute_bleu4(list(prediction), list(reference)),
        "bleu4_words": _compute_bleu4(predicted, expected),
        **_compute_rouge(" ".join(predicted), " ".join(expected)),
    }
    return {name: round(100 * score, 4) for name, score in scores.items()}


def _compute_bleu4(prediction: Sequence[str], reference: Sequence[str]) -> float:
    return float(sentence_bleu([reference], prediction, smoothing_function=_SMOOTHING))


def _compute_rouge(prediction: str, reference: str) -> dict[str, float]:
    """F-scores, 0 to 1, of texts whose words are separated by spaces."""
    by_n = _ROUGE_N.get_scores(prediction, reference)[0]
    return {
        "rouge_1": by_n["rouge-1"]["f"],
        "rouge_2": by_n["rouge-2"]["f"],
        "rouge_l": _compute_rouge_l(_cut_rouge_words(prediction), _cut_rouge_words(reference)),
    }


def _cut_rouge_words(text: str) -> list[str]:
    """The words that rouge_chinese sees: cut into sentences and at spaces; a blank line within a text is an empty
    word."""
    sentences = [" ".join(sentence.split()) for sentence in _ROUGE_N.cut_sent(text) if sentence]
    return list(chain.from_iterable(sentence.split(" ") for sentence in sentences))


def _compute_rouge_l(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """rouge_chinese's F-score, without its table of one dictionary entry per pair of words: two replies of 2,000 words
    would take it a gigabyte and seconds."""
    common = _common_subsequence_length(prediction, reference)
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall + 1e-8)


def _common_subsequence_length(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the usual table per step as the bits of one number
    (Hyyrö 2004, "Bit-parallel LCS-length computation revisited")."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    everywhere = (1 << len(a)) - 1
    row = everywhere
    for word in b:
        common = row & places.get(word, 0)
        row = ((row + common) | (row - common)) & everywhere
    return len(a) - row.bit_count()


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


_LOCK = threading.Lock()
_TOKENIZER = jieba.Tokenizer()


def tokenize_words(text: str) -> list[str]:
    """`text` cut by jieba; every whitespace and punctuation mark is a word of its own, joined they are `text` again."""
    if not _TOKENIZER.initialized:
        _read_dictionary()
    return list(_TOKENIZER.lcut(text))


def _read_dictionary() -> None:
    """jieba's own start logs to stderr and shares a file in the system's temporary folder with every other user and
    process; reading its dictionary directly takes the same second and does neither."""
    with _LOCK:
        if not _TOKENIZER.initialized:
            _TOKENIZER.FREQ, _TOKENIZER.total = _TOKENIZER.gen_pfdict(_TOKENIZER.get_dict_file())
            _TOKENIZER.initialized = True
