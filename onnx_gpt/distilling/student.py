"""Teacher and student in PyTorch: the teacher reads the text, then the student is trained on what it said."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import rejected
from onnx_gpt.distilling.pair import Model
from onnx_gpt.distilling.recipe import RATES, DistillRecipe
from onnx_gpt.distilling.report import Point, Teacher, Training
from onnx_gpt.progress import Progress
from onnx_gpt.report import Stages

HELD_OUT = 4
"""Windows that the student is looked at with while it trains; an eighth of a short text."""
HUGE_PAGES = ("THP_MEM_ALLOC_ENABLE", "1")
"""Asks torch for Linux's huge pages, before it allocates anything: a step is an eighth faster."""
RUN = "run.json"
"""What a folder of states is the run of."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training made.

    Attributes:
        weights: float32 by role.
        rate: the learning rate that was taken.
        facts: of the teacher, all but its name and its perplexity.
    """

    weights: Mapping[str, np.ndarray]
    rate: float
    facts: Mapping[str, Any]
    training: Training

    def teacher(self, source: str, perplexity: float) -> Teacher:
        return Teacher(source=source, perplexity=perplexity, **self.facts)


def trained(
    learns: Model,
    teaches: Model,
    windows: np.ndarray,
    recipe: DistillRecipe,
    states: Path,
    work: Path,
    stages: Stages,
    progress: Progress,
) -> Trained:
    """Train a student, or go on where a killed run stopped.

    Args:
        windows: int64 ``[N, S]``; the first ones are held out.
        states: folder of the run's states, made for them.
        work: folder of what teachers said.

    Raises:
        OnnxGptError: ``distill-other-run``, ``training-diverged``.
    """
    os.environ.setdefault(*HUGE_PAGES)
    from calibration.distillation.initial import drawn
    from calibration.distillation.objective import Objective
    from calibration.distillation.running import device, tensors
    from calibration.distillation.scales import Scales
    from calibration.distillation.teaching import Said, digest_of
    from calibration.distillation.training import Floats, Run, train

    began = time.process_time()
    with stages.stage("teach"):
        taught = tensors(teaches.arrays())
        told = digest_of(teaches.decoder, taught, windows, recipe.temperature)
        width = teaches.decoder.hidden_size if recipe.hidden else None
        said = Said(work / told[:32], windows, teaches.decoder.vocab_size, width)
        said.fill(teaches.decoder, taught, recipe.temperature, progress.advance)
        del taught
    with stages.stage("train"):
        arrays = learns.arrays() if learns.trained else drawn(learns.decoder, recipe.seed)
        weights = tensors(arrays)
        own = digest_of(learns.decoder, weights, windows[:0], recipe.temperature)
        student: Scales | Floats
        if recipe.scheme is None:
            rate = recipe.rate or RATES["trained" if learns.trained else "untrained"]
            student = Floats(weights, tables=not learns.trained)
        else:
            rate = recipe.rate or RATES["scales"]
            student = Scales(arrays, recipe.scheme)
        run = Run(
            decoder=learns.decoder,
            said=said,
            objective=Objective(recipe.mix, recipe.temperature, recipe.hidden),
            steps=recipe.steps,
            batch=recipe.batch,
            rate=rate,
            seed=recipe.seed,
            held_out=max(1, min(HELD_OUT, len(windows) // 8)),
        )
        _claim(states, {"student": own, "teacher": told, "recipe": recipe.echo(rate), "device": device()})
        known = train(run, student, states, progress.advance)
    return Trained(
        weights=student.arrays(known.best),
        rate=rate,
        facts={
            "parameters": _elements(teaches),
            "kept": said.kept,
            "tail": said.rest,
            "cache_bytes": said.nbytes,
        },
        training=Training(
            steps=run.steps,
            done=known.step,
            best=known.best_step,
            tokens=known.step * run.batch * windows.shape[1],
            unique_tokens=(len(windows) - run.held_out) * windows.shape[1],
            trained=sum(value.numel() for value in student.values.values()),
            elements=_elements(learns),
            curve=tuple(Point(step=step, loss=loss) for step, loss in known.curve),
            resumed=known.resumed,
            processor_seconds=round(time.process_time() - began, 1),
        ),
    )


def _elements(model: Model) -> int:
    return sum(math.prod(part.shape) for _, part in model.decoder.parts())


def _claim(states: Path, identity: Mapping[str, object]) -> None:
    """Say whose states a folder is to hold.

    Raises:
        OnnxGptError: ``distill-other-run`` where it holds those of other weights, another text or other settings.
    """
    text = json.dumps(identity, sort_keys=True)
    file = states / RUN
    if file.exists() and file.read_text("utf-8") != text and any(states.glob("step-*")):
        raise rejected(
            "distill-other-run",
            f"{states} holds what another run with this output had reached when it stopped",
            "repeat that run's command to go on with it, or remove the folder",
        )
    states.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
