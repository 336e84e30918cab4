"""Detect the encoding of a text file: UTF-8, UTF-16, UTF-32, GB18030 or Big5, by decoding all of it.

Most bytes of Big5 text are valid GB18030 too, and the other way round: a wrong decoding succeeds and gives other
characters. Which of the two is right is told by how usual the characters are.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from glmtune.errors import DataError

OpenBinary = Callable[[], BinaryIO]
ENCODING_NAMES = {
    "gb18030": "GB18030",
    "big5hkscs": "Big5",
    "cp950": "Big5",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
    "utf-32": "UTF-32",
}
"""Names for messages; UTF-8 needs none."""
_BLOCK = 1 << 20
_SCORED_CHARACTERS = 200_000
# Chinese texts have about 0.5; Japanese and Korean ones, read as Chinese, below 0.1, European ones below -1. A few
# characters may all be rare.
_LONG_TEXT = 30
_MIN_SCORE, _MIN_SCORE_OF_FEW = 0.15, -0.35
_CLEAR_MARGIN = 0.5
# Characters of three bytes and more in UTF-8.
_WIDE = re.compile("[\u0800-\U0010ffff]")
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The most frequent characters of Chinese texts, and the traditional forms of those that have one.
_COMMON = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种"
    "事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日者意无力它与长把机十第公此"
    "已工使情明性知全三又关点正外将两高间由问很最重并物手应向头文体美相见被利什二等产或新己制身果加西月话合回特代内信表"
    "化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活更别打女变四总何电数安少报才结"
    "反受目太量再感建做接必场件计管期市直资命金指统区保至形社便空决治展科五眼书非则听白界达光放强即像难且思完设式色路记"
    "南品住告类求据程北边该交取格望觉术领共确传师观清今让识候带导运好您请吗呢吧啊谢茶问答早晚喜爱吃喝买钱款衣裙裤图案服"
    "這個們來為國說時會對著過發後裡種經麼學現當沒動還進樣開從實無與長機關點將兩間問應頭體見產話門兒東聲員論處義幾認條係"
    "氣題別變總電數報結場計資統區書則聽達強難設記類據邊該覺術領確傳師觀識帶導運請嗎謝愛買錢圖褲漂亮顏裏麗"
)


def detect_encoding(name: str, open_binary: OpenBinary) -> tuple[str, list[str]]:
    """Detect the encoding by decoding the whole file: the first invalid byte may be in the last line.

    Args:
        name: of the file, for messages.
        open_binary: opens the decompressed file.

    Returns:
        The name of a codec, and notes for the user: an encoding other than UTF-8, a last character that is cut.

    Raises:
        DataError: the file is blank, or text in no known encoding.
    """
    wide = _find_wide_encoding(open_binary)
    if wide is not None:
        result = _try_decoding(open_binary, wide)
        if result.error_line is not None:
            raise DataError(f"{name}:{result.error_line}: invalid {ENCODING_NAMES[wide]} text.", "Save it as UTF-8.")
        _refuse_blank(name, result)
        return wide, [f"{name}: read as {ENCODING_NAMES[wide]}"]
    utf8 = _try_decoding(open_binary, "utf-8-sig")
    if utf8.error_line is None:
        _refuse_blank(name, utf8)
        return "utf-8-sig", []
    # Most bytes are valid GB18030. Text that begins as UTF-8 with Chinese characters is damaged UTF-8 instead.
    if utf8.has_wide:
        if utf8.is_cut:
            return "utf-8-sig", [f"{name}:{utf8.error_line}: the file ends in the middle of a character"]
        problem = "not UTF-8 text, unlike the lines before"
        raise DataError(f"{name}:{utf8.error_line}: {problem}.", "Save the file as UTF-8.")
    return _choose_chinese_encoding(name, open_binary, utf8.error_line)


def score_characters(counts: Counter[str]) -> float:
    """How usual the characters of a decoded text are: 1 if all are frequent ones of Chinese, -2 if all are rare.

    Args:
        counts: number of each character; ASCII is ignored.
    """
    usual = _list_usual_characters()
    total = score = 0.0
    for character, count in counts.items():
        if character.isascii():
            continue
        total += count
        if character in _COMMON:
            score += count
        elif character not in usual:
            score -= 2 * count
    return score / total if total else 0.0


@dataclass
class _DecodingResult:
    is_blank: bool = True
    has_wide: bool = False
    """Whether there are characters of three and more bytes before the first error."""
    error_line: int | None = None
    is_cut: bool = False
    """Whether the error is a last character whose end is missing."""
    characters: Counter[str] = field(default_factory=Counter)


def _try_decoding(open_binary: OpenBinary, encoding: str) -> _DecodingResult:
    result, line = _DecodingResult(), 1
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    with open_binary() as stream:
        while True:
            block = stream.read(_BLOCK)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                valid = bytes(error.object[: error.start])
                result.has_wide = result.has_wide or _has_wide(valid.decode(encoding, "ignore"))
                result.error_line = line + valid.count(b"\n")
                result.is_cut = "unexpected end" in error.reason
                return result
            result.is_blank = result.is_blank and not text.strip()
            result.has_wide = result.has_wide or _has_wide(text)
            if result.characters.total() < _SCORED_CHARACTERS:
                result.characters.update(text[:_SCORED_CHARACTERS])
            line += text.count("\n")
            if not block:
                return result


def _choose_chinese_encoding(name: str, open_binary: OpenBinary, utf8_line: int) -> tuple[str, list[str]]:
    """GB18030 or Big5, by the characters that each gives."""
    results = {encoding: _try_decoding(open_binary, encoding) for encoding in ("gb18030", "big5hkscs")}
    if results["big5hkscs"].error_line is not None:  # Microsoft's Big5 has a few characters that it lacks
        results["cp950"] = _try_decoding(open_binary, "cp950")
    scores = {
        encoding: score_characters(result.characters)
        for encoding, result in results.items()
        if result.error_line is None
    }
    best = max(scores, key=lambda encoding: scores[encoding], default=None)
    if best is None or scores[best] < _get_min_score(results[best].characters):
        line = max(utf8_line, max(result.error_line or 0 for result in results.values()) if best is None else 0)
        raise DataError(f"{name}:{line}: neither UTF-8 nor GB18030 nor Big5 text.", "Save the file as UTF-8.")
    note = f"{name}: read as {ENCODING_NAMES[best]} (it is not UTF-8)"
    others = [scores[encoding] for encoding in scores if ENCODING_NAMES[encoding] != ENCODING_NAMES[best]]
    if others and scores[best] - max(others) < _CLEAR_MARGIN:
        other = "Big5" if ENCODING_NAMES[best] == "GB18030" else "GB18030"
        note += f"; it may be {other}: look at a row with data preview, and save the file as UTF-8 if it is garbled"
    return best, [note]


def _get_min_score(characters: Counter[str]) -> float:
    is_long = sum(count for character, count in characters.items() if not character.isascii()) >= _LONG_TEXT
    return _MIN_SCORE if is_long else _MIN_SCORE_OF_FEW


def _find_wide_encoding(open_binary: OpenBinary) -> str | None:
    """UTF-16 or UTF-32, by a byte order mark, or by the NUL bytes that ASCII characters have there."""
    with open_binary() as stream:
        start = stream.read(64)
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    pairs = len(start) // 2
    even, odd = start[0 : 2 * pairs : 2].count(0), start[1 : 2 * pairs : 2].count(0)
    if pairs >= 4 and start[0] and odd >= pairs // 3 and 4 * even <= odd:
        return "utf-16-le"
    if pairs >= 4 and not start[0] and even >= pairs // 3 and 4 * odd <= even:
        return "utf-16-be"
    return None


def _refuse_blank(name: str, result: _DecodingResult) -> None:
    if result.is_blank:
        raise DataError(f"{name}: empty.", "Give a file with rows.")


@functools.cache
def _list_usual_characters() -> frozenset[str]:
    """The characters of daily use, simplified (GB 2312, level 1) and traditional (Big5, level 1), with punctuation."""
    usual: set[str] = set()
    for first, last, encoding in ((0xA1, 0xA3, "gb2312"), (0xB0, 0xD7, "gb2312"), (0xA1, 0xC6, "big5")):
        for lead in range(first, last + 1):
            usual.update("".join(bytes((lead, trail)).decode(encoding, "ignore") for trail in range(0x40, 0xFF)))
    return frozenset(usual)


def _has_wide(text: str) -> bool:
    # Two of them: GB18030 text may contain one by chance.
    first = None if text.isascii() else _WIDE.search(text)
    return first is not None and _WIDE.search(text, first.end()) is not None
