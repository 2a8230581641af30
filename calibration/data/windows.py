"""Windows of tokens for calibration: documents are encoded, laid end to end, cut, and drawn from by a seed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from calibration.data.documents import Document
from calibration.data.encoding import ids_of
from exporter.errors import OnnxGptError, rejected

LEAST_TOKENS = 2048
"""Fewer say too little of the second moments of a layer's inputs."""
POOL = 16
"""Windows that are drawn from, for each that is wanted: a corpus of any size is read no further."""
RUN = 48
"""Tokens in a row that two texts share only where one was copied from the other."""
SLICE = 1 << 14
"""Characters that are encoded at once."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """Calibration tokens and where they came from.

    Attributes:
        tokens: int64 ``[N, S]``; every token is real, there is no padding.
        origin: for people.
        seed: by which they were drawn.
        files: sha256 of each file that may have been read, as `calibration.data.documents.digests_of` names it.
    """

    tokens: np.ndarray
    origin: str
    seed: int
    files: dict[str, str]

    def facts(self) -> dict[str, Any]:
        """What a report says of them; ``sha256`` is that of the tokens as little-endian int64."""
        count, window = self.tokens.shape
        digest = hashlib.sha256(np.ascontiguousarray(self.tokens, "<i8").tobytes()).hexdigest()
        return {
            "origin": self.origin,
            "windows": count,
            "window": window,
            "seed": self.seed,
            "sha256": digest,
            "files": self.files,
        }


class Encoder:
    """Documents to tokens.

    Args:
        tokenizer_json: None where the model has none: only tokens can then be given.
        vocab_size: V; ids are below it.
    """

    def __init__(self, tokenizer_json: bytes | None, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.tokenizer: Any = None
        self.prefix: list[int] = []
        if tokenizer_json is not None:
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()
            self.prefix = self.tokenizer.encode("").ids

    def encode(self, document: Document) -> Iterator[np.ndarray]:
        """Ids of a document without what the tokenizer puts before a text, a slice of it at a time.

        Raises:
            OnnxGptError: ``token-out-of-range``; ``tokenizer-missing``, ``tokenizer-invalid`` for a text that cannot
                be encoded; ``calibration-not-utf8``.
        """
        if isinstance(document, np.ndarray):
            for start in range(0, len(document), SLICE):
                yield self._within(document[start : start + SLICE])
            return
        if self.tokenizer is None:
            raise rejected(
                "tokenizer-missing",
                "the model has no tokenizer, so calibration cannot read text",
                "give calibration data as token ids, in a .npy file",
            )
        for start in range(0, len(document), SLICE):
            try:
                ids = ids_of(
                    self.tokenizer,
                    document[start : start + SLICE],
                    what="the calibration text",
                    remedy="give a text of its words",
                )
            except TypeError as error:  # JSON can spell half of a surrogate pair, "\\ud800"
                raise rejected(
                    "calibration-not-utf8",
                    "a text holds half of a surrogate pair, which is no character",
                    "write the text again, in UTF-8",
                ) from error
            yield self._within(np.array(ids, np.int64))

    def _within(self, ids: np.ndarray) -> np.ndarray:
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if len(outside):
            raise rejected(
                "token-out-of-range",
                f"calibration data holds token {int(outside[0])}, the model has {self.vocab_size}",
                "encode the data with the tokenizer of this model",
            )
        return ids.astype(np.int64)


def pack(
    documents: Iterable[Document], encoder: Encoder, *, count: int, window: int, seed: int = 0
) -> np.ndarray:
    """Draw windows: int64 ``[N, window]``, at most ``count``, each begun by what the tokenizer begins a text with.

    Documents are laid end to end and cut, so every token is used once; of the first ``POOL · count`` windows, as many
    as are wanted are drawn by the seed. The same documents and seed give the same windows.

    Raises:
        OnnxGptError: ``calibration-empty``; ``calibration-too-short`` below one window or `LEAST_TOKENS`.
    """
    body = window - len(encoder.prefix)
    if body < 1:
        raise _too_short(0, window + 1)
    pieces: list[np.ndarray] = []
    have = 0
    for ids in (ids for document in documents for ids in encoder.encode(document)):
        pieces.append(ids)
        have += len(ids)
        if have >= POOL * count * body:
            break
    if have == 0:
        raise rejected(
            "calibration-empty", "the calibration data holds no text", "give English, or your own text"
        )
    if have < max(body, min(LEAST_TOKENS, count * body)):
        raise _too_short(have, max(body, min(LEAST_TOKENS, count * body)))
    whole = have // body
    cut = np.concatenate(pieces)[: whole * body].reshape(whole, body)
    drawn = np.random.default_rng(seed).permutation(whole)[:count]
    start = np.tile(np.array(encoder.prefix, np.int64), (len(drawn), 1))
    return np.concatenate([start, cut[drawn]], axis=1)


def require_apart(calibration: np.ndarray, evaluation: Sequence[Sequence[int]] | np.ndarray) -> None:
    """Refuse text that is also evaluated on: both ``[N, S]``.

    Raises:
        OnnxGptError: ``calibration-overlap`` where `RUN` tokens in a row, or those of a shorter window, are in both.
    """
    both = calibration, np.asarray(evaluation, np.int64)
    width = min(RUN, *(windows.shape[1] for windows in both))
    ours, theirs = (_runs(windows, width) for windows in both)
    shared = int(np.isin(ours, theirs).sum())
    if shared:
        raise rejected(
            "calibration-overlap",
            f"calibration and evaluation share text: {shared} of {len(ours)} runs of {width} tokens are in both",
            "evaluate on text that calibration has not seen, with --text",
        )


def _runs(windows: np.ndarray, width: int) -> np.ndarray:
    """A number for each run of so many tokens inside a window: a polynomial of the ids modulo 2⁶⁴."""
    power = 1
    total = np.zeros((len(windows), windows.shape[1] - width + 1), np.uint64)
    for i in range(width):
        total += windows[:, i : i + total.shape[1]].astype(np.uint64) * np.uint64(power)
        power = power * 0x9E3779B97F4A7C15 % (1 << 64)
    return total.reshape(-1)


def _too_short(have: int, wanted: int) -> OnnxGptError:
    return rejected(
        "calibration-too-short",
        f"the calibration data holds {have} tokens, at least {wanted} are needed",
        "give more text: 128 windows of 512 tokens are a good number",
    )
