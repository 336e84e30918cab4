"""Words of a text, Chinese or English, as the published scores cut them."""

from __future__ import annotations

import threading

import jieba

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
