"""How much of a reference a prediction hits: the published BLEU-4 and ROUGE of ChatGLM's tables.

The definitions are those of ChatGLM-6B's `ptuning/main.py`, and the libraries that script calls compute them here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

from glmtune.evaluation.tokenize_words import tokenize_words

_SMOOTHING = SmoothingFunction().method3
_ROUGE_N = Rouge(metrics=["rouge-1", "rouge-2"], stats=["f"])


def compute_overlap(prediction: str, reference: str) -> dict[str, float]:
    """BLEU-4 over characters and over words, ROUGE-1, -2 and -L over words, each 0 to 100 and rounded to 4 digits.

    `bleu4_characters` and the ROUGE scores are the published ones. `bleu4_words` is what other tools report under the
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
    """The length of the longest common subsequence, a whole row of the usual table per step as the bits of one number
    (Hyyrö 2004, "Bit-parallel LCS-length computation revisited")."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    everywhere = (1 << len(a)) - 1
    row = everywhere
    for word in b:
        kept = row & places.get(word, 0)
        row = ((row + kept) | (row - kept)) & everywhere
    return len(a) - row.bit_count()
