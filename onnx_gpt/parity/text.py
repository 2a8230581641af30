"""The tokens on which parity is measured: a user's text, or English that Python itself carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from calibration.data.encoding import ids_of
from exporter.errors import Exit, OnnxGptError, rejected

MOST_TOKENS, LEAST = 1 << 40, 8
CALIBRATION_FIFTHS = 4
"""Fifths of Python's own text that calibration and training may read; evaluation reads what comes after them."""


@dataclasses.dataclass(frozen=True)
class EvaluationTokens:
    """Token windows ``[N, S]`` int64 and where they came from."""

    windows: np.ndarray
    origin: str

    @property
    def predicted(self) -> int:
        """Positions whose next token is known."""
        return int(self.windows.shape[0] * (self.windows.shape[1] - 1))


def evaluation_tokens(
    tokenizer_json: bytes | None,
    vocab_size: int,
    *,
    tokens: int,
    window: int,
    path: Path | None = None,
    fewer: bool = False,
) -> EvaluationTokens:
    """Windows of evaluation text.

    Args:
        tokenizer_json: None where the model has no tokenizer; the tokens are then drawn uniformly, and say so.
        tokens: predicted positions wanted, at least.
        window: tokens of a window.
        path: UTF-8 text of the user's; the held-out part of ``pydoc_data.topics`` by default.
        fewer: take a text of one window or more as it is.

    Raises:
        OnnxGptError: ``text-too-short`` or ``text-unreadable``; ``tokenizer-missing`` where there is text and no
            tokenizer to read it; ``context-too-short`` (exit 2).
    """
    require_some(tokens)
    _require_pair(window)
    count = -(-tokens // (window - 1))
    if tokenizer_json is None and path is not None:
        raise rejected(
            "tokenizer-missing",
            f"the model has no tokenizer.json, by which {path.name} could be read",
            "put its tokenizer.json beside it, or leave --text out: tokens are then drawn at random",
        )
    if tokenizer_json is None:
        drawn = np.random.default_rng(0).integers(0, vocab_size, (count, window))
        return EvaluationTokens(drawn, "uniform random tokens (the model has no tokenizer)")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    prefix = tokenizer.encode("").ids
    body = window - len(prefix)
    if body < 1:
        raise rejected(
            "text-too-short",
            f"a context of {window} tokens is full of the {len(prefix)} that the tokenizer begins a text with",
            "give a longer --context-length",
        )
    origin = "pydoc_data.topics, last fifth" if path is None else path.name
    ids = _encode_enough(tokenizer, _pieces(path), count * body, origin)
    have = len(ids) // body
    if have < (1 if fewer else count):
        raise rejected(
            "text-too-short",
            f"{origin} holds {len(ids)} tokens, {body if fewer else count * body} are to be evaluated on",
            "give a longer text" + ("" if fewer else ", or fewer --tokens"),
        )
    windows = np.array(ids[: min(have, count) * body], np.int64).reshape(-1, body)
    start = np.tile(np.array(prefix, np.int64), (len(windows), 1))
    return EvaluationTokens(np.concatenate([start, windows], axis=1), origin)


def require_some(tokens: int) -> None:
    """Raise ``text-too-short`` (exit 2) where no token is to be evaluated on."""
    if not 1 <= tokens <= MOST_TOKENS:
        raise OnnxGptError(
            "text-too-short",
            f"{tokens} tokens are nothing to evaluate on" if tokens < 1 else "no text has so many tokens",
            f"give --tokens a number from 1 to {MOST_TOKENS}",
            exit=Exit.USAGE,
        )


def _require_pair(context: int) -> None:
    if context < 2:
        raise OnnxGptError(
            "context-too-short",
            f"a context of {context} tokens holds no token and the next",
            "correct what config.json says of it, where the model was trained for more",
            exit=Exit.USAGE,
        )


def even_window(tokens: int, longest: int) -> int:
    """Tokens of a window, so that as few as there must be hold so many predicted ones, and hardly more.

    `LEAST` at least, where the context holds as many: what cases are about shows in no fewer.
    """
    require_some(tokens)
    _require_pair(longest)
    count = -(-tokens // (longest - 1))
    return min(longest, max(LEAST, -(-tokens // count) + 1))


def _encode_enough(tokenizer: Any, pieces: Iterable[str], wanted: int, origin: str) -> list[int]:
    """Encode pieces of a text until there are enough tokens."""
    ids: list[int] = []
    for piece in pieces:
        ids += ids_of(tokenizer, piece, what=origin, remedy="give --text of its words")
        if len(ids) >= wanted:
            break
    return ids


def _pieces(path: Path | None) -> Iterator[str]:
    """The evaluation text, `PIECE` characters at a time: no more of a file is read than is used."""
    if path is None:
        text = _documentation()[1]
        yield from (text[start : start + PIECE] for start in range(0, len(text), PIECE))
        return
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield from iter(lambda: stream.read(PIECE), "")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a path with a zero byte
        raise rejected("text-unreadable", f"{path}: {error}", "give a readable UTF-8 text file") from error


PIECE = 16384
"""Characters that are encoded at once; two tokenizers are compared on the first, and on `AWKWARD`."""
AWKWARD = "\n\n  naïve café\t“quotes” — 12 345.67€ 中文 русский 🙂 x²=√2 <|im_start|> don't\u00a0wrap\r\n"
"""Text on which tokenizers differ that agree on plain English."""


def evaluation_sample(path: Path | None) -> str:
    """Some of the evaluation text, and what no English text holds."""
    return next(_pieces(path), "") + AWKWARD


def calibration_text() -> str:
    """English that evaluation never reads: lines that stand in both parts of it, and tables' rules, are left out."""
    ours, theirs = _documentation()
    seen = set(theirs.split("\n"))
    kept = (line for line in ours.split("\n") if line not in seen and any(map(str.isalnum, line)))
    return "\n".join(kept)


def _documentation() -> tuple[str, str]:
    """Python's own documentation: what calibration and training may read, and what evaluation reads."""
    from pydoc_data.topics import topics

    whole = "".join(topics.values())
    cut = len(whole) * CALIBRATION_FIFTHS // 5
    return whole[:cut], whole[cut:]
