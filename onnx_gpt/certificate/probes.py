"""Probes: a few sequences of tokens with the reference's likeliest next ones, which anyone can run again.

The reference is asked once, when a bundle is made. Each model of the bundle then runs the same tokens in one pass, and
what it gives is written down too. On another machine `rerun` does the same, and once more with single steps through the
cache at the end, and compares: with the reference (is it still near enough?) and with what was written down (is it
still the same?).

What is compared are distributions over the reference's k likeliest tokens and all others as one. Their KL divergence
is at most that of the whole distributions, so a limit on the latter holds for it as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from exporter.errors import OnnxGptError, rejected
from onnx_gpt.certificate.schema import Case, ProbedModel, Probes
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.metrics import log_softmax

CASES, TOKENS, EVERY, TOP = 4, 48, 4, 8
"""Sequences, tokens of each, distance of the positions compared, and tokens kept at each."""

STEPS = 8
"""Tokens at the end of a sequence that are fed one by one."""

SLACK = 1.25
"""Few positions scatter more than a whole text: a model that was above its limit on them may be above it again."""

LARGEST_UNASKED = 256 << 20
"""Bytes of a model that is run for its probes' sake where parity was not asked for; others would fill the memory."""

_SMALLEST = 1e-12


class Asks(Protocol):
    """What a reference must do."""

    @property
    def name(self) -> str: ...

    def logits(self, tokens: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Asked:
    """Cases with a reference's answers."""

    reference: str
    independent: bool
    cases: tuple[Case, ...]


@dataclasses.dataclass(frozen=True)
class Reached:
    """Mean KL divergences of one model on all cases, in nats a position.

    Attributes:
        reference: of the reference's distribution from the model's.
        drift: of what the model gave when it was made from what it gives now.
    """

    reference: float
    drift: float


def ask(reference: Asks, windows: np.ndarray, *, independent: bool = True) -> Asked:
    """What a reference gives after some tokens of windows ``[N, S]``.

    Raises:
        OnnxGptError: ``logits-not-finite``.
    """
    cases = []
    for window in windows[:CASES]:
        tokens = window[:TOKENS]
        logits = np.asarray(reference.logits(tokens[None])[0], np.float32)
        if not np.isfinite(logits).all():
            raise rejected(
                "logits-not-finite",
                f"{reference.name} gives logits that are not finite",
                "check the source with `onnx-gpt ranges`",
            )
        positions = sorted({*range(EVERY - 1, len(tokens), EVERY), len(tokens) - 1})
        rows = log_softmax(logits[positions])
        top = np.argsort(-rows, axis=1, kind="stable")[:, : min(TOP, rows.shape[1])]
        cases.append(
            Case(
                tokens=tuple(int(token) for token in tokens),
                positions=tuple(positions),
                top=tuple(tuple(int(i) for i in row) for row in top),
                reference=_rounded(np.take_along_axis(rows, top, axis=1)),
            )
        )
    return Asked(reference.name, independent, tuple(cases))


def probes_of(asked: Asked, models: Mapping[str, ProbedModel]) -> Probes:
    """What a certificate says of them."""
    return Probes(
        reference=asked.reference, independent=asked.independent, cases=asked.cases, models=dict(models)
    )


def probe(candidate: Candidate, asked: Asked, *, drift: float, max_kl: float | None) -> ProbedModel:
    """Run a new model on the cases, and state what it may be off by later.

    Args:
        drift: mean KL by which it may differ between machines, nats a position: float kernels sum in another order,
            and where activations are rounded to 8 bits that moves a rounding now and then.
        max_kl: limit of its mean KL from the reference on a whole text; None where there is none.
    """
    built = tuple(_rounded(prefill(candidate, case)) for case in asked.cases)
    measured = _mean_kl([case.reference for case in asked.cases], built)
    limit = max(drift if max_kl is None else max_kl, SLACK * measured)
    return ProbedModel(built=built, measured=measured, max_kl=limit, max_drift=drift)


def rerun(candidate: Candidate, probes: Probes, model: ProbedModel) -> dict[str, Reached]:
    """Run a model on a certificate's cases: ``prefill`` and, where it has a cache, ``decode``.

    Raises:
        OnnxGptError: ``token-out-of-range`` where the model has no such tokens; ``logits-not-finite``; what
            `Candidate.run` raises.
    """
    largest = max(max(*case.tokens, *map(max, case.top)) for case in probes.cases)
    if candidate.vocab_size is not None and largest >= candidate.vocab_size:
        raise OnnxGptError(
            "token-out-of-range",
            f"a probe has token {largest}, the model has {candidate.vocab_size}",
            "restore the certificate, or build the bundle again",
        )
    ways = {"prefill": prefill, "decode": decode} if candidate.cached else {"prefill": prefill}
    found = {}
    for name, way in ways.items():
        now = [way(candidate, case) for case in probes.cases]
        reference = _mean_kl([case.reference for case in probes.cases], now)
        found[name] = Reached(reference, _mean_kl(model.built, now))
    return found


def prefill(candidate: Candidate, case: Case) -> np.ndarray:
    """Log probabilities ``[P, k]`` of a case's tokens, from one pass over the whole sequence."""
    tokens = np.array([case.tokens], np.int64)
    return _of_case(candidate.logits(tokens)[0], case)


def decode(candidate: Candidate, case: Case) -> np.ndarray:
    """The same from a pass over the beginning of the sequence, and one step for each of its last tokens."""
    tokens = np.array([case.tokens], np.int64)
    cut = max(1, tokens.shape[1] - STEPS)
    logits, past = candidate.run(tokens[:, :cut])
    rows = [logits[0]]
    for t in range(cut, tokens.shape[1]):
        logits, past = candidate.run(tokens[:, t : t + 1], past=past)
        rows.append(logits[0])
    return _of_case(np.concatenate(rows), case)


def _of_case(logits: np.ndarray, case: Case) -> np.ndarray:
    rows = logits[list(case.positions)]
    if not np.isfinite(rows).all():
        raise OnnxGptError(
            "logits-not-finite", "the model gives NaN or infinity on a probe", "build the bundle again"
        )
    return np.take_along_axis(log_softmax(rows), np.array(case.top), axis=1)


Rows = Sequence[Sequence[float]] | np.ndarray
"""Log probabilities ``[P, k]``."""


def _mean_kl(truth: Sequence[Rows], found: Sequence[Rows]) -> float:
    """Mean coarse KL over the positions of all cases."""
    pairs = zip(truth, found, strict=True)
    return float(np.concatenate([coarse_kl(np.array(p), np.array(q)) for p, q in pairs]).mean())


def coarse_kl(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(truth ‖ found) in nats ``[P]`` of log probabilities ``[P, k]``; what they leave over is one outcome more."""
    p, q = np.exp(truth), np.exp(found)
    p_rest = np.maximum(1 - p.sum(axis=1), _SMALLEST)
    q_rest = np.maximum(1 - q.sum(axis=1), _SMALLEST)
    kl: np.ndarray = (p * (truth - found)).sum(axis=1) + p_rest * np.log(p_rest / q_rest)
    return kl.clip(min=0.0)


def _rounded(rows: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """As a certificate has them. What rounding takes from a probability may be all that is left for the others, so that
    digits are kept which float32 logits do not hold."""
    return tuple(tuple(round(float(value), 9) for value in row) for row in rows)


def asked_of(candidate: Candidate, windows: np.ndarray) -> Asked:
    """Cases whose reference is the bundle's own model: they show that it is the same elsewhere, and nothing else."""
    return ask(_Itself(candidate), windows, independent=False)


@dataclasses.dataclass(frozen=True)
class _Itself:
    candidate: Candidate
    name: str = "the bundle itself, as it was made (parity was not run)"

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self.candidate.logits(tokens)
