"""Which models a job makes: what several targets want alike is made and proven once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from exporter.errors import Exit, OnnxGptError, unsupported
from onnx_gpt.bundle.runtime import Runtime
from onnx_gpt.bundle.targets import ModelFile, Target, chosen
from onnx_gpt.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Build:
    """One graph with one set of weights.

    Attributes:
        name: of the first model that it is for, ``web:q4``.
        pipeline: passes of the targets; the recipe's own go before them.
        recipe: settings of this one.
        runtimes: all that will run it.
        constant_scales: whether the scales of lookups are written as constants.
    """

    name: str
    pipeline: str
    recipe: Recipe
    runtimes: tuple[Runtime, ...]
    constant_scales: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """A job's builds, and where each goes.

    Attributes:
        targets: each with the models that are asked for.
        builds: in the order in which they are made.
        uses: for each target, the build of each of its models.
    """

    targets: tuple[Target, ...]
    builds: tuple[Build, ...]
    uses: tuple[tuple[int, ...], ...]


def plan(recipe: Recipe) -> Plan:
    """What a job makes.

    Raises:
        OnnxGptError: ``target-unknown`` (exit 2) where no target is named; ``target-unsupported`` (exit 3) where a
            runtime does not feed the cache that is asked for.
    """
    if not recipe.targets:
        raise OnnxGptError("target-unknown", "no target is named", "use --target ort", exit=Exit.USAGE)
    targets = tuple(chosen(name) for name in dict.fromkeys(recipe.targets))
    names = [target.name for target in targets]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise OnnxGptError(
            "target-unknown",
            f"{twice} is named twice, and would be written into one folder",
            f"name its models together, as in --target {twice}:ONE+OTHER",
            exit=Exit.USAGE,
        )
    builds: list[Build] = []
    uses = tuple(tuple(_use(builds, target, model, recipe) for model in target.models) for target in targets)
    return Plan(targets, tuple(builds), uses)


def _use(builds: list[Build], target: Target, model: ModelFile, recipe: Recipe) -> int:
    """The build that a model comes from, added where there is none yet."""
    own, runtime = recipe.of(model), model.runtime
    if own.kv_cache not in runtime.caches:
        raise unsupported(
            "target-unsupported",
            f"{runtime.name} does not feed a cache of type {own.kv_cache}",
            "use --kv-cache float",
        )
    lowering = own.passes or model.pipeline
    for i, build in enumerate(builds):
        if (build.pipeline, build.recipe, build.constant_scales) == (lowering, own, runtime.constant_scales):
            if runtime not in build.runtimes:
                builds[i] = dataclasses.replace(build, runtimes=(*build.runtimes, runtime))
            return i
    builds.append(Build(f"{target.name}:{model.name}", lowering, own, (runtime,), runtime.constant_scales))
    return len(builds) - 1


def folders(targets: Sequence[Target]) -> tuple[str, ...]:
    """Where in the output each target goes: one fills it, several take a folder each."""
    return ("",) if len(targets) == 1 else tuple(target.name for target in targets)
