"""Teacher and student in PyTorch: the teacher reads the text, then the student is trained on what it said."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import rejected
from onnx_gpt.distilling.pair import Model
from onnx_gpt.distilling.recipe import RATES, DistillRecipe
from onnx_gpt.distilling.report import Point, Teacher, Training
from onnx_gpt.progress import Progress
from onnx_gpt.report import Stages

if TYPE_CHECKING:
    from calibration.distillation.scales import Scales
    from calibration.distillation.teaching import Said
    from calibration.distillation.training import Floats

HELD_OUT = 4
"""Windows that the student is looked at with while it trains; an eighth of a short text."""
HUGE_PAGES = ("THP_MEM_ALLOC_ENABLE", "1")
"""Asks torch for Linux's huge pages, before it allocates anything: a step is an eighth faster."""
RUN = "run.json"
"""What a folder of states is the run of."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One distillation, read and not yet begun.

    Attributes:
        windows: of the text, int64 ``[N, S]``; the first ones are held out.
    """

    learns: Model
    teaches: Model
    windows: np.ndarray
    recipe: DistillRecipe
    stages: Stages
    progress: Progress


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


def trained(task: Task, states: Path, work: Path) -> Trained:
    """Train a student, or go on where a killed run stopped.

    Args:
        states: folder of the run's states.
        work: folder of what teachers said.

    Raises:
        OnnxGptError: ``distill-other-run``, ``training-diverged``.
    """
    os.environ.setdefault(*HUGE_PAGES)
    from calibration.distillation.objective import Objective
    from calibration.distillation.running import device
    from calibration.distillation.training import Run, train

    recipe, (count, length) = task.recipe, task.windows.shape
    began = time.process_time()
    with task.stages.stage("teach"):
        said, told = _said(task, work)
    with task.stages.stage("train"):
        student, rate, own = _student(task)
        run = Run(
            decoder=task.learns.decoder,
            said=said,
            objective=Objective(recipe.mix, recipe.temperature, recipe.hidden),
            steps=recipe.steps,
            batch=recipe.batch,
            rate=rate,
            seed=recipe.seed,
            held_out=max(1, min(HELD_OUT, count // 8)),
        )
        _claim(states, {"student": own, "teacher": told, "recipe": recipe.echo(rate), "device": device()})
        known = train(run, student, states, task.progress.advance)
    return Trained(
        weights=student.arrays(known.best),
        rate=rate,
        facts={
            "parameters": _elements(task.teaches),
            "kept": said.kept,
            "tail": said.rest,
            "cache_bytes": said.nbytes,
        },
        training=Training(
            steps=run.steps,
            done=known.step,
            best=known.best_step,
            tokens=known.step * run.batch * length,
            unique_tokens=(count - run.held_out) * length,
            trained=sum(value.numel() for value in student.values.values()),
            elements=_elements(task.learns),
            curve=tuple(Point(step=step, loss=loss) for step, loss in known.curve),
            resumed=known.resumed,
            processor_seconds=round(time.process_time() - began, 1),
        ),
    )


def _said(task: Task, work: Path) -> tuple[Said, str]:
    """What the teacher says of the windows, now or in an earlier run, and the digest of both."""
    from calibration.distillation.running import tensors
    from calibration.distillation.teaching import Said, digest_of

    decoder, recipe = task.teaches.decoder, task.recipe
    weights = tensors(task.teaches.arrays())
    digest = digest_of(decoder, weights, task.windows, recipe.temperature)
    width = decoder.hidden_size if recipe.hidden else None
    said = Said(work / digest[:32], task.windows, decoder.vocab_size, width)
    said.fill(decoder, weights, recipe.temperature, task.progress.advance)
    return said, digest


def _student(task: Task) -> tuple[Floats | Scales, float, str]:
    """What of the student is trained, the learning rate, and the digest of its weights."""
    from calibration.distillation.initial import drawn
    from calibration.distillation.running import tensors
    from calibration.distillation.scales import Scales
    from calibration.distillation.teaching import digest_of
    from calibration.distillation.training import Floats

    learns, recipe = task.learns, task.recipe
    arrays = learns.arrays() if learns.trained else drawn(learns.decoder, recipe.seed)
    weights = tensors(arrays)
    digest = digest_of(learns.decoder, weights, task.windows[:0], recipe.temperature)
    if recipe.scheme is not None:
        return Scales(arrays, recipe.scheme), recipe.rate or RATES["scales"], digest
    rate = recipe.rate or RATES["trained" if learns.trained else "untrained"]
    return Floats(weights, tables=not learns.trained), rate, digest


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
    file.write_text(text, "utf-8")
