"""Tokens to text, piece by piece: never half a character, never the beginning of a stop string.

A token may end inside a character, and what a token looks like may depend on those before it (a leading
space, say). So a window of the last tokens is decoded each time, and what is new and settled is given out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

UNFINISHED = "\ufffd"
"""What decoders put for bytes that are not a character, or not yet."""
LONGEST = 3
"""A character has four bytes at most, so that at most three of them can be waiting for the rest."""
WINDOW = 8
"""Tokens of context."""


class Decodes(Protocol):
    """The part of `tokenizers.Tokenizer` that is needed here."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = ...) -> str: ...


class TextStream:
    """Text of a growing sequence of tokens.

    Args:
        tokenizer: decodes windows of tokens, special ones left out; None for no text at all.
        context: tokens before the first one, whose text is not given again.
        stop: strings that end the text, themselves left out.

    Attributes:
        stopped: whether a stop string has come; nothing is to be pushed then.
    """

    def __init__(
        self, tokenizer: Decodes | None, context: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._window = list(context[-WINDOW:])
        self._given = _settled(self._decode())
        self._held = ""

    def push(self, token: int) -> str:
        """The text that this token has settled, perhaps none."""
        self._window.append(token)
        text = self._decode()
        settled = max(self._given, _settled(text))
        piece, self._given = text[self._given : settled], settled
        if len(self._window) > 2 * WINDOW:
            rest = len(text) - settled
            del self._window[:-WINDOW]
            self._given = len(self._decode()) - rest
        return self._before_stop(piece)

    def finish(self) -> str:
        """What was held back for a stop string that has not come; bytes that became no character are not."""
        held, self._held = self._held, ""
        return held

    def _decode(self) -> str:
        if self._tokenizer is None:
            return ""
        return self._tokenizer.decode(self._window, skip_special_tokens=True)

    def _before_stop(self, piece: str) -> str:
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _settled(text: str) -> int:
    """Length of the text without a character at its end that may be unfinished."""
    return len(text) - min(LONGEST, len(text) - len(text.rstrip(UNFINISHED)))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text with which the stop string begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
