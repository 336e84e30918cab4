"""The text of a reply, piece by piece as its tokens come: whole characters, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from glmtune.models.tokenizers.text_decoding import TextDecoder

# Ids that are decoded again for each token: few, and enough that the window rarely has to be moved.
_WINDOW = 4


class ReplyText:
    """Finds what a new token adds to the text. A Chinese character may take several byte tokens.

    Only the last tokens are decoded, so that the cost of a token does not depend on the reply's length. The pieces
    together are the text of all tokens.

    Args:
        decode: from ids to text, see `make_text_decoder`.
    """

    def __init__(self, decode: TextDecoder):
        self._decode = decode
        self._ids: list[int] = []
        self._text = ""  # of the first `_passed` ids, which was passed on
        self._passed = 0

    def add(self, ids: Sequence[int]) -> str:
        """Add tokens; returns the text that is complete with them, which may be empty."""
        self._ids += ids
        text = self._decode(self._ids)
        if len(text) <= len(self._text) or text.endswith("\ufffd"):
            return ""
        return self._pass_on(text)

    def finish(self) -> str:
        """The rest: a character that stays incomplete."""
        text = self._decode(self._ids) if self._passed < len(self._ids) else self._text
        return self._pass_on(text) if len(text) > len(self._text) else ""

    def _pass_on(self, text: str) -> str:
        piece = text[len(self._text) :]
        before, self._passed, self._text = self._passed, len(self._ids), text
        if len(self._ids) > _WINDOW:
            # The tokens of this piece stay: what a tokenizer makes of a token may depend on the one before it. Not if
            # they are spaces: after those that begin a text, further ones may be left out.
            text = self._decode(self._ids[before:])
            if text.strip(" "):
                self._ids = self._ids[before:]
                self._passed, self._text = len(self._ids), text
        return piece


class StopStrings:
    """Finds stop strings in a text that comes in pieces.

    Args:
        stops: the strings; empty ones are ignored.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_found = False

    def add(self, text: str) -> str:
        """Add a piece; returns what may be passed on: no stop string can begin in it."""
        if not self._stops or self.is_found:
            return "" if self.is_found else text
        text = self._held + text
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.is_found, self._held = True, ""
            return text[: min(places)]
        held = max(_count_begun(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back as the beginning of a stop string that did not come."""
        held, self._held = self._held, ""
        return held


def _count_begun(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
