"""Checks witnesses: both sides are run on the same data, and have to give the same.

An exact pass keeps every bit of small integers. An fp pass may reorder arithmetic: its error against float64 is
at most `FACTOR` times that of what it replaced, with a floor of a few units in the last place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np

from exporter.errors import Exit, OnnxGptError
from graph_passes.proof.evaluate import CannotEvaluate, evaluate, evaluate_float64
from graph_passes.proof.samples import Sample, sample, scenarios
from graph_passes.proof.subgraph import Subgraph
from graph_passes.proof.witness import Witness

FACTOR = 4.0
"""How much larger the error of a rewrite may be than that of the original."""

FLOOR = 8.0
"""Units in the last place of the largest value that are never counted as an error."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of one witness.

    Attributes:
        ratio: error of the new side over that of the old, floors included; 0 for an exact witness that holds.
        unproven: why there is no answer; empty where there is one.
        wrong: how the sides differ; empty where they do not.
    """

    ratio: float = 0.0
    unproven: str = ""
    wrong: str = ""


@dataclasses.dataclass(frozen=True)
class Proof:
    """What came of a pass's witnesses.

    Attributes:
        witnesses: structures that were tried.
        proven: of those, with an answer.
        worst: largest error ratio, at most `FACTOR`.
        unproven: ``"place: why"`` for the others.
    """

    witnesses: int = 0
    proven: int = 0
    worst: float = 0.0
    unproven: tuple[str, ...] = ()


def prove(witnesses: Iterable[Witness], name: str, kind: Literal["exact", "fp", "lossy"]) -> Proof:
    """Check the witnesses of one pass. One that is lossy changes values on purpose: parity judges it.

    Raises:
        OnnxGptError: ``rewrite-wrong`` (exit 1) for the first that does not hold.
    """
    if kind == "lossy":
        return Proof()
    count, worst = 0, 0.0
    unproven = []
    for witness in witnesses:
        count += 1
        verdict = check(witness, exact=kind == "exact")
        if verdict.wrong:
            raise wrong(witness, name, verdict.wrong)
        worst = max(worst, verdict.ratio)
        if verdict.unproven:
            unproven.append(f"{witness.place}: {verdict.unproven}")
    return Proof(count, count - len(unproven), worst, tuple(unproven))


def check(witness: Witness, *, exact: bool) -> Verdict:
    """Run both sides in every scenario. A difference counts only if it is there for the weights' own values
    too, where those can be read."""
    if not witness.before.outputs:
        return Verdict(unproven="it replaces no value that is used")
    worst = 0.0
    for scenario in scenarios(witness):
        try:
            verdict = compare(witness, sample(witness, scenario, exact=exact), exact=exact)
            if verdict.wrong:
                own = sample(witness, scenario, exact=exact, read=True)
                verdict = compare(witness, own, exact=exact)
        except CannotEvaluate as error:
            return Verdict(unproven=_first_line(error))
        if verdict.wrong or verdict.unproven:
            return verdict
        worst = max(worst, verdict.ratio)
    return Verdict(worst)


def compare(witness: Witness, given: Sample, *, exact: bool) -> Verdict:
    """Run both sides of a witness on one sample.

    Raises:
        CannotEvaluate: the old side does not run, or the new one for want of an implementation.
    """
    before = evaluate(witness.before, given.feeds_of(witness.before))
    try:
        after = evaluate(witness.after, given.feeds_of(witness.after))
    except CannotEvaluate as error:
        if error.missing:
            raise
        return Verdict(wrong=f"the new side does not run: {_first_line(error)}")
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape or old.dtype != new.dtype:
            return Verdict(wrong=f"{old.dtype}{list(old.shape)} became {new.dtype}{list(new.shape)}")
    real = [_real(array.shape, given) for array in before]
    whole = [i for i, array in enumerate(before) if exact or array.dtype.kind in "biu"]
    for i in whole:
        if not np.array_equal(
            before[i][real[i]], after[i][real[i]], equal_nan=before[i].dtype.kind not in "biu"
        ):
            return Verdict(wrong=_difference(before[i], after[i], real[i]))
    if len(whole) == len(before):
        return Verdict()
    truth, errors = _truth(witness, given, before, real)
    worst = 0.0
    for i in set(range(len(before))) - set(whole):
        off, floor = _error(after[i], truth[i], real[i]), _floor(before[i], truth[i], real[i])
        if not off <= FACTOR * errors[i] + floor:
            ratio = off / errors[i] if errors[i] else np.inf
            return Verdict(
                wrong=f"its error is {off:.3g}, that of the original {errors[i]:.3g} ({ratio:.3g} times)"
            )
        if off > floor:
            worst = max(worst, off / errors[i])
    return Verdict(worst)


def _truth(
    witness: Witness, given: Sample, before: Sequence[np.ndarray], real: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[float]]:
    """What the old side gives in float64, and how far it is from that. Where an op has no such implementation, or one
    that plainly means something else, what it gives, and how far that moves when its inputs move by a unit in the
    last place."""
    feeds = given.feeds_of(witness.before)
    try:
        truth = evaluate_float64(witness.before, feeds)
        errors = [_error(a, t, rows) for a, t, rows in zip(before, truth, real, strict=True)]
        if all(e <= TRUSTED * _scale(t, rows) for e, t, rows in zip(errors, truth, real, strict=True)):
            return truth, errors
    except CannotEvaluate:
        pass
    moved = evaluate(witness.before, {value: _moved(array) for value, array in feeds.items()})
    truth = [array.astype(np.float64) if array.dtype.kind not in "biu" else array for array in before]
    return truth, [_error(a, t, rows) for a, t, rows in zip(moved, truth, real, strict=True)]


TRUSTED = 1e-2
"""How far float64 may be from float32, of the largest value, before it is taken for another computation."""


def _moved(array: np.ndarray) -> np.ndarray:
    """Every other float one unit up, the others one down."""
    if array.dtype.kind in "biu":
        return array
    signs = np.where(np.arange(array.size).reshape(array.shape) % 2, 1, -1)
    epsilon = _epsilon(array.dtype)
    return (array.astype(np.float64) * (1 + epsilon * signs)).astype(array.dtype)


def _epsilon(dtype: np.dtype[Any]) -> float:
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]


SHOWN = 3000
"""Characters of each side that a message shows, from the end, where the rewrite is."""

HUGE = 1e30
"""From here on a value stands for infinity: masks."""


def _error(found: np.ndarray, truth: np.ndarray, real: np.ndarray) -> float:
    """Largest absolute difference; infinite where only one of them is finite."""
    if truth.dtype.kind in "biu":
        return 0.0
    a, t = found[real].astype(np.float64), truth[real]
    plain = np.abs(t) < HUGE
    a_special, t_special = a[~plain], t[~plain]
    same = (a_special == t_special) | (np.isnan(a_special) & np.isnan(t_special))
    with np.errstate(invalid="ignore"):
        close = np.abs(a_special / t_special - 1) < 1e-2
    if not (same | close).all():
        return float("inf")
    error = np.abs(a[plain] - t[plain]).max(initial=0.0)
    return float("inf") if np.isnan(error) else float(error)


def _floor(found: np.ndarray, truth: np.ndarray, real: np.ndarray) -> float:
    return FLOOR * _epsilon(found.dtype) * _scale(truth, real)


def _scale(truth: np.ndarray, real: np.ndarray) -> float:
    """The largest value that is neither infinite nor stands for it."""
    values = np.abs(truth[real])
    return float(values[values < HUGE].max(initial=0))


def _real(shape: tuple[int, ...], given: Sample) -> np.ndarray:
    """Which elements belong to tokens that are not padding: of ``[B, S, ·]``, ``[B, ·, S, ·]``, ``[B, S]``."""
    every = np.ones(shape, np.bool_)
    scenario = given.scenario
    mask = scenario.attention_mask().astype(np.bool_)
    if not scenario.lengths or len(shape) < 2 or shape[0] != scenario.batch:
        return every
    axis = 2 if len(shape) == 4 else 1
    if shape[axis] != scenario.total:
        return every
    rows = mask.reshape([n if i in (0, axis) else 1 for i, n in enumerate(shape)])
    return every & rows


def _difference(old: np.ndarray, new: np.ndarray, real: np.ndarray) -> str:
    different = real & ~((old == new) | ((old != old) & (new != new)))
    index = tuple(int(i) for i in np.argwhere(different)[0])
    return f"{int(different.sum())} of {old.size} differ; {old[index]} became {new[index]} at {list(index)}"


def wrong(witness: Witness, name: str, how: str) -> OnnxGptError:
    """The error for a witness that does not hold."""
    return OnnxGptError(
        "rewrite-wrong",
        f"pass {name!r} changed what the graph computes at {witness.place}: {how}",
        "nothing was written; report this with the model's configuration, or leave the pass out",
        exit=Exit.INTERNAL,
        details=(_shown("before", witness.before), _shown("after", witness.after)),
    )


def _shown(side: str, piece: Subgraph) -> str:
    text = str(piece)
    return f"{side}: {text if len(text) <= SHOWN else f'… {text[-SHOWN:]}'}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
