"""One job: its source, what is to be made of it, and where."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from exporter.checkpoint import Opened
from onnx_gpt.bundle.plan import Build, Plan
from onnx_gpt.certificate.source import Digests
from onnx_gpt.optimizing.codes import KeptCodes
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import Recipe
from onnx_gpt.report import Stages

Stage = Callable[[str], AbstractContextManager[dict[str, int]]]
"""Times a step of the job; what it yields may be given ``nodes``."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One job, its source opened.

    Attributes:
        digests: of the source.
        recipe: the settings of all builds.
        plan: the builds, and where each goes.
        out: directory to make.
        folder: for what is needed until that is there.
        kept: for what takes long: where a run that was killed has left this folder, it goes on from there.
        progress: told what happens.
    """

    opened: Opened
    digests: Digests
    recipe: Recipe
    plan: Plan
    out: Path
    folder: Path
    kept: Path
    stages: Stages
    progress: Progress

    def stage(self, build: Build) -> Stage:
        """Times steps of a build, which is named where there are several."""
        several = len(self.plan.builds) > 1
        return lambda name: self.stages.stage(f"{build.name}: {name}" if several else name)

    def codes(self, i: int) -> KeptCodes:
        """Of the i-th build."""
        return KeptCodes(self.kept / f"{i}.codes", self.digests)
