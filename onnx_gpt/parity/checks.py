"""Runs the cases and judges what they compared."""

from __future__ import annotations

from collections.abc import Callable, Collection

from exporter.errors import OnnxGptError
from onnx_gpt.parity.cases import PREFILL, STEPS, Case, Compared, Held, NotRun, Trial, cases
from onnx_gpt.parity.metrics import mean_kl
from onnx_gpt.parity.noise import WORST_FACTOR, deviation, row_differences
from onnx_gpt.report import Check, Noise

LENGTH = PREFILL + STEPS
SKIPPED = "left out as asked"


def run_checks(
    trial: Trial,
    *,
    noise: Noise | None,
    limit: float,
    far_limit: float,
    skip: Collection[str] = (),
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Check]:
    """Every case's verdict, by its name.

    Args:
        noise: the reference's, by which a float candidate is judged; None for one that may lose something.
        limit: largest mean KL of a candidate that is not float from itself, nats a token.
        far_limit: the same from the reference.
        skip: cases that are not to be run.
    """
    found = {}
    for name, case in cases().items():
        if name in skip:
            found[name] = Check(verdict="not run", detail=SKIPPED)
            continue
        progress(name)
        found[name] = _checked(case, trial, noise, limit, far_limit)
    return found


def _checked(case: Case, trial: Trial, noise: Noise | None, limit: float, far_limit: float) -> Check:
    try:
        found = case.run(trial)
    except OnnxGptError as error:
        return Check(verdict="fail", detail=error.cause)
    if isinstance(found, NotRun):
        return Check(verdict="not run", detail=found.reason)
    if isinstance(found, Held):
        return Check(verdict="pass", detail=found.detail)
    if found.ours.shape != found.theirs.shape:
        return Check(
            verdict="fail", detail=f"{found.detail}: logits {found.ours.shape}, not {found.theirs.shape}"
        )
    if noise is not None:
        return _in_noise(found, noise)
    kl = mean_kl(found.ours, found.theirs)
    allowed = far_limit if found.to_reference else limit
    return Check(
        verdict="pass" if kl <= allowed else "fail",
        detail=found.detail,
        value=kl,
        limit=allowed,
        unit="nats a token",
    )


def _in_noise(found: Compared, noise: Noise) -> Check:
    worst = deviation(row_differences(found.ours, found.theirs)).worst / noise.worst
    return Check(
        verdict="pass" if worst <= WORST_FACTOR else "fail",
        detail=found.detail,
        value=worst,
        limit=WORST_FACTOR,
        unit="x noise",
    )
