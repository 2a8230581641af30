"""The loop: AdamW (Loshchilov & Hutter 2019), a cosine schedule with warm-up, gradients accumulated and clipped.

A step is a function of the state before it: windows follow from the seed and the step's number, so a run that was
killed and goes on from its last state (`state`) ends with the same bytes as one that was not. The student that is given
back is the one with the least loss on windows that are never trained on; training ends when that keeps rising.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from calibration.distillation import state
from calibration.distillation.objective import Objective
from calibration.distillation.running import Weights, mixed_precision
from calibration.distillation.state import Group, State
from calibration.distillation.teaching import Report, Said
from exporter.decoder import Decoder
from exporter.errors import rejected

BETAS = (0.9, 0.95)
WARM_UP = 20
"""One step of so many is warm-up."""
LOOKS, APART = 5, 50
"""Times that the held-out loss is taken in a run, unless that is fewer than once in so many steps."""
PATIENCE = 3
"""Looks in a row, each worse than the one before, after which training ends. One that is worse than the best says
nothing: the loss is often above that of the beginning as long as the rate is at its largest, and falls with it."""
CLIP = 1.0
"""Largest norm of all gradients together."""
LOGITS = 1 << 25
"""Logits of the windows that run at once: 128 MiB."""


class Student(Protocol):
    """What is trained, and the weights that follow from it."""

    values: Group

    def weights(self) -> Weights: ...


TABLES = ("embedding.weight", "positions.weight", "head.weight")
"""Roles of what has a row for each token, or place."""


class Floats:
    """Weights are trained as they are.

    Args:
        tables: whether tables are, too. AdamW moves every row of one by as much as any other, those of tokens that the
            text does not have as well; a student that has good ones keeps them.
    """

    def __init__(self, weights: Group, *, tables: bool = True) -> None:
        self._fixed = {} if tables else {role: weights[role] for role in TABLES if role in weights}
        self.values = {role: t.requires_grad_() for role, t in weights.items() if role not in self._fixed}

    def weights(self) -> Weights:
        return {**self._fixed, **self.values}

    def arrays(self, values: Group) -> dict[str, np.ndarray]:
        """The weights by role that some values make, float32."""
        return {role: tensor.detach().cpu().numpy() for role, tensor in {**self._fixed, **values}.items()}


@dataclasses.dataclass(frozen=True)
class Run:
    """What is to be done.

    Attributes:
        steps: of the schedule.
        batch: windows of a step.
        rate: the largest learning rate.
        seed: of the windows' order.
        held_out: windows of the text, its first ones, that are looked at and not trained on.
    """

    decoder: Decoder
    said: Said
    objective: Objective
    steps: int
    batch: int
    rate: float
    seed: int
    held_out: int

    def rate_at(self, step: int) -> float:
        """Of step 0, 1, …: up to the largest one, then down to 0 along a cosine."""
        warm = max(1, self.steps // WARM_UP)
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def windows_at(self, step: int) -> list[int]:
        """The windows of a step: all of the text in one order after the other."""
        count = len(self.said.windows) - self.held_out
        places = range(step * self.batch, (step + 1) * self.batch)
        return [self.held_out + int(self._order(at // count)[at % count]) for at in places]

    def _order(self, turn: int) -> np.ndarray:
        count = len(self.said.windows) - self.held_out
        return np.random.default_rng([self.seed, turn]).permutation(count)

    def looks_at(self, step: int) -> bool:
        """Whether the held-out loss is taken behind so many steps."""
        return step == self.steps or step % min(APART, max(1, self.steps // LOOKS)) == 0

    def pieces(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Windows that fit into memory together, with their logits."""
        size = self.said.windows.shape[1] * self.decoder.vocab_size
        at_once = max(1, LOGITS // size)
        for start in range(0, len(rows), at_once):
            yield list(rows[start : start + at_once])


def train(run: Run, student: Student, folder: Path, report: Report) -> State:
    """Train, from the beginning or from where the folder says that it stopped.

    Args:
        student: changed in place; what it is in the end says the result's ``best``.
        folder: made for states; removed by the caller when the result has been written.

    Raises:
        OnnxGptError: ``training-diverged`` where the loss is no number any more.
    """
    optimizer = torch.optim.AdamW(
        student.values.values(), lr=run.rate, betas=BETAS, weight_decay=0.0, fused=True
    )
    known = state.load(folder)
    if known is None:
        known = _first(student, held_out_loss(run, student))
    else:
        _restore(student, optimizer, known)
        known = dataclasses.replace(known, resumed=(*known.resumed, known.step))
    began, at = time.monotonic(), known.step
    for step in range(at, run.steps):
        if _stopped(known):
            break
        _step(run, student, optimizer, step)
        left = (time.monotonic() - began) / (step + 1 - at) * (run.steps - step - 1)
        report(step + 1, run.steps, f"steps, held-out loss {known.curve[-1][1]:.4f}, {_minutes(left)} left")
        if run.looks_at(step + 1):
            known = _look(run, student, optimizer, known, step + 1)
            state.save(folder, known)
    return known


def held_out_loss(run: Run, student: Student) -> float:
    """Mean loss on the windows that are not trained on, nats a token."""
    total = 0.0
    with torch.no_grad():
        weights = student.weights()
        for rows in run.pieces(range(run.held_out)):
            with mixed_precision():
                loss = run.objective.loss(run.decoder, weights, run.said.of(rows))
            total += len(rows) * float(loss)
    return total / run.held_out


def _accumulate(run: Run, student: Student, step: int) -> None:
    """Add up the gradients of a step's windows."""
    for rows in run.pieces(run.windows_at(step)):
        with mixed_precision():
            loss = run.objective.loss(run.decoder, student.weights(), run.said.of(rows))
        (loss * (len(rows) / run.batch)).backward()


def _step(run: Run, student: Student, optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = run.rate_at(step)
    optimizer.zero_grad()
    _accumulate(run, student, step)
    norm = torch.nn.utils.clip_grad_norm_(student.values.values(), CLIP)
    if not torch.isfinite(norm):
        raise rejected(
            "training-diverged",
            f"the gradients of step {step + 1} are not finite",
            "train with a smaller --rate",
        )
    optimizer.step()


def _first(student: Student, loss: float) -> State:
    values = _copies(student.values)
    return State(0, values, {}, {}, values, 0, ((0, loss),), ())


def _look(run: Run, student: Student, optimizer: torch.optim.Optimizer, known: State, step: int) -> State:
    loss = held_out_loss(run, student)
    values = _copies(student.values)
    better = loss < min(old for _, old in known.curve)
    moments = [optimizer.state[value] for value in student.values.values()]

    def moment(which: str) -> Group:
        return {name: of[which] for name, of in zip(values, moments, strict=True)}

    return dataclasses.replace(
        known,
        step=step,
        values=values,
        first=moment("exp_avg"),
        second=moment("exp_avg_sq"),
        best=values if better else known.best,
        best_step=step if better else known.best_step,
        curve=(*known.curve, (step, loss)),
    )


def _restore(student: Student, optimizer: torch.optim.Optimizer, known: State) -> None:
    for name, value in student.values.items():
        value.data.copy_(known.values[name])
        optimizer.state[value] = {
            "step": torch.tensor(float(known.step)),
            "exp_avg": known.first[name].to(value.device),
            "exp_avg_sq": known.second[name].to(value.device),
        }


def _copies(values: Group) -> Group:
    return {name: value.detach().cpu().clone() for name, value in values.items()}


def _stopped(known: State) -> bool:
    """Whether the loss has been rising."""
    last = [loss for _, loss in known.curve[-PATIENCE - 1 :]]
    return len(last) > PATIENCE and all(a < b for a, b in itertools.pairwise(last))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
