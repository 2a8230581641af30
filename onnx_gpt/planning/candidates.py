"""Every way to make a model smaller for a device that has been measured on some model, and what each would come to."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from exporter.checkpoint import Checkpoint, Opened
from exporter.errors import OnnxGptError
from onnx_gpt.bundle.plan import plan as builds_of
from onnx_gpt.bundle.targets import chosen
from onnx_gpt.planning.damage import offered, pruning_damage, prunings, scheme_damage, summed, told
from onnx_gpt.planning.device import Device, Measured
from onnx_gpt.planning.prediction import CONTEXT, Estimate, Predicted
from onnx_gpt.planning.variants import without
from onnx_gpt.planning.work import Graph, Work, graph_of, work_of
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import Recipe

SIZE_BAND = 0.02
SPEED_BAND, MEMORY_BAND = 0.25, 0.25
"""Shares of itself by which a figure may be off. Speeds are those of a machine with nothing else to do."""

CHECKPOINTS = ("pruned", "healed")
"""What the commands of a way call the checkpoints that they make, in order."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way.

    Attributes:
        name: in words.
        recipe: of the bundle.
        predicted: what it would come to.
        verdict: ``chosen``, or why not.
        front: whether no other way is both smaller and nearer to the model.
    """

    name: str
    recipe: Recipe
    predicted: Predicted
    verdict: str = ""
    front: bool = False

    def json(self) -> dict[str, Any]:
        """For programs."""
        own = {
            key: value
            for key, value in dataclasses.asdict(self).items()
            if key not in ("recipe", "predicted")
        }
        return own | {"predicted": self.predicted.model_dump(exclude_none=True)}


def candidates(
    source: str, opened: Opened, device: Device, probed: Mapping[str, float], progress: Progress
) -> tuple[list[Candidate], dict[str, str], int]:
    """Every way that has been measured on some model; what cannot be done here, and why; the model's parameters."""
    refused: dict[str, str] = {}
    found: list[Candidate] = []
    parameters = 0
    steps = ["", *(prunings() if isinstance(opened, Checkpoint) else [])]
    for i, structured in enumerate(steps):
        progress.advance(i, len(steps), "ways")
        try:
            shaped = without(opened, structured) if structured and isinstance(opened, Checkpoint) else opened
        except OnnxGptError as error:
            refused[f"prune {structured}"] = error.cause
            continue
        graphs: dict[tuple[str, bool], Graph] = {}
        for name, settings, recipe in _recipes(device):
            build = builds_of(recipe).builds[0]
            key = (build.pipeline, build.recipe.is_static or build.recipe.is_dynamic)
            try:
                graph = graphs[key] if key in graphs else graph_of(shaped, build)
                graphs[key] = graph
                work = work_of(graph, build)
                if all(model.weights is not None for model in recipe.models()):
                    work = work.of_model(build.name)
            except OnnxGptError as error:
                if not structured or settings["quantize"] != "keep":
                    refused[_named(structured, False, name)] = error.cause
                continue
            parameters = parameters or graph.exported.parameters
            for healed in (False, True) if structured else (False,):
                predicted = _predicted(source, structured, healed, settings, work, device, parameters, probed)
                if predicted is None:
                    if not healed:
                        refused[_named(structured, healed, name)] = "its damage was not measured on any model"
                    continue
                found.append(Candidate(_named(structured, healed, name), recipe, predicted))
    return sorted(found, key=lambda one: one.predicted.size.value), refused, parameters


def _recipes(device: Device) -> Iterator[tuple[str, dict[str, Any], Recipe]]:
    """Every recipe for a device: its name, the settings that its damage is known by, and itself."""
    for target in device.targets:
        model = chosen(target).models[0]
        if model.weights is not None:
            own = dataclasses.asdict(model.weights)
            settings = {name: value for name, value in own.items() if value is not None}
            yield f"{target} ({told(settings)})", settings, Recipe(targets=(target,))
            continue
        for settings in offered():
            if settings["quantize"] in device.schemes:
                yield told(settings), settings, Recipe(targets=(target,), **settings)


def _named(structured: str, healed: bool, scheme: str) -> str:
    steps = [f"prune {structured}"] * bool(structured) + ["distill"] * healed + [scheme]
    return " → ".join(steps)


def _predicted(
    source: str,
    structured: str,
    healed: bool,
    settings: Mapping[str, Any],
    work: Work,
    device: Device,
    parameters: int,
    probed: Mapping[str, float],
) -> Predicted | None:
    own = scheme_damage(settings, parameters, probed)
    if own is None:
        return None
    parts = {told(settings): own}
    if structured:
        lost = pruning_damage(structured, parameters, healed=healed)
        if lost is None:
            return None
        parts = {f"pruning {structured}" + (" and distilling" if healed else ""): lost, **parts}
    return Predicted(
        device=device.name,
        before=_before(source, structured, healed),
        size=Estimate.within(float(work.size), SIZE_BAND, "counted on the graph"),
        kl=summed(parts),
        own_kl=own,
        **_speeds(work, device.measured),
    )


def _before(source: str, structured: str, healed: bool) -> tuple[str, ...]:
    if not structured:
        return ()
    smaller, better = CHECKPOINTS
    source = shlex.quote(source)
    prune = f"onnx-gpt prune {source} -o {smaller} --structured {structured}"
    return (prune, f"onnx-gpt distill {smaller} -o {better} --teacher {source}") if healed else (prune,)


def _speeds(work: Work, measured: Measured | None) -> dict[str, Estimate | None]:
    if measured is None:
        return {}
    step, prompt = work.step_seconds(measured, CONTEXT), work.prompt_seconds(measured, CONTEXT)
    memory, basis = work.memory(measured), f"measured on {measured.on}"
    band = max(SPEED_BAND, measured.misfit)
    return {
        "decode": None if step is None else Estimate.within(1 / step, band, basis),
        "prompt": None if prompt is None else Estimate.within(CONTEXT / prompt, band, basis),
        "memory": None if memory is None else Estimate.within(memory, MEMORY_BAND, basis),
    }
