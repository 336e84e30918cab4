"""Find text that was decoded with the wrong encoding."""

from __future__ import annotations

import re

# From the characters that Windows-1252 and Latin-1 have for the bytes from 0x80 on, back to these bytes.
_AS_BYTES = str.maketrans(
    {bytes([b]).decode("cp1252"): chr(b) for b in range(0x80, 0xA0) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
)
_SEQUENCE = re.compile("[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_WIDE_RUN = re.compile("(?:[\xe3-\xed][\x80-\xbf]{2}){2,}")
_GB_RUN = re.compile("(?:[\xb0-\xd7][\xa1-\xfe]){4,}")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]{6,}")
_ASIAN = re.compile("[\u3001-\u303f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff5e]+")
_PUNCTUATION = re.compile("[\u2010-\u203a\u20ac\u2122\uff01-\uff5e\U0001f300-\U0001faff]")
_UPPER_RUN = re.compile("[\x80-\xff]+")
_WIDE_TEXT = re.compile(r"[^\x00-\x7f]+")
_ACCENTED = re.compile("[\u00a1-\u00ff\u0400-\u045f]")


def find_mojibake(text: str) -> int | None:
    """Find text that was decoded with the wrong encoding; return its first position, or None.

    Three mistakes are detected by reversing them: the characters are converted back to the bytes they came from, which
    must be text in the right encoding. Normal text passes such a test by chance now and then (`É»` or, in French, `é` +
    no-break space + `»`), so there are further conditions:

    1. UTF-8 read as Latin-1 or Windows-1252 (`ä½\xa0å¥½`, `cafÃ©`, `donâ€™t`): two Chinese, Japanese or Korean
       characters in a row; or one punctuation character or emoji; or an accented or Cyrillic letter, either right after
       a lower-case letter or twice.
    2. UTF-8 read as GBK (`浣犲ソ锛屼笘鐣`): six characters without ASCII between them that become four or more Chinese,
       Japanese or Korean ones. With real Chinese text the chance of that is about 10^-9.
    3. GBK read as Latin-1 (`ÄãºÃÊÀ½ç`): four or more common Chinese characters in a row, not all the same.

    Short damage (a word of two characters) is therefore missed, in favour of fewer false positives.
    """
    if text.isascii():
        return None
    positions = (_find_utf8_as_latin1(text), _find_utf8_as_gbk(text), _find_gbk_as_latin1(text))
    return min((position for position in positions if position is not None), default=None)


def repair_mojibake(text: str) -> str:
    """Reverse a wrong decoding that `find_mojibake` finds, run by run of characters.

    Returns:
        The text as it was meant; the same text where bytes were lost, so that it cannot be known.
    """
    raw = text.translate(_AS_BYTES)
    if _find_utf8_as_latin1(text) is not None:
        repaired = _decode_runs(_UPPER_RUN, raw, text, "latin-1", "utf-8")
    elif _find_utf8_as_gbk(text) is not None:
        repaired = _decode_runs(_WIDE_TEXT, text, text, "gb18030", "utf-8")
    else:
        repaired = _decode_runs(_UPPER_RUN, text, text, "latin-1", "gb18030")
    return text if find_mojibake(repaired) is not None else repaired


def _decode_runs(run: re.Pattern[str], raw: str, text: str, read_as: str, encoding: str) -> str:
    """Decode the runs of `raw` anew; one that cannot be decoded stays as it is in `text`."""
    parts, end = [], 0
    for match in run.finditer(raw):
        try:
            decoded = match.group().encode(read_as).decode(encoding)
        except UnicodeError:
            decoded = text[match.start() : match.end()]
        parts += [text[end : match.start()], decoded]
        end = match.end()
    return "".join([*parts, text[end:]])


def _find_utf8_as_latin1(text: str) -> int | None:
    raw = text.translate(_AS_BYTES)  # one character each, so the positions stay the same
    for match in _WIDE_RUN.finditer(raw):
        decoded = _decode_bytes(match.group(), "utf-8")
        if decoded and _ASIAN.fullmatch(decoded):
            return match.start()
    letters: list[int] = []
    for match in _SEQUENCE.finditer(raw):
        decoded = _decode_bytes(match.group(), "utf-8")
        if decoded and len(match.group()) > 2 and _PUNCTUATION.fullmatch(decoded):
            return match.start()
        if decoded and len(match.group()) == 2 and _ACCENTED.fullmatch(decoded):
            before = text[match.start() - 1 : match.start()]
            if before.isascii() and before.islower() and match.group() > "\xc3":
                return match.start()
            letters.append(match.start())
    return letters[0] if len(letters) > 1 else None


def _find_utf8_as_gbk(text: str) -> int | None:
    for match in _NOT_ASCII.finditer(text):
        raw = match.group().encode("gb18030", "replace")
        try:
            decoded = raw.decode("utf-8")
        except UnicodeDecodeError as error:  # the end of a run is often part of a character
            decoded = raw[: error.start].decode("utf-8")
        if len(decoded) >= 4 and _ASIAN.fullmatch(decoded):
            return match.start()
    return None


def _find_gbk_as_latin1(text: str) -> int | None:
    for match in _GB_RUN.finditer(text):
        decoded = _decode_bytes(match.group(), "gb2312")
        letters = sum(char >= "\xc0" for char in match.group())
        if decoded and len(set(decoded)) >= 3 and 2 * letters >= len(match.group()):
            return match.start()
    return None


def _decode_bytes(characters: str, encoding: str) -> str | None:
    try:
        return characters.encode("latin-1").decode(encoding)
    except UnicodeDecodeError:
        return None
