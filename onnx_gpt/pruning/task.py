"""What a step of pruning is given, and what it gives back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from calibration.pruning.chain import Chain
from calibration.pruning.model import Described, Runner
from exporter.checkpoint import Checkpoint
from onnx_gpt.progress import Progress
from onnx_gpt.pruning.recipe import PruneRecipe
from onnx_gpt.report import Stages


@dataclasses.dataclass(frozen=True)
class Task:
    """One pruning job, read and not yet begun.

    Attributes:
        opened: the checkpoint as it was read.
        model: its decoder with weights by role.
        tokens: calibration text, int64 ``[N, S]``; None where the recipe reads none.
        folder: scratch; new matrices lie in it until the checkpoint has been written.
    """

    opened: Checkpoint
    model: Described
    recipe: PruneRecipe
    tokens: np.ndarray | None
    folder: Path
    stages: Stages
    progress: Progress

    def runner(self) -> Runner:
        """Runs parts of the model on windows of the calibration text's length."""
        assert self.tokens is not None
        return Runner(self.folder / "parts", self.tokens.shape[1])

    def chain(self, model: Described, runner: Runner, windows: int) -> Chain:
        """All layers of a model, on the first windows of the calibration text."""
        assert self.tokens is not None
        return Chain(model, runner, self.tokens[:windows])


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A checkpoint, and what the report says of how it came to be."""

    checkpoint: Checkpoint
    facts: dict[str, Any]
