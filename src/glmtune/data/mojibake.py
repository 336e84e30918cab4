"""Text that was decoded with the wrong encoding and saved so."""

from __future__ import annotations

import re

# What a program that takes bytes for Windows-1252 or Latin-1 shows for each byte from 0x80 on, back to that byte.
_AS_BYTES = str.maketrans(
    {bytes([b]).decode("cp1252"): chr(b) for b in range(0x80, 0xA0) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
)
_SEQUENCE = re.compile("[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_WIDE_RUN = re.compile("(?:[\xe3-\xed][\x80-\xbf]{2}){2,}")
_GB_RUN = re.compile("(?:[\xb0-\xd7][\xa1-\xfe]){4,}")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]{6,}")
_ASIAN = re.compile("[\u3001-\u303f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff5e]+")
_PUNCTUATION = re.compile("[\u2010-\u203a\u20ac\u2122\uff01-\uff5e\U0001f300-\U0001faff]")
_ACCENTED = re.compile("[\u00a1-\u00ff\u0400-\u045f]")


def find_mojibake(text: str) -> int | None:
    """Where in a text the wrong encoding shows first, or None.

    Three mistakes are looked for, each by undoing it: the characters are turned back into the bytes they were read
    from, and these must be text in the right encoding. Natural text passes such a test by chance now and then
    (`É»` or, in French, `é` + no-break space + `»`), so each also has to read as what it would have been:

    1. UTF-8 read as Latin-1 or Windows-1252 (`ä½\xa0å¥½`, `cafÃ©`, `donâ€™t`): two Chinese, Japanese or Korean
       characters in a row; or one of punctuation or an emoji; or an accented or Cyrillic letter, which must either come
       right behind a small letter or be there twice.
    2. UTF-8 read as GBK (`浣犲ソ锛屼笘鐣`): six characters without ASCII between them that give four or more Chinese,
       Japanese or Korean ones. Real Chinese does so about once in 10^9 times.
    3. GBK read as Latin-1 (`ÄãºÃÊÀ½ç`): four or more common Chinese characters in a row, not one and the same.

    Short damage (a word of two characters) is therefore missed rather than good text blamed.
    """
    if text.isascii():
        return None
    found = (_utf8_as_latin(text), _utf8_as_gbk(text), _gbk_as_latin(text))
    return min((position for position in found if position is not None), default=None)


def _utf8_as_latin(text: str) -> int | None:
    raw = text.translate(_AS_BYTES)  # one character each, so positions stay
    for match in _WIDE_RUN.finditer(raw):
        decoded = _undo(match.group(), "utf-8")
        if decoded and _ASIAN.fullmatch(decoded):
            return match.start()
    narrow: list[int] = []
    for match in _SEQUENCE.finditer(raw):
        decoded = _undo(match.group(), "utf-8")
        if decoded and len(match.group()) > 2 and _PUNCTUATION.fullmatch(decoded):
            return match.start()
        if decoded and len(match.group()) == 2 and _ACCENTED.fullmatch(decoded):
            before = text[match.start() - 1 : match.start()]
            if before.isascii() and before.islower() and match.group() > "\xc3":
                return match.start()
            narrow.append(match.start())
    return narrow[0] if len(narrow) > 1 else None


def _utf8_as_gbk(text: str) -> int | None:
    for match in _NOT_ASCII.finditer(text):
        raw = match.group().encode("gb18030", "replace")
        try:
            decoded = raw.decode("utf-8")
        except UnicodeDecodeError as error:  # the end of a run is often one byte of a character
            decoded = raw[: error.start].decode("utf-8")
        if len(decoded) >= 4 and _ASIAN.fullmatch(decoded):
            return match.start()
    return None


def _gbk_as_latin(text: str) -> int | None:
    for match in _GB_RUN.finditer(text):
        decoded = _undo(match.group(), "gb2312")
        letters = sum(char >= "\xc0" for char in match.group())
        if decoded and len(set(decoded)) >= 3 and 2 * letters >= len(match.group()):
            return match.start()
    return None


def _undo(characters: str, encoding: str) -> str | None:
    try:
        return characters.encode("latin-1").decode(encoding)
    except UnicodeDecodeError:
        return None
