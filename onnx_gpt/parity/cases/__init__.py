"""What one forward pass cannot show. A case is a file here, found because it exists.

It offers ``run(trial) → Found``: two sets of logits that should be the same, or why there is nothing to compare.
Most hold the candidate against itself, so that a wrong cache or mask is not hidden by what a scheme may cost. The name
of the file is the name in the report; a case that does not apply is reported as not run, with the reason.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Protocol, TypeAlias, cast

import numpy as np

from exporter.discovery import modules_of

PREFILL, STEPS = 16, 16
"""Tokens that cases are run on: a prompt, and what comes after it."""


class Model(Protocol):
    """A candidate or a reference: `Candidate` and `TorchModel` are some.

    Attributes:
        cached: it gives out a cache that is to be proven.
        remembers: it goes on from a cache that it is given.
        pads: it is told which tokens are padding.
        batches: it takes several rows.
        cache_axis: of a cache, along which tokens lie.
    """

    @property
    def name(self) -> str: ...
    @property
    def cached(self) -> bool: ...
    @property
    def remembers(self) -> bool: ...
    @property
    def pads(self) -> bool: ...
    @property
    def batches(self) -> bool: ...
    @property
    def cache_axis(self) -> int: ...

    def run(
        self,
        tokens: np.ndarray,
        mask: np.ndarray | None = None,
        past: Mapping[str, np.ndarray] | None = None,
        *,
        keep: int = 0,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]: ...

    def logits(self, tokens: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a case is given.

    Attributes:
        tokens: int64 ``[S]``, 8 at least and ``PREFILL + STEPS`` at most; `whole` has the candidate's logits of them.
        context: tokens that the model was made for; None where nobody has said it.
        window: keys that a token of a layer with a sliding window sees; None where there is no such layer.
        memory: bytes that a cache may take.
    """

    candidate: Model
    reference: Model
    tokens: np.ndarray
    vocab_size: int
    context: int | None = None
    window: int | None = None
    memory: int = 1 << 28

    @functools.cached_property
    def whole(self) -> np.ndarray:
        """Logits ``[S, V]`` of all tokens at once, alone."""
        logits: np.ndarray = self.candidate.logits(self.tokens[None])[0]
        return logits

    def others(self, rows: int) -> np.ndarray:
        """Rows of tokens ``[rows, S]`` that all differ: the text, and the text turned by some places."""
        stacked: np.ndarray = np.stack([np.roll(self.tokens, -3 * i) for i in range(rows)])
        return stacked


@dataclasses.dataclass(frozen=True)
class Compared:
    """Two ways to the same logits, ``[N, V]`` each.

    Attributes:
        to_reference: ``theirs`` are the reference's and not the candidate's own.
    """

    ours: np.ndarray
    theirs: np.ndarray
    detail: str
    to_reference: bool = False


@dataclasses.dataclass(frozen=True)
class Held:
    """Nothing had to be compared: it is right for a reason."""

    detail: str


@dataclasses.dataclass(frozen=True)
class NotRun:
    """The case does not apply, or could not be run."""

    reason: str


Found: TypeAlias = Compared | Held | NotRun


class Case(Protocol):
    """What a case's file offers."""

    @staticmethod
    def run(trial: Trial) -> Found: ...


@functools.cache
def cases() -> Mapping[str, Case]:
    """Cases by name."""
    return cast(Mapping[str, Case], modules_of(__name__))


NO_CACHE = NotRun("the candidate is no graph with a cache")
NO_MASK = NotRun("the candidate takes no attention_mask")
ONE_ROW = NotRun("the candidate takes one row")
