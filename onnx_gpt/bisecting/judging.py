"""What a decoder has to give, and how far a graph may be from it: the reference's own noise sets the scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from exporter.errors import first_line, rejected
from graph_passes.proof.evaluate import CannotEvaluate
from graph_passes.proof.prove import FACTOR, FLOOR
from onnx_gpt.bisecting.cases import Case, Feeding, cases, expected, stretched
from onnx_gpt.bisecting.running import Arithmetic, run

EPSILON = float(np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class Truth:
    """What whole rows of text give, and the noise of float32 on the way there.

    Attributes:
        text: int64 ``[rows, S]``.
        logits: ``[S, V]`` by row.
        noise: largest error of the graph itself in float32, of the largest logit.
        arithmetic: ``float64``; or ``moved``, where float64 has no answer: float32, and noise from weights that are an
            ulp off.
        stretch: tokens of a cache that reaches a long window's edge; 0 where there is no such window.
        far: logits ``[BEYOND, V]`` of the first row's last tokens after it.
    """

    text: np.ndarray
    logits: Mapping[int, np.ndarray]
    noise: float
    arithmetic: Arithmetic
    stretch: int = 0
    far: np.ndarray | None = None

    @property
    def cases(self) -> tuple[Case, ...]:
        """What is tried."""
        return cases(self.text.shape[1], self.stretch)

    @property
    def tolerance(self) -> float:
        """How far logits may be, of the largest: as in proofs of rewrites, `FACTOR` times the noise, with a floor."""
        return FACTOR * self.noise + FLOOR * EPSILON


@dataclasses.dataclass(frozen=True)
class Deviation:
    """How far a graph is from the truth in one case.

    Attributes:
        case: its name.
        error: largest |Δlogit|, of the largest logit; infinite where shapes differ, or it does not run.
        call: the call where that is.
        why: what went wrong, where it did not come to numbers.
    """

    case: str
    error: float
    call: int = 0
    why: str = ""


def truth_of(model: ir.Model, text: np.ndarray, stretch: int = 0) -> Truth:
    """Run whole rows, one at a time, by the graph that everything is measured against.

    Args:
        stretch: of `stretch_for`.

    Raises:
        OnnxGptError: ``interface-unknown`` (exit 3); ``model-run-failed``; ``logits-not-finite``.
    """
    feeding = Feeding(model)
    rows = [Case(f"row {i}", (i,), (text.shape[1],), (text.shape[1],)) for i in range(len(text))]
    feeds = [feeding.feeds(case, text, 0, {}) for case in rows]

    def logits(arithmetic: Arithmetic) -> list[np.ndarray]:
        found = [values[feeding.logits][0] for values in run(model, feeds, arithmetic=arithmetic)]
        if stretch:
            case = stretched(text.shape[1], stretch)
            chain = feeding.chain(case, text, lambda fed: run(model, [fed], arithmetic=arithmetic)[0])
            found.append(chain[-1][feeding.logits][0])
        return found

    try:
        single = logits("float32")
    except CannotEvaluate as error:
        raise rejected(
            "model-run-failed",
            f"onnxruntime cannot run the graph: {first_line(error)}",
            "export the model with a batch and a sequence length that are free",
        ) from error
    exact: Sequence[np.ndarray]
    arithmetic: Arithmetic = "float64"
    try:
        other = exact = logits("float64")
    except CannotEvaluate:
        arithmetic, exact, other = "moved", single, logits("moved")
    noise = max(largest_error(a, b) for a, b in zip(single, other, strict=True))
    if not np.isfinite(noise):
        raise rejected(
            "logits-not-finite",
            "the graph that all is measured against gives logits that are not finite",
            "check the source with `onnx-gpt ranges`",
        )
    return Truth(
        text,
        dict(enumerate(exact[: len(text)])),
        noise,
        arithmetic,
        stretch,
        exact[-1] if stretch else None,
    )


def deviations(model: ir.Model, truth: Truth, tried: Sequence[Case]) -> list[Deviation]:
    """How far a graph is from the truth in every case that it takes. Weights are read once for each call of a chain."""
    feeding = Feeding(model)
    left = [case for case in tried if feeding.takes(case)]
    worst = {case.name: Deviation(case.name, 0.0) for case in left}
    pasts: dict[str, dict[str, np.ndarray]] = {case.name: {} for case in left}
    for call in range(max(len(case.calls) for case in left)):
        left = [case for case in left if call < len(case.calls) and not worst[case.name].why]
        if not left:
            break
        feeds = [feeding.feeds(case, truth.text, call, pasts[case.name]) for case in left]
        for case, found in zip(left, _run_all(model, feeds), strict=True):
            if isinstance(found, str):
                worst[case.name] = Deviation(case.name, float("inf"), call, f"it does not run: {found}")
            else:
                pasts[case.name] = found
                worst[case.name] = _worse(worst[case.name], case, call, found[feeding.logits], truth)
    return list(worst.values())


def _run_all(
    model: ir.Model, feeds: Sequence[dict[str, np.ndarray]]
) -> Sequence[dict[str, np.ndarray] | str]:
    """Outputs for each feed, or why there are none."""
    try:
        return run(model, feeds)
    except CannotEvaluate:
        alone: list[dict[str, np.ndarray] | str] = []
    for feed in feeds:
        try:
            alone += run(model, [feed])
        except CannotEvaluate as error:
            alone.append(first_line(error))
    return alone


def _worse(worst: Deviation, case: Case, call: int, logits: np.ndarray, truth: Truth) -> Deviation:
    """The larger deviation: that so far, or that of one more call."""
    for i, rows, wanted in expected(case, call, truth.logits, truth.far):
        if logits.ndim != 3 or logits[i, rows].shape != wanted.shape:
            return Deviation(case.name, float("inf"), call, f"logits are {list(logits.shape)}")
        error = largest_error(logits[i, rows], wanted)
        if not error <= worst.error:
            worst = Deviation(case.name, error, call)
    return worst


def largest_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest absolute difference, of the largest wanted value; infinite where one is not finite."""
    difference = np.abs(found.astype(np.float64) - wanted).max(initial=0.0)
    if not np.isfinite(difference):
        return float("inf")
    return float(difference / max(np.abs(wanted).max(initial=0.0), np.finfo(np.float64).tiny))
