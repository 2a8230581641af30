"""Proposes how to make a model smaller for a device: every way that has been measured, what each would come to, the one
that a budget is best served by, and why the others are not it.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter import sources
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle.staging import require_absent, write_file
from onnx_gpt.planning.candidates import CHECKPOINTS, Candidate, candidates
from onnx_gpt.planning.device import Device, device_of
from onnx_gpt.planning.pareto import front
from onnx_gpt.planning.prediction import Predicted
from onnx_gpt.planning.probing import probe as probed_on
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.recipe_file import toml_text
from onnx_gpt.searching.budget import Budget, parse_budget
from onnx_gpt.unread import refuse_unread

SCHEMA = "onnx-gpt/plan/1"
MOST = 4.0
"""KL, nats a token, beyond which a model is not looked at: it has little left of what it was."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
        candidates: all ways, the smallest first.
        refused: ways that this model or device cannot go, and why.
        commands: what to run, in order; the last makes the bundle from the recipe.
        recipe: text of the recipe.
    """

    source: str
    device: Device
    budget: str
    parameters: int
    candidates: tuple[Candidate, ...]
    refused: Mapping[str, str]
    commands: tuple[str, ...]
    recipe: str

    @property
    def chosen(self) -> Candidate:
        return next(one for one in self.candidates if one.verdict == "chosen")

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "device": self.device.model_dump(exclude_none=True),
            "budget": self.budget,
            "parameters": self.parameters,
            "chosen": self.chosen.json(),
            "candidates": [one.json() for one in self.candidates],
            "refused": dict(self.refused),
            "commands": list(self.commands),
            "recipe": self.recipe,
        }


def plan(
    source: str,
    *,
    device: str,
    budget: str = "",
    out: Path | None = None,
    probe: bool = False,
    work: Path | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Propose a way. Reads headers alone, but for a probe.

    Args:
        source: what `exporter.sources.load` takes.
        device: a name in `onnx_gpt.planning.device.devices`, or a .toml file of one.
        budget: ``size=90MB,decode=100,kl=0.1``, as `onnx_gpt.searching.budget` reads it. Without ``kl``, the way
            that is nearest to the model within the rest is chosen, else the smallest.
        out: where to write the recipe.
        probe: measure the damage of rounding on this model first, on calibration text.
        work: folder that measurements of a probe are kept in; one in the user's cache by default.

    Raises:
        OnnxGptError: ``device-unknown``, ``device-invalid``, ``device-unmeasured``, ``budget-invalid``,
            ``setting-unread`` (exit 2); ``budget-unmet`` (exit 7); ``output-exists`` (exit 10); what opening the source
            raises.
    """
    progress = progress or Silent()
    if not probe:
        refuse_unread({"work": work}, "nothing is measured", "add --probe")
    where = device_of(device)
    limits = parse_budget(budget) if budget else Budget()
    _require_measured(where, limits)
    if out is not None:
        require_absent(out)
    progress.stage("load")
    opened = sources.load(source)
    known = probed_on(source, work, progress) if probe else {}
    progress.stage("plan")
    found, refused, parameters = candidates(source, opened, where, known, progress)
    judged = _judged(found, limits, budget)
    picked = next(one for one in judged if one.verdict == "chosen")
    text = toml_text(picked.recipe.resolved(), picked.predicted)
    if out is not None:
        write_file(out, text)
    last = (source, *CHECKPOINTS)[len(picked.predicted.before)]
    commands = (
        *picked.predicted.before,
        shlex.join(["onnx-gpt", "optimize", last, "-o", "bundle", "--recipe", str(out or "recipe.toml")]),
    )
    return Plan(source, where, budget, parameters, tuple(judged), refused, commands, text)


def _require_measured(device: Device, limits: Budget) -> None:
    if limits.decode is not None and device.measured is None:
        raise OnnxGptError(
            "device-unmeasured",
            f"nobody has measured how fast {device.name} is, so no speed can be promised there",
            device.measure,
            exit=Exit.USAGE,
        )


def _judged(found: Sequence[Candidate], limits: Budget, budget: str) -> list[Candidate]:
    """The candidates with their verdicts."""
    broken = {one.name: _broken(one.predicted, limits) for one in found}
    fit = [one for one in found if not broken[one.name]]
    if not fit:
        near = sorted(found, key=lambda one: len(broken[one.name]))[:5]
        raise OnnxGptError(
            "budget-unmet",
            f"of {len(found)} ways that have been measured, none keeps {budget or 'less than the whole model'}",
            "ask for less, or let `onnx-gpt optimize --budget` search the format of each layer",
            exit=Exit.RESOURCES,
            details=tuple(f"{one.name}: {'; '.join(broken[one.name])}" for one in near),
        )
    best = min(fit, key=lambda one: _rank(one, limits))
    edge = front([(one.predicted.size.value, one.predicted.kl.value) for one in found])
    return [
        dataclasses.replace(one, verdict=_verdict(one, best, broken[one.name], limits), front=i in edge)
        for i, one in enumerate(found)
    ]


def _rank(one: Candidate, limits: Budget) -> tuple[float, ...]:
    wanted = one.predicted
    steps = float(len(wanted.before))
    if limits.kl is not None:
        return (wanted.size.value, steps, wanted.kl.value)
    return (wanted.kl.value, steps, wanted.size.value)


def _broken(predicted: Predicted, limits: Budget) -> list[str]:
    """The limits that a way does not keep, in words."""
    found = []
    if limits.size is not None and predicted.size.value > limits.size:
        found.append(f"{predicted.size.value / 1e6:.4g} MB > {limits.size / 1e6:.4g}")
    if predicted.kl.value > (limits.kl or MOST):
        found.append(f"KL {predicted.kl.value:.2g} > {limits.kl or MOST:g}")
    if limits.decode is not None:
        if predicted.decode is None:
            found.append("decode not measured on this device")
        elif predicted.decode.value < limits.decode:
            found.append(f"decode {predicted.decode.value:.0f} < {limits.decode:g} tokens/s")
    return found


def _verdict(one: Candidate, best: Candidate, broken: Sequence[str], limits: Budget) -> str:
    if one is best:
        return "chosen"
    if broken:
        return "; ".join(broken)
    ours, theirs = one.predicted, best.predicted
    if limits.kl is not None and ours.size.value > theirs.size.value:
        return f"larger: {ours.size.value / theirs.size.value:.2f} ×"
    if ours.kl.value > theirs.kl.value:
        nearest = f"{theirs.kl.value:.2g}"
        return f"further from the model, chosen {nearest}"
    return "more steps, or larger"
